"""Golden cases `pseudoseg/loss`: schedules, cross entropies, mIoU, colours."""

import dataclasses
import functools
import re

import numpy as np
import tensorflow as tf

from tfseg import metrics
from tfseg.data import colormap
from tfseg.ops import losses
from tfseg.settings.run import TrainConfig
from tfseg.training.optimizers import learning_rate

IGNORE = 255
INPUTS = re.compile(r"^(lr_steps|ce_in_.*|bce_in_.*|miou_in_.*)$")


@functools.lru_cache(maxsize=4)
def _load(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _quantities(path):
    return [name for name in _load(path) if not INPUTS.match(name)]


def _schedule(name: str) -> TrainConfig:
    """Reads the settings of a schedule from the name of its array."""
    config = TrainConfig(learning_policy="step" if name.startswith("lr_step") else "poly")
    changes = {}
    if match := re.search(r"slow(\d+)_", name):
        changes["slow_start_step"] = int(match.group(1))
    if match := re.search(r"lr_step_([\d.]+)_every(\d+)_x([\d.]+)", name):
        changes["base_learning_rate"] = float(match.group(1))
        changes["learning_rate_decay_step"] = int(match.group(2))
        changes["learning_rate_decay_factor"] = float(match.group(3))
    elif match := re.search(r"decay(\d+)_end([\d.]+)", name):
        changes["decay_steps"] = float(match.group(1))
        changes["end_learning_rate"] = float(match.group(2))
    elif match := re.search(r"_([\d.]+)_(\d+)$", name):
        changes["base_learning_rate"] = float(match.group(1))
        changes["training_number_of_steps"] = int(match.group(2))
    return dataclasses.replace(config, **changes)


def _check_schedule(arrays, name):
    schedule = learning_rate(_schedule(name))
    actual = [float(schedule(tf.constant(step))) for step in arrays["lr_steps"]]
    # Ten times the difference observed: near the end of a decay 1 - t / D has few digits left.
    np.testing.assert_allclose(actual, arrays[name], rtol=1e-6, atol=1e-8)


def _cross_entropy(arrays, name):
    label = arrays["ce_in_labels"][..., 0]
    options = {
        "ce_upsampled": {},
        "ce_not_upsampled": {"upsample_logits": False},
        "ce_all_ignored": {},
        "ce_class_weights": {"class_weights": arrays["ce_in_class_weights"].tolist()},
    }
    if match := re.match(r"ce_top_(\d+)_percent", name):
        arguments = {"top_k": tf.constant(int(match.group(1)) / 100.0)}
    else:
        arguments = options[name]
    if name == "ce_all_ignored":
        label = np.full_like(label, IGNORE)
    return losses.segmentation_loss(
        tf.constant(arrays["ce_in_logits"]), tf.constant(label), ignore_label=IGNORE, **arguments
    )


def _check(path, name):
    arrays = _load(path)
    if name.startswith("lr_"):
        _check_schedule(arrays, name)
    elif name.startswith("ce_"):
        actual = _cross_entropy(arrays, name).numpy()
        np.testing.assert_allclose(actual, arrays[name], rtol=1e-5, atol=1e-6)
    elif name == "bce_mean":
        actual = losses.multi_label_loss(
            tf.constant(arrays["bce_in_logits"]), tf.constant(arrays["bce_in_labels"])
        )
        np.testing.assert_allclose(actual.numpy(), arrays[name], rtol=1e-5)
    elif name.startswith("miou_"):
        classes = arrays["miou_confusion"].shape[0]
        matrix = sum(
            metrics.confusion_matrix(label, prediction, classes, ignore_label=IGNORE)
            for label, prediction in zip(arrays["miou_in_labels"], arrays["miou_in_predictions"])
        )
        if name == "miou_confusion":
            np.testing.assert_array_equal(matrix, arrays[name])
        else:
            np.testing.assert_allclose(metrics.mean_iou(matrix), arrays[name], rtol=1e-6)
    elif match := re.match(r"colormap_pascal_(\d+)", name):
        np.testing.assert_array_equal(colormap.pascal(int(match.group(1))), arrays[name])
    else:
        raise AssertionError(f"{path} holds {name}, which no check knows")


CASES = {"pseudoseg/loss": (_quantities, _check)}
