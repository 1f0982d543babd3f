"""Measures the peak memory of training steps and of an evaluation, each in a process of its own.

    python benchmarks/memory.py --backbone=xception_65 --crop=513 --batch=2
    python benchmarks/memory.py --crop=257 --rows "supervised" "supervised, recompute" unimatch

A process's peak is VmHWM of Linux: TensorFlow itself, weights, gradients, momentum, activations.
The row `nothing` is a process that built the network and did nothing with it. Beside each step
stand what the trainer predicts before the first one, and the median time and mean processor time.
"""

import argparse
import re
import subprocess
import sys
import time

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import tensorflow as tf
from method_cost import Variant, make_trainer, model_config

from tfseg.data.specs import DATASETS
from tfseg.inference.one_by_one import batch_predictor
from tfseg.inference.predictor import Predictor
from tfseg.models import BACKBONES, build_model
from tfseg.training import memory

_SPEC = DATASETS["pascal_voc_seg"]
# What stands in the table, and the options that make it.
ROWS = {
    "nothing": {},
    "evaluation": {},
    **{
        f"{method}{', recompute' * (recompute != 'none')}": {
            "method": method,
            "recompute": recompute,
        }
        for method in ("supervised", "pseudoseg", "unimatch")
        for recompute in ("none", "backbone")
    },
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="xception_65", choices=list(BACKBONES))
    parser.add_argument("--crop", type=int, default=513, help="pixels, both sides")
    parser.add_argument("--batch", type=int, default=2, help="images of each stream")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--jit", action="store_true", help="compile steps with XLA")
    parser.add_argument("--steps", type=int, default=3, help="of each row, after the first")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS)[:4])
    parser.add_argument("--only", choices=list(ROWS), help="measure this row in this process")
    return parser.parse_args()


def _peak_gib() -> float:
    with open("/proc/self/status", encoding="utf-8") as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read()).group(1)) / 2**20


def _network(arguments: argparse.Namespace):
    return build_model(
        model_config(arguments, {}),
        num_classes=_SPEC.num_classes,
        num_image_classes=_SPEC.num_image_classes,
        crop_size=(arguments.crop, arguments.crop),
    )


def _evaluation(arguments: argparse.Namespace):
    """Returns a function that predicts a batch as eval.py does."""
    predictor = batch_predictor(Predictor(_network(arguments)))
    image = tf.random.stateless_uniform([arguments.batch, *[arguments.crop] * 2, 3], [1, 2]) * 255

    @tf.function
    def predict():
        return predictor(image, None, tf.ones([arguments.batch])).labels

    return predict


def _step(arguments: argparse.Namespace, method: str, recompute: str):
    """Returns a function that does one step, and prints what it is expected to need."""
    arguments.recompute = recompute
    trainer = make_trainer(arguments, Variant(method, method, {"jit_compile": arguments.jit}))
    line = memory.describe(trainer.step_function, trainer.iterator, trainer.variables)
    print(f"predicted {line.splitlines()[0].removeprefix('memory: about ')}")
    return lambda: trainer.step_function(trainer.iterator)["losses"]


def measure(arguments: argparse.Namespace) -> None:
    """Prints the figures of one row."""
    options = ROWS[arguments.only]
    if arguments.only == "nothing":
        _network(arguments)
    else:
        work = _step(arguments, **options) if options else _evaluation(arguments)

        def done() -> None:
            tf.nest.map_structure(lambda x: x.numpy(), work())

        done()
        times, processor = [], time.process_time()
        for _ in range(arguments.steps):
            started = time.perf_counter()
            done()
            times.append(time.perf_counter() - started)
        processor = (time.process_time() - processor) / arguments.steps
        print(f"seconds {sorted(times)[len(times) // 2]:.3f}, processor seconds {processor:.3f}")
    print(f"peak {_peak_gib():.2f} GiB")


def main() -> None:
    arguments = _arguments()
    if arguments.only:
        measure(arguments)
        return
    for row in arguments.rows:
        words = [sys.executable, __file__, *sys.argv[1:], f"--only={row}"]
        output = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(f"{row:<24} {'; '.join(output.splitlines())}", flush=True)


if __name__ == "__main__":
    main()
