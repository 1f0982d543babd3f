"""The directory of a training run: who may write there, and whether its run goes on."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfseg import sharing
from tfseg.data import pipeline
from tfseg.data.folders import check_holds_no_images
from tfseg.data.specs import DATASET_FILE
from tfseg.errors import UserError
from tfseg.runs import record as run_record
from tfseg.settings.run import TrainConfig
from tfseg.weights.checkpoint import find

# Held by the run that writes a training directory.
_RUN_LOCK = ".train.lock"


def prepare(path: str) -> None:
    """Makes the directory.

    Raises:
      UserError: it is a file, or a folder of images.
    """
    if run_record.read(path) is None:
        check_holds_no_images(path, "train_logdir")
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise UserError("--train_logdir is a file.", where=path, fix="choose a directory") from None


def check_holds_no_records(logdir: str, dataset_dirs: Iterable[str | None]) -> None:
    """Refuses to train in a folder of records: a checkpoint's files look like a split's.

    Args:
      logdir: of the run; it need not be there.
      dataset_dirs: folders of records that are read.

    Raises:
      UserError: it is one of them, or holds a dataset.json.
    """
    read = {os.path.realpath(path) for path in dataset_dirs if path}
    if os.path.realpath(logdir) in read or os.path.exists(os.path.join(logdir, DATASET_FILE)):
        raise UserError(
            "--train_logdir is a folder of records.",
            where=f"--train_logdir={logdir}",
            accepted="another folder, or one that is not there yet",
            fix="choose another --train_logdir; checkpoints among records would read as a split",
        )


def check_not_emptied(logdir: str) -> None:
    """Refuses to begin anew where a run had checkpoints and has none any more.

    Raises:
      UserError: TensorFlow's file 'checkpoint' or the log tells of checkpoints that are gone.
    """
    record = run_record.read(logdir)
    if record is None or find.has_checkpoint(logdir):
        return
    steps = run_record.settings_in(record, TrainConfig).get("training_number_of_steps")
    last = _last_logged_step(logdir)
    is_named = os.path.exists(os.path.join(logdir, "checkpoint"))
    if is_named or (steps is not None and last is not None and last >= steps):
        raise UserError(
            "The checkpoints of this run are gone.",
            where=f"--train_logdir={logdir}",
            received=f"{run_record.NAME} without a checkpoint"
            + ("" if last is None else f"; the log ends at step {last}"),
            accepted="its checkpoints, or an empty folder",
            fix="restore them; or choose another --train_logdir, or delete this one to start anew",
        )


def _last_logged_step(logdir: str) -> int | None:
    """Returns the last step of train_log.jsonl, None where it tells none."""
    try:
        with open(os.path.join(logdir, "train_log.jsonl"), encoding="utf-8") as file:
            last = json.loads(file.readlines()[-1])["step"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return last if isinstance(last, int) else None


def check_same_data(config: TrainConfig, changed: Sequence[str]) -> None:
    """Insists on the data that a run had so far, unless the user wants other data.

    Args:
      config: of the run.
      changed: see `record.changed_data`.

    Raises:
      UserError: it changed, without --allow_changed_data.
    """
    if changed and not config.allow_changed_data:
        raise UserError(
            "The run would go on with other data than it had.",
            where=f"--train_logdir={config.train_logdir}",
            received="; ".join(changed),
            accepted=f"the data of the first run (from its {run_record.NAME})",
            fix="repeat the flags of the first run; or add --allow_changed_data, if other data is "
            "meant",
        )
    if changed:
        print(f"note: goes on with other data: {'; '.join(changed)}", flush=True)


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
