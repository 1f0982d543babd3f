"""Golden case `unimatch/a`: a small DINOv2 with DPT, its features, logits and gradients.

`a_<tag>_weights` holds the tensors of one network by PyTorch's names, `a_<tag>_grid<h>x<w>` what it
says of images of so many patches. Images are normalised already, channels first.
"""

import functools
import re

import numpy as np
import tensorflow as tf

from tests.golden_cases.lpl_model import channels_last, load
from tfseg.models import BACKBONES, build_model
from tfseg.models.backbones import vision_transformer
from tfseg.models.backbones.vit import PATCH, Shape
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import make
from tfseg.weights import torch_layout
from tfseg.weights.torch_initial import load_torch

# Relative to the largest value expected, about three times the difference between the published
# code and an independent computation; that of the position embedding is absolute.
TOLERANCE, GRADIENT_TOLERANCE, LARGE_TOLERANCE, POSITION_TOLERANCE = 3e-5, 5e-5, 5e-5, 1e-5
_NAME = "tiny_vit"
# Blocks that give features, by the number of blocks.
_TAKEN = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23)}


def build(weights: dict[str, np.ndarray]):
    """Builds the network of a case, in the sizes of its tensors, and gives it these.

    Args:
      weights: tensors by name, `backbone.*` and `head.*`, and `num_heads`.
    """
    blocks = {int(m[1]) for m in map(re.compile(r"backbone\.blocks\.(\d+)\.").match, weights) if m}
    width = weights["backbone.cls_token"].shape[-1]
    shape = Shape(width, int(weights["num_heads"]), _TAKEN[len(blocks)])
    BACKBONES[_NAME] = vision_transformer(_NAME, shape)
    try:
        model = build_model(
            make(
                ModelConfig,
                model_variant=_NAME,
                head="dpt",
                dpt_features=weights["head.scratch.layer1_rn.weight"].shape[0],
                dpt_channels=tuple(weights[f"head.projects.{i}.weight"].shape[0] for i in range(4)),
            ),
            num_classes=weights["head.scratch.output_conv.2.weight"].shape[0],
            num_image_classes=1,
            crop_size=(PATCH, PATCH),
        )
    finally:
        del BACKBONES[_NAME]
    tensors = {name: value for name, value in weights.items() if name != "num_heads"}
    coverage = load_torch(model, tensors, source="the case", with_head=True)
    assert coverage.missing == coverage.unused == ()
    assert len(coverage.matched) == len(tensors)
    return model


@functools.lru_cache(maxsize=2)
def _network(path: str):
    return build(load(path))


def network_of(path: str):
    """Returns the network of a grid's file."""
    return _network(re.sub(r"_grid\d+x\d+\.npz$", "_weights.npz", path))


def slots_of(model) -> dict[str, torch_layout.Slot]:
    """Returns the places of the tensors by their names in the files."""
    backbone = torch_layout.backbone_slots(model.backbone)
    places = {f"backbone.{name}": slot for name, slot in backbone.items()}
    return places | torch_layout.dpt_slots(model)


def logits_of(model, image: tf.Tensor, masks: tf.Tensor | None = None) -> tf.Tensor:
    """Returns logits of normalised images at their size; masks [N, D] multiply the features."""
    ends = model.backbone(image, training=True)
    if masks is not None:
        ends = {name: x * masks[:, None, None] for name, x in ends.items()}
    logits = model.decode(ends, training=True)["logits"]
    return resize_bilinear(logits, image.shape[1:3])


def loss_of(logits: tf.Tensor, label: np.ndarray) -> tf.Tensor:
    """Returns the mean cross entropy over labels other than 255."""
    kept = tf.constant(label != 255)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.boolean_mask(tf.cast(label, tf.int32), kept), logits=tf.boolean_mask(logits, kept)
    )
    return tf.reduce_mean(losses)


def assert_near(actual, expected: np.ndarray, tolerance: float) -> None:
    """Compares relative to the largest value expected."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    limit = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def _check_weights(path: str, quantity: str) -> None:
    model = _network(path)
    weights = load(path)
    for name, slot in slots_of(model).items():
        np.testing.assert_array_equal(slot.variable, slot.arrange(weights[name]), err_msg=name)


def _image(arrays: dict[str, np.ndarray], name: str = "x") -> tf.Tensor:
    if name in arrays:
        return channels_last(arrays[name])
    repeated = arrays[f"{name}_repeat7"].repeat(7, axis=2).repeat(7, axis=3)
    return channels_last(repeated)


@functools.lru_cache(maxsize=2)
def _gradients(path: str) -> dict[str, tf.Tensor | None]:
    """Returns the loss and its gradients by tensor, None where there is none."""
    arrays, model = load(path), network_of(path)
    slots = slots_of(model)
    with tf.GradientTape() as tape:
        for slot in slots.values():
            tape.watch(slot.variable)
        loss = loss_of(logits_of(model, _image(arrays)), arrays["label"])
    gradients = tape.gradient(loss, [slot.variable for slot in slots.values()])
    return {"loss": loss, **dict(zip(slots, gradients))}


@functools.lru_cache(maxsize=2)
def _outputs(path: str) -> dict[str, tf.Tensor]:
    model, image = network_of(path), _image(load(path))
    ends = model.backbone(image)
    logits = model.decode(ends)["logits"]
    return {**ends, "head_logits": logits, "logits": resize_bilinear(logits, image.shape[1:3])}


def _channels_first(x: tf.Tensor) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)


def _check_small(path: str, quantity: str) -> None:
    arrays = load(path)
    expected = arrays[quantity]
    if quantity.startswith("grad/"):
        slot = slots_of(network_of(path))[quantity.removeprefix("grad/")]
        gradient = _gradients(path)[quantity.removeprefix("grad/")]
        assert_near(gradient, slot.arrange(expected), GRADIENT_TOLERANCE)
    elif quantity == "no_gradient_names":
        model = network_of(path)
        trained = {id(v) for v in model.trainable_variables}
        untrained = {name for name, s in slots_of(model).items() if id(s.variable) not in trained}
        assert untrained == set(expected.tolist())
        assert all(_gradients(path)[name] is None for name in untrained)
    elif quantity == "loss":
        np.testing.assert_allclose(_gradients(path)["loss"], expected, rtol=TOLERANCE)
    elif quantity == "pos_embed_resized":
        _check_positions(path, expected)
    elif quantity == "logits_masked_s2":
        masks = tf.constant(arrays["channel_masks"])
        logits = logits_of(network_of(path), _image(arrays, "x_masked"), masks)
        assert_near(_channels_first(logits)[:, :, ::2, ::2], expected, TOLERANCE)
    elif quantity.startswith("feature_"):
        feature = _outputs(path)[quantity.removeprefix("feature_")]
        count = feature.shape[1] * feature.shape[2]
        tokens = tf.reshape(feature, [feature.shape[0], count, feature.shape[3]])
        assert_near(tokens, expected, TOLERANCE)
    else:
        assert_near(_channels_first(_outputs(path)[quantity]), expected, TOLERANCE)


def _grid(path: str) -> tuple[int, int]:
    found = re.search(r"_grid(\d+)x(\d+)\.npz$", path)
    return int(found[1]), int(found[2])


def _check_positions(path: str, expected: np.ndarray) -> None:
    """Compares the whole position embedding, or its first and last two rows."""
    height, width = _grid(path)
    embedding = network_of(path).backbone.position_embedding(height, width).numpy()
    if embedding.shape != expected.shape:
        rows = embedding[:, 1:]
        parts = [embedding[:, :1], rows[:, : 2 * width], rows[:, -2 * width :]]
        embedding = np.concatenate(parts, 1)
    assert embedding.shape == expected.shape
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=POSITION_TOLERANCE)


def _check_large(path: str, quantity: str) -> None:
    arrays = load(path)
    if quantity == "pos_embed_resized_first_last_rows":
        _check_positions(path, arrays[quantity])
        return
    logits = _channels_first(_outputs(path)["logits"])
    largest = float(arrays["logits_absmax"])
    if quantity == "logits_strided":
        down, across = arrays["stride"]
        actual = logits[:, :, ::down, ::across]
    elif quantity == "logits_mean_per_class":
        actual = logits.mean((0, 2, 3))
    else:
        assert quantity == "logits_absmax", f"{path} holds {quantity}, which no check knows"
        actual = np.abs(logits).max()
    limit = LARGE_TOLERANCE * largest
    np.testing.assert_allclose(actual, arrays[quantity], rtol=0, atol=limit)


_INPUTS = {"x", "x_repeat7", "label", "x_masked", "channel_masks", "undropped_images", "stride"}


def _quantities(path: str) -> list[str]:
    if path.endswith("_weights.npz"):
        return ["every_tensor"]
    return [name for name in load(path) if name not in _INPUTS]


def _check(path: str, quantity: str) -> None:
    if path.endswith("_weights.npz"):
        _check_weights(path, quantity)
    elif "x_repeat7" in load(path):
        _check_large(path, quantity)
    else:
        _check_small(path, quantity)


CASES = {"unimatch/a": (_quantities, _check)}
