"""What the documentation says can be done: its commands, its Python, its links."""

import importlib.util
import json
import os
import pathlib
import re
import runpy
import shlex
import signal
import string
import sys
from unittest import mock

import numpy as np
import pytest
from absl import flags
from PIL import Image

import tfseg
from tests.conftest import RECORD_SIZE
from tests.programs import ROOT, run
from tests.toy import ToyBackbone
from tfseg import api, command_line
from tfseg.exporting import write
from tfseg.models import BACKBONES
from tfseg.runs import fit, images, judge

DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").glob("*.md")),
    *sorted((ROOT / "experiments" / "runs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    ROOT / "data_splits" / "README.md",
]
NOTEBOOK = ROOT / "docs" / "notebooks" / "few_masks.ipynb"
NETWORK_PROGRAMS = (
    *("train_sup.py", "train_wss.py", "train_zls.py"),
    *("eval.py", "vis.py", "predict.py", "export.py"),
)
PROGRAM = re.compile(r"^(?:[A-Z_]+=\S+ )*python3? (?P<program>[\w./]+\.py)\b")


def blocks_of(document: pathlib.Path, *languages: str) -> list[str]:
    """Returns a document's fenced blocks in some languages."""
    pattern = rf"```(?:{'|'.join(languages)})\n(.*?)```"
    return re.findall(pattern, document.read_text(), re.DOTALL)


def commands_of(document: pathlib.Path) -> list[str]:
    """Returns the Python commands of a document's fenced blocks, continuation lines joined."""
    text = "\n".join(blocks_of(document, "bash", "sh", "")).replace("\\\n", " ")
    text = text.replace("python -m tfseg.torch_weights", "python tfseg/torch_weights.py")
    return [line.strip() for line in text.splitlines() if PROGRAM.match(line.strip())]


def program_of(line):
    return PROGRAM.match(line).group("program")


def name_of(document):
    return document.relative_to(ROOT).as_posix()


def all_commands(of_network=False):
    for document in DOCUMENTS:
        for line in commands_of(document):
            if of_network and program_of(line) not in NETWORK_PROGRAMS:
                continue
            yield pytest.param(line, id=f"{name_of(document)}: {line[:50]}")


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
    monkeypatch.setattr(judge, "evaluate", lambda settings: read.append(settings) or {"miou": 0.5})
    monkeypatch.setattr(judge, "draw", read.append)
    monkeypatch.setattr(images, "predict", lambda config: read.append(config) or {"failed": {}})
    monkeypatch.setattr(write, "export", read.append)
    return read


# Commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [*all_commands(of_network=True)])
def test_settings_of_a_command_can_be_meant(line, settings_only):
    run(*words_of(line))
    assert len(settings_only) == 1


@pytest.mark.parametrize("program", sorted({program_of(p.values[0]) for p in all_commands()}))
def test_commands_of_other_programs_parse(program, monkeypatch):
    assert (ROOT / program).exists(), program
    if program.startswith(("benchmarks/", "docs/")) or program in NETWORK_PROGRAMS:
        return  # The former have parsers of their own, the latter are tested above.
    lines = [words_of(p.values[0]) for p in all_commands() if program_of(p.values[0]) == program]
    parsed = []

    def parse_all(*_, **__):
        for words in lines:
            flags.FLAGS.unparse_flags()
            command_line._parse(words)
            parsed.append(words)

    monkeypatch.setattr(command_line, "run", parse_all)
    monkeypatch.setattr(sys, "argv", lines[0])
    # Where `python <program>` looks first.
    monkeypatch.syspath_prepend(str((ROOT / program).parent))
    # A converter minds SIGTERM; this process has its own mind.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    before = set(flags.FLAGS)
    try:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    finally:
        flags.FLAGS.remove_flag_values([name for name in flags.FLAGS if name not in before])
        flags.FLAGS.unparse_flags()
    assert parsed == lines


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
        "torch_weights.py",
    ):
        assert program in text
    assert os.path.exists(ROOT / "LICENSE")


# Python -------------------------------------------------------------------------------------------

EXPORT = ROOT / "docs" / "export.md"
# Its blocks use files, and have a test of their own.
PYTHON = [document for document in DOCUMENTS if document != EXPORT if blocks_of(document, "python")]
# What takes the place of the settings of a training.
SMALL = {
    "model_variant": "toy",
    "decoder_output_stride": [4],
    "aspp_convs_filters": 16,
    "decoder_filters": 16,
    "train_crop_size": [RECORD_SIZE, RECORD_SIZE],
    "train_batch_size": 4,
    "training_number_of_steps": 2,
    "num_clones": 1,
}


@pytest.fixture
def small_trainings(records, tmp_path, monkeypatch):
    """A folder with what the documents name, where every training is one of the toy network."""
    fit_as_told = tfseg.fit
    monkeypatch.setattr(
        tfseg, "fit", lambda preset=None, **told: fit_as_told(**(told | SMALL)), raising=False
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records").symlink_to(records)
    (tmp_path / "photos").mkdir()
    photo = Image.fromarray(np.full((40, 53, 3), 90, np.uint8))
    for path in (tmp_path / "photo.jpg", tmp_path / "photos" / "a.jpg"):
        photo.save(path)
    with mock.patch.dict(BACKBONES, {"toy": ToyBackbone}):
        yield tmp_path


def run_blocks(document):
    # Blocks of a document follow each other, as their reader does.
    for block in blocks_of(document, "python"):
        exec(compile(block, name_of(document), "exec"), {})


@pytest.mark.parametrize("document", PYTHON, ids=name_of)
def test_settings_in_python_of_a_document_can_be_meant(document, settings_only, monkeypatch):
    monkeypatch.setattr(api, "load_run", mock.MagicMock())
    run_blocks(document)
    assert settings_only


@pytest.mark.nightly
@pytest.mark.parametrize("document", PYTHON, ids=name_of)
def test_python_of_a_document_runs(document, small_trainings):
    run_blocks(document)


@pytest.mark.nightly
def test_exported_files_are_used_as_the_document_says(small_trainings):
    tfseg.fit(method="supervised", dataset_dir="records", train_split="train", train_logdir="run")
    lines = [line for line in commands_of(EXPORT) if "int8" not in line]
    assert len(lines) == 3
    for line in lines:
        told = dict(word.removeprefix("--").split("=") for word in shlex.split(line)[2:])
        size = {"size": [int(side) for side in told["size"].split(",")]} if "size" in told else {}
        tfseg.export("run", told["output"], format=told["format"], **size)
    run_blocks(EXPORT)


def cells_of(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_a_notebook_is_stored_without_what_it_printed():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert cells_of(NOTEBOOK)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.nightly
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"display": lambda picture: None}
    for source in cells_of(NOTEBOOK):
        # A few steps show that it runs; two hundred would show that it learns.
        exec(compile(source.replace("STEPS = 200", "STEPS = 4"), NOTEBOOK.name, "exec"), names)
    assert set(names["scores"]) == {"24 masks", "24 masks and 488 images"}


# Form ---------------------------------------------------------------------------------------------


def anchor_of(heading):
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def anchors_of(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    return {anchor_of(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_of_a_document_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), target
        assert not anchor or anchor in anchors_of(found), target
        # A site is made of docs/ alone.
        assert (ROOT / "docs") not in document.parents or (ROOT / "docs") in found.parents, target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220


def test_the_page_of_flags_is_what_the_settings_say():
    path = ROOT / "docs" / "flags.py"
    module = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location("f", path)
    )
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run `python docs/flags.py`"


def test_the_learning_curve_of_the_pages_is_that_of_the_results():
    # Pages of the site link to files of docs/ alone.
    results = ROOT / "experiments" / "results" / "learning_curve.svg"
    assert (ROOT / "docs" / "learning_curve.svg").read_bytes() == results.read_bytes()
