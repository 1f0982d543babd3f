"""The recipes as a user runs them: stopped inside and between steps, and begun anew."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import RECORD_SIZE
from tests.programs import ROOT, environment, run
from tests.runs import NETWORK, log_of
from tfseg.weights.checkpoint import find

# Light programs, so that they start fast; enough steps to be stopped inside.
SHARED = (
    *(flag for flag in NETWORK if "batch_size" not in flag),
    "--decoder_output_stride=4",
    "--batch_norm_momentum=0.9",
    "--log_steps=1",
    "--save_summaries_images=false",
)
LPL = (*SHARED, "--method=learning_pseudo_labels", "--train_batch_size=2")
SLRNET = (
    *SHARED,
    "--method=slrnet",
    "--train_batch_size=2",
    "--pretrain_steps=1",
    "--training_number_of_steps=3",
)
STAGE2 = (*SHARED, "--method=supervised", "--train_batch_size=4", "--training_number_of_steps=3")
ZERO_LABEL = (
    *SHARED,
    "--class_split=experiments/digits_split.json",
    "--train_batch_size=2",
    "--training_number_of_steps=60",
    "--save_interval_steps=15",
)
SPNET = (*ZERO_LABEL, "--method=spnet", "--head=projection")
STRICT = (
    *ZERO_LABEL,
    "--method=strict",
    "--head=projection",
    "--initialize_last_layer",
    "--fine_tune_batch_norm=false",
    "--rounds=2",
    "--view_scales=1.5",
)
ZS3 = (*ZERO_LABEL, "--method=zs3net", "--last_layers_contain_logits_only")
ZS5 = (
    *ZERO_LABEL,
    "--method=strict",
    "--head=deeplab",
    "--initialize_last_layer",
    "--view_scales=",
    "--mirror_views=false",
    "--generator_classes=all",
    "--pseudo_label_share=25",
    "--disagreeing=ignore",
)


def settings_of(records, tmp_path, stage1):
    """Returns the environment of a two-stage recipe over the small records."""
    return environment_of(records, tmp_path, STAGE1_FLAGS=stage1, STAGE2_FLAGS=STAGE2)


def environment_of(records, tmp_path, **flagfiles):
    """Returns the environment of a recipe over the small records, with flagfiles of these flags."""
    for name, flags in flagfiles.items():
        (tmp_path / name).write_text("\n".join(flags) + "\n")
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$1" in train_*.py|eval.py|vis.py) set -- -m tests.with_toy "$@" ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return {
        **environment(),
        "PYTHON": str(python),
        "DATASET_DIR": str(records),
        "OUTPUT_DIR": str(tmp_path / "out"),
        **{name: str(tmp_path / name) for name in flagfiles},
        "CROP": f"{RECORD_SIZE},{RECORD_SIZE}",
    }


def begin(settings, log, recipe="learning_pseudo_labels"):
    with open(log, "w") as file:
        return subprocess.Popen(
            ["bash", f"experiments/{recipe}.sh"],
            cwd=ROOT,
            env=settings,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(path, process, lines=1):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and (path.is_dir() or len(path.read_text().splitlines()) >= lines):
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear (exit code {process.poll()})")


# Steps of seconds in place of trainings; the rest is that of every recipe.
SKELETON = """
set -euo pipefail
cd "{folder}"
PYTHON=python
PARAMETERS=(DATASET_DIR SEED CROP STAGE1_FLAGS)
FLAGFILES=(STAGE1_FLAGS)
LATE=(CROP)
SPLITS=(LABELLED_SPLIT)
. {root}/experiments/recipe.sh
begin
step 1_train {root}/step first
step 2_evaluate {root}/step second
"""
# Says that it has begun, waits for a file, and "saves" where it is told to stop.
STEP = """#!/usr/bin/env bash
trap 'echo saved >>saved.txt; exit 143' TERM
echo "$1" >>begun.txt
for _ in $(seq 600); do
  [ ! -e "$1.go" ] || exit 0
  sleep 0.05
done
exit 1
"""


@pytest.fixture
def skeleton(tmp_path):
    """Returns a function that begins a recipe of two steps; its folder is `tmp_path`."""
    (tmp_path / "experiments").mkdir()
    recipe = (ROOT / "experiments" / "recipe.sh").read_text()
    (tmp_path / "experiments" / "recipe.sh").write_text(recipe)
    (tmp_path / "step").write_text(STEP)
    (tmp_path / "step").chmod(0o755)
    (tmp_path / "run.sh").write_text(SKELETON.format(folder=tmp_path, root=tmp_path))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "train-00000-of-00001.tfrecord").touch()
    (tmp_path / "stage1.flags").write_text("--seed=0\n")

    def begin(**settings):
        given = {"SEED": "0", "CROP": "33,33", "LABELLED_SPLIT": "train"}
        given |= {"DATASET_DIR": "records", "STAGE1_FLAGS": "stage1.flags", "OUTPUT_DIR": "out"}
        with open(tmp_path / "log", "w") as file:
            return subprocess.Popen(
                ["bash", str(tmp_path / "run.sh")],
                env={**environment(), **given, **settings},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell can't trap what it inherits as ignored, as from a job in the background.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    return begin


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_step_and_a_finished_one_is_passed_over(skeleton, tmp_path, signum):
    (tmp_path / "first.go").touch()
    process = skeleton()
    wait_for(tmp_path / "begun.txt", process, lines=2)
    process.send_signal(signum)
    assert process.wait(timeout=20) == 128 + signum
    assert (tmp_path / "saved.txt").read_text() == "saved\n"
    assert [path.name for path in (tmp_path / "out" / "done").iterdir()] == ["1_train"]

    (tmp_path / "second.go").touch()
    process = skeleton()
    assert process.wait(timeout=20) == 0
    assert "== 1_train: done before ==" in (tmp_path / "log").read_text()
    assert (tmp_path / "begun.txt").read_text().split() == ["first", "second", "second"]


def test_a_killed_step_is_begun_again(skeleton, tmp_path):
    process = skeleton()
    wait_for(tmp_path / "begun.txt", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
    for name in ("first", "second"):
        (tmp_path / f"{name}.go").touch()
    assert skeleton().wait(timeout=20) == 0
    assert (tmp_path / "begun.txt").read_text().split() == ["first", "first", "second"]


def test_a_begun_recipe_refuses_other_parameters(skeleton, tmp_path):
    (tmp_path / "first.go").touch()
    process = skeleton()
    wait_for(tmp_path / "begun.txt", process, lines=2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
    log = tmp_path / "log"
    assert skeleton(SEED="1").wait(timeout=20) == 2
    assert "< SEED=0" in log.read_text() and "> SEED=1" in log.read_text()
    (tmp_path / "stage1.flags").write_text("--seed=5\n")
    assert skeleton().wait(timeout=20) == 2 and "content of STAGE1_FLAGS" in log.read_text()
    (tmp_path / "stage1.flags").write_text("--seed=0\n")
    # The first training does not use it.
    (tmp_path / "second.go").touch()
    assert skeleton(CROP="65,65").wait(timeout=20) == 0
    assert skeleton(CROP="97,97").wait(timeout=20) == 2


@pytest.mark.nightly
def test_the_recipe_goes_on_where_it_was_stopped(records, tmp_path):
    settings = settings_of(records, tmp_path, (*LPL, "--training_number_of_steps=30"))
    out, log = tmp_path / "out", tmp_path / "log"
    process = begin(settings, log)
    wait_for(out / "stage1" / "train_log.jsonl", process, lines=3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=100) == 128 + signal.SIGTERM, log.read_text()[-2000:]
    stopped_at = find.step_of(find.newest(str(out / "stage1")))
    assert 3 <= stopped_at < 30

    process = begin(settings, log)
    wait_for(out / "done" / "2_hybrid", process, lines=0)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=100)
    steps = [entry["step"] for entry in log_of(out / "stage1")]
    assert steps == list(range(1, 31))

    process = begin(settings, log)
    assert process.wait(timeout=500) == 0, log.read_text()[-2000:]
    text = log.read_text()
    assert "== 1_train: done before ==" in text and "== 2_hybrid: done before ==" in text
    for name in ("2_hybrid", "2_pseudo", "6_retrained"):
        miou = json.loads((out / name / "metrics.json").read_text())["miou"]
        assert f"{name:<16} {miou:.3f}" in text
    content = json.loads((out / "records" / "dataset.json").read_text())
    assert content["splits"]["pseudo"]["num_pseudo_labels"] > 0

    changed = subprocess.run(
        ["bash", "experiments/learning_pseudo_labels.sh"],
        cwd=ROOT,
        env={**settings, "SEED": "1"},
        capture_output=True,
        text=True,
    )
    assert changed.returncode == 2
    assert "< SEED=0" in changed.stderr and "> SEED=1" in changed.stderr
    with open(settings["STAGE2_FLAGS"], "a") as file:
        file.write("--base_learning_rate=0.5\n")
    changed = subprocess.run(
        ["bash", "experiments/learning_pseudo_labels.sh"],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
    )
    assert changed.returncode == 2 and "content of STAGE2_FLAGS" in changed.stderr


@pytest.mark.nightly
def test_slrnet_goes_the_whole_way_without_a_mask(records, tmp_path):
    settings = settings_of(records, tmp_path, SLRNET)
    out, log = tmp_path / "out", tmp_path / "log"
    process = begin(settings, log, "slrnet_two_stage")
    assert process.wait(timeout=500) == 0, log.read_text()[-2000:]
    for name in ("2_stage1", "2_image_labels", "6_retrained"):
        miou = json.loads((out / name / "metrics.json").read_text())["miou"]
        assert f"{name:<16} {miou:.3f}" in log.read_text()
    entry = json.loads((out / "records" / "dataset.json").read_text())["splits"]["pseudo"]
    assert entry["num_pseudo_labels"] == entry["num_masks"] == entry["count"] == 16
    assert [entry["step"] for entry in log_of(out / "stage2")] == [1, 2, 3]

    # What was begun without masks cannot go on with some, nor with a flagfile that is not there.
    for change, words in (
        ({"LABELLED_SPLIT": "train"}, "> LABELLED_SPLIT=train"),
        ({"STAGE2_FLAGS": "nowhere.flags"}, "no such flagfile: nowhere.flags (STAGE2_FLAGS)"),
    ):
        process = begin({**settings, **change}, log, "slrnet_two_stage")
        assert process.wait(timeout=60) == 2 and words in log.read_text()


def scores_of(out, name):
    """Returns the line that a recipe prints on a zero-label evaluation."""
    metrics = json.loads((out / name / "metrics.json").read_text())
    found = metrics["zero_label"]
    assert {"generalised", "zero_label", "vanilla"} <= set(found)
    assert found["seen"][0] == "background" and found["unseen"] == ["7", "8", "9"]
    scores = found["generalised"]["mean_iou"]
    groups = ("seen", "unseen", "harmonic")
    return f"{name:<16} {metrics['miou']:.3f}  " + "  ".join(f"{g} {scores[g]:.3f}" for g in groups)


def killed_inside(*stages, settings, log, recipe):
    """Runs a recipe to its end, with a kill in each of some trainings; returns its last output."""
    out = pathlib.Path(settings["OUTPUT_DIR"])
    for stage in stages:
        process = begin(settings, log, recipe)
        wait_for(out / stage / "train_log.jsonl", process, lines=20)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=100)
        assert 0 < find.step_of(find.newest(str(out / stage))) < 60
    process = begin(settings, log, recipe)
    assert process.wait(timeout=500) == 0, log.read_text()[-2000:]
    for stage in stages:
        assert [entry["step"] for entry in log_of(out / stage)] == list(range(1, 61))
    return log.read_text()


def draw(settings, stage):
    """Exports the pictures of a training."""
    out = pathlib.Path(settings["OUTPUT_DIR"])
    run(
        "vis.py",
        f"--checkpoint_dir={out / stage}",
        f"--dataset_dir={settings['DATASET_DIR']}",
        f"--vis_logdir={out / 'pictures'}",
        f"--vis_crop_size={settings['CROP']}",
        "--also_save_raw_predictions",
    )
    assert (out / "pictures" / "index.html").exists()
    assert len(list((out / "pictures" / "raw_segmentation_results").iterdir())) == 7


@pytest.mark.nightly
def test_strict_takes_the_bias_from_validation_classes(records, tmp_path):
    settings = environment_of(records, tmp_path, SPNET_FLAGS=SPNET, STRICT_FLAGS=STRICT)
    out, log = tmp_path / "out", tmp_path / "log"
    text = killed_inside("stage2", "stage3", settings=settings, log=log, recipe="strict")
    assert "== 4_spnet_bias: done before ==" in text
    sweep = json.loads((out / "2_sweep" / "metrics.json").read_text())["zero_label"]
    assert sweep["unseen"] == ["5", "6"] and sweep["held_out"] == ["7", "8", "9"]
    assert len(sweep["seen_bias_sweep"]) == 21
    bias = json.loads((out / "4_spnet_bias" / "metrics.json").read_text())["zero_label"]
    assert bias["seen_bias"] == sweep["best_seen_bias"]
    for name in ("4_spnet", "4_spnet_bias", "6_strict"):
        assert scores_of(out, name) in text
    draw(settings, "stage3")

    for change, words in (
        ({"SEEN_BIASES": "0:1"}, "SEEN_BIASES=0:1: not first:last:step"),
        ({"STRICT_TRAIN_FLAGS": "--round=3"}, "--round"),
        ({"CLASS_SPLIT": "spnet_voc12"}, "> CLASS_SPLIT=spnet_voc12"),
    ):
        process = begin({**settings, **change}, log, "strict")
        assert process.wait(timeout=60) == 2 and words in log.read_text(), log.read_text()


@pytest.mark.nightly
def test_zs3_goes_on_to_zs5(records, tmp_path):
    settings = environment_of(
        records,
        tmp_path,
        STEP1_FLAGS=(*ZERO_LABEL, "--method=spnet", "--head=deeplab"),
        STEP2_FLAGS=ZS3,
        ZS5_FLAGS=ZS5,
    )
    out, log = tmp_path / "out", tmp_path / "log"
    text = killed_inside("stage2", "stage3", settings=settings, log=log, recipe="zs3")
    assert "== 4_zs3net: done before ==" in text
    for name in ("2_seen", "4_zs3net", "6_zs5"):
        assert scores_of(out, name) in text
    draw(settings, "stage3")


def test_mistakes_in_later_steps_are_told_before_the_first_and_lock_nothing(records, tmp_path):
    settings = settings_of(records, tmp_path, (*LPL, "--training_number_of_steps=1"))
    out, log = tmp_path / "out", tmp_path / "log"
    for change, words in (
        ({"PREDICTION_FLAGS": "--eval_scale=0.5"}, "--eval_scale"),
        ({"VAL_SPLIT": "nosuch"}, "VAL_SPLIT=nosuch"),
        ({"DATASET_DIR": "nowhere"}, "DATASET_DIR=nowhere"),
        ({"DENSE_CRF": "yes"}, "DENSE_CRF=yes"),
    ):
        process = begin({**settings, **change}, log)
        assert process.wait(timeout=100) == 2, log.read_text()
        assert words in log.read_text() and "== 1_train ==" not in log.read_text()
    # What the first training does not use may be changed after it.
    (out / "parameters.txt").unlink()
    later = ("2_hybrid", "2_pseudo", "3_pseudo_labels", "4_records", "5_retrain", "6_retrained")
    for name in ("1_train", *later):
        (out / "done" / name).touch()
    assert begin(settings, log).wait(timeout=100) == 0, log.read_text()
    for name in later:
        (out / "done" / name).unlink()
    process = begin({**settings, "CROP": "bad", "SEED": "1"}, log)
    assert process.wait(timeout=100) == 2
    assert "> SEED=1" in log.read_text() and "> CROP" not in log.read_text()
