"""The frame of every command line: parse flags, run, one message and exit code 2 on mistakes.

`absl.app.run` prints a usage page and leaves with code 1 where a flag is wrong, and lets errors
escape as tracebacks. Here a wrong flag is a `UserError` like any other.
"""

import difflib
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from absl import flags
from absl import logging as _logging  # noqa: F401  (defines --logtostderr, --verbosity, ...)

from tfseg.errors import UserError, exit_code

_HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort")
# absl's name; not defined as a flag here, because absl.app, which something may import, does that.
_CHECK = "--only_check_args"
# The shell's convention for a process that SIGINT ended, and for one that SIGPIPE ended.
_INTERRUPTED_EXIT_CODE = 130
_UNREAD_EXIT_CODE = 141


def help_text(argv: Sequence[str], page: Callable[[Sequence[str]], str] | None = None) -> str:
    """Returns the program's docstring and its flags with help and default.

    Args:
      argv: the command line.
      page: makes the text on the flags; None: absl's own text.
    """
    parts = [(sys.modules["__main__"].__doc__ or "").strip()]
    if page is not None:
        parts.append(page(argv))
    else:
        for module in sorted(flags.FLAGS.flags_by_module_dict()):
            if module.split(".")[0] != "absl":
                parts.append(flags.FLAGS.module_help(module).strip())
    parts.append(
        "--flagfile=PATH reads flags from a file, one a line.\n"
        f"{_CHECK} checks that all flags are known and well formed, and does nothing."
    )
    return "\n\n".join(part for part in parts if part)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is neither a flag nor the program's name is a mistake.

    Raises:
      UserError: an unknown flag, a malformed value, a stray word.
    """
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        # absl's own suggestions look at the first letters only.
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=3)
        raise UserError(
            "Unknown flag.",
            where=f"--{error.flagname}",
            accepted=" or ".join(f"--{name}" for name in near) or None,
            fix="run the program with --help for all its flags",
        ) from None
    except flags.Error as error:
        raise UserError(
            f"A flag is wrong: {error}", fix="run the program with --help for all its flags"
        ) from None
    if len(rest) > 1:
        raise UserError(
            "These words are not flags.",
            received=" ".join(rest[1:]),
            accepted="--name=value, without spaces around '='",
        )
    return rest


def _has_no_reader(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # None, or not a stream of the system.
        return False


def _throw_away(stream: TextIO) -> None:
    """Throws away what a stream still holds: Python writes it at exit, and would complain again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def run(
    main: Callable[[list[str]], Any],
    argv: list[str] | None = None,
    help_page: Callable[[Sequence[str]], str] | None = None,
) -> NoReturn:
    """Parses the command line, runs `main` and leaves the process.

    Args:
      main: takes the remaining command line (the program's name); returns an exit code or None.
      argv: the command line, `sys.argv` by default.
      help_page: see `help_text`.

    Raises:
      SystemExit: always. 0 when all is well and for --help, 2 for mistakes of the user (with one
        message on stderr), 130 after Ctrl-C, 141 where the reader of the output has gone
        (`| head`). Other exceptions are defects and keep their traceback.
    """
    argv = sys.argv if argv is None else argv

    def parse_and_run() -> Any:
        if any(word in _HELP for word in argv[1:]):
            print(help_text(argv, help_page))
            return 0
        rest = _parse([word for word in argv if word != _CHECK])
        return 0 if _CHECK in argv else main(rest)

    try:
        try:
            code = exit_code(parse_and_run)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            code = _INTERRUPTED_EXIT_CODE
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not unread:  # A pipe between processes of ours is another matter.
            raise
        for stream in unread:
            _throw_away(stream)
        code = _UNREAD_EXIT_CODE
    sys.exit(code)
