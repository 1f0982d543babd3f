"""Golden cases `pseudoseg/multi_scale_flip`: prediction over scales and mirror images."""

import functools
import pathlib
import re

import numpy as np
import tensorflow as tf

from tests.golden_cases.pseudoseg_model import filled_model
from tfseg.inference.merge import Views
from tfseg.inference.predictor import Predictor

INPUTS = ("image", "eval_scales")


@functools.lru_cache(maxsize=4)
def _load(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _quantities(path):
    return [name for name in _load(path) if name not in INPUTS]


@functools.lru_cache(maxsize=4)
def _mean_probability(path):
    arrays = _load(path)
    match = re.match(r"multi_scale_flip_(.+)_\d+x\d+_seed\d+$", pathlib.Path(path).stem)
    assert match, f"{path}: no network in the name"
    model = filled_model(
        match.group(1),
        num_classes=arrays["softmax_of_mean_probability"].shape[-1],
        crop_size=arrays["image"].shape[1:3],
    )
    scales = tuple(float(s) for s in arrays["eval_scales"])
    predictor = Predictor(model, Views(scales, flip=True), wanted=["probs"])
    run = tf.function(predictor, autograph=False)
    return run(tf.constant(arrays["image"])).probs.numpy()


def _check(path, name):
    mean, expected = _mean_probability(path), _load(path)[name]
    if name == "prediction":
        np.testing.assert_array_equal(mean.argmax(-1), expected)
    elif name == "softmax_of_mean_probability":
        # The published code applies softmax to the mean probability.
        np.testing.assert_allclose(tf.nn.softmax(mean).numpy(), expected, rtol=2e-5, atol=0)
    else:
        raise AssertionError(f"{path} holds {name}, which no check knows")


CASES = {"pseudoseg/multi_scale_flip": (_quantities, _check)}
