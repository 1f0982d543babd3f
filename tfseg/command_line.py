"""The frame of every command line: parse flags, run, one message and exit code 2 on mistakes.

`absl.app.run` prints a usage page and leaves with code 1 where a flag is wrong, and lets errors
escape as tracebacks. Here a wrong flag is a `UserError` like any other. Flagfiles are read
here too, so that those which come with the package are found by their names.
"""

import difflib
import io
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from absl import flags
from absl import logging as _logging  # noqa: F401  (defines --logtostderr, --verbosity, ...)

from tfseg import files, shipped
from tfseg.errors import UserError, exit_code

_HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort")
# absl's name; not defined as a flag here, because absl.app, which something may import, does that.
_CHECK = "--only_check_args"
# The shell's convention for a process that SIGPIPE ended.
_UNREAD_EXIT_CODE = 141


def help_text(
    argv: Sequence[str], about: str, page: Callable[[Sequence[str]], str] | None = None
) -> str:
    """Returns what a program does, and its flags with help and default.

    Args:
      argv: the command line.
      about: what the program does.
      page: makes the text on the flags; None: absl's own text.
    """
    parts = [about.strip()]
    if page is not None:
        parts.append(page(argv))
    else:
        for module in sorted(flags.FLAGS.flags_by_module_dict()):
            if module.split(".")[0] != "absl":
                parts.append(flags.FLAGS.module_help(module).strip())
    parts.append(
        "--flagfile=PATH reads flags from a file, one a line, or from one that comes with tfseg.\n"
        f"{_CHECK} checks that all flags are known and well formed, and does nothing."
    )
    return "\n\n".join(part for part in parts if part)


def with_flagfiles(words: Sequence[str], including: tuple[str, ...] = ()) -> list[str]:
    """Puts the lines of flagfiles in the place of --flagfile.

    Args:
      words: of a command line or a flagfile.
      including: the flagfiles in which these words stand.

    Raises:
      UserError: there is no such flagfile, it is no text, or it includes itself.
    """
    expanded, remaining = [], iter(words)
    for word in remaining:
        match = re.fullmatch(r"--?flagfile(?:=(.*))?", word)
        if match is None:
            expanded.append(word)
            continue
        path = _flagfile(match[1] if match[1] is not None else next(remaining, ""))
        if path in including:
            raise UserError(
                "A flagfile includes itself.",
                where=f"--flagfile={path}",
                received=" -> ".join((*including, path)),
                fix="take out one of these lines",
            )
        lines = [line.strip() for line in _lines_of(path)]
        lines = [line for line in lines if line and not line.startswith(("#", "//"))]
        expanded += with_flagfiles(lines, (*including, path))
    return expanded


def _flagfile(name: str) -> str:
    """Returns the path of a user's flagfile, else of the one of that name in the package.

    Raises:
      UserError: there is neither.
    """
    path = os.path.expanduser(name.strip())
    if os.path.exists(path):
        return path
    found = shipped.find(path, ".flags") if path else None
    if found is None:
        known = shipped.names(".flags")
        near = difflib.get_close_matches(path.removesuffix(".flags"), known, n=5, cutoff=0.4)
        raise UserError(
            "There is no such flagfile.",
            where="--flagfile",
            received=name or "no name",
            accepted="a file, or one that comes with tfseg"
            + (": " + ", ".join(near) if near else " (experiments/*.flags)"),
            fix=files.did_you_mean(path, "check the path"),
        )
    return found


def _lines_of(path: str) -> list[str]:
    with files.open_regular(path, what="The flagfile") as file:
        try:
            return file.read().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UserError(
                "The flagfile is no text.",
                where=f"--flagfile={path}",
                accepted="UTF-8 text, one flag in a line",
            ) from None


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
    except (flags.Error, ValueError) as error:  # ValueError: --noNAME=VALUE
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
    about: str | None = None,
) -> NoReturn:
    """Parses the command line, runs `main` and leaves the process.

    Args:
      main: takes the remaining command line (the program's name); returns an exit code or None.
      argv: the command line, `sys.argv` by default.
      help_page: see `help_text`.
      about: what --help says that the program does; None: the docstring of the module of `main`.

    Raises:
      SystemExit: always. 0 when all is well and for --help, 2 for mistakes of the user (with one
        message on stderr), 130 after Ctrl-C, 141 where the reader of the output has gone
        (`| head`). Other exceptions are defects and keep their traceback.
    """
    argv = sys.argv if argv is None else argv
    # What is told may hold names of files and classes that the terminal has no characters for.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    if about is None:
        about = sys.modules[main.__module__].__doc__ or ""

    def parse_and_run() -> Any:
        words = [argv[0], *with_flagfiles(argv[1:])]
        if any(word in _HELP for word in words[1:]):
            print(help_text(words, about, help_page))
            return 0
        rest = _parse([word for word in words if word != _CHECK])
        return 0 if _CHECK in words else main(rest)

    try:
        code = exit_code(parse_and_run)
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
