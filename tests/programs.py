"""Runs the project's programs as a user would.

`run` calls the programs of the network, the command `tfseg` and converters with one worker in the
test's own process, which spares the seconds that TensorFlow takes to start. Where a program of the
network needs a process of its own, that is copied from one that has imported TensorFlow. All others
are started as ever.
"""

import contextlib
import gc
import io
import multiprocessing
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
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
_COPIES = multiprocessing.get_context("forkserver")
_COPIES.set_forkserver_preload(["tfseg.runs.fit", "tfseg.runs.judge"])


class Started:
    """A program of the network at work, in a process that is copied from one with TensorFlow.

    Offers what the tests use of `subprocess.Popen`.
    """

    def __init__(self, arguments, *, output, errors, variables=(), largest_file=None):
        """Starts it.

        Args:
          arguments: the program and its command line.
          output, errors: files; may be the same.
          variables: of the environment, besides those of the tests.
          largest_file: bytes that it can write into a file; None: no limit.
        """
        words = [str(word) for word in arguments]
        variables = {**environment(), **dict(variables)}
        self._process = _COPIES.Process(
            target=_be, args=(words, str(output), str(errors), variables, largest_file)
        )
        self._process.start()
        self.pid, self.output = self._process.pid, pathlib.Path(output)

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout):
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("a program", timeout)
        return self.returncode

    def send_signal(self, signum):
        os.kill(self.pid, signum)


def _be(words, output, errors, variables, largest_file):
    """Is a program of the network, with the toy among its backbones, in a process of its own."""
    os.environ.update(variables)
    os.chdir(ROOT)
    for path, streams in ((output, (1, 2)), (errors, (2,) if errors != output else ())):
        with open(path, "w") as file:
            for stream in streams:
                os.dup2(file.fileno(), stream)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    module = words.pop(0) if words[0] == _COMMAND else "tests.with_toy"
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__")


def environment():
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def start_holder(path, note):
    """Starts a process that holds the lock `path` until it is killed; returns once it has it."""
    code = f"""
from tfseg import sharing
with sharing.locked({path!r}, note={note!r}):
    print(flush=True)
    input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    return process


def run(*arguments, check=True, timeout=300, largest_file=None):
    """Runs `python <arguments>` in the project's root; returns what a finished process would.

    Args:
      *arguments: the program and its command line.
      check: insists on exit code 0.
      timeout: seconds after which a process is given up.
      largest_file: bytes; a program of the network that cannot write more into a file.
    """
    words = [str(word) for word in arguments]
    own = any(word.split("=")[0] in _OF_THE_PROCESS for word in words)
    of_network = words[0] in (*_PROGRAMS, _COMMAND)
    converter = words[0].startswith("tfrecords_tools/") and "--num_workers=1" in words
    if of_network and (own or largest_file):
        result = _run_copy(words, timeout, largest_file)
    elif of_network or converter or words[:2] == ["-m", _MODULE]:
        result = _run_here(words)
    else:
        result = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    if check:
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result


def _run_copy(words, timeout, largest_file):
    """Runs a program in a process that is copied from one with TensorFlow."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = pathlib.Path(folder, "output"), pathlib.Path(folder, "errors")
        process = Started(words, output=output, errors=errors, largest_file=largest_file)
        code = process.wait(timeout)
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())


def _run_here(words):
    """Runs a program in this process, as if it had one of its own."""
    from tests.toy import ToyBackbone
    from tfseg.models import BACKBONES

    before = set(flags.FLAGS)
    output, errors, code = io.StringIO(), io.StringIO(), 0
    folder, argv, leave = os.getcwd(), sys.argv, cli._leave
    handler = signal.getsignal(signal.SIGTERM)
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
        signal.signal(signal.SIGTERM, handler)
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


def start(*arguments, log, **variables):
    """Starts a program of the network; its output goes into a file.

    Args:
      *arguments: the program and its command line.
      log: the file.
      **variables: of the environment.
    """
    return Started(arguments, output=log, errors=log, variables=variables)


def assert_user_error(result, *words):
    """Exit code 2, one message on stderr with these words, no traceback."""
    output = result.stdout + result.stderr
    assert result.returncode == 2, output[-2000:]
    assert "Traceback" not in output, output[-2000:]
    assert result.stderr.count("error: ") == 1, result.stderr
    for word in words:
        assert word in result.stderr, f"{word!r} not in:\n{result.stderr}"
