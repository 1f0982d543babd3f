"""Golden cases `strict/spnet_projection` and `strict/poly_lr`: DeepLabv2, projection, rates.

Arrays are channels first, and networks have the topology of the published one in small widths,
which are read off the shapes. Images are BGR without their mean; ours get them as RGB, so that the
kernels that are turned on import are tested too.
"""

import dataclasses
import functools
import re
from unittest import mock

import numpy as np
import tensorflow as tf

from tests.golden_cases.lpl_model import channels_last, fill, load
from tfseg.data.class_embeddings import normalise
from tfseg.models import BACKBONES, build_model
from tfseg.models.backbones.resnet_torch import ResNetTorch
from tfseg.ops.resize import rescale_bilinear, resize_bilinear
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.training.optimizers import Scaled, learning_rate
from tfseg.weights.torch_layout import backbone_slots, summed_logits_slots

_RATES = (6, 12, 18, 24)
# Sizes of the further inputs of the published maximum over scales, as in the array's name.
_SCALES = (0.5, 0.75)
# Ten times the observed difference.
_LIMITS = {"act": 1.5e-5, "logits": 5e-6, "softmax": 5e-6}


def rgb(x: np.ndarray) -> tf.Tensor:
    """Turns BGR [N, 3, h, w] into RGB [N, h, w, 3]."""
    return tf.reverse(channels_last(x), [3])


def places(network) -> dict:
    """Returns the places of the tensors of the published network."""
    return {**backbone_slots(network.backbone), **summed_logits_slots(network)}


def projection_net(parameters, class_vectors: np.ndarray, *, name: str = "model"):
    """Builds the network of a case.

    Args:
      parameters: shapes by the published names.
      class_vectors: [C, D].
      name: of the network.
    """
    blocks = [re.fullmatch(r"layer(\d)\.block(\d+)\.reduce\.conv\.weight", n) for n in parameters]
    blocks = [(int(m[1]), int(m[2])) for m in blocks if m]
    layers = sorted({layer for layer, _ in blocks})
    widths = [parameters["layer1.conv1.conv.weight"].shape[0]]
    widths += [parameters[f"layer{i}.block1.reduce.conv.weight"].shape[0] for i in layers]
    units = [max(block for layer, block in blocks if layer == i) for i in layers]

    def make(settings, config):
        backbone = ResNetTorch(
            settings,
            "resnet101_msra",
            output_stride=8,
            multi_grid=None,
            bounded=False,
            units=units,
            widths=widths,
        )
        # The mean is gone already.
        backbone.facts = dataclasses.replace(backbone.facts, offset=(0.0,) * 3)
        return backbone

    config = ModelConfig(
        model_variant="golden",
        output_stride=8,
        head="projection",
        aspp_with_batch_norm=False,
        atrous_rates=_RATES,
        logits_kernel_size=3,
        fine_tune_batch_norm=False,
    )
    with mock.patch.dict(BACKBONES, {"golden": make}):
        return build_model(
            config,
            num_classes=len(class_vectors),
            num_image_classes=len(class_vectors),
            crop_size=(65, 65),
            name=name,
            class_vectors=class_vectors,
        )


@functools.lru_cache(maxsize=4)
def _projection(path: str) -> dict[str, np.ndarray]:
    arrays = load(path)
    parameters = {
        name.removeprefix("param/"): value
        for name, value in arrays.items()
        if name.startswith("param/")
    }
    network = projection_net(parameters, arrays["emb_l2"])
    fill(places(network), parameters)
    image = rgb(arrays["x"])
    ends = network.encode(image)
    outputs = network.decode(ends)
    logits = outputs["logits"]
    scaled = [network(rescale_bilinear(image, scale))["logits"] for scale in _SCALES]
    size = logits.shape[1:3]
    scaled = [resize_bilinear(x, size, align_corners=False) for x in scaled]
    up = resize_bilinear(logits, image.shape[1:3], align_corners=False)
    layers = {f"act_layer{i + 1}": ends[f"layer{i}"] for i in (1, 2, 3, 4)}
    return {
        "act_layer1": ends["pool1"],
        **layers,
        "act_aspp": outputs["features"],
        "logits": logits,
        "logits_msc_noscale": network(image, training=True)["logits"],
        "logits_msc_max_05_075": tf.reduce_max(tf.stack([logits, *scaled]), 0),
        "logits_up": up,
        "softmax_up": tf.nn.softmax(up),
    }


def _check_projection(path: str, name: str) -> None:
    values, expected = _projection(path), load(path)[name]
    if name == "emb_l2":
        actual = normalise(load(path)["emb_raw"], "unit")
        return np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    if name == "pred":
        up = values["logits_up"].numpy()
        first, second = np.sort(up, -1)[..., :-3:-1].transpose(3, 0, 1, 2)
        clear = first - second > 1e-5
        return np.testing.assert_array_equal(up.argmax(-1)[clear], expected[clear])
    actual = values[name].numpy().transpose(0, 3, 1, 2)
    limit = max(_LIMITS[name.split("_")[0]], 1e-6 * np.abs(expected).max())
    return np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def _check_rates(path: str, name: str) -> None:
    assert name == "lrs", f"{path} holds {name}, which no check knows"
    arrays = load(path)
    steps = int(arrays["max_iter"])
    config = TrainConfig(
        base_learning_rate=float(arrays["base_lr"]),
        training_number_of_steps=steps,
        learning_power=float(arrays["power"]),
        learning_rate_update_steps=int(arrays["lr_decay_iter"]),
    )
    for factor, expected in zip((1.0, 10.0, 20.0), arrays[name].T):
        actual = Scaled(learning_rate(config), factor)(tf.range(steps))
        # Near the end 1 - t / T has few digits left in float32.
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7 * expected[0])


_INPUTS = {"x", "emb_raw", "base_lr", "max_iter", "power", "lr_decay_iter"}


def _quantities(path: str) -> list[str]:
    return [k for k in load(path) if k not in _INPUTS and not k.startswith("param/")]


CASES = {
    "strict/spnet_projection": (_quantities, _check_projection),
    "strict/poly_lr": (_quantities, _check_rates),
}
