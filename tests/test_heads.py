"""Heads and what all networks share, on the toy backbone: options, sizes, dropout, precision."""

import numpy as np
import pytest
import tensorflow as tf

from tests.toy import ToyBackbone
from tfseg.models import BACKBONES, build_model
from tfseg.models.heads.parts import scaled_size
from tfseg.settings.network import ModelConfig
from tfseg.weights.checkpoint.names import variable_name

SEED = tf.constant([3, 4])
FULL = {"atrous_rates": (6, 12, 18), "decoder_output_stride": (4,)}


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


def _image(height=33, width=33, batch=1, seed=0):
    values = np.random.default_rng(seed).uniform(0, 255, [batch, height, width, 3])
    return tf.constant(values, tf.float32)


def _build(**config):
    return build_model(
        ModelConfig(model_variant="toy", **config),
        num_classes=5,
        num_image_classes=4,
        crop_size=(33, 33),
        name="model",
        seed=0,
    )


# Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(33, 33), (32, 47), (20, 65)])
def test_any_input_size(size):
    model = _build(**FULL)
    logits = model(_image(*size))["logits"]
    assert logits.shape == [1, -(-size[0] // 4), -(-size[1] // 4), 5]


def test_sizes_known_only_at_run_time_give_the_same():
    for config in ({}, {"image_pooling_crop_size": (33, 33)}, {"image_pyramid": (0.5, 1.0)}):
        model = _build(**FULL, **config)
        image = _image(33, 49)
        traced = tf.function(model, input_signature=[tf.TensorSpec([None, None, None, 3])])
        np.testing.assert_allclose(traced(image)["logits"], model(image)["logits"], atol=1e-4)


def test_scaled_size_is_the_published_one():
    assert [scaled_size(513, s) for s in (1 / 16, 1 / 4, 0.75, 1.25, 1.75)] == [
        33,
        129,
        385,
        641,
        897,
    ]
    assert scaled_size(64, 1 / 4) == 16


# Heads ------------------------------------------------------------------------------------------


def _outputs(image=None, **config):
    model = _build(**config)
    image = _image() if image is None else image
    return model, model.decode(model.encode(image))


def test_image_pooling_is_the_mean_over_the_map_by_default():
    model, outputs = _outputs()
    assert outputs["image_pooling"].shape == [1, 1, 1, 256]
    features = model.encode(_image())[model.backbone.last]
    pooled = tf.reduce_mean(features, [1, 2], keepdims=True)
    expected = model.aspp.image_pooling.unit(pooled)
    np.testing.assert_allclose(outputs["image_pooling"], expected, atol=1e-5)


def test_image_pooling_window_stride_and_scale():
    # 65 pixels are 5 cells, 33 pixels 3: windows at 0, 1, 2; with stride 2 at 0 and 2.
    config = {"image_pooling_crop_size": (33, 65)}
    model, outputs = _outputs(_image(65, 65), **config)
    assert outputs["image_pooling"].shape == [1, 3, 1, 256]
    _, strided = _outputs(_image(65, 65), **config, image_pooling_stride=(2, 1))
    np.testing.assert_allclose(
        strided["image_pooling"], outputs["image_pooling"][:, ::2], atol=1e-5
    )
    ends = model.encode(_image(65, 65))
    window = tf.nn.avg_pool2d(ends[model.backbone.last], [3, 5], 1, "VALID")
    expected = model.aspp.image_pooling.unit(window)
    np.testing.assert_allclose(outputs["image_pooling"], expected, atol=1e-5)
    larger = model.decode(ends, input_scale=2.0)["image_pooling"]
    assert larger.shape == [1, 1, 1, 256]  # 65 scaled pixels: 5 cells
    for scale in (0.5, 1.5, 2.0):
        known = model.decode(ends, input_scale=scale)["image_pooling"]
        drawn = model.decode(ends, input_scale=tf.constant(scale))["image_pooling"]
        np.testing.assert_allclose(drawn, known, atol=1e-5)
    smaller = model.decode(model.encode(_image(17, 17)))["image_pooling"]
    assert smaller.shape == [1, 1, 1, 256]  # clipped to the 2 x 2 map


@pytest.mark.parametrize(
    "config, features, names",
    [
        ({}, 256, {"image_pooling", "aspp0", "concat_projection"}),
        ({"add_image_level_feature": False}, 256, {"aspp0", "concat_projection"}),
        ({"aspp_with_concat_projection": False}, 512, {"image_pooling", "aspp0"}),
        ({"aspp_convs_filters": 32}, 32, {"image_pooling", "aspp0", "concat_projection"}),
        ({"aspp_with_batch_norm": False}, 12, set()),
        (
            {"decoder_output_stride": (8, 4), "decoder_filters": 24},
            24,
            {
                "image_pooling",
                "aspp0",
                "concat_projection",
                "decoder/feature_projection0",
                "decoder/decoder_conv0",
                "decoder/decoder_conv1",
                "decoder/feature_projection0_1",
                "decoder/decoder_conv0_1",
                "decoder/decoder_conv1_1",
            },
        ),
    ],
)
def test_head_options_give_their_stages(config, features, names):
    model, outputs = _outputs(**config)
    assert set(outputs) == {"logits", "features", *names}
    assert outputs["features"].shape[3] == features
    side = 9 if "decoder_output_stride" in config else 3
    assert outputs["logits"].shape == [1, side, side, 5]
    assert all(np.isfinite(value).all() for value in outputs.values())


def test_plain_convolutions_in_place_of_separable_ones():
    model = _build(
        **{**FULL, "atrous_rates": (2, 3)},
        aspp_with_separable_conv=False,
        decoder_use_separable_conv=False,
    )
    shapes = {variable_name(v): tuple(v.shape) for v in model.variables}
    assert shapes["aspp1/weights"] == (3, 3, 12, 256)
    assert shapes["decoder/decoder_conv0/weights"] == (3, 3, 304, 256)
    assert not any("aspp1_depthwise" in name for name in shapes)
    assert model(_image())["logits"].shape == [1, 9, 9, 5]


def test_decoder_projection_kernel_is_chosen_by_its_flag():
    for merge, channels in ((False, 48), (True, 256)):
        config = {**FULL, "decoder_use_sum_merge": merge, "decoder_projection_kernel_size": 3}
        model = _build(**config)
        low_level = model.backbone.channels[model.backbone.low_level[4]]
        kernel = model.decoder[0].projection.convolution.kernel
        assert tuple(kernel.shape) == (3, 3, low_level, channels)
        assert model(_image())["logits"].shape == [1, 9, 9, 5]
    plain = _build(**FULL).decoder[0].projection.convolution.kernel
    assert tuple(plain.shape) == (1, 1, low_level, 48)


@pytest.mark.parametrize("separable", [False, True])
def test_head_initializer_bounds_every_kernel_and_bias_of_the_heads_alone(separable):
    config = {
        **FULL,
        "aspp_with_separable_conv": separable,
        "decoder_use_separable_conv": separable,
        "decoder_projection_kernel_size": 3,
    }
    model = _build(**config, head_initializer="uniform_fan_in")
    default = {variable_name(v): v.numpy() for v in _build(**config).variables}
    checked = 0
    for variable in model.variables:
        name, value = variable_name(variable), variable.numpy()
        if name.startswith("toy/") or "BatchNorm" in name:
            np.testing.assert_array_equal(value, default[name])
            continue
        if name.endswith("depthwise_weights"):
            fan_in = 9
        elif name.endswith("biases"):
            fan_in = 256
        else:
            fan_in = np.prod(value.shape[:3])
        limit = fan_in**-0.5
        assert np.abs(value).max() <= limit and np.abs(value).max() > 0.6 * limit, name
        if value.size > 1000:
            np.testing.assert_allclose(value.std(), limit / 3**0.5, rtol=0.05, err_msg=name)
        checked += 1
    # ASPP 5 and the projection of its result, decoder 3, logits 1; a bias; 5 are pairs.
    assert checked == 11 + 5 * separable
    assert not default["logits/semantic/biases"].any()


def test_decoder_sums_and_gives_logits():
    model, outputs = _outputs(**FULL, decoder_use_sum_merge=True)
    low = model.encode(_image())[model.backbone.low_level[4]]
    projected = model.decoder[0].projection(low)
    expected = outputs["decoder/decoder_conv0"] + projected
    np.testing.assert_allclose(outputs["features"], expected, atol=1e-5)
    for merge in (True, False):
        model, outputs = _outputs(
            **FULL, decoder_use_sum_merge=merge, decoder_output_is_logits=True
        )
        assert outputs["logits"].shape == [1, 9, 9, 5]
        assert not any(variable_name(v).startswith("logits/") for v in model.variables)


def test_logits_are_a_sum_over_atrous_rates_without_aspp():
    model, outputs = _outputs(aspp_with_batch_norm=False, atrous_rates=(1, 2), logits_kernel_size=3)
    first, second = model.logits_layer.convolutions
    assert [variable_name(c.kernel) for c in (first, second)] == [
        "logits/semantic/weights",
        "logits/semantic_1/weights",
    ]
    features = outputs["features"]
    expected = tf.nn.conv2d(features, first.kernel, 1, "SAME")
    expected += tf.nn.conv2d(features, second.kernel, 1, "SAME", dilations=2)
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4)


def test_image_pyramid_merges_at_the_largest_scale():
    image = _image(33, 33)
    single = _build()
    for merge, combine in (("max", np.maximum), ("avg", lambda a, b: (a + b) / 2)):
        model = _build(image_pyramid=(0.5, 1.0), merge_method=merge)
        half = tf.compat.v1.image.resize_bilinear(image, (17, 17), align_corners=True)
        small = tf.compat.v1.image.resize_bilinear(
            single(half)["logits"], (3, 3), align_corners=True
        )
        expected = combine(small, single(image)["logits"])
        np.testing.assert_allclose(model(image)["logits"], expected, atol=1e-4)


# Training ---------------------------------------------------------------------------------------


def test_bfloat16_logits_are_near_the_float32_ones():
    narrow, wide = (_build(**FULL, mixed_precision=p) for p in ("bfloat16", "float32"))
    a, b = (model(_image())["logits"].numpy() for model in (narrow, wide))
    assert np.abs(a - b).max() < 0.05 * np.abs(b).max()
    assert np.abs(a - b).max() > 0


def test_dropout_needs_a_seed_and_follows_it():
    model = _build(fine_tune_batch_norm=False, aspp_dropout_rate=0.5)
    with pytest.raises(ValueError, match="dropout_seed"):
        model(_image(), training=True)
    one, same, two = (
        model(_image(), training=True, dropout_seed=seed)["logits"]
        for seed in (SEED, SEED, SEED + 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - two).max() > 0


def test_dropout_in_the_decoder_is_before_the_logits():
    """With the first rate at 0 the last one alone decides which features are 0."""
    rates = {"decoder_dropout_rates": (0.0, 0.5), "aspp_dropout_rate": 0.0}
    model = _build(decoder_output_stride=(4,), fine_tune_batch_norm=False, **rates)
    whole = model(_image(), training=False)["features"].numpy()
    dropped = model(_image(), training=True, dropout_seed=SEED)["features"].numpy()
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * whole[kept], rtol=1e-4)
    assert kept[whole > 0].mean() == pytest.approx(0.5, abs=0.05)
