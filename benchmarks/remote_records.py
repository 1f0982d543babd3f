"""Measures reading records far away: requests and bytes per record, records per second.

    python benchmarks/remote_records.py --delay_ms=50

`range_server.py` serves a folder of records and waits `--delay_ms` before every answer; fsspec's
HTTP file system reads it (with aiohttp, which s3fs brings). "tf.data alone" leaves reading ahead
out: as many reads are under way as the parallel map of the pipeline has threads. "read ahead" is
what is used. The records are read and parsed; pictures are not decoded. The last rows are whole
training pipelines: crops, from a disk and from the server.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import numpy as np
import tensorflow as tf

from tfseg.data import pipeline, record_reader
from tfseg.data.sources import make_sources
from tfseg.data.specs import DATASETS
from tfseg.data.stream import Stream
from tfseg.settings.data import DataConfig

from input_pipeline import MEAN_PIXEL, write_records

SPEC = DATASETS["pascal_voc_seg"]


@contextlib.contextmanager
def server(folder: str, delay_ms: float) -> Iterator[str]:
    """Yields the address of a folder that a process of its own serves."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "range_server.py")
    process = subprocess.Popen(
        [sys.executable, script, folder, f"--delay_ms={delay_ms}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.communicate("")


def counts(address: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{address}/counts") as response:
        return json.load(response)


def records(
    config: DataConfig, num_threads: int, *, reads_ahead: bool, passes: int = 50
) -> tf.data.Dataset:
    """Records in a random order, read and parsed."""
    streams = {"s": Stream("train", 1)}
    source = make_sources(streams, SPEC, config)["s"]
    if not reads_ahead:
        source._reader.is_remote = False
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(source.index.size) for _ in range(passes)])

    def fetch(i):
        return source.fetch(int(i))[0]

    numbers = source.reading_ahead(tf.data.Dataset.from_tensor_slices(order), lambda i: i)
    return numbers.map(
        lambda i: tf.numpy_function(fetch, [i], tf.string),
        num_parallel_calls=num_threads,
        deterministic=True,
    )


def crops(config: DataConfig) -> tf.data.Dataset:
    """Weak crops, as training has them."""
    streams = {"s": Stream("train", 8)}
    return pipeline.make_train_dataset(
        streams, make_sources(streams, SPEC, config), config, mean_pixel=MEAN_PIXEL, seed=0
    ).unbatch()


def measure(dataset: tf.data.Dataset, seconds: float) -> tuple[int, float, float]:
    """Returns how many elements came in how many seconds and processor seconds."""
    elements = iter(dataset)
    for _ in range(40):
        next(elements)
    start, used, number = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < start + seconds:
        next(elements)
        number += 1
    return number, time.perf_counter() - start, time.process_time() - used


def report(name: str, dataset: tf.data.Dataset, seconds: float) -> None:
    number, wall, cpu = measure(dataset, seconds)
    print(f"| {name} | {number / wall:.0f} | {1000 * cpu / number:.2f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--delay_ms", type=float, default=50.0)
    parser.add_argument("--num_records", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=5.0, help="Of each row.")
    parser.add_argument("--in_flight", type=int, nargs="+", default=[1, 8, 16, 32])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_records(folder, options.num_records)
        near = DataConfig(dataset_dir=folder, train_crop_size=(513, 513))
        index = make_sources({"s": Stream("train", 1)}, SPEC, near)["s"].index
        address = stack.enter_context(server(folder, options.delay_ms))
        far = DataConfig(dataset_dir=address, train_crop_size=(513, 513))
        make_sources({"s": Stream("train", 1)}, SPEC, far)
        before = counts(address)
        print(f"before the first record: {before['requests']} requests, {before['bytes']} bytes")
        one_pass = records(far, 2, reads_ahead=True, passes=1)
        start = counts(address)
        for _ in one_pass:
            pass
        after = counts(address)
        framed = float(index.length.mean()) + 16
        asked = {key: (after[key] - start[key]) / index.size for key in after}
        print(
            f"one pass: {asked['requests']:.3f} requests and {asked['bytes']:.0f} bytes a record "
            f"(one with its frame has {framed:.0f})"
        )
        print("| | a second | CPU ms each |\n|---|---|---|")
        for n in options.in_flight:
            report(
                f"tf.data alone, {n} threads", records(far, n, reads_ahead=False), options.seconds
            )
        usual = record_reader.READS_AHEAD
        for n in options.in_flight:
            record_reader.READS_AHEAD = n
            report(f"read ahead, {n} under way", records(far, 2, reads_ahead=True), options.seconds)
        record_reader.READS_AHEAD = usual
        report("crops from a disk", crops(near), options.seconds)
        report("crops from the server", crops(far), options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
