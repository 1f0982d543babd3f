"""Times steps of two workers on this machine, with and without looking out for signals.

PYTHONPATH=. python benchmarks/two_workers.py --steps=100 --rounds=5

Each worker is a process with one replica; they talk over loopback. The network is the toy of the
tests, so that a step is little else than the talk of the workers.
"""

import argparse
import json
import os
import socket
import subprocess
import sys

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import tensorflow as tf

from turns import median_times
from tests.toy import ToyMethod, ToyNetwork, batches
from tfseg.settings.run import TrainConfig
from tfseg.training.interruption import Interruption
from tfseg.training.trainer import Trainer

_BATCH = 4


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="a turn has")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    return parser.parse_args()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def make_trainer(
    strategy: tf.distribute.Strategy, interruption: Interruption | None, steps: int
) -> Trainer:
    """Returns a trainer of the toy network, at its first step."""
    config = TrainConfig(train_batch_size=_BATCH, training_number_of_steps=steps)
    with strategy.scope():
        method = ToyMethod(build_model=ToyNetwork, spec=None, config=config)
    data = batches(_BATCH // strategy.num_replicas_in_sync)
    iterator = iter(strategy.distribute_datasets_from_function(lambda context: data(0)))
    return Trainer(
        method=method,
        strategy=strategy,
        config=config,
        iterator=iterator,
        interruption=interruption,
    )


def work(arguments: argparse.Namespace) -> None:
    """Is one of the workers; the first one prints what was measured."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    # A step beyond the last one that is done: that one asks differently.
    total = arguments.steps * (arguments.rounds + 1) + 1
    with Interruption() as interruption:
        trainers = {
            "without signals": make_trainer(strategy, None, total),
            "with signals": make_trainer(strategy, interruption, total),
        }
        turns = {
            name: lambda trainer=trainer: trainer.train(arguments.steps)
            for name, trainer in trainers.items()
        }
        seconds = median_times(turns, arguments.rounds)
    if strategy.cluster_resolver.task_id == 0:
        for name, value in seconds.items():
            print(f"{name}: {1000 * value / arguments.steps:.2f} ms a step")


def main() -> None:
    arguments = _arguments()
    if "TF_CONFIG" in os.environ:
        work(arguments)
        return
    hosts = [f"localhost:{_free_port()}" for _ in range(2)]
    workers = []
    for index in range(len(hosts)):
        task = {"type": "worker", "index": index}
        cluster = json.dumps({"cluster": {"worker": hosts}, "task": task})
        environment = {**os.environ, "TF_CONFIG": cluster}
        workers.append(subprocess.Popen([sys.executable, *sys.argv], env=environment))
    sys.exit(max(worker.wait() for worker in workers))


if __name__ == "__main__":
    main()
