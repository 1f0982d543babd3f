"""Golden cases `pseudoseg/preprocess`: augmentation with fixed draws, and its single operations."""

import functools
import re

import numpy as np
import tensorflow as tf

from tfseg.data.augment import deeplab
from tfseg.data.augment.base import padded_view
from tfseg.data.augment.deeplab import DeepLabDraws, resize_window, training_views
from tfseg.models.backbones import BACKBONES
from tfseg.models.layers.settings import Settings
from tfseg.ops import resize
from tfseg.settings.network import ModelConfig

IGNORE = 255
CASE = re.compile(r"^case(\d+)_out_(.+)$")
INPUT = re.compile(r"^(case\d+_in_.*|colour_in|resize_in|resize_nn_in|aa_in|network_input_in)$")
# Ten times the observed difference of 1.2e-3 grey levels.
GREY_TOLERANCE = 0.012


@functools.lru_cache(maxsize=4)
def _load(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _quantities(path):
    return [name for name in _load(path) if not INPUT.match(name)]


@functools.lru_cache(maxsize=4)
def _backbone(variant):
    return BACKBONES[variant](Settings(), ModelConfig())


def _mean_pixel(variant):
    return _backbone(variant).facts.mean_pixel


def _draws(arrays, n):
    def given(name):
        return tf.constant(arrays[f"case{n}_in_{name}"])

    return DeepLabDraws(
        scale=given("scale"),
        crop_offset=given("crop_offset_yx"),
        flip=given("flip"),
        jitter_order=given("jitter_order"),
        brightness=given("brightness_delta"),
        contrast=given("contrast_factor"),
        saturation=given("saturation_factor"),
        hue=given("hue_delta"),
        cutout_center=given("cutout_center_yx"),
    )


@functools.lru_cache(maxsize=4)
def _views(path, n, strong):
    arrays = _load(path)
    draws = _draws(arrays, n)
    return training_views(
        tf.constant(arrays[f"case{n}_in_image"]),
        tf.constant(arrays[f"case{n}_in_label"][..., 0]),
        draws,
        crop_size=arrays[f"case{n}_in_crop_size"].tolist(),
        mean_pixel=_mean_pixel(str(arrays[f"case{n}_in_model_variant"])),
        ignore_label=IGNORE,
        strong=[draws] if strong else [],
    )


@functools.lru_cache(maxsize=4)
def _evaluation(path, n):
    arrays = _load(path)
    image = arrays[f"case{n}_in_image"]
    crop = arrays[f"case{n}_in_eval_crop_size"].tolist()
    size = [max(a, b) for a, b in zip(crop, image.shape)]
    return padded_view(
        tf.constant(image),
        tf.constant(arrays[f"case{n}_in_label"][..., 0]),
        size=size,
        mean_pixel=_mean_pixel(str(arrays[f"case{n}_in_model_variant"])),
        ignore_label=IGNORE,
    )


def _like_stored(actual, expected):
    """Large evaluation arrays are stored with every fourth row and column."""
    actual = actual.numpy()
    actual = actual[..., None] if actual.ndim == 2 else actual
    if actual.shape != expected.shape:
        actual = actual[::4, ::4]
    assert actual.shape == expected.shape
    return actual


def _check_case(path, n, name, expected):
    views = {
        "weak": (True, "image"),
        "strong": (True, "image_strong"),
        "label_strong_weak": (True, "label"),
        "valid_strong_weak": (True, "valid"),
        "labelled_label": (False, "label"),
        "labelled_valid": (False, "valid"),
    }
    if name == "labelled_image_equals_weak":
        labelled, weak = _views(path, n, False)["image"], _views(path, n, True)["image"]
        assert bool(expected)
        np.testing.assert_allclose(labelled, weak, atol=GREY_TOLERANCE)
        return
    if name.startswith("eval_"):
        actual = _like_stored(_evaluation(path, n)[name[len("eval_") :]], expected)
    else:
        strong, key = views[name]
        actual = _like_stored(_views(path, n, strong)[key], expected)
    if expected.dtype == np.float32:
        np.testing.assert_allclose(actual, expected, atol=GREY_TOLERANCE, rtol=0)
    else:
        np.testing.assert_array_equal(actual, expected)


def _number(text):
    sign = -1 if text.startswith("minus") else 1
    return tf.constant(sign * float(re.sub(r"^(plus|minus)", "", text).replace("_", ".")))


def _check_colour(arrays, name, expected):
    operation, value = re.match(r"colour_([a-z]+)_(.+)$", name).groups()
    function = getattr(deeplab, f"adjust_{operation}")
    planes = tf.constant(arrays["colour_in"].transpose(2, 0, 1))
    actual = function(planes, _number(value)).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(actual, expected, atol=3e-5)


def _check_resize(arrays, name, expected):
    size = expected.shape[1:3]
    if name.startswith("resize_nn_align_corners"):
        actual = resize.resize_nearest_align_corners(tf.constant(arrays["resize_nn_in"]), size)
    elif name.startswith("resize_nn"):
        actual = resize.resize_nearest(tf.constant(arrays["resize_nn_in"]), size)
    else:
        source = tf.constant(arrays["resize_in"])
        if "_1x1_to_" in name:
            source = source[:, :1, :1]
        actual = resize.resize_bilinear(source, size)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def _check(path, name):
    arrays = _load(path)
    expected = arrays[name]
    if match := CASE.match(name):
        _check_case(path, int(match.group(1)), match.group(2), expected)
    elif name.startswith("colour_"):
        _check_colour(arrays, name, expected)
    elif name.startswith("resize_"):
        _check_resize(arrays, name, expected)
    elif name.startswith("aa_out_scale_"):
        size = tf.constant(expected.shape[:2])
        zero = tf.zeros([2], tf.int32)
        actual = resize_window(tf.constant(arrays["aa_in"]), size, zero, size)
        np.testing.assert_allclose(actual, expected, atol=GREY_TOLERANCE)
    elif name.startswith("mean_pixel_"):
        actual = _mean_pixel(name[len("mean_pixel_") :])
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    elif name.startswith("network_input_"):
        backbone = _backbone(name[len("network_input_") :])
        actual = backbone.normalise(tf.constant(arrays["network_input_in"]))
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    else:
        raise AssertionError(f"{path} holds {name}, which no check knows")


CASES = {"pseudoseg/preprocess": (_quantities, _check)}
