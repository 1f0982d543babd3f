"""Files that processes share: names that no two choose, locks that end with their holder."""

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator

# Of every file and folder that is being written. Those of older versions have no hyphen.
TEMPORARY_PREFIX = ".writing-"
_ANY_TEMPORARY_PREFIX = ".writing"
# Longer notes in a lock file are not ours.
_MAX_NOTE_BYTES = 1000


def temporary_name(name: str) -> str:
    """Returns a file name under which `name` can be written: no other process has it.

    Process numbers do not tell processes apart on a shared disk: in containers they are small and
    repeat. A worker of a cluster has its task in the name, for whoever looks into the folder.
    """
    return f"{TEMPORARY_PREFIX}{_task()}{name}.{secrets.token_hex(6)}"


def temporary_path(path: str) -> str:
    """Returns a path beside `path`, with a name as of `temporary_name`."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(folder, temporary_name(name))


def _task() -> str:
    """Returns the task of this process by TF_CONFIG, such as 'worker1-'; '' where there is none."""
    try:
        task = json.loads(os.environ["TF_CONFIG"])["task"]
        return re.sub(r"\W", "", f"{task['type']}{task['index']}")[:32] + "-"
    except (KeyError, TypeError, ValueError):
        return ""


def remove_leftovers(folder: str, *, before: float) -> None:
    """Removes what killed processes left half-written.

    Args:
      folder: where; the caller knows that nobody else writes there.
      before: what changed at this time (seconds since the epoch) or later stays.
    """
    for entry in os.scandir(folder):
        # Gone in between, or another user's: neither is worth stopping for.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if not entry.name.startswith(_ANY_TEMPORARY_PREFIX):
                continue
            if entry.stat(follow_symlinks=False).st_mtime >= before:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.remove(entry.path)


class Busy(Exception):
    """Another process holds the lock.

    Attributes:
      holder: what it wrote into the lock file, or None.
    """

    def __init__(self, holder: str | None):
        super().__init__(holder)
        self.holder = holder


@contextlib.contextmanager
def locked(
    path: str, *, shared: bool = False, wait: bool = True, note: str = ""
) -> Iterator[str | None]:
    """Holds a lock of the kernel (flock) on a file; removes the file at the end.

    The kernel gives the lock back when its holder ends, however it ends. A file that a killed
    process left behind locks nothing.

    Args:
      path: of the lock file, made where it is missing. Nothing else may be in it.
      shared: others may hold the lock at the same time, if they share it too.
      wait: until the lock is free.
      note: written into the file, for the message of whoever finds it locked.

    Yields:
      None; or, where the disk has no locks, the reason, and nothing is held.

    Raises:
      Busy: with `wait=False`, another one holds the lock.
      OSError: the file cannot be made.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_note(descriptor)
            os.close(descriptor)
            raise Busy(holder) from None
        except OSError as error:
            os.close(descriptor)
            yield error.strerror
            return
        except BaseException:
            os.close(descriptor)
            raise
        if _is_at(descriptor, path):
            break
        # Its holder removed the file while this process waited: the lock is on a file without a
        # name, and others will lock a new one.
        os.close(descriptor)
    try:
        if note:
            _write_note(descriptor, note)
        yield None
    finally:
        # Only who holds the lock alone may take the file away.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                os.remove(path)
        os.close(descriptor)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Left by another user. A file that can be read can be locked.
        if not os.path.exists(path):
            raise
        return os.open(path, os.O_RDONLY)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read_note(descriptor: int) -> str | None:
    text = os.pread(descriptor, _MAX_NOTE_BYTES, 0).decode(errors="replace")
    return " ".join(word for word in text.split() if word.isprintable()) or None


def _write_note(descriptor: int, note: str) -> None:
    # A full disk, or a file of another user: the lock holds without a note.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note.encode()[:_MAX_NOTE_BYTES], 0)
