"""Every command in the documentation parses through the real flag definitions."""

import json
import os
import pathlib
import re
import shlex
import string

import pytest

from tests.programs import ROOT, run
from tfseg.exporting import write
from tfseg.runs import fit, images, judge

DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "experiments").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    ROOT / "data_splits" / "README.md",
]
NETWORK_PROGRAMS = (
    *("train_sup.py", "train_wss.py", "train_zls.py"),
    *("eval.py", "vis.py", "predict.py", "export.py"),
)
PROGRAM = re.compile(r"^(?:[A-Z_]+=\S+ )*python3? (?P<program>[\w./]+\.py)\b")


def commands_of(document: pathlib.Path) -> list[str]:
    """Returns the Python commands of a document's fenced blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh)?\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if PROGRAM.match(line.strip())]


def program_of(line):
    return PROGRAM.match(line).group("program")


def all_commands(of_network=False):
    for document in DOCUMENTS:
        for line in commands_of(document):
            if of_network and program_of(line) not in NETWORK_PROGRAMS:
                continue
            yield pytest.param(line, id=f"{document.parent.name}/{document.name}: {line[:50]}")


def words_of(line):
    """Returns a command's words after `python`, with something in place of shell variables."""
    values = dict.fromkeys(re.findall(r"\$\{(\w+)\}", line), "5")
    words = shlex.split(string.Template(line).substitute(values))
    while not words[0].startswith("python"):
        words.pop(0)
    return words[1:]


@pytest.fixture
def settings_only(monkeypatch):
    """Programs of the network stop once their settings are read; returns these settings."""
    read = []
    monkeypatch.setattr(fit, "fit", lambda settings: read.append(settings) or 0)
    monkeypatch.setattr(judge, "evaluate", read.append)
    monkeypatch.setattr(judge, "draw", read.append)
    monkeypatch.setattr(images, "predict", lambda config: read.append(config) or {"failed": {}})
    monkeypatch.setattr(write, "export", read.append)
    return read


@pytest.mark.parametrize("line", [*all_commands(of_network=True)])
def test_settings_of_a_command_can_be_meant(line, settings_only):
    run(*words_of(line))
    assert len(settings_only) == 1


# A converter defines its flags once and parses all its lines.
PARSE = """
import json, os, runpy, sys
from absl import flags
import tfseg.command_line as command_line
lines, wrong = json.loads(sys.argv[1]), []
def parse_all(main, argv=None, help_page=None):
    for words in lines:
        flags.FLAGS.unparse_flags()
        try:
            command_line._parse(words)
        except Exception as error:
            wrong.append(" ".join(words) + ": " + str(error))
    sys.exit("\\n".join(wrong) or 0)
command_line.run = parse_all
sys.argv = lines[0]
# Where `python <program>` looks first.
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("program", sorted({program_of(p.values[0]) for p in all_commands()}))
def test_commands_of_converters_parse(program, tmp_path):
    assert (ROOT / program).exists(), program
    if program.startswith("benchmarks/") or program in NETWORK_PROGRAMS:
        return  # The former have parsers of their own, the latter are tested above.
    lines = [words_of(p.values[0]) for p in all_commands() if program_of(p.values[0]) == program]
    (tmp_path / "parse.py").write_text(PARSE)
    run(tmp_path / "parse.py", json.dumps(lines))


# By a part of the flagfile's name: what its users give with it.
FLAGFILES_NEED = {
    "positive_weights": ["--method=slrnet"],
    "_zls.flags": ["--method=spnet", "--class_embeddings=words.npz"],
    "step2": ["--method=zs3net", "--class_embeddings=words.npz"],
}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").rglob("*.flags")), ids=lambda p: p.name
)
def test_settings_of_a_flagfile_can_be_meant(path, settings_only):
    # The training programs have the same flags; some files want what stands beside them.
    words = [f"--flagfile={path}", "--dataset_dir=d", "--train_logdir=l"]
    for part, more in FLAGFILES_NEED.items():
        if re.search(part, f"{path.parent.name}/{path.name}"):
            words += more
    run("train_wss.py", *words)
    assert len(settings_only) == 1


def test_documents_hold_commands_of_every_program():
    text = "\n".join(line for document in DOCUMENTS for line in commands_of(document))
    for program in (
        "train_sup.py",
        "train_wss.py",
        "train_zls.py",
        "eval.py",
        "vis.py",
        "predict.py",
        "export.py",
        "check.py",
        "build_folder.py",
        "build_pseudo_labels.py",
        "build_class_embeddings.py",
    ):
        assert program in text
    assert os.path.exists(ROOT / "LICENSE")
