"""Which checkpoint of a folder to use: the newest that is whole, ours or another program's."""

import functools
import logging
import os
import re

import tensorflow as tf

from tfseg.errors import UserError
from tfseg.files import did_you_mean
from tfseg.weights.checkpoint.manifest import MANIFEST_SUFFIX, damage

log = logging.getLogger(__name__)
# Steps are 64 bits wide.
_TF_NAME = re.compile(r"^model\.ckpt-(0|[1-9]\d{0,17})$")
_DATA_FILE = re.compile(r"(?P<base>.+)\.data-(?P<number>\d{5})-of-(?P<total>\d{5})")


def step_of(prefix: str) -> int | None:
    """Returns the step in a checkpoint's name `...-<step>`, or None."""
    match = re.search(r"-(\d{1,18})$", prefix)
    return int(match.group(1)) if match else None


def written(folder: str) -> list[str]:
    """Returns the prefixes of the checkpoints with a manifest in a folder, oldest first."""
    if not os.path.isdir(folder):
        return []
    steps = []
    for name in os.listdir(folder):
        if name.endswith(MANIFEST_SUFFIX) and (
            match := _TF_NAME.match(name[: -len(MANIFEST_SUFFIX)])
        ):
            steps.append(int(match.group(1)))
    return [os.path.join(folder, f"model.ckpt-{step}") for step in sorted(steps)]


def _of_other_program(folder: str) -> str | None:
    """Returns the checkpoint of a folder in which none has a manifest, or None.

    TensorFlow's state file tells which, and where there is none the names of the files.

    Raises:
      UserError: there are several, and nothing says which is the newest.
    """
    state = None
    if os.path.isfile(os.path.join(folder, "checkpoint")):
        try:
            state = tf.train.get_checkpoint_state(folder)
        except (tf.errors.OpError, ValueError) as error:  # It names nothing, or is not UTF-8.
            reason = getattr(error, "message", error)
            log.warning("%s/checkpoint cannot be read (%s)", folder, reason)
    if state is not None:
        prefix = state.model_checkpoint_path
        # The second name is TensorFlow's older format, of one file.
        if os.path.exists(prefix + ".index") or os.path.isfile(prefix):
            return prefix
    found = [name for name, is_whole in _by_names(folder).items() if is_whole]
    if not found:
        return None
    name = found[0]
    if len(found) > 1:
        steps = {step_of(name): name for name in found}
        bases = {name.removesuffix(f"-{step}") for step, name in steps.items()}
        if None in steps or len(steps) < len(found) or len(bases) > 1:
            raise UserError(
                "The directory holds several checkpoints, and nothing says which one to use.",
                where=folder,
                received=", ".join(sorted(found)),
                accepted="a directory with one checkpoint, or with a file 'checkpoint' that names "
                "one",
                fix=f"give one of them, such as {os.path.join(folder, sorted(found)[-1])}",
            )
        name = steps[max(steps)]
    prefix = os.path.join(folder, name)
    _note_found(prefix)
    return prefix


@functools.cache  # Once for each: folders are looked into again and again.
def _note_found(prefix: str) -> None:
    print(
        f"note: no file 'checkpoint' and no manifest tell which checkpoint to use; {prefix} was "
        "found and is used",
        flush=True,
    )


def _by_names(folder: str) -> dict[str, bool]:
    """Returns the names of checkpoints in a folder, and whether all files of each are there."""
    names = set(os.listdir(folder))
    data: dict[str, dict[int, set[int]]] = {}
    for name in names:
        if match := _DATA_FILE.fullmatch(name):
            numbers = data.setdefault(match["base"], {}).setdefault(int(match["total"]), set())
            numbers.add(int(match["number"]))
    result = {}
    for base in data.keys() | {n.removesuffix(".index") for n in names if n.endswith(".index")}:
        shards = data.get(base, {}).items()
        has_data = any(numbers == set(range(total)) for total, numbers in shards)
        result[base] = has_data and base + ".index" in names
    return result


def incomplete(folder: str) -> list[str]:
    """Returns the names of checkpoints in a folder that lack files and cannot be read."""
    return sorted(name for name, is_whole in _by_names(folder).items() if not is_whole)


def has_checkpoint(folder: str) -> bool:
    """Returns whether a training directory holds a checkpoint, damaged ones included.

    Raises:
      UserError: as `newest`.
    """
    return bool(written(folder)) or _of_other_program(folder) is not None


def newest(path: str) -> str | None:
    """Returns the newest whole checkpoint of a directory, or the prefix itself.

    Args:
      path: a training directory, or a checkpoint prefix such as `/run/model.ckpt-30000`.

    Returns:
      A prefix, or None where the directory holds no checkpoint (yet).

    Raises:
      UserError: a prefix was given and there is no such checkpoint, or it is damaged; or a
        directory of another program holds several.
    """
    if os.path.isdir(path):
        ours = written(path)
        for prefix in reversed(ours):
            reason = damage(prefix)
            if reason is None:
                return prefix
            log.warning("%s is damaged (%s); trying the one before it", prefix, reason)
        return None if ours else _of_other_program(path)
    if not os.path.exists(path + ".index"):
        folder = os.path.dirname(path) or "."
        present = [os.path.basename(p) for p in written(folder)]
        raise UserError(
            "There is no such checkpoint.",
            where=path,
            accepted=", ".join(present)
            or "a training directory, or the prefix of a checkpoint, such as run/model.ckpt-1000",
            fix="give a training directory, or a prefix without .index or .data"
            if os.path.exists(path)
            else did_you_mean(path, "check the path"),
        )
    if os.path.exists(path + MANIFEST_SUFFIX):
        reason = damage(path)
        if reason is not None:
            raise UserError(
                f"The checkpoint is damaged: {reason}.",
                where=path,
                fix="give the directory to use the newest whole checkpoint",
            )
    return path
