"""Measures the input pipeline: augmented crops per second and per core, decoding included.

    python benchmarks/input_pipeline.py --threads=1
    python benchmarks/input_pipeline.py --threads=2 --step_rate=0.5 --batch_size=2

It makes its own records of 500x375 photograph-like JPEGs with masks, so it needs no data. The
process is confined to `--threads` cores. "per CPU second" divides by the processor time of the
process instead of the wall clock, so it holds on a machine that does other work too.
"""

import argparse
import dataclasses
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
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

HEIGHT, WIDTH, QUALITY = 375, 500, 90
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


def photograph(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Makes an image and its mask: gradients, ellipses, and noise that falls off as 1/frequency."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([rng.uniform(40, 200) + rng.uniform(-0.2, 0.2) * y for _ in range(3)], -1)
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(4):
        cy, cx = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
        ry, rx = rng.uniform(20, 150, 2)
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        image[inside] = rng.uniform(0, 255, 3)
        label[inside] = rng.integers(1, 21)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    for c in range(3):
        spectrum = np.fft.rfft2(rng.normal(size=(HEIGHT, WIDTH)))
        noise = np.fft.irfft2(spectrum / np.maximum(frequency, 0.01), s=(HEIGHT, WIDTH))
        image[..., c] += 30.0 * noise / noise.std()
    label[rng.random(label.shape) < 0.02] = 255
    return np.clip(image, 0, 255).astype(np.uint8), label


def _encoded(array: np.ndarray, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, name, **options)
    return buffer.getvalue()


def write_records(folder: str, count: int, seed: int = 0) -> float:
    """Writes the split 'train' into `folder`; returns the mean size of its JPEGs in bytes."""
    rng = np.random.default_rng(seed)
    sizes = []
    with ShardWriter(os.path.join(folder, shard_name("train", 0, 1))) as writer:
        for i in range(count):
            image, label = photograph(rng)
            jpeg = _encoded(image, "JPEG", quality=QUALITY)
            sizes.append(len(jpeg))
            writer.write(
                tfexample.encode(
                    image=jpeg,
                    label=_encoded(label, "PNG"),
                    filename=f"image_{i}",
                    height=HEIGHT,
                    width=WIDTH,
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


def measure(
    config: DataConfig, asked: dict[str, Any], *, batch_size: int, seconds: float
) -> tuple[float, float]:
    """Returns examples per second of wall clock and per second of processor time."""
    spec = DATASETS["pascal_voc_seg"]
    streams = {"s": Stream("train", batch_size, **asked)}
    sources = make_sources(streams, spec, config)
    dataset = pipeline.make_train_dataset(streams, sources, config, mean_pixel=MEAN_PIXEL, seed=0)
    count, wall, cpu = _consume(iter(dataset), seconds, batch_size)
    return count / wall, count / cpu


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="cores to use")
    parser.add_argument("--crop_size", type=int, default=513, help="side of the crop, in pixels")
    parser.add_argument("--batch_size", type=int, default=8, help="examples in a batch")
    parser.add_argument("--images", type=int, default=64, help="different images")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument(
        "--step_rate",
        type=float,
        help="training steps per second (of benchmarks/train_step.py); prints by how much the "
        "pipeline is faster",
    )
    arguments = parser.parse_args()
    for name in ("threads", "crop_size", "batch_size", "images"):
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
        size = write_records(folder, arguments.images)
        config = DataConfig(
            dataset_dir=folder,
            train_crop_size=(arguments.crop_size, arguments.crop_size),
            data_threads=arguments.threads,
        )
        print(
            f"{arguments.images} JPEGs of {WIDTH}x{HEIGHT}, {size / 1000:.0f} kB on average; crop "
            f"{arguments.crop_size}; {arguments.threads} core(s)"
        )
        print(f"{'views':<15} {'per second':>11} {'per core':>9} {'per CPU second':>15}", end="")
        print(f" {'steps/s':>8} {'x step rate':>12}" if arguments.step_rate else "")
        for name, augmentation, asked in KINDS:
            rate, per_cpu = measure(
                dataclasses.replace(config, augmentation=augmentation),
                asked,
                batch_size=arguments.batch_size,
                seconds=arguments.seconds,
            )
            line = f"{name:<15} {rate:>11.1f} {rate / arguments.threads:>9.1f} {per_cpu:>15.1f}"
            if arguments.step_rate:
                steps = rate / arguments.batch_size
                line += f" {steps:>8.2f} {steps / arguments.step_rate:>12.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
