"""Runs the project's programs as a user would.

`run` calls the programs of the network, and the command `tfseg`, in the test's own process, which
spares the seconds that TensorFlow takes to start; `fresh=True`, `start` and everything else start a
process.
"""

import contextlib
import gc
import io
import os
import pathlib
import runpy
import subprocess
import sys
import warnings
from unittest import mock

from absl import flags

from tfseg import cli, console

ROOT = pathlib.Path(__file__).resolve().parent.parent
_TRAINING = ("train_sup.py", "train_wss.py", "train_zls.py")
_PROGRAMS = (*_TRAINING, "eval.py", "vis.py", "predict.py", "export.py")
_COMMAND = "tfseg"
# As `python -m ...`.
_MODULE = "tfseg.torch_weights"
# Flags that change TensorFlow itself, for good.
_OF_THE_PROCESS = ("--deterministic", "--clone_on_cpu", "--strategy")


def command(*arguments):
    """Returns the words that start `python <arguments>`; the network's programs know the toy."""
    in_front = ["-m", "tests.with_toy"] if arguments[0] in _PROGRAMS else []
    if arguments[0] == _COMMAND:
        in_front = ["-m"]
    return [sys.executable, *in_front, *map(str, arguments)]


def environment():
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def run(*arguments, check=True, timeout=300, fresh=False, **options):
    """Runs `python <arguments>` in the project's root; returns what a finished process would.

    Args:
      *arguments: the program and its command line.
      check: insists on exit code 0.
      timeout: seconds after which a process is given up.
      fresh: starts a process in any case.
      **options: of `subprocess.run`; they start a process too.
    """
    words = [str(word) for word in arguments]
    own = any(word.split("=")[0] in _OF_THE_PROCESS for word in words)
    here = words[0] in (*_PROGRAMS, _COMMAND) or words[:2] == ["-m", _MODULE]
    if here and not (fresh or own or options):
        result = _run_here(words)
    else:
        result = subprocess.run(
            command(*arguments),
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )
    if check:
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result


def _run_here(words):
    """Runs a program in this process, as if it had one of its own."""
    from tests.toy import ToyBackbone
    from tfseg.models import BACKBONES

    before = set(flags.FLAGS)
    output, errors, code = io.StringIO(), io.StringIO(), 0
    folder, argv, leave = os.getcwd(), sys.argv, cli._leave
    sys.argv, cli._leave = [word for word in words if word != "-m"], sys.exit
    os.chdir(ROOT)
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            warnings.catch_warnings(),
            mock.patch.dict(BACKBONES, {"toy": ToyBackbone}),
        ):
            # What a process of its own would print on stderr.
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _print_warning
            if words[0] == _COMMAND:
                console.main()
            elif words[0] == "-m":
                runpy.run_module(_MODULE, run_name="__main__")
            else:
                runpy.run_path(words[0], run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code or 0
    finally:
        os.chdir(folder)
        sys.argv, cli._leave = argv, leave
        flags.FLAGS.remove_flag_values([name for name in flags.FLAGS if name not in before])
        flags.FLAGS.unparse_flags()
        if not code:
            # Graphs hold each other in circles; a program that refused its flags has built none.
            gc.collect()
    return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())


def convert(module, *words):
    """Runs a program of tfrecords_tools in this process.

    Args:
      module: the program's.
      *words: its command line.

    Raises:
      UserError: what the program would print as an error.
    """
    before = set(flags.FLAGS)
    try:
        module.define_flags()
        flags.FLAGS([module.__name__, "--num_workers=1", *map(str, words)])
        module.main([])
    finally:
        flags.FLAGS.remove_flag_values([name for name in flags.FLAGS if name not in before])
        flags.FLAGS.unparse_flags()


def _print_warning(message, category, filename, lineno, file=None, line=None):
    print(f"{filename}:{lineno}: {category.__name__}: {message}", file=sys.stderr)


def start(*arguments, log):
    """Starts `python <arguments>` with its output in a file; returns the process."""
    with open(log, "w") as file:
        return subprocess.Popen(
            command(*arguments), cwd=ROOT, env=environment(), stdout=file, stderr=file
        )


def assert_user_error(result, *words):
    """Exit code 2, one message on stderr with these words, no traceback."""
    output = result.stdout + result.stderr
    assert result.returncode == 2, output[-2000:]
    assert "Traceback" not in output, output[-2000:]
    assert result.stderr.count("error: ") == 1, result.stderr
    for word in words:
        assert word in result.stderr, f"{word!r} not in:\n{result.stderr}"
