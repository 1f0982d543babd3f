"""benchmarks/gpu/export.py: a whole step compiles to a program that needs nothing of the host."""

import argparse
import importlib.util
import pathlib
import sys

import pytest

from tests.toy import ToyBackbone
from tfseg.models import BACKBONES

FILE = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "gpu" / "export.py"


@pytest.fixture(scope="module")
def export():
    path = list(sys.path)
    sys.path.append(str(FILE.parents[1]))
    spec = importlib.util.spec_from_file_location("gpu_export", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.mark.parametrize(
    "method",
    [
        "supervised",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("pseudoseg", "unimatch")),
    ],
)
def test_a_step_is_exported_whole(export, monkeypatch, method):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)
    arguments = argparse.Namespace(
        backbone="toy", crop=33, batch=2, precision="bfloat16", recompute="none"
    )
    trainer = export.make_trainer(arguments, export.Variant(method, method))
    batch = next(trainer.iterator)
    program, parameters, results, handles = export.describe(export.step_of(trainer), batch)
    # Bytecode of MLIR, which holds the names of its operations as text.
    assert program.startswith(b"ML\xefR") and b"convolution" in program
    assert b"custom_call" not in program
    count = len(parameters) - len(handles)
    updated = {id(handles[r["updates"] - count]) for r in results if "updates" in r}
    learnt = [*trainer.variables, *trainer.method.model.non_trainable_variables]
    assert all(id(v.handle) in updated for v in [*learnt, trainer.global_step])
    assert "segmentation" in {r.get("loss") for r in results}
