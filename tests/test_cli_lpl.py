"""Learning Pseudo Labels through the programs: training, resuming, both networks, bad input."""

import signal

import numpy as np
import pytest

from tests.conftest import RECORD_SIZE
from tests.programs import assert_user_error, run, start
from tests.runs import (
    arguments,
    assert_same_weights,
    end_with,
    evaluate,
    final_values,
    log_of,
    losses,
)
from tests.small_split import make_images, write_split
from tfseg.weights.checkpoint import find
from tfseg.weights.checkpoint.stored_networks import deployable_network, stored_variables

METHOD = "--method=learning_pseudo_labels"


def long_run(records, logdir):
    extra = (METHOD, "--save_interval_steps=4", "--ema_decay=0.9")
    extra += ("--batch_norm_momentum=0.5", "--base_learning_rate=0.03")
    return arguments(records, logdir, *extra, steps=16)


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("lpl") / "run"
    run(*long_run(records, logdir))
    return logdir


def test_a_run_keeps_losses_monitors_and_both_networks(trained):
    entry = log_of(trained)[-1]
    names = {"hybrid_segmentation", "pseudo_segmentation", "classification", "cross_training"}
    assert names <= set(entry)
    assert {"hybrid_miou", "pseudo_miou", "image_weight"} <= set(entry["monitors"])
    prefix = find.newest(str(trained))
    assert set(stored_variables(prefix)) == {"hybrid", "pseudo", "ema"}
    assert deployable_network(prefix) == "hybrid"
    counts = [v for name, v in final_values(trained).items() if "pseudo_net_counts" in name]
    assert len(counts) == 1 and counts[0].shape[0] == 3 and counts[0][0].sum() > 1000


@pytest.mark.nightly
def test_an_interrupted_run_reaches_the_same_weights_and_counts(records, tmp_path):
    whole, logdir = tmp_path / "whole", tmp_path / "run"
    run(*long_run(records, whole), "--deterministic")
    process = start(*long_run(records, logdir), "--deterministic", log=tmp_path / "log")
    end_with(signal.SIGKILL, process, logdir, after=6)
    run(*long_run(records, logdir), "--deterministic")
    assert_same_weights(whole, logdir)
    assert losses(whole) == losses(logdir)


def test_either_network_can_be_evaluated_and_drawn(records, trained, tmp_path):
    matrices = {}
    for network in ("", "--network=hybrid", "--network=pseudo", "--network=ema"):
        extra = ("--use_image_labels", *([network] if network else []))
        metrics = evaluate(trained, records, tmp_path / f"eval{network}", *extra)
        matrices[network] = metrics["confusion_matrix"]
    assert matrices[""] == matrices["--network=hybrid"] != matrices["--network=pseudo"]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "extra",
    [
        ("--jit_compile", "--augmentation=composition"),
        ("--mixed_precision=float16", "--gradient_accumulation_steps=2"),
    ],
    ids=lambda extra: " ".join(extra),
)
def test_it_works_with(records, tmp_path, extra):
    run(*arguments(records, tmp_path, METHOD, *extra))
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path))


# Bad input --------------------------------------------------------------------------------------


def small_records(folder, *, named, weak_named):
    """Writes splits train and train_aug of the same four images, of classes 0 to 3 of VOC."""
    images, labels = make_images(sizes=((RECORD_SIZE, RECORD_SIZE),) * 4)
    present = [sorted(set(np.unique(label).tolist()) - {0, 255}) for label in labels]
    for split, change, masks in (
        ("train", named, labels),
        ("train_aug", weak_named, [None] * 4),
    ):
        write_split(folder, images, masks, split=split, image_labels=change(present))


def test_an_image_of_the_second_split_without_image_level_labels(tmp_path):
    small_records(tmp_path / "data", named=lambda x: x, weak_named=lambda x: [None, *x[1:]])
    result = run(*arguments(tmp_path / "data", tmp_path / "run", METHOD), check=False)
    assert_user_error(result, "image_0", "train_aug", "has no image-level labels")


def test_a_mask_with_a_class_that_the_image_level_labels_lack(tmp_path):
    small_records(tmp_path / "data", named=lambda x: [x[0][:-1], *x[1:]], weak_named=lambda x: x)
    result = run(*arguments(tmp_path / "data", tmp_path / "run", METHOD), check=False)
    assert_user_error(result, "image_0", "image-level labels lack", "bird")


@pytest.mark.parametrize(
    "extra, words",
    [
        (("--label_weights=1",), ("--label_weights", "weights")),
        (("--top_k_percent_pixels=0.5",), ("--top_k_percent_pixels", "learning_pseudo_labels")),
        (("--image_label_source=crop",), ("--image_label_source", "record")),
        (("--temperature=0.3",), ("--temperature", "pseudoseg")),
        (("--score_momentum=2",), ("--score_momentum=2",)),
    ],
    ids=lambda x: " ".join(x),
)
def test_wrong_input(records, tmp_path, extra, words):
    result = run(*arguments(records, tmp_path, METHOD, *extra), check=False)
    assert_user_error(result, *words)
