"""SLRNet through the programs: three regimes, resuming, predictions with scores, bad input."""

import json
import shutil
import signal

import numpy as np
import pytest

from tests.conftest import RECORD_SIZE
from tests.programs import assert_user_error, run, start
from tests.runs import arguments, assert_same_weights, end_with, evaluate, log_of, losses
from tests.small_split import make_images, write_split

METHOD = (
    "--method=slrnet",
    "--learning_policy=cosine",
    "--constant_steps=2",
    "--pretrain_steps=1",
    "--base_learning_rate=0.002",
    "--batch_norm_momentum=0.5",
)
SIZE = f"{RECORD_SIZE},{RECORD_SIZE}"


def long_run(records, logdir):
    extra = (*METHOD, "--save_interval_steps=4", "--ema_decay=0.9")
    return arguments(records, logdir, *extra, steps=12)


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("slrnet") / "run"
    result = run(*long_run(records, logdir))
    assert "note: --train_split=train is not used by slrnet" in result.stdout
    return logdir


def test_a_run_keeps_losses_and_monitors(trained):
    entry = log_of(trained)[-1]
    names = {"classification", "mask_consistency", "code_consistency", "segmentation"}
    assert names <= set(entry)
    assert {"pseudo_mask_miou", "labelled_pixels"} <= set(entry["monitors"])
    config = json.loads((trained / "config.json").read_text())
    assert config["model"]["head"] == "low_rank" and config["method"]["pretrain_steps"] == 1


@pytest.mark.nightly
def test_an_interrupted_run_reaches_the_same_weights(records, tmp_path):
    whole, logdir = tmp_path / "whole", tmp_path / "run"
    run(*long_run(records, whole), "--deterministic")
    process = start(*long_run(records, logdir), "--deterministic", log=tmp_path / "log")
    end_with(signal.SIGKILL, process, logdir, after=6)
    run(*long_run(records, logdir), "--deterministic")
    assert_same_weights(whole, logdir)
    assert losses(whole) == losses(logdir)


def test_a_complete_run_gets_its_batch_norm_statistics_anew(records, trained, tmp_path):
    logdir = tmp_path / "run"
    shutil.copytree(trained, logdir)
    before = {path.name: path.read_bytes() for path in logdir.iterdir()}
    train = list(long_run(records, logdir))
    result = run(*train, "--reestimate_batch_norm=10")
    assert "the run is complete" in result.stdout
    folder = logdir / "reestimated"
    assert f"evaluate it by --checkpoint_dir={folder}" in result.stdout
    assert {p.name: p.read_bytes() for p in logdir.iterdir() if p.is_file()} == before
    metrics = evaluate(folder, records, tmp_path / "eval")
    assert np.sum(metrics["confusion_matrix"]) > 0
    record = json.loads((folder / "config.json").read_text())
    facts = record["reestimated_batch_norm"]
    assert facts["images"] % facts["batch_size"] == 0 and facts["images"] >= 10


def test_evaluation_with_scores_labels_and_both_views(records, trained, tmp_path):
    settings = {
        "plain": (),
        "masks": ("--merge_scales=masks", "--eval_scales=1", "--eval_scales=0.75"),
        "scores": ("--merge_scales=masks", "--fp_cut=0.99"),
        "labels": ("--merge_scales=masks", "--use_image_labels"),
        "views": ("--low_rank_test_views=2", "--low_rank_iterations=2"),
    }
    found = {
        name: evaluate(trained, records, tmp_path / name, *extra)
        for name, extra in settings.items()
    }
    matrices = {name: np.array(metrics["confusion_matrix"]) for name, metrics in found.items()}
    pixels = matrices["plain"].sum()
    assert pixels > 0 and all(matrix.sum() == pixels for matrix in matrices.values())
    # No score of so short a run is above the cut: background is left.
    assert matrices["scores"][:, 1:].sum() == 0
    used = {name: metrics["prediction"] for name, metrics in found.items()}
    assert used["masks"]["eval_scales"] == [1.0, 0.75]
    assert used["scores"]["class_filter"]["fp_cut"] == 0.99
    assert used["labels"]["use_image_labels"] and not used["plain"]["use_image_labels"]


def _by_night(*extra):
    return pytest.param(extra, marks=pytest.mark.nightly)


@pytest.mark.parametrize(
    "extra",
    [
        _by_night("--supervision=pixel_and_image_labels", "--labelled_batch_size=2"),
        _by_night("--supervision=pixel_and_image_labels", "--sampling=published"),
        _by_night("--supervision=pixel_labels", "--augmentation=resized_crop"),
        _by_night("--image_sampling=class_weighted", "--draws_per_epoch=5", "--second_view_flip"),
        _by_night("--jit_compile", "--freeze_backbone"),
        _by_night("--mixed_precision=float16", "--gradient_accumulation_steps=2"),
    ],
    ids=lambda extra: " ".join(extra),
)
def test_it_works_with(records, tmp_path, extra):
    run(*arguments(records, tmp_path, *METHOD, *extra, steps=4))
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path))


# Bad input --------------------------------------------------------------------------------------


def write_weak_split(folder, change):
    """Writes split train_aug of four images, with image-level labels changed."""
    images, labels = make_images(sizes=((RECORD_SIZE, RECORD_SIZE),) * 4)
    present = [sorted(set(np.unique(label).tolist()) - {0, 255}) for label in labels]
    write_split(folder, images, [None] * 4, split="train_aug", image_labels=change(present))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: [[], *x[1:]], ("image_0", "train_aug")),
        (lambda x: [None] * 4, ("train_aug", "image-level labels")),
    ],
    ids=["no class", "no labels"],
)
def test_images_without_classes(tmp_path, change, words):
    write_weak_split(tmp_path / "data", change)
    result = run(*arguments(tmp_path / "data", tmp_path / "run", *METHOD), check=False)
    assert_user_error(result, *words)


@pytest.mark.parametrize(
    "extra, words",
    [
        (("--supervision=weak",), ("--supervision=weak", "pixel_labels")),
        (("--loss_coefficients=1,2",), ("--loss_coefficients", "four")),
        (("--pretrain_steps=100",), ("--pretrain_steps", "100")),
        (("--temperature=0.3",), ("--temperature", "pseudoseg")),
        (("--label_weights=1",), ("--label_weights", "weights")),
        (("--decoder_output_stride=8,4",), ("--decoder_output_stride",)),
    ],
    ids=lambda x: " ".join(x),
)
def test_wrong_input(records, tmp_path, extra, words):
    result = run(*arguments(records, tmp_path, *METHOD, *extra), check=False)
    assert_user_error(result, *words)


def test_scales_without_one_are_refused(records, trained, tmp_path):
    result = run(
        "eval.py",
        f"--checkpoint_dir={trained}",
        f"--dataset_dir={records}",
        f"--eval_logdir={tmp_path}",
        f"--eval_crop_size={SIZE}",
        "--merge_scales=masks",
        "--eval_scales=0.5",
        check=False,
    )
    assert_user_error(result, "--eval_scales", "1")
