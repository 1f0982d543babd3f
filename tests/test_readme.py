"""Every command in the documentation parses through the real flag definitions."""

import os
import pathlib
import re
import shlex
import string
import subprocess

import pytest

from tests.programs import ROOT, command, environment

DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "experiments").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    ROOT / "data_splits" / "README.md",
]
PROGRAM = re.compile(r"^(?:[A-Z_]+=\S+ )*python3? (?P<program>[\w./]+\.py)\b")


def commands_of(document: pathlib.Path) -> list[str]:
    """Returns the Python commands of a document's fenced blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh)?\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if PROGRAM.match(line.strip())]


def all_commands():
    for document in DOCUMENTS:
        for line in commands_of(document):
            yield pytest.param(line, id=f"{document.parent.name}/{document.name}: {line[:50]}")


PARSE = """
import runpy, sys
from absl import app, flags
import tfseg.command_line as command_line
def parse_only(main, argv=None):
    command_line._parse(sys.argv)
    raise SystemExit(0)
command_line.run = parse_only
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("line", all_commands())
def test_command_parses(line, tmp_path):
    program = PROGRAM.match(line).group("program")
    assert (ROOT / program).exists(), program
    if program.startswith("benchmarks/"):
        return  # They have parsers of their own.
    values = dict.fromkeys(re.findall(r"\$\{(\w+)\}", line), "5")
    words = shlex.split(string.Template(line).substitute(values))
    while not words[0].startswith("python"):
        words.pop(0)
    (tmp_path / "parse.py").write_text(PARSE)
    result = subprocess.run(
        command(tmp_path / "parse.py", *words[1:]),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-1500:]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").rglob("*.flags")), ids=lambda p: p.name
)
def test_flagfile_parses(path, tmp_path):
    (tmp_path / "parse.py").write_text(PARSE)
    # The training programs have the same flags.
    result = subprocess.run(
        command(tmp_path / "parse.py", "train_wss.py", f"--flagfile={path}"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-1500:]


def test_documents_hold_commands_of_every_program():
    text = "\n".join(line for document in DOCUMENTS for line in commands_of(document))
    for program in (
        "train_sup.py",
        "train_wss.py",
        "train_zls.py",
        "eval.py",
        "vis.py",
        "check.py",
        "build_folder.py",
        "build_pseudo_labels.py",
        "build_class_embeddings.py",
    ):
        assert program in text
    assert os.path.exists(ROOT / "LICENSE")
