"""Networks whose batch norms are folded into their convolutions."""

import numpy as np
import pytest
import tensorflow as tf

from tests.toy import ToyBackbone
from tfseg.models import BACKBONES, build_model, kernels
from tfseg.models.folding import FoldedNetwork
from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.convolutions import Conv2D, DepthwiseConv2D
from tfseg.models.layers.settings import Settings
from tfseg.models.layers.units import ConvBatchNorm, SeparableConv
from tfseg.settings.network import ModelConfig

CHANNELS = 6
# Float32 rounds otherwise where products are taken in another order.
TOLERANCE = 1e-5


class OneLayer(tf.Module):
    """A network of one layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def __call__(self, image, training=False):
        return {"logits": self.layer(image, training=training)}


def give_statistics(network, seed=0):
    """Gives every batch norm other numbers than those that do nothing."""
    rng = np.random.default_rng(seed)
    for norm in network.submodules:
        if isinstance(norm, BatchNorm):
            for variable, low in (
                (norm.gamma, 0.5),
                (norm.moving_variance, 0.5),
                (norm.beta, -0.5),
                (norm.moving_mean, -0.5),
            ):
                if variable is not None:
                    variable.assign(rng.uniform(low, low + 1.0, variable.shape))


def logits_of(network, image):
    """Returns the logits and the kinds of operations in the graph that makes them."""
    function = tf.function(lambda x: network(x)["logits"], autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec(image.shape))
    kinds = {operation.type for operation in concrete.graph.get_operations()}
    with kernels.fusing() if "FusedBatchNormV3" not in kinds else tf.name_scope("plain"):
        return concrete(image).numpy(), kinds


def assert_folds(network, image):
    give_statistics(network)
    folded = FoldedNetwork(network)
    expected, kinds = logits_of(network, image)
    found, kinds_when_folded = logits_of(folded, image)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)
    # On some CPUs what is left of them would be fused, and slow.
    assert "FusedBatchNormV3" not in kinds_when_folded
    np.testing.assert_array_equal(logits_of(network, image)[0], expected)
    return folded, expected


def unit(kind, activation=None, dtype="float32", **options):
    settings = Settings(epsilon=1e-3, compute_dtype=dtype)
    if kind is SeparableConv:
        return SeparableConv(settings, "x", CHANNELS, 8, activation=activation, **options)
    filters = [8] if kind is Conv2D else []
    convolution = kind(settings, "x", CHANNELS, *filters, **options)
    return ConvBatchNorm(convolution, settings, activation=activation)


LAYERS = {
    "1x1": lambda: unit(Conv2D, tf.nn.relu),
    "1x1, linear": lambda: unit(Conv2D),
    "3x3, stride 2": lambda: unit(Conv2D, tf.nn.relu, kernel_size=3, stride=2),
    "3x3, atrous": lambda: unit(Conv2D, tf.nn.relu6, kernel_size=3, rate=2),
    "depthwise": lambda: unit(DepthwiseConv2D, tf.nn.relu6),
    "depthwise, stride 2": lambda: unit(DepthwiseConv2D, stride=2),
    "depthwise, atrous": lambda: unit(DepthwiseConv2D, tf.nn.relu, rate=2),
    "separable": lambda: unit(SeparableConv, tf.nn.relu),
    "separable, linear": lambda: unit(SeparableConv),
    "separable, linear, atrous": lambda: unit(SeparableConv, rate=2),
    "batch norm": lambda: BatchNorm(Settings(), "x", CHANNELS),
    "batch norm without parameters": lambda: BatchNorm(
        Settings(), "x", CHANNELS, use_gamma=False, use_beta=False
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_folded_layer_gives_the_same(name):
    image = tf.random.stateless_normal([2, 9, 11, CHANNELS], [1, 2])
    assert_folds(OneLayer(LAYERS[name]()), image)


def test_of_a_linear_separable_convolution_one_bias_is_left():
    folded = FoldedNetwork(OneLayer(unit(SeparableConv)))
    function = tf.function(lambda x: folded(x)["logits"], autograph=False)
    concrete = function.get_concrete_function(tf.TensorSpec([1, 9, 9, CHANNELS]))
    kinds = [operation.type for operation in concrete.graph.get_operations()]
    assert kinds.count("BiasAdd") == 1


@pytest.mark.parametrize("kind", [Conv2D, DepthwiseConv2D, SeparableConv])
def test_folding_costs_no_precision_in_bfloat16(kind):
    image = tf.random.stateless_normal([2, 9, 11, CHANNELS], [1, 2])
    exact, rounded = (OneLayer(unit(kind, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    give_statistics(exact)
    give_statistics(rounded)
    expected = logits_of(exact, image)[0]
    image = tf.cast(image, tf.bfloat16)
    plain, folded = (
        np.abs(network(image)["logits"].numpy().astype(np.float32) - expected).mean()
        for network in (rounded, FoldedNetwork(rounded))
    )
    assert 0 < folded < 1.5 * plain


def test_new_weights_are_folded_when_asked_for():
    network = OneLayer(unit(Conv2D, tf.nn.relu))
    image = tf.random.stateless_normal([1, 5, 5, CHANNELS], [3, 4])
    folded, before = assert_folds(network, image)
    give_statistics(network, seed=1)
    after = logits_of(network, image)[0]
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(logits_of(folded, image)[0], before, rtol=0, atol=1e-5)
    folded.refresh()
    np.testing.assert_allclose(logits_of(folded, image)[0], after, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "variant", ["toy", *(pytest.param(name, marks=pytest.mark.nightly) for name in BACKBONES)]
)
def test_a_folded_network_gives_the_same(variant, monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)
    network = build_model(
        ModelConfig(model_variant=variant, atrous_rates=(2,)),
        num_classes=5,
        num_image_classes=4,
        crop_size=(33, 33),
    )
    image = tf.random.stateless_uniform([1, *network.valid_size(33, 33), 3], [1, 2]) * 255.0
    count = len(network.variables)
    folded, _ = assert_folds(network, image)
    assert folded.valid_size(33, 33) == network.valid_size(33, 33)
    # What is folded is no part of checkpoints.
    assert len(network.variables) == count
