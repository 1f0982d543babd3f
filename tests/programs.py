"""Runs the project's programs as a user would: in processes of their own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def command(*arguments):
    return [sys.executable, *map(str, arguments)]


def environment():
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def run(*arguments, check=True, timeout=300, **options):
    """Runs `python <arguments>` in the project's root; returns the finished process."""
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
