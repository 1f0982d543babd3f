"""--label_weights=balanced: the numbers, where they come from, what a run keeps of them."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.programs import assert_user_error, run
from tfseg.data import label_weights
from tfseg.data.class_splits import ClassSplit
from tfseg.data.specs import DATASET_FILE, DatasetSpec
from tfseg.errors import UserError
from tfseg.ops.losses import weights_of
from tfseg.runs import fit
from tfseg.settings import programs

SPEC = DatasetSpec("toy", ("background", "cat", "dog", "cow"))


def test_a_class_weighs_the_more_the_rarer_it_is():
    pixels = [600, 300, 100, 0]
    weights = label_weights.balanced(pixels)
    assert weights == [0.5556, 1.111, 3.333, 1.0]
    assert np.dot(weights, pixels) / np.sum(pixels) == pytest.approx(1, rel=1e-3)


def described(folder, **pixels):
    split = {"shards": [], "pixels": {**pixels, "(ignored)": 7}} if pixels else {"shards": []}
    content = {**SPEC.to_json(), "splits": {"train": split}}
    (folder / DATASET_FILE).write_text(json.dumps(content))
    return str(folder)


def test_counts_come_from_the_description_of_the_records(tmp_path):
    folder = described(tmp_path, background=60, cat=30, dog=10, cow=0)
    weights, absent = label_weights.of_split(folder, "train", SPEC)
    assert weights == label_weights.balanced([60, 30, 10, 0]) and absent == ["cow"]


@pytest.mark.parametrize(
    "background, expected", [(None, [0, 30, 10, 0]), (0, [60 + 5, 30, 10, 0])], ids=str
)
def test_unseen_classes_have_no_labels(tmp_path, background, expected):
    folder = described(tmp_path, background=60, cat=30, dog=10, cow=5)
    seen = (1, 2) if background is None else (0, 1, 2)
    split = ClassSplit("toy", seen=seen, unseen=(3,), background=background)
    spec = dataclasses.replace(SPEC, seen_unseen=split)
    weights, absent = label_weights.of_split(folder, "train", spec)
    assert (weights, absent) == (label_weights.balanced(expected), [])


@pytest.mark.parametrize(
    "pixels, message",
    [
        ({}, "no counts"),
        ({"background": 3}, "no count of cat"),
        (dict.fromkeys(SPEC.class_names, 0), "No mask of split 'train'"),
        ({**dict.fromkeys(SPEC.class_names, 1), "cat": -1}, "another structure"),
    ],
    ids=["none", "some", "zero", "negative"],
)
def test_counts_that_cannot_be_used(tmp_path, pixels, message):
    with pytest.raises(UserError, match=message):
        label_weights.of_split(described(tmp_path, **pixels), "train", SPEC)


def test_every_pixel_has_the_weight_of_its_class():
    label = tf.constant([0, 1, 255, 3])
    assert weights_of(label, (2.0, 3.0, 4.0, 5.0)).numpy().tolist() == [2, 3, 1, 5]
    assert weights_of(label, None).numpy().tolist() == [1, 1, 1, 1]


def test_a_run_keeps_the_numbers(tmp_path, capsys):
    folder = described(tmp_path, background=60, cat=30, dog=10, cow=0)
    given = {"dataset_dir": folder, "train_logdir": "run", "label_weights": "balanced"}
    settings = programs.training(given, default_method="supervised")
    kept = fit._with_balanced_weights(settings, SPEC).sections["train"].label_weights
    assert list(kept) == label_weights.balanced([60, 30, 10, 0])
    assert "no mask of split train has a pixel of cow" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["even", "1"])
def test_another_word_or_number_of_numbers(tmp_path, value):
    words = (f"--dataset_dir={described(tmp_path)}", f"--train_logdir={tmp_path / 'run'}")
    result = run("train_sup.py", *words, f"--label_weights={value}", check=False)
    assert_user_error(result, "--label_weights", "balanced")
