"""The directory of a training run: who may write there, and whether its run goes on."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from tfseg import sharing
from tfseg.data import pipeline
from tfseg.errors import UserError
from tfseg.settings.run import TrainConfig
from tfseg.weights.checkpoint import find

# Held by the run that writes a training directory.
_RUN_LOCK = ".train.lock"


def prepare(path: str) -> None:
    """Makes the directory.

    Raises:
      UserError: it is a file.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise UserError("--train_logdir is a file.", where=path, fix="choose a directory") from None


@contextlib.contextmanager
def sole_run(logdir: str, is_chief: bool) -> Iterator[None]:
    """Keeps other runs out of a training directory.

    Args:
      logdir: of the run; it is there.
      is_chief: the other workers of a cluster share the directory with it.

    Raises:
      UserError: another run is at work there.
    """
    if not is_chief:
        yield
        return
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    note = f"process {os.getpid()} on {socket.gethostname()}, since {now}"
    try:
        with sharing.locked(os.path.join(logdir, _RUN_LOCK), wait=False, note=note) as no_locks:
            if no_locks:
                print(
                    f"note: {logdir} is on a disk without locks ({no_locks}): let no other run "
                    "use this --train_logdir until this one has ended",
                    flush=True,
                )
            yield
    except sharing.Busy as busy:
        raise UserError(
            "Another training run is at work in this directory.",
            where=f"--train_logdir={logdir}",
            received=busy.holder,
            fix="wait until it ends, stop it, or choose another --train_logdir",
        ) from None


def is_complete(config: TrainConfig) -> bool:
    """Returns whether nothing is left to train, so that the run's files stay as they are."""
    prefix = find.newest(config.train_logdir)
    step = None if prefix is None else find.step_of(prefix)
    return step is not None and step >= config.training_number_of_steps


def note_new_order(record: Mapping[str, Any], streams: Mapping[str, Any]) -> None:
    """Says so where a saved run goes on with other images than the version that began it had.

    Args:
      record: config.json of the run; older ones do not tell how streams were drawn.
      streams: what the method asks of the data.
    """
    if "drawn_by" in record:
        return
    drawn_by = pipeline.drawn_by(streams)
    for name, stream in streams.items():
        if drawn_by[name] != stream.split:
            print(
                f"note: two streams read split '{stream.split}'. In every step so far they had the "
                f"same images, with the same crops. From here on stream '{name}' has an order and "
                "crops of its own, so the numbers differ from those of an earlier version.",
                flush=True,
            )
