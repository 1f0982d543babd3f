"""Waits for the checkpoints of a training run and evaluates each."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfseg.data.image_files import IMAGE_EXTENSIONS
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.inference.evaluate import Evaluator
from tfseg.inference.report import METRICS_FILE, describe
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import EvalConfig
from tfseg.weights.checkpoint import find
from tfseg.weights.checkpoint.stored_networks import load_network


def evaluate_repeatedly(
    model: Any,
    strategy: tf.distribute.Strategy,
    spec: DatasetSpec,
    data_config: DataConfig,
    config: EvalConfig,
    *,
    unseen_masks: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Evaluates a prefix once, or the checkpoints of a directory as they appear.

    Args:
      model, strategy, spec, data_config, unseen_masks: see `Evaluator`.
      config: likewise; and `checkpoint_dir`, `eval_interval_secs`, `max_number_of_evaluations`.

    Returns:
      The last result; None if there was none.

    Raises:
      UserError: see `Evaluator`, `watch_checkpoints` and `load_network`.
      SystemExit: with code 143, on SIGTERM.
    """
    with exiting_on_sigterm():
        evaluator = Evaluator(model, strategy, spec, data_config, config, unseen_masks=unseen_masks)
        result = None
        for prefix in watch_checkpoints(
            config.checkpoint_dir, config.eval_interval_secs, config.max_number_of_evaluations
        ):
            step = load_network(model, prefix, config.network)
            print(f"checkpoint: {prefix}", flush=True)
            result = evaluator.evaluate(step=step, prefix=prefix)
            print(describe(result), flush=True)
            print(f"written: {os.path.join(config.eval_logdir, METRICS_FILE)}", flush=True)
        return result


def watch_checkpoints(
    checkpoint_dir: str,
    interval_secs: float,
    max_evaluations: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yields checkpoints to evaluate.

    Args:
      checkpoint_dir: a prefix, which is yielded once; or a directory, of which the newest is
        yielded, then each newer one as it appears (those in between are passed over).
      interval_secs: seconds between looks into the directory.
      max_evaluations: number of checkpoints after which it ends; 0: it never does.
      sleep: waits that many seconds.

    Yields:
      Checkpoint prefixes.

    Raises:
      UserError: there is no such directory or prefix, or a setting is wrong.
    """
    if interval_secs < 0 or max_evaluations < 0:
        raise UserError(
            "An interval and a number must not be negative.",
            where="--eval_interval_secs, --max_number_of_evaluations",
            received=f"{interval_secs}, {max_evaluations}",
        )
    if not os.path.isdir(checkpoint_dir):
        yield find.newest(checkpoint_dir)
        return
    _check_may_be_a_run(checkpoint_dir)
    seen, has_said_so = set(), False
    while True:
        prefix = find.newest(checkpoint_dir)
        # Where the newest one is damaged the one before it comes back, which was seen.
        if prefix is not None and prefix not in seen:
            seen.add(prefix)
            has_said_so = False
            yield prefix
            if len(seen) == max_evaluations:
                return
            continue
        if not has_said_so:
            partial = [] if seen else find.incomplete(checkpoint_dir)
            if partial:
                print(
                    f"note: {', '.join(partial)}: index or data files are missing, so it cannot "
                    "be read",
                    flush=True,
                )
            print(
                f"waiting for a {'newer' if seen else 'first'} checkpoint in {checkpoint_dir}, "
                f"looking every {interval_secs:g} s; Ctrl-C stops",
                flush=True,
            )
            has_said_so = True
        # A busy loop would be no use to anyone.
        sleep(max(interval_secs, 0.1))


def _check_may_be_a_run(folder: str) -> None:
    """Refuses to wait for checkpoints in a folder of images or records; a log may lie there.

    Raises:
      UserError: it holds images or records.
    """
    others = (*IMAGE_EXTENSIONS, ".tfrecord")
    found = sorted(n for n in os.listdir(folder) if n.lower().endswith(others))
    if found and not find.has_checkpoint(folder):
        raise UserError(
            "The folder holds images or records, and no checkpoint.",
            where=f"--checkpoint_dir={folder}",
            received=", ".join(found[:3]) + (" ..." if len(found) > 3 else ""),
            accepted="the --train_logdir of a training",
        )


@contextlib.contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into `SystemExit(143)`, so that files are closed and nothing is half-written.

    Ctrl-C needs no such help: Python raises KeyboardInterrupt by itself.
    """

    def leave(signum: int, frame: Any) -> None:
        print("SIGTERM received: stopping.", flush=True)
        sys.exit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
