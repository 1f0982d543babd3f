"""Measures the input pipeline: augmented crops per second and per core, decoding included.

    python benchmarks/input_pipeline.py --threads=1
    python benchmarks/input_pipeline.py --threads=2 --step_rate=0.5 --batch_size=2
    python benchmarks/input_pipeline.py --views=weak --height=1024 --width=2048 --images=8

It makes its own records of photograph-like JPEGs with masks, so it needs no data. The process is
confined to `--threads` cores. "per CPU second" divides by the processor time of the process instead
of the wall clock, so it holds on a machine that does other work too. "copying" is what putting an
example into its batch takes of one thread, all copies of the example's bytes being one. "serial" is
what Python does for an example while no other thread can run Python: reading its record.
"""

import argparse
import dataclasses
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import numpy as np
import tensorflow as tf
from PIL import Image

from tfseg.data import pipeline, tfexample
from tfseg.data.atomic_writing import ShardWriter
from tfseg.data.shards import shard_name
from tfseg.data.sources import make_sources
from tfseg.data.specs import DATASETS
from tfseg.data.stream import Stream
from tfseg.settings.data import DataConfig

QUALITY = 90
MEAN_PIXEL = (127.5, 127.5, 127.5)
# Rows of the table: name, --augmentation, what the stream asks for. PseudoSeg reads the first two
# in each step, Learning Pseudo Labels the next two, SLRNet, STRICT and ZS3Net one each; UniMatch V2
# the last two, UniMatch the last one twice (image and donor).
KINDS = (
    ("weak", "deeplab", {}),
    ("weak + strong", "deeplab", {"strong_views": 1, "labels": "optional"}),
    ("composition", "composition", {}),
    ("light", "composition", {"augment": "light", "labels": "optional"}),
    ("resized crop", "resized_crop", {}),
    ("warped crop", "warped_crop", {}),
    ("short-side crop", "short_side_crop", {}),
    ("long-side crop", "long_side_crop", {}),
    (
        "and two strong",
        "long_side_crop",
        {"strong_views": 2, "boxes": True, "labels": "optional"},
    ),
)


def photograph(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes an image and its mask: gradients, ellipses, and noise that falls off as 1/frequency."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([rng.uniform(40, 200) + rng.uniform(-0.2, 0.2) * y for _ in range(3)], -1)
    label = np.zeros((height, width), np.uint8)
    for _ in range(4):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        ry, rx = rng.uniform(20, 150, 2) * height / 375
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        image[inside] = rng.uniform(0, 255, 3)
        label[inside] = rng.integers(1, 21)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    for c in range(3):
        spectrum = np.fft.rfft2(rng.normal(size=(height, width)))
        noise = np.fft.irfft2(spectrum / np.maximum(frequency, 0.01), s=(height, width))
        image[..., c] += 30.0 * noise / noise.std()
    label[rng.random(label.shape) < 0.02] = 255
    return np.clip(image, 0, 255).astype(np.uint8), label


def _encoded(array: np.ndarray, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, name, **options)
    return buffer.getvalue()


def write_records(
    folder: str, count: int, height: int = 375, width: int = 500, seed: int = 0
) -> float:
    """Writes the split 'train' into `folder`; returns the mean size of its JPEGs in bytes."""
    rng = np.random.default_rng(seed)
    sizes = []
    with ShardWriter(os.path.join(folder, shard_name("train", 0, 1))) as writer:
        for i in range(count):
            image, label = photograph(rng, height, width)
            jpeg = _encoded(image, "JPEG", quality=QUALITY)
            sizes.append(len(jpeg))
            writer.write(
                tfexample.encode(
                    image=jpeg,
                    label=_encoded(label, "PNG"),
                    filename=f"image_{i}",
                    height=height,
                    width=width,
                )
            )
    return float(np.mean(sizes))


def _consume(batches: Iterator, seconds: float, batch_size: int) -> tuple[int, float, float]:
    """Returns (examples, wall seconds, processor seconds), after a warm-up of two seconds."""
    begin = time.monotonic()
    while time.monotonic() - begin < 2.0:
        next(batches)
    count, wall, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() - wall < seconds:
        next(batches)
        count += batch_size
    return count, time.monotonic() - wall, time.process_time() - cpu


def copying_ms(batches: tf.data.Dataset, batch_size: int, seconds: float) -> float:
    """Returns the milliseconds of one thread that an example takes to be put into a batch."""
    example = {
        key: tf.zeros(spec.shape[1:], spec.dtype) for key, spec in batches.element_spec["s"].items()
    }
    copied = tf.data.Dataset.from_tensors(example).repeat().batch(batch_size, drop_remainder=True)
    count, _, cpu = _consume(iter(copied), seconds, batch_size)
    return 1000 * cpu / count


class Stopwatch:
    """Adds up the processor time of Python functions that the pipeline calls in its threads."""

    def __init__(self, source: Any):
        self.seconds, self._keeping_errors = 0.0, source.keeping_errors
        source.keeping_errors = self._timed

    def _timed(self, function: Callable) -> Callable:
        # Augmentations on arrays come here too, but release the interpreter in what takes time.
        if function.__name__ != "read":
            return self._keeping_errors(function)

        def timed(*arguments):
            begin = time.thread_time()
            result = function(*arguments)
            self.seconds += time.thread_time() - begin
            return result

        return self._keeping_errors(timed)


def measure(
    config: DataConfig, asked: dict[str, Any], *, batch_size: int, seconds: float
) -> tuple[float, float, float, float]:
    """Measures one kind of views.

    Returns:
      Examples per second of wall clock and per second of processor time; milliseconds of an example
      that are copying and serial.
    """
    spec = DATASETS["pascal_voc_seg"]
    streams = {"s": Stream("train", batch_size, **asked)}
    sources = make_sources(streams, spec, config)
    stopwatch = Stopwatch(sources["s"])
    dataset = pipeline.make_train_dataset(streams, sources, config, mean_pixel=MEAN_PIXEL, seed=0)
    batches = iter(dataset)
    for _ in range(4):
        next(batches)
    stopwatch.seconds = 0.0
    begin = time.process_time()
    count, wall, cpu = _consume(batches, seconds, batch_size)
    # Of all that was read meanwhile, warm-up included.
    serial = stopwatch.seconds / (time.process_time() - begin) * cpu / count
    copying = copying_ms(dataset, batch_size, min(seconds, 2.0))
    return count / wall, count / cpu, copying, 1000 * serial


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="cores to use")
    parser.add_argument("--crop_size", type=int, default=513, help="side of the crop, in pixels")
    parser.add_argument("--batch_size", type=int, default=8, help="examples in a batch")
    parser.add_argument("--height", type=int, default=375, help="height of the images, pixels")
    parser.add_argument("--width", type=int, default=500, help="width of the images, pixels")
    parser.add_argument("--views", help="rows of the table, separated by commas; all of them")
    parser.add_argument("--images", type=int, default=64, help="different images")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument(
        "--step_rate",
        type=float,
        help="training steps per second (of benchmarks/train_step.py); prints by how much the "
        "pipeline is faster",
    )
    arguments = parser.parse_args()
    for name in ("threads", "crop_size", "batch_size", "images", "height", "width"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def _confine(threads: int) -> None:
    """Keeps the process on that many cores."""
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if threads > len(cores):
            sys.exit(f"error: --threads={threads}, but this machine has {len(cores)} cores")
        os.sched_setaffinity(0, cores[:threads])


def main() -> None:
    arguments = _arguments()
    _confine(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        size = write_records(folder, arguments.images, arguments.height, arguments.width)
        config = DataConfig(
            dataset_dir=folder,
            train_crop_size=(arguments.crop_size, arguments.crop_size),
            data_threads=arguments.threads,
        )
        print(
            f"{arguments.images} JPEGs of {arguments.width}x{arguments.height}, "
            f"{size / 1000:.0f} kB on average; crop {arguments.crop_size}; "
            f"{arguments.threads} core(s)"
        )
        print(f"{'views':<15} {'per second':>11} {'per core':>9} {'per CPU second':>15}", end="")
        print(f" {'copying, ms':>12} {'serial, ms':>11}", end="")
        print(f" {'steps/s':>8} {'x step rate':>12}" if arguments.step_rate else "")
        wanted = arguments.views.split(",") if arguments.views else [name for name, *_ in KINDS]
        for name, augmentation, asked in KINDS:
            if name not in wanted:
                continue
            rate, per_cpu, copying, serial = measure(
                dataclasses.replace(config, augmentation=augmentation),
                asked,
                batch_size=arguments.batch_size,
                seconds=arguments.seconds,
            )
            line = f"{name:<15} {rate:>11.1f} {rate / arguments.threads:>9.1f} {per_cpu:>15.1f}"
            line += f" {copying:>12.2f} {serial:>11.2f}"
            if arguments.step_rate:
                steps = rate / arguments.batch_size
                line += f" {steps:>8.2f} {steps / arguments.step_rate:>12.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
