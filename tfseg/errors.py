"""The one exception that a user sees, and the frame that turns it into exit code 2.

A `UserError` says what is wrong, where, what was received, what is accepted and what to do
next. Everything else that escapes is a defect of tfseg and keeps its traceback.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

USER_ERROR_EXIT_CODE = 2
# The shell's convention for a process that SIGINT ended.
_INTERRUPTED_EXIT_CODE = 130
# Characters of a message's part.
_MAX_SHOWN = 4000


class UserError(Exception):
    """A mistake that the person at the keyboard can mend.

    Args:
      what: one sentence on what is wrong.
      where: the file, record, key or flag concerned, or None.
      received: the value that was found, or None.
      accepted: what would have been right, or None.
      fix: the next thing to do, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        where: Any = None,
        received: Any = None,
        accepted: Any = None,
        fix: str | None = None,
    ):
        self.what, self.where, self.received = what, where, received
        self.accepted, self.fix = accepted, fix
        parts = [_shown(what)]
        for name, value in (
            ("where", where),
            ("received", received),
            ("accepted", accepted),
            ("next step", fix),
        ):
            if value is not None:
                parts.append(f"  {name}: {_shown(value)}")
        super().__init__("\n".join(parts))


def _shown(value: Any) -> str:
    """Returns a value as text that can be printed.

    A file may hold one of any length, and names of files need not be UTF-8.
    """
    text = str(value).encode(errors="backslashreplace").decode()
    if len(text) <= _MAX_SHOWN:
        return text
    return f"{text[:_MAX_SHOWN]} ... ({len(text)} characters)"


def check_choice(value: Any, accepted: Collection[Any], *, flag: str, what: str) -> None:
    """Checks a value that has to be one of a few.

    Args:
      value: what was given.
      accepted: what may be given, in the order to name it in.
      flag: its name, without dashes.
      what: the kind of thing it chooses, for "Unknown <what>."

    Raises:
      UserError: it is none of them.
    """
    if value not in accepted:
        raise UserError(
            f"Unknown {what}.",
            where=f"--{flag}",
            received=value,
            accepted=", ".join(map(str, accepted)),
        )


_FREE_SPACE = "free some space or choose another output directory; nothing half-written was kept"
# What a disk can refuse, and the next step.
_DISK_ERRORS = {
    errno.ENOSPC: ("No space is left on the device.", _FREE_SPACE),
    errno.EDQUOT: ("The disk quota is used up.", _FREE_SPACE),
    errno.EFBIG: (
        "A file would become larger than is allowed.",
        "raise the limit (ulimit -f), or choose another output directory",
    ),
    errno.EIO: ("The disk failed.", "check the disk and its connection"),
    errno.ESTALE: ("The network disk has lost a file.", "check the disk and its connection"),
    errno.EMFILE: ("Too many files are open.", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("Too many files are open on this machine.", None),
    errno.ENAMETOOLONG: ("A file name is too long.", "choose shorter names"),
    errno.ENOTDIR: ("A path leads through a file.", "check the path"),
    errno.EEXIST: ("A file is there already.", "choose another path"),
    errno.EISDIR: ("A file is needed here, not a folder.", "check the path"),
    errno.ELOOP: ("A link leads to itself.", "check the links on the path"),
}


def from_os_error(error: OSError) -> UserError | None:
    """Returns the user's view of an operating-system error, or None if it is not one."""
    where = error.filename
    if error.errno in _DISK_ERRORS:
        what, fix = _DISK_ERRORS[error.errno]
        received = f"{error.strerror} ({errno.errorcode[error.errno]})"
        return UserError(what, where=where, received=received, fix=fix)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"Permission denied ({error.strerror}).", where=where)
    if error.errno == errno.ENOENT and where is not None:
        if os.path.islink(where):
            return UserError(
                "A link leads to a file that is not there.",
                where=where,
                received=os.readlink(where),
                fix="fetch the file, or remove the link",
            )
        return UserError("No such file or directory.", where=where)
    return None


@contextlib.contextmanager
def naming_file(path: str) -> Iterator[None]:
    """Gives operating-system errors of writing, which name no file, the file's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


# Folders of this repository that can be imported.
_OWN = ("tfseg", "tfrecords_tools", "tests")


def from_missing_module(error: ModuleNotFoundError) -> UserError | None:
    """Returns the user's view of a package that is not installed, or None if it is one of ours."""
    name = (error.name or "").partition(".")[0]
    if not name or name in _OWN:
        return None
    return UserError(
        f"The Python package '{name}' is not installed for this Python.",
        where=sys.executable,
        fix="activate the environment in which tfseg is installed (source .venv/bin/activate), or "
        "install tfseg for this Python (pip install -e .)",
    )


def report(error: UserError) -> int:
    """Prints one message to stderr and returns the exit code for user errors."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    return USER_ERROR_EXIT_CODE


def exit_code(main: Callable[..., Any], *args: Any) -> int:
    """Runs `main` and returns its exit code.

    User errors become one message and code 2, Ctrl-C one word and code 130.
    """
    try:
        return main(*args) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return _INTERRUPTED_EXIT_CODE
    except UserError as error:
        return report(error)
    except OSError as error:
        as_user_error = from_os_error(error)
        if as_user_error is None:
            raise
        return report(as_user_error)
    except ModuleNotFoundError as error:
        as_user_error = from_missing_module(error)
        if as_user_error is None:
            raise
        return report(as_user_error)
