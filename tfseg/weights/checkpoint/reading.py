"""Reading the entries of a checkpoint.

TensorFlow reads a checkpoint's path as a pattern, in which `[ ]`, `*`, `?` and a backslash have
meanings. Here files are found by name, and where a path has such a character TensorFlow reads them
through links of another name.
"""

import contextlib
import math
import os
import re
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg import files
from tfseg.errors import UserError
from tfseg.weights.checkpoint.manifest import files_of

_PATTERN = re.compile(r"[*?\[\\]")


@contextlib.contextmanager
def readable(prefix: str) -> Iterator[str]:
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
        for path in files_of(prefix):
            link = os.path.join(folder, "checkpoint" + os.path.basename(path)[len(base) :])
            os.symlink(os.path.abspath(path), link)
        yield os.path.join(folder, "checkpoint")


def open_reader(prefix: str) -> Any:
    """Returns TensorFlow's reader of a checkpoint.

    Raises:
      UserError: the file cannot be read as a checkpoint, or its tensors are longer than its data.
    """
    links = contextlib.ExitStack()
    name = links.enter_context(readable(prefix))

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
        parts = [prefix] if is_one_file else files_of(prefix)
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


def values(prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, value) of everything in a checkpoint, in key order."""
    reader = open_reader(prefix)
    for key in sorted(reader.get_variable_to_shape_map()):
        yield key, read_tensor(reader, key, prefix)
