"""Times whole training steps: forward, backward, update, as `train_sup.py` makes them.

    python benchmarks/train_step.py --backbone=xception_65 --crop=513 --batch=2
    python benchmarks/train_step.py --precision=bfloat16 --jit
    python benchmarks/train_step.py --peer=<script> --peer_python=<interpreter>

Prints images per second; the step's share of the float32 matrix-product rate that this very
process reaches between the steps (best of ten blocks); the first step's time, which includes
tracing; and peak memory. With --peer the other script runs in between, so that both see the same
machine; its lines `... s/step <seconds> ...` are read, and the fastest is compared.
"""

import argparse
import re
import resource
import subprocess
import sys
import time

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import tensorflow as tf

from tfseg.data.specs import DATASETS
from tfseg.methods.supervised import Supervised
from tfseg.models import BACKBONES, model_builder
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.training.trainer import Trainer

_MATRIX = 2048
_MATRIX_PRODUCTS = 10
_BLOCKS = 10


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="xception_65", choices=list(BACKBONES))
    parser.add_argument("--crop", type=int, default=513, help="pixels, both sides")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--output_stride", type=int, default=16)
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "bfloat16", "float16")
    )
    parser.add_argument("--jit", action="store_true", help="compile with XLA")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per round")
    parser.add_argument("--peer", help="script to run in alternation")
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=2, help="alternations with the peer")
    return parser.parse_args()


def _model_config(arguments: argparse.Namespace) -> ModelConfig:
    scale = 2 if arguments.output_stride == 8 else 1
    return ModelConfig(
        model_variant=arguments.backbone,
        output_stride=arguments.output_stride,
        atrous_rates=(6 * scale, 12 * scale, 18 * scale),
        decoder_output_stride=(4,),
        mixed_precision=arguments.precision,
    )


def make_step(arguments: argparse.Namespace):
    """Returns (step, model): `step()` makes one update on a fixed random batch."""
    strategy = tf.distribute.get_strategy()
    crop, batch, spec = arguments.crop, arguments.batch, DATASETS["pascal_voc_seg"]
    config = TrainConfig(
        method="supervised", train_batch_size=batch, jit_compile=arguments.jit, num_clones=1
    )
    build = model_builder(_model_config(arguments), spec, (crop, crop))
    method = Supervised(build_model=build, spec=spec, config=config)
    shape = [batch, crop, crop]
    labelled = {
        "image": tf.random.stateless_uniform([*shape, 3], [1, 2]) * 255.0,
        "label": tf.random.stateless_uniform(
            shape, [3, 4], maxval=spec.num_classes, dtype=tf.int32
        ),
    }
    data = tf.data.Dataset.from_tensors({"labelled": labelled}).repeat()
    trainer = Trainer(
        method=method,
        strategy=strategy,
        config=config,
        iterator=iter(data),
        mixed_precision=arguments.precision,
    )

    def step() -> None:
        losses = trainer.step_function(trainer.iterator)["losses"]
        for value in losses.values():
            value.numpy()

    return step, method.model


def step_gflop(model: tf.keras.Model, batch: int, crop: int) -> float:
    """Counts convolutions and matrix products of a step: three times those of a forward pass."""
    graph = tf.function(model).get_concrete_function(tf.TensorSpec([batch, crop, crop, 3])).graph
    total = 0
    for operation in graph.get_operations():
        if operation.type not in ("Conv2D", "DepthwiseConv2dNative", "MatMul"):
            continue
        elements = operation.outputs[0].shape.num_elements()
        kernel = operation.inputs[1].shape
        if elements is None:
            continue
        # A dense kernel's rows are the products of one output value; a depthwise one's its area.
        per_value = kernel[:2] if operation.type.startswith("Depthwise") else kernel[:-1]
        total += 2 * elements * per_value.num_elements()
    return 3 * total / 1e9


class MatrixRate:
    """The process's own float32 matrix-product rate, best of the blocks run so far."""

    def __init__(self):
        matrix = tf.random.stateless_normal([_MATRIX, _MATRIX], [5, 6])

        @tf.function
        def block():
            product = matrix
            for _ in range(_MATRIX_PRODUCTS):
                product = tf.matmul(matrix, product) * (1.0 / _MATRIX)
            return product

        self._block, self.blocks, self.gflops = block, 0, 0.0
        block()

    def run(self) -> None:
        start = time.perf_counter()
        self._block().numpy()
        seconds = time.perf_counter() - start
        self.blocks += 1
        self.gflops = max(self.gflops, 2 * _MATRIX**3 * _MATRIX_PRODUCTS / seconds / 1e9)


def _peak_memory() -> str:
    # Linux gives kilobytes.
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB host"
    for gpu in tf.config.list_logical_devices("GPU"):
        peak = tf.config.experimental.get_memory_info(gpu.name)["peak"]
        text += f", {peak / 2**30:.2f} GiB {gpu.name}"
    return text


def _peer_seconds(arguments: argparse.Namespace) -> dict[str, float]:
    """Runs the peer; returns its seconds per step by what precedes the number on the line."""
    output = subprocess.run(
        [arguments.peer_python, arguments.peer], capture_output=True, text=True, check=True
    ).stdout
    return {
        match.group(1).strip(): float(match.group(2))
        for match in re.finditer(r"^(.*)s/step ([\d.]+)", output, re.MULTILINE)
    }


def main() -> None:
    arguments = _arguments()
    step, model = make_step(arguments)
    gflop = step_gflop(model, arguments.batch, arguments.crop)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    rate, seconds, peer = MatrixRate(), [], {}
    step()
    for _ in range(arguments.rounds if arguments.peer else 1):
        for _ in range(arguments.steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
            rate.run()
        if arguments.peer:
            for name, value in _peer_seconds(arguments).items():
                peer[name] = min(value, peer.get(name, value))
    while rate.blocks < _BLOCKS:
        rate.run()
    best, median = min(seconds), sorted(seconds)[len(seconds) // 2]
    print(
        f"{arguments.backbone}, crop {arguments.crop}, batch {arguments.batch}, "
        f"{arguments.precision}{', XLA' if arguments.jit else ''}"
    )
    print(f"step: best {best:.3f} s, median {median:.3f} s, first {first:.1f} s")
    print(f"rate: {arguments.batch / best:.3f} images/s")
    print(
        f"work: {gflop:.1f} GFLOP, {gflop / best:.0f} GFLOP/s; float32 matrix products reach "
        f"{rate.gflops:.0f} GFLOP/s here: share {gflop / best / rate.gflops:.3f}"
    )
    print(f"peak memory: {_peak_memory()}")
    for name, value in peer.items():
        print(f"peer ({name}): {value:.3f} s a step; ours is {value / best:.2f} times as fast")


if __name__ == "__main__":
    main()
