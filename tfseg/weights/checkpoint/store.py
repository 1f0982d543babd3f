"""The checkpoints of one run: saving, restoring, and dropping old ones."""

import dataclasses
import os
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import tensorflow as tf

from tfseg import sharing
from tfseg.data.atomic_writing import write_atomically
from tfseg.errors import UserError
from tfseg.weights.checkpoint.find import newest, written
from tfseg.weights.checkpoint.manifest import MANIFEST_SUFFIX, files_of, move_into_place
from tfseg.weights.checkpoint.names import VALUE_SUFFIX, by_name
from tfseg.weights.checkpoint.reading import open_reader, readable
from tfseg.weights.checkpoint.stored_networks import stored_variables
from tfseg.weights.checkpoint.writing import not_written


def _tree(networks: Mapping[str, Any], state: Mapping[str, tf.Variable]) -> tf.train.Checkpoint:
    groups = {name: by_name(model.variables) for name, model in networks.items()}
    return tf.train.Checkpoint(networks=groups, state=dict(state))


def _check_matched(status: Any) -> None:
    """Insists that a checkpoint held everything that was asked for.

    Raises:
      AssertionError: it did not.
    """
    # First, or TensorFlow also names, line by line, all that the checkpoint holds besides.
    status.expect_partial()
    status.assert_existing_objects_matched()


def load_state(state: Mapping[str, tf.Variable], prefix: str) -> None:
    """Gives variables that belong to no network their values in a checkpoint.

    Args:
      state: by their names in it.
      prefix: the checkpoint.

    Raises:
      UserError: it cannot be read, or lacks one of them.
    """
    try:
        with readable(prefix) as path:
            _check_matched(_tree({}, state).read(path))
    except (tf.errors.OpError, ValueError, AssertionError) as error:
        raise UserError(
            f"The checkpoint's state cannot be read: {getattr(error, 'message', error)}",
            where=prefix,
            fix="take another checkpoint of the run",
        ) from None


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

    def num_bytes(self) -> int:
        """Returns the size of a checkpoint: of all values in it."""
        parts = (network.variables for network in self.networks.values())
        variables = [v for part in (*parts, self.state.values()) for v in part]
        return sum(v.shape.num_elements() * v.dtype.size for v in variables)

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
            raise not_written(error, self.folder, then) or error from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return os.path.join(self.folder, name)

    def _publish(self, staging: str, name: str) -> None:
        """Moves the staged files into place, then drops old checkpoints."""
        move_into_place(staging, name, self.folder, self.networks)
        prefixes = written(self.folder)
        for old in prefixes[: max(0, len(prefixes) - self.max_to_keep)]:
            os.remove(old + MANIFEST_SUFFIX)
            for path in files_of(old):
                os.remove(path)
        self._write_state_file(name)

    def _write_state_file(self, name: str) -> None:
        """Writes TensorFlow's own `checkpoint` file, for tools that look for it."""
        names = [os.path.basename(p) for p in written(self.folder)]
        lines = [f'model_checkpoint_path: "{name}"']
        lines += [f'all_model_checkpoint_paths: "{n}"' for n in names]
        text = "\n".join(lines) + "\n"
        write_atomically(os.path.join(self.folder, "checkpoint"), text.encode())

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
            with readable(prefix) as path:
                _check_matched(_tree(self.networks, state).read(path))
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
            if "state/" + name.replace(".", "..").replace("/", ".S") + VALUE_SUFFIX not in present
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
