"""Golden cases `pseudoseg/logits` and `pseudoseg/bn_training_forward`: the networks.

`filled_model` builds a network with the weights that the cases were computed with; other tests and
case modules use it too.
"""

import functools
import importlib.util
import pathlib
import re

import numpy as np
import tensorflow as tf

from tfseg.models import build_model
from tfseg.models.heads.deeplab import DeepLab
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.network import ModelConfig
from tfseg.weights.checkpoint.names import variable_name

HERE = pathlib.Path(__file__).parents[1] / "golden" / "pseudoseg"

# The published code against an independent computation: 2e-6 of the largest value; ten times that.
TOLERANCE = 2e-5
# Batch statistics of 50 samples amplify rounding over 132 layers: observed 1.1e-4.
TRAINING_TOLERANCE = 1.1e-3
_UPDATED = "out_after_update|"
_XCEPTION_ENDS = {
    "entry_conv1_1": "entry_flow/conv1_1",
    "entry_conv1_2": "entry_flow/conv1_2",
    "entry_block1": "entry_flow/block1",
    "low_level": "entry_flow/block2/unit_1/xception_module/separable_conv2_pointwise",
    "entry_block2": "entry_flow/block2",
    "entry_out": "entry_flow/block3",
    "middle_unit1": "middle_flow/block1/unit_1",
    "middle_out": "middle_flow/block1",
    "exit_block1": "exit_flow/block1",
    "exit_block2": "exit_flow/block2",
}
_HEAD_ENDS = {
    "logits": "logits",
    "logits_stride4": "logits",
    "low_level_projected": "decoder/feature_projection0",
    "decoder_conv0": "decoder/decoder_conv0",
    "decoder_out": "features",
}


def _fill_variables():
    spec = importlib.util.spec_from_file_location("fill_variables", HERE / "fill_variables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill_variables = _fill_variables()
_value = functools.lru_cache(maxsize=1500)(fill_variables.value_for)


def filled_model(
    variant: str,
    *,
    num_classes: int = 21,
    num_image_classes: int = 20,
    crop_size: tuple[int, int] = (65, 65),
    with_classifier: bool = False,
    **config,
) -> DeepLab:
    """Builds the cases' network: stride 16, rates 6, 12, 18, decoder stride 4 (MobileNet: none)."""
    settings = {"model_variant": variant, "output_stride": 16}
    if variant != "mobilenet_v2":
        settings |= {"atrous_rates": (6, 12, 18), "decoder_output_stride": (4,)}
    if variant.endswith("_beta"):
        settings["multi_grid"] = (1, 2, 4)
    model = build_model(
        ModelConfig(**{**settings, **config}),
        num_classes=num_classes,
        num_image_classes=num_image_classes,
        crop_size=crop_size,
        with_classifier=with_classifier,
    )
    for variable in model.variables:
        variable.assign(_value(variable_name(variable), tuple(variable.shape)))
    return model


@functools.lru_cache(maxsize=4)
def _load(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _assert_close(actual, expected, tolerance):
    """Compares relative to the largest value of the array."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    limit = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def _variant(path: str) -> str:
    match = re.match(r"logits_(.+)_\d+x\d+_seed\d+$", pathlib.Path(path).stem)
    assert match, f"{path}: no network in the name"
    return match.group(1)


@functools.lru_cache(maxsize=2)
def _inference(path) -> dict[str, np.ndarray]:
    """Runs the network of a case file; returns every end point that we have, by our names."""
    arrays = _load(path)
    logits = arrays["logits_stride4"] if "logits_stride4" in arrays else arrays["logits"]
    with_classifier = "logits_cls" in arrays
    model = filled_model(
        _variant(path),
        num_classes=logits.shape[-1],
        num_image_classes=arrays["logits_cls"].shape[-1] if with_classifier else 1,
        crop_size=arrays["image"].shape[1:3],
        with_classifier=with_classifier,
    )

    image = tf.constant(arrays["image"])
    ends = model.encode(image)
    outputs = {**ends, **model.decode(ends)}
    outputs["logits_full"] = resize_bilinear(outputs["logits"], image.shape[1:3])
    if with_classifier:
        outputs["logits_cls"] = model.classify(ends)
    return {name: value.numpy() for name, value in outputs.items()}


def _check_logits(path, name):
    expected, outputs = _load(path)[name], _inference(path)
    if name == "prediction":
        full = outputs["logits_full"]
        ours = full.argmax(-1)
        two_largest = np.sort(full, -1)[..., -2:]
        clear = two_largest[..., 1] - two_largest[..., 0] >= 1e-5
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(ours[clear], expected[clear])
        return
    names = {**_HEAD_ENDS, **(_XCEPTION_ENDS if "xception" in path else {})}
    ours = outputs.get(names.get(name, name))
    assert ours is not None, f"{path} holds {name}, which no check knows"
    _assert_close(ours, expected, TOLERANCE)


@functools.lru_cache(maxsize=1)
def _training(path) -> dict[str, np.ndarray]:
    """Runs the backbone once in training mode; returns end points and the updated variables."""
    model = filled_model("xception_65")
    ends = model.encode(tf.constant(_load(path)["in_image"]), training=True)
    result = {f"out_{name}": ends[end].numpy() for name, end in _XCEPTION_ENDS.items()}
    for variable in model.variables:
        key = _UPDATED + variable_name(variable).replace("/", "|")
        result[key] = variable.numpy()
    return result


def _check_training(path, name):
    outputs = _training(path)
    assert name in outputs, f"{path} holds {name}, which no check knows"
    _assert_close(outputs[name], _load(path)[name], TRAINING_TOLERANCE)


def _outputs(path):
    return [name for name in _load(path) if name not in ("image", "in_image")]


CASES = {
    "pseudoseg/logits": (_outputs, _check_logits),
    "pseudoseg/bn_training_forward": (_outputs, _check_training),
}
