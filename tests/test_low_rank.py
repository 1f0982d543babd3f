"""The low-rank factorisation, cue and gate, and SLRNet's network on several backbones."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.toy import ToyBackbone
from tfseg.errors import UserError
from tfseg.models import BACKBONES, build_model
from tfseg.models.heads.factorisation import (
    GlobalCueInjection,
    LowRank,
    StochasticGate,
    initial_bases,
)
from tfseg.models.heads.low_rank import LowRankNet, with_background
from tfseg.models.layers.settings import Settings
from tfseg.ops.class_scores import class_scores
from tfseg.ops.resize import resize_bilinear
from tfseg.ops.two_views import second_view, to_first_view
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import changed

RNG = np.random.default_rng(0)
SMALL = ModelConfig(
    model_variant="toy",
    head="low_rank",
    decoder_output_stride=(4,),
    aspp_convs_filters=16,
    decoder_filters=8,
    aspp_dropout_rate=0.5,
)


def normal(*shape):
    return tf.constant(RNG.standard_normal(shape), tf.float32)


def small_network(num_classes=4, **changes):
    config = changed(SMALL, **changes)
    return build_model(
        config, num_classes=num_classes, num_image_classes=num_classes - 1, crop_size=(33, 33)
    )


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


# The factorisation -------------------------------------------------------------------------------


def test_initial_bases_are_mean_features_of_the_classes():
    features = normal(2, 3, 5, 4)
    # Pixels of the first two rows are of class 1, the others of class 0, all but certainly.
    logits = np.zeros([2, 3, 5, 2], np.float32)
    logits[:, :2, :, 1], logits[:, 2, :, 0] = 50.0, 50.0
    bases = initial_bases(tf.constant(logits), features)
    expected = [tf.reduce_mean(features[:, 2:], [1, 2]), tf.reduce_mean(features[:, :2], [1, 2])]
    np.testing.assert_allclose(bases, tf.stack(expected, 1), atol=1e-5)


def test_the_order_of_views_and_pixels_does_not_matter():
    layer = LowRank(Settings(), 6, iterations=2)
    first, second, bases = normal(2, 4, 5, 6), normal(2, 3, 2, 6), normal(2, 3, 6)
    (y1, y2), (c1, c2), final = layer([first, second], bases)
    (z2, z1), (d2, d1), other = layer([second, first], bases)
    for a, b in ((y1, z1), (y2, z2), (c1, d1), (c2, d2), (final, other)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert y1.shape == first.shape and c2.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(tf.reduce_sum(c1, -1), 1.0, atol=1e-6)
    np.testing.assert_allclose(tf.norm(final, axis=-1), 1.0, atol=1e-5)


def test_a_second_view_changes_the_bases_of_the_first():
    layer = LowRank(Settings(), 6)
    first, second, bases = normal(1, 4, 5, 6), normal(1, 3, 2, 6), normal(1, 3, 6)
    alone, together = layer([first], bases)[0][0], layer([first, second], bases)[0][0]
    assert np.abs(alone - together).max() > 1e-4


def test_the_added_features_have_the_rank_of_the_bases():
    layer = LowRank(Settings(), 8)
    # With a bias of zero, and features so large that the last activation changes nothing.
    x = normal(1, 6, 7, 8) + 100.0
    layer.transforms[1].bias.assign(tf.zeros(8))
    (y,), _, _ = layer([x], normal(1, 3, 8))
    added = np.reshape(y - x, [42, 8]).astype(np.float64)
    assert np.linalg.matrix_rank(added, tol=1e-3) <= 3


@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_a_low_temperature_makes_codes_decided(temperature):
    layer = LowRank(Settings(), 6, temperature=temperature)
    _, (codes,), _ = layer([5.0 * normal(1, 4, 4, 6)], normal(1, 3, 6))
    assert (tf.reduce_mean(tf.reduce_max(codes, -1)) > 0.8) == (temperature < 1)


def test_a_basis_of_zero_has_a_gradient_without_nan():
    layer = LowRank(Settings(), 4)
    for transform in layer.transforms:
        transform.bias.assign(tf.zeros(4))
    x = normal(1, 3, 3, 4)
    with tf.GradientTape() as tape:
        (y,), _, _ = layer([x], tf.zeros([1, 2, 4]))
        total = tf.reduce_sum(y)
    for gradient in tape.gradient(total, layer.trainable_variables):
        assert np.isfinite(gradient).all()


# Cue and gate ------------------------------------------------------------------------------------


def test_the_cue_is_the_same_wherever_the_deep_features_lie():
    layer = GlobalCueInjection(Settings(), 5, 6)
    shallow, deep = normal(1, 4, 4, 5), normal(1, 4, 4, 6)
    moved = tf.roll(deep, [1, 2], [1, 2])
    np.testing.assert_allclose(layer(shallow, deep), layer(shallow, moved), atol=1e-6)
    assert {
        v.name for v in layer.variables if "shallow" in v.name and "norm" in v.name.lower()
    } == {
        "global_cue/shallow/BatchNorm/moving_mean:0",
        "global_cue/shallow/BatchNorm/moving_variance:0",
    }


def test_the_gate_mixes_in_evaluation_and_draws_in_training():
    gate = StochasticGate(0.3)
    deep, shallow = normal(1, 3, 4, 5), normal(1, 3, 4, 5)

    @tf.function
    def draw(seeds):
        one = functools.partial(gate, deep, shallow, training=True)
        return tf.map_fn(lambda seed: one(dropout_seed=seed), seeds, fn_output_signature=tf.float32)

    draws = draw(tf.stack([tf.range(2000), tf.zeros(2000, tf.int32)], 1))
    np.testing.assert_allclose(gate(deep, shallow), 0.7 * deep + 0.3 * shallow, atol=1e-6)
    # The expected value is the deep features, as published, not the mixture.
    np.testing.assert_allclose(tf.reduce_mean(draws, 0), deep, atol=0.15)
    taken = np.mean(draws == shallow)
    assert taken == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("kind", ["published", "mixture"])
def test_mean_of_the_gate_in_training(kind):
    gate = StochasticGate(0.3, kind=kind)
    deep, shallow = tf.fill([4000], 1.0), tf.fill([4000], -1.0)
    drawn = gate(deep, shallow, training=True, dropout_seed=tf.constant([1, 2]))
    evaluated = float(gate(deep, shallow)[0])
    assert evaluated == pytest.approx(0.4)
    # The mixture's mean is what evaluation takes; the published one's is the deep feature.
    assert float(tf.reduce_mean(drawn)) == pytest.approx(
        evaluated if kind == "mixture" else 1.0, abs=0.08
    )


def test_the_network_builds_the_gate_that_is_asked_for():
    model = small_network(low_rank_gate="mixture")
    image = tf.random.stateless_uniform([1, 33, 33, 3], [0, 0], 0.0, 255.0)
    seed = tf.constant([3, 4])
    mixture = model(image, training=True, dropout_seed=seed)["logits"]
    published = small_network()(image, training=True, dropout_seed=seed)["logits"]
    assert float(tf.reduce_max(tf.abs(mixture - published))) > 1e-3


# The network -------------------------------------------------------------------------------------


def test_new_convolutions_start_with_he_s_values():
    model = small_network(decoder_filters=64, aspp_convs_filters=64)
    parts = {
        "aspp0/weights": 12,
        "segmentation/conv0_pointwise/weights": 64,
        "segmentation/conv0_depthwise/depthwise_weights": 9,
        "logits/semantic/weights": 64,
    }
    found = {v.name.split(":")[0]: v.numpy() for v in model.trainable_variables}
    for name, fan_in in parts.items():
        assert np.std(found[name]) == pytest.approx(np.sqrt(2.0 / fan_in), rel=0.15), name


def test_backgrounds():
    foreground = tf.constant([[[[0.2, -1.0]]]])
    constant = with_background(foreground, "constant")
    np.testing.assert_allclose(constant, [[[[1.0, 0.2, -1.0]]]])
    np.testing.assert_allclose(with_background(foreground, "complement")[..., 0], [[[0.8]]])
    assert with_background(foreground, "learned") is foreground


def test_the_published_network_has_the_published_size():
    config = ModelConfig(
        model_variant="wide_resnet38",
        head="low_rank",
        output_stride=8,
        atrous_rates=(12, 24, 36),
        decoder_output_stride=(4,),
        aspp_with_separable_conv=False,
        decoder_use_separable_conv=False,
    )
    model = build_model(config, num_classes=21, num_image_classes=20, crop_size=(321, 321))

    def millions(module):
        return sum(v.shape.num_elements() for v in module.trainable_variables) / 1e6

    assert millions(model.backbone) == pytest.approx(105.07, abs=0.005)
    assert millions(model) == pytest.approx(138.70, abs=0.005)
    features = model.features(tf.zeros([1, 65, 65, 3]))
    assert features.deep.shape == (1, 17, 17, 256) and features.shallow.shape == (1, 17, 17, 256)


@pytest.mark.parametrize("variant", ["toy", "efficientnet_lite0", "mobilenet_v2"])
@pytest.mark.parametrize("wide", [False, True])
def test_it_works_on_other_backbones(variant, wide):
    model = small_network(model_variant=variant, low_rank_wide=wide)
    outputs = model(tf.zeros([2, 33, 41, 3]))
    assert outputs["logits"].shape == (2, 9, 11, 4) and outputs["image_logits"].shape == (2, 3)
    np.testing.assert_array_equal(outputs["logits"][..., 0], 1.0)


def test_batch_norm_of_the_backbone_stays_in_training():
    model = small_network()
    image = tf.constant(RNG.uniform(0, 255, [2, 33, 33, 3]), tf.float32)
    before = {v.name: v.numpy() for v in model.variables if not v.trainable}
    model.two_views(image, training=True, dropout_seed=tf.constant([1, 2]))
    moved = {v.name for v in model.variables if np.any(before.get(v.name, v) != v.numpy())}
    still = ("toy/", "aspp", "concat_projection", "image_pooling")
    assert moved and not any(name.startswith(still) for name in moved)
    assert any(name.startswith("decoder") for name in moved)


def test_two_views_are_seen_in_their_own_sizes():
    model = small_network()
    image = tf.constant(RNG.uniform(0, 255, [2, 33, 41, 3]), tf.float32)
    output = model.two_views(image, flip=tf.constant([True, False]))
    assert [x.shape for x in output.logits] == [(2, 9, 11, 4), (2, 4, 5, 4)]
    small = second_view(image, scale=0.5, flip=tf.constant([True, False]))
    views = (model.features(image), model.features(small))
    np.testing.assert_allclose(model.head(views).logits[1], output.logits[1], atol=1e-5)


def test_two_views_at_test_time_are_averaged():
    model = small_network(low_rank_test_views=2)
    image = tf.constant(RNG.uniform(0, 255, [1, 33, 33, 3]), tf.float32)
    output, result = model.two_views(image), model(image)
    first, second = (tf.nn.softmax(x) for x in output.logits)
    mean = (first + to_first_view(second, first.shape[1:3])) / 2
    np.testing.assert_allclose(tf.nn.softmax(result["logits"]), mean, atol=1e-6)
    scores = [class_scores(x, tf.nn.softmax(x)) for x in output.logits]
    np.testing.assert_allclose(result["image_logits"], (scores[0] + scores[1]) / 2, atol=1e-5)


def test_sizes_may_be_unknown_while_a_graph_is_built():
    model = small_network(low_rank_test_views=2)
    run = tf.function(lambda x: model(x)["logits"], autograph=False)
    image = tf.constant(RNG.uniform(0, 255, [1, 33, 41, 3]), tf.float32)
    any_size = run.get_concrete_function(tf.TensorSpec([1, None, None, 3]))
    np.testing.assert_allclose(any_size(image), run(image), atol=1e-4)


def test_a_learned_background_gives_no_class_scores():
    model = small_network(background_logit="learned")
    outputs = model(tf.zeros([1, 33, 33, 3]))
    assert outputs["logits"].shape[-1] == 4 and "image_logits" not in outputs


def test_frozen_statistics_of_the_aspp_can_be_freed():
    model = small_network(low_rank_freeze_aspp_statistics=False)
    image = tf.constant(RNG.uniform(0, 255, [2, 33, 33, 3]), tf.float32)
    model.two_views(image, training=True, dropout_seed=tf.constant([1, 2]))
    means = [v for v in model.aspp.variables if "moving_mean" in v.name]
    assert means and all(np.any(v.numpy()) for v in means)


def test_bfloat16_stays_close():
    image = tf.constant(RNG.uniform(0, 255, [1, 33, 33, 3]), tf.float32)
    exact = small_network()(image)["logits"]
    rough = small_network(mixed_precision="bfloat16")(image)["logits"]
    assert rough.dtype == tf.float32
    np.testing.assert_allclose(rough, exact, atol=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_output_stride": None},
        {"decoder_output_stride": (8, 4)},
        {"aspp_with_batch_norm": False},
        {"aspp_with_concat_projection": False},
        {"decoder_use_sum_merge": True},
        {"image_pyramid": (0.5, 1.0)},
    ],
    ids=str,
)
def test_settings_that_the_head_cannot_have(changes):
    with pytest.raises(UserError) as error:
        small_network(**changes)
    assert next(iter(changes)) in str(error.value)


def test_masks_are_resized_after_the_softmax():
    model = small_network()
    logits = (normal(1, 5, 5, 4), normal(1, 3, 3, 4))
    mean = model.mean_mask(logits)
    expected = (tf.nn.softmax(logits[0]) + resize_bilinear(tf.nn.softmax(logits[1]), (5, 5))) / 2
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    assert isinstance(model, LowRankNet)
