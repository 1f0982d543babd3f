"""Exporting networks as a checkpoint, and what is said when the disk refuses TensorFlow's files."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from tfseg import sharing
from tfseg.errors import UserError, from_os_error
from tfseg.weights.checkpoint.manifest import move_into_place


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
        move_into_place(staging, name, folder, networks)
    except (OSError, tf.errors.OpError) as error:
        raise not_written(error, prefix, "write it again") or error from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# Errors of disks and folders, whose texts TensorFlow repeats.
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP, errno.ENODEV),
)


def not_written(
    error: Exception, where: str, then: str, what: str = "The checkpoint"
) -> UserError | None:
    """Returns the user's view of a failed write, or None where the error is of another kind.

    Args:
      error: of the operating system, or of TensorFlow.
      where: what was to be written.
      then: what to do once the cause is gone.
      what: names it in the message.
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
        f"{what} could not be written. {reason}",
        where=where,
        received=f"{errno.errorcode.get(number, number)}: {text}",
        fix=f"{fix}; then {then}",
    )


@contextlib.contextmanager
def writing_events(folder: str) -> Iterator[None]:
    """Makes what TensorFlow says of an event file that the disk refuses the user's error.

    Args:
      folder: of the file.

    Raises:
      UserError: the disk is full or not writable.
    """
    try:
        yield
    except tf.errors.OpError as error:
        then, what = "run the same command again", "The event file for TensorBoard"
        raise not_written(error, folder, then, what) or error from None
