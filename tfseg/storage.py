"""Where the bytes of records lie: on a disk of this machine, or far away on an object store.

A path with a scheme (`s3://bucket/records`, `gs://`, whatever fsspec has a file system for) is far
away. This file alone knows; all else opens, lists and writes records through it. A disk is read as
ever, by `os.pread`. An object is read by ranges, several times where the network fails, and never
taken for damaged because of that: what cannot be reached is a `UserError`, damage is found in what
was read.

An object appears whole or not at all, but no object can be renamed or locked. So what is renamed or
locked on a disk lies in a folder of this machine until it is uploaded (`work_folder`).
"""

import contextlib
import errno
import functools
import hashlib
import io
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from tfseg import files, sharing
from tfseg.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Seconds before a request is made again; the file systems repeat some by themselves, too.
_WAITS = (0.2, 0.8, 3.2)
# Of a file that is read from its beginning to its end: the next block is read while one is used.
_BLOCK_BYTES = 8 << 20
# No dataset.json and no index is as long.
_MAX_WHOLE_BYTES = 2 << 30
# s3fs has ten by itself, fewer than the reads that are under way.
_CONNECTIONS = 64
_FOLDER_TYPE = "directory"

_T = TypeVar("_T")


def is_remote(path: str) -> bool:
    """Whether a path has a scheme, such as `s3://`."""
    return _SCHEME.match(str(path)) is not None


# Reading ------------------------------------------------------------------------------------------


class LocalFile:
    """A file on a disk, read at any place. Threads may share it.

    Args:
      path: of a regular file; see `files.open_descriptor` for errors.
    """

    def __init__(self, path: str):
        self._descriptor = files.open_descriptor(path)

    def read(self, length: int, offset: int) -> bytes:
        """Returns `length` bytes from byte `offset` on, fewer where the file ends."""
        data = os.pread(self._descriptor, length, offset)
        while 0 < len(data) < length:  # one pread returns at most 2 GiB
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def size(self) -> int:
        """Returns the file's size in bytes."""
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Gives the file back."""
        os.close(self._descriptor)


class RemoteFile:
    """An object, read by ranges. Threads may share it.

    Args:
      path: with its scheme.
      in_order: it will be read from its beginning to its end, so in large blocks, one ahead.

    Raises:
      FileNotFoundError: there is none; raised on reading unless `in_order`.
      UserError: it cannot be reached.
    """

    def __init__(self, path: str, *, in_order: bool = False):
        self._path = path
        self._system, self._name = _locate(path)
        self._blocks = None
        if in_order:
            from fsspec.caching import BackgroundBlockCache

            self._blocks = BackgroundBlockCache(_BLOCK_BYTES, self._range, self.size(), maxblocks=2)

    def read(self, length: int, offset: int) -> bytes:
        """Returns `length` bytes from byte `offset` on, fewer where the object ends."""
        if self._blocks is not None:
            return self._blocks._fetch(offset, offset + length)
        return self._range(offset, offset + length)

    def _range(self, start: int, end: int) -> bytes:
        def get() -> bytes:
            try:
                with _turn(self._system):
                    return self._system.cat_file(self._name, start=start, end=end)
            except (FileNotFoundError, PermissionError):
                raise
            except Exception:
                # A range behind the end is refused, by every store with another exception.
                if start >= self.size():
                    return b""
                raise

        data = _tried(get, self._path) if start < end else b""
        if len(data) > end - start:
            raise UserError(
                "The server sends whole files where a part was asked for.",
                where=self._path,
                received=f"{len(data)} bytes",
                accepted=f"bytes {start} to {end - 1}",
                fix="use a server that serves ranges (HTTP 206), or copy the records to a disk",
            )
        return data

    def size(self) -> int:
        """Returns the object's size in bytes, as it is now."""
        self._system.invalidate_cache(self._name)
        return _size_of(_info(self._path), self._path)

    def close(self) -> None:
        """Ends reading ahead."""
        if self._blocks is not None:
            self._blocks.close()


def open_file(path: str, *, in_order: bool = False) -> LocalFile | RemoteFile:
    """Opens a file for reading at any place.

    Args:
      path: on a disk or far away.
      in_order: it will be read from its beginning to its end.

    Raises:
      UserError: it is not a regular file, or cannot be reached.
      OSError: it is not there, or cannot be opened.
    """
    return RemoteFile(path, in_order=in_order) if is_remote(path) else LocalFile(path)


def file_bytes(path: str) -> int:
    """Returns the size of a file; see `open_file` for errors.

    That of an object may be as old as the last listing of its folder (`names`).
    """
    if is_remote(path):
        return _size_of(_info(path), path)
    file = LocalFile(path)
    try:
        return file.size()
    finally:
        file.close()


def open_whole(path: str, *, what: str = "This", fix: str | None = None) -> BinaryIO:
    """Opens a small file for reading; one that is far away is read once, until it changes.

    Args:
      path: on a disk or far away.
      what, fix: as in `files.open_regular`.

    Raises:
      UserError: it is no regular file, far too long, or cannot be reached.
      OSError: it is not there or cannot be opened.
    """
    if not is_remote(path):
        return files.open_regular(path, what=what, fix=fix)
    info = _info(path)
    if (size := _size_of(info, path)) > _MAX_WHOLE_BYTES:
        raise UserError(
            f"{what} is too long for such a file.", where=path, received=f"{size} bytes", fix=fix
        )
    return io.BytesIO(_content(path, repr(info)))


@functools.lru_cache(maxsize=16)
def _content(path: str, version: str) -> bytes:
    """Returns the bytes of an object; `version`, what the store says of it, changes with them."""
    system, name = _locate(path)

    def get() -> bytes:
        with _turn(system):
            return system.cat_file(name)

    return _tried(get, path)


# Folders ------------------------------------------------------------------------------------------


def names(folder: str) -> list[str]:
    """Returns the names in a folder, as they are now.

    Raises:
      FileNotFoundError: there is no such folder; nor is there an empty one on an object store.
      NotADirectoryError: it is a file.
      UserError: it cannot be reached.
    """
    if not is_remote(folder):
        return os.listdir(folder)
    system, name = _locate(folder)

    def listed() -> list[dict[str, Any]]:
        system.invalidate_cache(name)
        with _turn(system):
            return system.ls(name, detail=True)

    entries = _tried(listed, folder)
    if len(entries) == 1 and entries[0]["name"] == name and entries[0]["size"]:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
    found = (os.path.basename(entry["name"].rstrip("/")) for entry in entries)
    return [each for each in found if each]


def is_folder(path: str) -> bool:
    """Whether a folder is there; see `names` for errors of an object store."""
    if not is_remote(path):
        return os.path.isdir(path)
    try:
        names(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def exists(path: str) -> bool:
    """Whether a file is there now; an object store that cannot be reached is a `UserError`."""
    if not is_remote(path):
        return os.path.exists(path)
    system, name = _locate(path)
    system.invalidate_cache(name)
    try:
        _info(path)
    except FileNotFoundError:
        return False
    return True


# Writing ------------------------------------------------------------------------------------------


def make_folder(path: str) -> None:
    """Makes a folder where it is missing; insists that one far away can be written to.

    Raises:
      FileExistsError: it is a file.
      UserError: nothing can be written to the object store.
    """
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)
        return
    probe = os.path.join(path, sharing.temporary_name("probe"))
    write(probe, b"")
    remove(probe)


def work_folder(folder: str) -> str:
    """Returns where temporary files and locks of a folder lie.

    They lie in the folder itself; for one far away, in a folder of this machine (TMPDIR), which is
    made. It has the same name for all processes of one user.
    """
    if not is_remote(folder):
        return folder
    digest = hashlib.sha256(folder.rstrip("/").encode()).hexdigest()[:16]
    path = os.path.join(tempfile.gettempdir(), f"tfseg-{os.getuid()}-{digest}")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def temporary_path(path: str) -> str:
    """Returns a path on a disk under which a file can be written before `publish`."""
    if not is_remote(path):
        return sharing.temporary_path(path)
    folder, name = os.path.split(path)
    return os.path.join(work_folder(folder), sharing.temporary_name(name))


def publish(temporary: str, path: str) -> None:
    """Gives a finished file its name: renames it, or uploads and removes it."""
    if not is_remote(path):
        os.replace(temporary, path)
        return
    system, name = _locate(path)
    _written(lambda: system.put_file(temporary, name), path)
    os.remove(temporary)


def write(path: str, content: bytes) -> None:
    """Writes an object far away, which appears whole or not at all."""
    system, name = _locate(path)
    _written(lambda: system.pipe_file(name, content), path)


def remove(path: str) -> None:
    """Removes a file.

    Raises:
      FileNotFoundError: there is none.
    """
    if not is_remote(path):
        os.remove(path)
        return
    system, name = _locate(path)
    # Asked first: some stores say nothing of an object that is not there.
    if not exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    _written(lambda: system.rm_file(name), path)


# The store ----------------------------------------------------------------------------------------


def _locate(path: str) -> tuple[Any, str]:
    """Returns the file system of a path and what the path is called there."""
    scheme, _, rest = path.partition("://")
    system = _file_system(f"{scheme}://{rest.partition('/')[0]}")
    return system, system._strip_protocol(path)


@functools.cache
def _file_system(root: str) -> Any:
    """Returns the file system of a host or bucket: one for all threads, with its connections."""
    scheme = root.partition("://")[0]
    fix = "pip install 'tfseg[remote]' (fsspec, s3fs for s3://, gcsfs for gs://)"
    if scheme not in ("s3", "gs"):
        fix += f"; for {scheme}:// the package that fsspec names for it"
    try:
        import fsspec

        options = {}
        if scheme in ("s3", "s3a") and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
            options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS}
        return fsspec.core.url_to_fs(root, **options)[0]
    except ImportError as error:
        raise UserError(
            f"A package that reads {scheme}:// is not installed.",
            where=root,
            received=str(error),
            fix=fix,
        ) from None
    except Exception as error:
        raise UserError(
            "The storage of the records cannot be opened.",
            where=root,
            received=_told(error),
            accepted="a path on a disk, s3://, gs://, or another address that fsspec knows",
            fix=fix,
        ) from None


_turns: dict[int, threading.Lock] = {}


def _turn(system: Any) -> contextlib.AbstractContextManager:
    """Returns what is held during a request: nothing, or the lock of a file system for one thread.

    Those that are asynchronous inside are made for many requests at a time.
    """
    if getattr(system, "async_impl", False):
        return contextlib.nullcontext()
    return _turns.setdefault(id(system), threading.Lock())


def _info(path: str) -> dict[str, Any]:
    """Returns what the store says of an object; it may be as old as the last listing."""
    system, name = _locate(path)

    def asked() -> dict[str, Any]:
        with _turn(system):
            return system.info(name)

    return _tried(asked, path)


def _size_of(info: dict[str, Any], path: str) -> int:
    if info.get("type") == _FOLDER_TYPE:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if info.get("size") is None:
        raise UserError(
            "The server does not tell the size of a file.",
            where=path,
            fix="use a server that does (HTTP Content-Length), or copy the records to a disk",
        )
    return int(info["size"])


def _written(call: Callable[[], Any], path: str) -> None:
    """Makes a request that writes; a bucket that is missing is the user's error."""
    try:
        _tried(call, path)
    except FileNotFoundError:
        raise UserError(
            "Nothing can be written there: the bucket or the folder does not exist.",
            where=path,
            fix="make the bucket first, or correct the address",
        ) from None


def _tried(call: Callable[[], _T], path: str) -> _T:
    """Makes a request, and makes it again where it failed by no fault of the user.

    Raises:
      FileNotFoundError: there is no such object; other errors of that kind pass, too.
      UserError: it is not permitted, or fails each time.
    """
    for wait in (*_WAITS, None):
        try:
            return call()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
        except (UserError, IsADirectoryError, NotADirectoryError):
            raise
        except PermissionError as error:
            raise UserError(
                "The storage of the records refuses access.",
                where=path,
                received=_told(error),
                fix="check the credentials (for s3:// AWS_ACCESS_KEY_ID or AWS_PROFILE, for gs:// "
                "GOOGLE_APPLICATION_CREDENTIALS) and what they permit",
            ) from None
        except Exception as error:
            # Each file system has exceptions of its own for a connection that fails.
            if wait is None:
                raise UserError(
                    "The storage of the records cannot be reached.",
                    where=path,
                    received=_told(error),
                    fix=f"check the network, the address and the credentials; tried "
                    f"{len(_WAITS) + 1} times",
                ) from error
        time.sleep(wait)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
