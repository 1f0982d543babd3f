"""Checkpoints by variable name: written atomically, verified, with a way back.

A checkpoint holds flat dictionaries, `networks/<network>/<variable name>` and
`state/<name>` (step, optimiser slots, counters), so that a file depends on names and not on how
Python objects are nested. On disk it is an ordinary TensorFlow checkpoint
`model.ckpt-<step>.{index,data-...}` beside a manifest with the size and CRC32C of each file.
The manifest is renamed into place last: a checkpoint without one is taken only where a folder has
no other, and one whose files do not agree with it is damaged, in which case the previous one is
taken.

TensorFlow reads a checkpoint's path as a pattern, in which `[ ]`, `*`, `?` and a backslash have
meanings. Here files are found by name, and where a path has such a character TensorFlow reads them
through links of another name.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import math
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import google_crc32c
import numpy as np
import tensorflow as tf

from tfseg import files, sharing
from tfseg.errors import UserError, from_os_error

log = logging.getLogger(__name__)

_MANIFEST = ".manifest.json"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
# Steps are 64 bits wide.
_TF_NAME = re.compile(r"^model\.ckpt-(0|[1-9]\d{0,17})$")
_MANIFEST_FORM = {
    "files": {str: {"bytes": range(1 << 63), "crc32c": str}},
    # Older ones name no networks.
    "networks?": [str],
}
_DATA_FILE = re.compile(r"(?P<base>.+)\.data-(?P<number>\d{5})-of-(?P<total>\d{5})")
_PATTERN = re.compile(r"[*?\[\\]")


def variable_name(variable: tf.Variable) -> str:
    """Returns the variable's checkpoint name: its TF1 scope and leaf, without ':0'."""
    return variable.name.split(":")[0]


def by_name(variables: Any) -> dict[str, tf.Variable]:
    """Maps variables by name; two of the same name are a defect of the network."""
    result: dict[str, tf.Variable] = {}
    for variable in variables:
        name = variable_name(variable)
        if name in result:
            raise ValueError(f"two variables are called {name!r}")
        result[name] = variable
    return result


def _crc32c(path: str) -> str:
    checksum = google_crc32c.Checksum()
    with files.open_regular(path) as file:
        while chunk := file.read(1 << 24):
            checksum.update(chunk)
    return checksum.hexdigest().decode()


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(prefix: str) -> list[str]:
    """Returns the files of a checkpoint, the index last."""
    folder, base = os.path.split(prefix)
    names = [n for n in os.listdir(folder or ".") if n.startswith(base + ".")]
    data = sorted(n for n in names if n.startswith(base + ".data-"))
    return [os.path.join(folder, n) for n in data] + [prefix + ".index"]


def step_of(prefix: str) -> int | None:
    """Returns the step in a checkpoint's name `...-<step>`, or None."""
    match = re.search(r"-(\d{1,18})$", prefix)
    return int(match.group(1)) if match else None


def damage(prefix: str) -> str | None:
    """Says what is wrong with a checkpoint of ours, or None where its manifest agrees."""
    try:
        for name, expected in _read_manifest(prefix)["files"].items():
            path = os.path.join(os.path.dirname(prefix), name)
            size = os.path.getsize(path)
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, not {expected['bytes']}"
            if _crc32c(path) != expected["crc32c"]:
                return f"the checksum of {name} is wrong"
    except UserError as error:
        return f"{error.what.rstrip('.')}: {error.received}"
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _read_manifest(prefix: str) -> dict[str, Any]:
    """Returns the manifest of a checkpoint of ours.

    Raises:
      UserError: it is malformed, or lists other files than a checkpoint has.
      FileNotFoundError: there is none.
    """
    path = prefix + _MANIFEST
    manifest = files.read_json(path, _MANIFEST_FORM, what="The manifest")
    base = os.path.basename(prefix)
    listed = set(manifest["files"])
    if f"{base}.index" not in listed or not any(n.startswith(f"{base}.data-") for n in listed):
        raise UserError(
            "The manifest does not list the files of a checkpoint.",
            where=path,
            received=", ".join(sorted(listed)[:3]) or "no files",
            accepted=f"{base}.index, {base}.data-...",
        )
    strange = [n for n in listed if not n.startswith(base + ".") or os.path.basename(n) != n]
    if strange:
        raise UserError("The manifest lists other files.", where=path, received=strange[0])
    return manifest


def written(folder: str) -> list[str]:
    """Returns the prefixes of the checkpoints with a manifest in a folder, oldest first."""
    if not os.path.isdir(folder):
        return []
    steps = []
    for name in os.listdir(folder):
        if name.endswith(_MANIFEST) and (match := _TF_NAME.match(name[: -len(_MANIFEST)])):
            steps.append(int(match.group(1)))
    return [os.path.join(folder, f"model.ckpt-{step}") for step in sorted(steps)]


def _of_other_program(folder: str) -> str | None:
    """Returns the checkpoint of a folder in which none has a manifest, or None.

    TensorFlow's state file tells which, and where there is none the names of the files.

    Raises:
      UserError: there are several, and nothing tells which is the newest.
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
                "The directory holds several checkpoints, and nothing tells which one to use.",
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
            accepted=", ".join(present) if present else None,
            fix="give a training directory, or a prefix without .index or .data",
        )
    if os.path.exists(path + _MANIFEST):
        reason = damage(path)
        if reason is not None:
            raise UserError(
                f"The checkpoint is damaged: {reason}.",
                where=path,
                fix="give the directory to use the newest whole checkpoint",
            )
    return path


@contextlib.contextmanager
def _readable(prefix: str) -> Iterator[str]:
    """Yields a prefix under which TensorFlow finds a checkpoint, whatever its path looks like.

    Raises:
      UserError: the folder of temporary files has no such name either.
    """
    if not _PATTERN.search(prefix):
        yield prefix
        return
    with tempfile.TemporaryDirectory(prefix="tfseg-") as folder:
        if _PATTERN.search(folder):
            raise UserError(
                "TensorFlow cannot read below folders with *, ?, [ or a backslash in their names.",
                where=folder,
                fix="choose another folder of temporary files (environment variable TMPDIR)",
            )
        base = os.path.basename(prefix)
        for path in _files(prefix):
            link = os.path.join(folder, "checkpoint" + os.path.basename(path)[len(base) :])
            os.symlink(os.path.abspath(path), link)
        yield os.path.join(folder, "checkpoint")


def open_reader(prefix: str) -> Any:
    """Returns TensorFlow's reader of a checkpoint.

    Raises:
      UserError: the file cannot be read as a checkpoint, or its tensors are longer than its data.
    """
    links = contextlib.ExitStack()
    name = links.enter_context(_readable(prefix))

    def bad(reason: Any) -> UserError:
        links.close()
        return UserError(
            f"The checkpoint cannot be read: {str(reason).replace(name, prefix)}",
            where=prefix,
            fix="check that both its .index and .data files are there and complete",
        )

    try:
        # TensorFlow's older format is one file, whose tables may be packed.
        is_one_file = not os.path.exists(prefix + ".index") and os.path.exists(prefix)
        parts = [prefix] if is_one_file else _files(prefix)
        for path in parts:
            os.close(files.open_descriptor(path))
        present = sum(os.path.getsize(path) for path in parts)
        reader = tf.train.load_checkpoint(name)
        types = reader.get_variable_to_dtype_map()
        stated = sum(
            math.prod(shape) * types[key].size
            for key, shape in reader.get_variable_to_shape_map().items()
            if types[key] != tf.string
        )
    except UserError:
        links.close()
        raise
    except Exception as error:
        # TensorFlow's reader raises its own and plain Python errors for damaged index files.
        raise bad(getattr(error, "message", error)) from None
    if stated > present and not is_one_file:
        raise bad(f"its index states {stated} bytes of tensors, its files have {present}")
    # The reader opens the data files when they are asked for.
    weakref.finalize(reader, links.close)
    return reader


def read_tensor(reader: Any, key: str, prefix: str) -> np.ndarray:
    """Reads one entry of a checkpoint.

    Args:
      reader: of `open_reader`.
      key: of the entry.
      prefix: of the checkpoint, for messages.

    Raises:
      UserError: the data file is damaged there.
    """
    try:
        return reader.get_tensor(key)
    except Exception as error:
        # TensorFlow's reader raises its own and plain Python errors for damaged data files.
        raise UserError(
            f"The checkpoint is damaged: {key} cannot be read ({type(error).__name__}).",
            where=prefix,
            fix="download or copy it again",
        ) from None


def read_numbers(reader: Any, key: str, prefix: str) -> np.ndarray:
    """Reads the value of a variable; as `read_tensor`.

    Raises:
      UserError: it is damaged there, or does not hold numbers.
    """
    value = read_tensor(reader, key, prefix)
    if np.asarray(value).dtype.kind not in "biuf":
        raise UserError(
            "A variable of the checkpoint does not hold numbers.",
            where=f"{prefix}, {key}",
            fix="download or copy it again",
        )
    return value


def _tree(networks: Mapping[str, Any], state: Mapping[str, tf.Variable]) -> tf.train.Checkpoint:
    groups = {name: by_name(model.variables) for name, model in networks.items()}
    return tf.train.Checkpoint(networks=groups, state=dict(state))


def stored_variables(prefix: str) -> dict[str, dict[str, str]]:
    """Lists what one of our checkpoints holds.

    Returns:
      `{network: {variable name: key in the file}}`; empty for checkpoints of other programs.
    """
    result: dict[str, dict[str, str]] = {}
    for key in open_reader(prefix).get_variable_to_shape_map():
        if key.startswith("networks/") and key.endswith(_SUFFIX):
            _, network, *name = key[: -len(_SUFFIX)].split("/", 2)
            if not name:
                continue
            # TensorFlow escapes '/' as '.S' and '.' as '..' inside one component of a path.
            plain = re.sub(r"\.([S.])", lambda m: {"S": "/", ".": "."}[m.group(1)], name[0])
            result.setdefault(network, {})[plain] = key
    return result


def deployable_network(prefix: str) -> str | None:
    """Returns which network of one of our checkpoints is the one to use, or None without any.

    The first that its run named; 'model' or the first by name where no manifest tells.
    """
    stored = stored_variables(prefix)
    try:
        named = _read_manifest(prefix).get("networks", [])
    except (OSError, UserError):
        named = []
    return next((name for name in (*named, "model", *sorted(stored)) if name in stored), None)


def load_network(model: Any, prefix: str, network: str | None = None) -> int:
    """Gives a network the weights stored in one of our checkpoints.

    Args:
      model: a network with the same variable names.
      prefix: the checkpoint.
      network: which network of the checkpoint; None: the deployable one.

    Returns:
      The step at which it was saved, or -1 where its name tells none.

    Raises:
      UserError: it is damaged or holds no such network, a variable is missing, or a shape differs
        (for the logits the message says that the class counts differ).
    """
    reader = open_reader(prefix)
    stored = stored_variables(prefix)
    if not stored:
        raise UserError(
            "The checkpoint was not written by tfseg.",
            where=prefix,
            fix="use it as --tf_initial_checkpoint of a training run, then evaluate that run",
        )
    name = network or deployable_network(prefix)
    if name not in stored:
        raise UserError(
            "The checkpoint holds no such network.",
            where=f"{prefix}, --network",
            received=name,
            accepted=", ".join(sorted(stored)),
        )
    shapes = reader.get_variable_to_shape_map()
    for variable_key, variable in by_name(model.variables).items():
        if variable_key not in stored[name]:
            _check_is_no_classifier(model, variable, prefix)
            raise UserError(
                "The checkpoint lacks a variable of the network.",
                where=prefix,
                received=variable_key,
                fix="give the model flags with which the checkpoint was trained",
            )
        key = stored[name][variable_key]
        if list(shapes[key]) != variable.shape.as_list():
            is_logits = "logits" in variable_key
            raise UserError(
                "The checkpoint and the data have different numbers of classes."
                if is_logits
                else "A variable of the checkpoint has another shape than the network's.",
                where=f"{prefix}, {variable_key}",
                received=f"shape {shapes[key]} in the checkpoint",
                accepted=f"shape {variable.shape.as_list()} for this network and data set",
                fix="evaluate with the data set and the model flags of the training run",
            )
        variable.assign(read_numbers(reader, key, prefix))
    step = step_of(prefix)
    return -1 if step is None else step


def network_values(prefix: str, network: str) -> dict[str, np.ndarray]:
    """Returns everything that one of our checkpoints holds of a network, by variable name.

    Args:
      prefix: the checkpoint.
      network: one of `stored_variables`.

    Raises:
      UserError: it is damaged.
    """
    reader = open_reader(prefix)
    keys = stored_variables(prefix)[network]
    return {name: read_numbers(reader, key, prefix) for name, key in keys.items()}


def _check_is_no_classifier(model: Any, variable: tf.Variable, prefix: str) -> None:
    """Refuses a checkpoint without classifier where one is asked for; `variable` is missing."""
    classifier = getattr(model, "classifier", None)
    if classifier is not None and any(variable is v for v in classifier.variables):
        raise UserError(
            "The network of the checkpoint gives no image-level scores.",
            where=prefix,
            received="--weakly, --fp_cut or --topk_classes, which need them",
            accepted="a network with image-level scores: of train_wss.py --weakly or "
            "--method=slrnet",
            fix="leave out these flags",
        )


def _move_into_place(staging: str, name: str, folder: str, networks: Iterable[str]) -> None:
    """Moves the files of a checkpoint to its folder, with a manifest, which is the last to come.

    Args:
      staging: where they are.
      name: of the checkpoint.
      folder: where they go.
      networks: what the checkpoint holds, the deployable one first.
    """
    staged = _files(os.path.join(staging, name))
    manifest = {
        "files": {
            os.path.basename(p): {"bytes": os.path.getsize(p), "crc32c": _crc32c(p)} for p in staged
        },
        "networks": list(networks),
    }
    manifest_path = os.path.join(staging, name + _MANIFEST)
    with open(manifest_path, "w") as file:
        json.dump(manifest, file, indent=1)
    for path in (*staged, manifest_path):
        _fsync(path)
    target_manifest = os.path.join(folder, name + _MANIFEST)
    if os.path.exists(target_manifest):
        os.remove(target_manifest)
    for path in (*staged, manifest_path):
        os.replace(path, os.path.join(folder, os.path.basename(path)))
    _fsync(folder)


def export(prefix: str, networks: Mapping[str, Mapping[str, tf.Variable | np.ndarray]]) -> None:
    """Writes the values of networks as a checkpoint, either whole or not at all.

    Args:
      prefix: such as `/weights/resnet101s`; the folder is made, files of that name are replaced.
      networks: by the network's name, the deployable one first, and by the variable's name: all of
        a network or a part of it.

    Raises:
      UserError: the prefix is a folder, or the disk is full or not writable.
    """
    folder, name = os.path.split(prefix)
    if not name or os.path.isdir(prefix):
        raise UserError(
            "A checkpoint is not a folder.",
            where=prefix,
            accepted="a prefix, of which the files' names are made",
            fix=f"give for example {os.path.join(prefix, 'model.ckpt')}",
        )
    folder = folder or "."
    staging = sharing.temporary_path(prefix)
    try:
        os.makedirs(staging)
        variables = {
            network: {
                key: value if isinstance(value, tf.Variable) else tf.Variable(value)
                for key, value in values.items()
            }
            for network, values in networks.items()
        }
        tf.train.Checkpoint(networks=variables).write(os.path.join(staging, name))
        _move_into_place(staging, name, folder, networks)
    except (OSError, tf.errors.OpError) as error:
        raise _not_written(error, prefix, "write it again") or error from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# Errors of disks and folders, whose texts TensorFlow repeats.
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP, errno.ENODEV),
)


def _not_written(error: Exception, where: str, then: str) -> UserError | None:
    """Returns the user's view of a failed write, or None where the error is of another kind.

    Args:
      error: of the operating system, or of TensorFlow.
      where: what was to be written.
      then: what to do once the cause is gone.
    """
    if isinstance(error, tf.errors.OpError):
        found = [number for number in _DISK_ERRORS if f"; {os.strerror(number)}" in error.message]
        number, text = (found[0] if found else None), error.message
    else:
        number, text = error.errno, str(error)
    if number is None:
        return None
    known = from_os_error(OSError(number, os.strerror(number), where))
    reason = known.what if known else f"{os.strerror(number)}."
    fix = known.fix if known and known.fix else "remove the cause"
    return UserError(
        f"The checkpoint could not be written. {reason}",
        where=where,
        received=f"{errno.errorcode.get(number, number)}: {text}",
        fix=f"{fix}; then {then}",
    )


@dataclasses.dataclass
class Store:
    """Saves and restores the state of one run in its directory.

    Attributes:
      folder: the run's directory.
      networks: networks by name.
      state: everything else that an exact resume needs, by name.
      max_to_keep: older checkpoints are deleted.
      is_chief: only the chief's files are kept; the other workers take part in the reads.
      may_lack: names of state that checkpoints of earlier versions do not hold.
      lacking: what of that the restored checkpoint did not hold; it keeps its initial value.
    """

    folder: str
    networks: Mapping[str, Any]
    state: Mapping[str, tf.Variable]
    max_to_keep: int = 5
    is_chief: bool = True
    may_lack: Collection[str] = ()
    lacking: tuple[str, ...] = dataclasses.field(default=(), init=False)

    def save(self, step: int) -> str:
        """Writes a checkpoint so that it is either whole or absent; returns its prefix.

        Raises:
          UserError: the disk is full or not writable; the previous checkpoints are intact.
        """
        name = f"model.ckpt-{step}"
        staging = os.path.join(self.folder, sharing.temporary_name(name))
        try:
            os.makedirs(staging)
            _tree(self.networks, self.state).write(os.path.join(staging, name))
            if self.is_chief:
                self._publish(staging, name)
        except (OSError, tf.errors.OpError) as error:
            then = "run the same command again: it resumes from the previous checkpoint"
            raise _not_written(error, self.folder, then) or error from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return os.path.join(self.folder, name)

    def _publish(self, staging: str, name: str) -> None:
        """Moves the staged files into place, then drops old checkpoints."""
        _move_into_place(staging, name, self.folder, self.networks)
        prefixes = written(self.folder)
        for old in prefixes[: max(0, len(prefixes) - self.max_to_keep)]:
            os.remove(old + _MANIFEST)
            for path in _files(old):
                os.remove(path)
        self._write_state_file(name)

    def _write_state_file(self, name: str) -> None:
        """Writes TensorFlow's own `checkpoint` file, for tools that look for it."""
        names = [os.path.basename(p) for p in written(self.folder)]
        lines = [f'model_checkpoint_path: "{name}"']
        lines += [f'all_model_checkpoint_paths: "{n}"' for n in names]
        path = os.path.join(self.folder, "checkpoint")
        with open(path + ".new", "w") as file:
            file.write("\n".join(lines) + "\n")
        os.replace(path + ".new", path)

    def restore(self) -> str | None:
        """Restores the newest whole checkpoint; returns its prefix, or None where there is none.

        Raises:
          UserError: checkpoints are there but none is whole, or it belongs to another network.
        """
        prefix = newest(self.folder)
        if prefix is None:
            if written(self.folder):
                raise UserError(
                    "Every checkpoint of the run is damaged.",
                    where=self.folder,
                    fix="choose another --train_logdir, or delete them to start afresh",
                )
            return None
        for name, model in self.networks.items():
            self._check_shapes(prefix, name, model)
        self.lacking = tuple(name for name in self._missing(prefix) if name in self.may_lack)
        state = {name: x for name, x in self.state.items() if name not in self.lacking}
        try:
            with _readable(prefix) as path:
                status = _tree(self.networks, state).read(path)
                status.assert_existing_objects_matched().expect_partial()
        except (tf.errors.OpError, ValueError) as error:
            raise UserError(
                f"The checkpoint cannot be read: {getattr(error, 'message', error)}",
                where=prefix,
                fix="delete it: the one before it is taken",
            ) from None
        except AssertionError:
            missing = self._missing(prefix)
            raise UserError(
                "The checkpoint in the training directory belongs to another kind of run.",
                where=prefix,
                received=f"lacks {', '.join(missing[:3])}" + (" ..." if len(missing) > 3 else ""),
                fix="choose another --train_logdir, or repeat the flags of the first run",
            ) from None
        return prefix

    def _missing(self, prefix: str) -> list[str]:
        present = set(open_reader(prefix).get_variable_to_shape_map())
        return [
            name
            for name in self.state
            if "state/" + name.replace(".", "..").replace("/", ".S") + _SUFFIX not in present
        ]

    def _check_shapes(self, prefix: str, name: str, model: Any) -> None:
        stored = stored_variables(prefix).get(name, {})
        shapes = open_reader(prefix).get_variable_to_shape_map()
        for variable_key, variable in by_name(model.variables).items():
            key = stored.get(variable_key)
            shape = None if key is None else list(shapes[key])
            if shape != variable.shape.as_list():
                raise UserError(
                    "The checkpoint in the training directory is of another network.",
                    where=f"{prefix}, {variable_key}",
                    received="no such variable" if shape is None else f"shape {shape}",
                    accepted=f"shape {variable.shape.as_list()}",
                    fix="choose another --train_logdir, or repeat the model flags and data set of "
                    "the first run",
                )


def values(prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, value) of everything in a checkpoint, in key order."""
    reader = open_reader(prefix)
    for key in sorted(reader.get_variable_to_shape_map()):
        yield key, read_tensor(reader, key, prefix)
