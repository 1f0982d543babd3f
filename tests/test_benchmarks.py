"""Benchmarks that need no trained run and no GPU: they run, at sizes whose figures mean nothing."""

import sys

import pytest

from tests.programs import run

pytestmark = pytest.mark.nightly

SMALL = ("--backbone=mobilenet_v2", "--crop=65", "--batch=1", "--steps=1")
PEER = (
    "import sys\n"
    "print('peer s/step 9.0')\n"
    "print('batch 1: images/s 0.5')\n"
    "print('batch 8: images/s 0.5')\n"
)


@pytest.mark.parametrize(
    "words, expected",
    [
        (["method_cost.py", *SMALL], "pseudoseg, weakly, separate passes"),
        (["memory.py", *SMALL, "--rows", "nothing", "evaluation", "supervised, recompute"], "peak"),
        (["train_step.py", *SMALL, "--rounds=1"], "times as fast"),
        (
            ["evaluation.py", "--backbone=mobilenet_v2", "--plain", "--size=65", "--images=2"]
            + ["--rounds=1"],
            "times as fast",
        ),
        (
            ["input_pipeline.py", "--crop_size=33", "--images=2", "--height=40", "--width=50"]
            + ["--batch_size=2", "--seconds=0.1"],
            "and two strong",
        ),
        (
            ["remote_records.py", "--num_records=8", "--seconds=0.2", "--delay_ms=1"]
            + ["--in_flight", "2"],
            "crops from the server",
        ),
        (["two_workers.py", "--steps=2", "--rounds=1"], "ms a step"),
        (
            ["slrnet_cost.py", "--backbone=mobilenet_v2", "--crop=65", "--steps=1"],
            "peak",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_benchmark_prints_its_figures(words, expected, tmp_path):
    program, *words = words
    if expected == "times as fast":
        peer = tmp_path / "peer.py"
        peer.write_text(PEER)
        words += [f"--peer={peer}", f"--peer_python={sys.executable}"]
    output = run(f"benchmarks/{program}", *words).stdout
    assert expected in output
