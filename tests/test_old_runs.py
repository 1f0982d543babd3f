"""Runs that an earlier revision saved go on, and are evaluated, as they were there."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests import runs
from tests.programs import run
from tfseg.weights.checkpoint import find


FOLDER = pathlib.Path(__file__).parent / "fixtures" / "runs_34dfcb6"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
PROGRAMS = {"pseudoseg": "train_wss.py", "float16": "train_sup.py"}
# Half precision has ten bits, and other processors round otherwise.
TOLERANCE = {"pseudoseg": 2e-4, "float16": 2e-2}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A copy of the runs that may be written to."""
    return pathlib.Path(shutil.copytree(FOLDER, tmp_path_factory.mktemp("old") / "runs"))


def flags_of(old, name):
    """Returns the flags that the run was made with, for the copy."""
    _, *flags = json.loads((old / name / "config.json").read_text())["command"]
    moved = ("--dataset_dir=", "--train_logdir=")
    return [flag for flag in flags if not flag.startswith(moved)] + [
        f"--dataset_dir={old / 'records'}",
        f"--train_logdir={old / name}",
    ]


def evaluate(old, name, out, *extra):
    split = "--eval_split=train"
    return runs.evaluate(old / name / "model.ckpt-40", old / "records", out, split, *extra)


@pytest.mark.parametrize(
    "name, network", [("pseudoseg", ""), ("pseudoseg", "ema"), ("float16", "")]
)
def test_an_old_run_is_evaluated_as_it_was(old, tmp_path, name, network):
    extra = [f"--network={network}"] if network else []
    found = evaluate(old, name, tmp_path, *extra)["confusion_matrix"]
    assert found == EXPECTED[name]["confusion_matrix" + (f"_{network}" if network else "")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.nightly) if n == "float16" else n for n in PROGRAMS]
)
def test_an_old_run_goes_on_as_it_would_have(old, name):
    output = run(PROGRAMS[name], *flags_of(old, name)).stdout
    assert "model.ckpt-40 (step 40)" in output and "other settings" not in output
    tolerance = TOLERANCE[name]
    log = runs.log_of(old / name)
    assert [entry["step"] for entry in log] == [41, 42]
    for entry, expected in zip(log, EXPECTED[name]["log"]):
        for loss, value in expected.items():
            if loss != "monitors":
                np.testing.assert_allclose(entry[loss], value, rtol=tolerance, err_msg=loss)
    found = runs.final_values(old / name)
    for key, value in np.load(FOLDER / "expected.npz").items():
        made_by, _, stored = key.partition(":")
        if made_by == name:
            scale = np.abs(value).max()
            np.testing.assert_allclose(found[stored], value, atol=tolerance * scale, err_msg=key)
    assert find.newest(str(old / name)).endswith("-42")
