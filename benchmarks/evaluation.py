"""Times the evaluation of a network on records, as `eval.py` makes it, by batch size.

    python benchmarks/evaluation.py --backbone=xception_65 --size=513 --images=8
    python benchmarks/evaluation.py --peer=<script> --peer_python=<interpreter>

Prints images per second, JPEGs decoded and pixels counted; the seconds until the first image,
tracing included, are left out. The batch sizes take turns. With --peer the other script runs in
between, so that both see the same machine; its lines `... batch <size> ... images/s <number>` are
read, and the fastest of each batch size is compared.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import tensorflow as tf

from input_pipeline import write_records
from tfseg.data.specs import DATASETS
from tfseg.inference.evaluate import Evaluator
from tfseg.models import BACKBONES, build_model
from tfseg.settings.data import DataConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.prediction import EvalConfig


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="xception_65", choices=list(BACKBONES))
    parser.add_argument("--plain", action="store_true", help="no ASPP rates and no decoder")
    parser.add_argument("--size", type=int, default=513, help="pixels, both sides")
    parser.add_argument("--batches", default="1,8", help="batch sizes")
    parser.add_argument("--images", type=int, default=8, help="in a turn")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--peer", help="script to run in alternation")
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each batch size")
    return parser.parse_args()


def make_evaluators(arguments: argparse.Namespace, folder: str) -> dict[int, Evaluator]:
    """Returns an evaluator of one network for each batch size, on records that are written here."""
    spec, strategy = DATASETS["pascal_voc_seg"], tf.distribute.get_strategy()
    write_records(folder, arguments.images)
    head = {} if arguments.plain else {"atrous_rates": (6, 12, 18), "decoder_output_stride": (4,)}
    model = build_model(
        ModelConfig(model_variant=arguments.backbone, mixed_precision=arguments.precision, **head),
        num_classes=spec.num_classes,
        num_image_classes=spec.num_image_classes,
        crop_size=(arguments.size,) * 2,
    )
    return {
        batch: Evaluator(
            model,
            strategy,
            spec,
            DataConfig(dataset_dir=folder),
            EvalConfig(
                eval_split="train",
                eval_batch_size=batch,
                eval_crop_size=(arguments.size,) * 2,
                eval_logdir=folder,
            ),
        )
        for batch in map(int, arguments.batches.split(","))
    }


def _peer_rates(arguments: argparse.Namespace) -> dict[int, float]:
    """Runs the peer; returns its best images per second by batch size."""
    command = [arguments.peer_python, arguments.peer]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    best: dict[int, float] = {}
    pattern = r"batch (\d+).*images/s ([\d.]+)"
    for batch, rate in re.findall(pattern, output):
        best[int(batch)] = max(float(rate), best.get(int(batch), 0.0))
    return best


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        evaluators = make_evaluators(arguments, folder)
        for evaluator in evaluators.values():
            evaluator.confusion_matrices()
        rates: dict[int, list[float]] = {batch: [] for batch in evaluators}
        loads: dict[int, list[float]] = {batch: [] for batch in evaluators}
        peer: dict[int, list[float]] = {}
        for _ in range(arguments.rounds):
            for batch, evaluator in evaluators.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                evaluator.confusion_matrices()
                rates[batch].append(arguments.images / (time.perf_counter() - start))
                loads[batch].append((time.process_time() - start_cpu) / arguments.images)
            if arguments.peer:
                for batch, rate in _peer_rates(arguments).items():
                    peer.setdefault(batch, []).append(rate)
    print(f"{arguments.backbone}, {arguments.size} pixels, {arguments.precision}")
    for batch, values in rates.items():
        line = f"batch {batch}: images/s " + ", ".join(f"{value:.3f}" for value in values)
        line += f"; processor seconds an image {min(loads[batch]):.3f}"
        if batch in peer:
            ratio = sorted(values)[len(values) // 2] / sorted(peer[batch])[len(peer[batch]) // 2]
            line += "; peer " + ", ".join(f"{value:.3f}" for value in peer[batch])
            line += f"; ours is {ratio:.2f} times as fast"
        print(line)


if __name__ == "__main__":
    main()
