"""Networks: names, shapes and counts, strides, any input size, every option, both precisions."""

import dataclasses
import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tests.golden_cases.pseudoseg_model import filled_model
from tfseg.errors import UserError
from tfseg.models import BACKBONES, build_model, decayed_variables
from tfseg.models.backbones.mobilenet_v2 import divisible_channels
from tfseg.models.backbones.resnet_torch import ResNetTorch
from tfseg.models.backbones.xception import Block, XceptionModule
from tfseg.models.backbones.vit import SHAPES
from tfseg.models.heads.parts import Classifier
from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.settings import Settings
from tfseg.models.layers.strides import max_pool
from tfseg.settings.network import ModelConfig
from tfseg.weights.checkpoint.names import variable_name

GOLDEN = pathlib.Path(__file__).parent / "golden" / "pseudoseg"
SEED = tf.constant([3, 4])
SMALL = "efficientnet_lite0"
# tests/test_vit.py has those of the others.
CONVOLUTIONAL = [variant for variant in BACKBONES if variant not in SHAPES]
FULL = {"atrous_rates": (6, 12, 18), "decoder_output_stride": (4,)}


def _image(height=33, width=33, batch=1, seed=0):
    values = np.random.default_rng(seed).uniform(0, 255, [batch, height, width, 3])
    return tf.constant(values, tf.float32)


def _build(variant=SMALL, *, name="model", seed=0, with_classifier=False, **config):
    return build_model(
        ModelConfig(model_variant=variant, **config),
        num_classes=5,
        num_image_classes=4,
        crop_size=(33, 33),
        name=name,
        seed=seed,
        with_classifier=with_classifier,
    )


@functools.lru_cache(maxsize=1)
def _cached(variant, **config):
    return _build(variant, **config)


# Names and counts -------------------------------------------------------------------------------


def _table(variant):
    lines = (GOLDEN / f"{variant}_variables.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    return {
        name: (tuple(map(int, shape.split("x"))), trainable == "1", decayed == "1")
        for name, shape, _, trainable, decayed in rows
        # The attention of PseudoSeg's method is not part of the network.
        if not name.startswith(("hyper_column/", "pixel_normalization/"))
    }


@pytest.mark.parametrize(
    "variant",
    ["xception_65", "resnet_v1_50", "resnet_v1_50_beta", "resnet_v1_101_beta", "mobilenet_v2"],
)
def test_variables_are_those_of_the_published_checkpoints(variant):
    table = _table(variant)
    model = filled_model(variant, with_classifier=any("/logits/weights" in n for n in table))
    trainable = {id(v) for v in model.trainable_variables}
    decayed = {id(v) for v in decayed_variables(model)}
    ours = {
        variable_name(v): (tuple(v.shape), id(v) in trainable, id(v) in decayed)
        for v in model.variables
    }
    assert ours == table


# Trainable parameters of the backbone alone. Those of Xception 65, ResNet 50 and 101 and
# MobileNetV2 follow from the published tables. A middle unit of Xception has 1,618,344, so 41 has
# 8 x 1,618,344 fewer; 71's two further entry blocks have 272,640 and 2,149,784. The beta root has
# 103,296 more, and the first unit, which sees 128 channels in place of 64, has 20,480 more.
PARAMETERS = {
    "xception_41": 37_867_312 - 8 * 1_618_344,
    "xception_65": 37_867_312,
    "xception_71": 37_867_312 + 272_640 + 2_149_784,
    "resnet_v1_50": 23_508_032,
    "resnet_v1_101": 42_500_160,
    "resnet_v1_50_beta": 23_508_032 + 103_296 + 20_480,
    "resnet_v1_101_beta": 42_500_160 + 103_296 + 20_480,
    # Published (LPL specification 3).
    "resnet50s": 23_631_808,
    "resnet101s": 42_623_936,
    # Published (STRICT specification 3, ZS3 specification 3.3).
    "resnet101": 42_500_160,
    "resnet101_msra": 42_500_160,
    # Published as 105.07 M (SLRNet specification 3): 105,023,168 in kernels.
    "wide_resnet38": 105_023_168 + 47_744,
    "mobilenet_v2": 1_811_712,
    # The published 4,694,024 less classifier (1,281,000), head (414,720) and moving statistics.
    # Model Garden's own count of its networks for images, less what comes after the last block,
    # less moving statistics.
    "mobilenet_v3_large": 4_226_432 - 153_600 - 3_840 - 1_230_080 - 22_480,
    "mobilenet_v3_small": 1_529_968 - 55_296 - 2_304 - 590_848 - 10_960,
    "dilated_resnet50": 23_561_152 - 53_120,
    "dilated_resnet101": 42_500_160,
    "resnet_rs50": 33_763_840,
    "efficientnet_lite0": 4_694_024 - 1_281_000 - 414_720 - 39_456,
}


# Their code is that of a smaller or lighter one.
LARGER = {"xception_41", "xception_71", "resnet_v1_50", "resnet_v1_101", "resnet_v1_101_beta"}
LARGER |= {"resnet101s", "mobilenet_v3_large", "dilated_resnet101"}


def _variants(names, by_night=frozenset(LARGER)):
    """Returns backbones as parameters of a test, some of them by night."""
    return [pytest.param(v, marks=pytest.mark.nightly) if v in by_night else v for v in names]


@pytest.fixture(scope="module", params=_variants(CONVOLUTIONAL))
def network(request):
    """A network on each backbone; tests that take it run together, so that it is built once."""
    return request.param, _build(request.param, output_stride=16)


def test_parameter_counts(network):
    variant, model = network
    count = sum(v.shape.num_elements() for v in model.backbone.trainable_variables)
    assert count == PARAMETERS[variant]


def test_declared_end_points_exist_with_their_channels_and_strides(network):
    _, model = network
    backbone = model.backbone
    ends = model.encode(_image(65, 49))
    for name, value in ends.items():
        assert value.shape[3] == backbone.channels[name]
    for stride, name in backbone.low_level.items():
        assert ends[name].shape[1:3] == [64 // stride + 1, 48 // stride + 1]
    assert ends[backbone.last].shape[1:3] == [5, 4]
    assert backbone.hypercolumn[16] == backbone.last
    assert set(backbone.hypercolumn.values()) <= set(ends)
    assert 4 in backbone.low_level


def test_networks_of_different_names_differ_and_keep_the_variable_names():
    one, same, two = _build(), _build(), _build(name="ema")
    assert [v.name for v in one.variables] == [v.name for v in two.variables]
    for a, b in zip(one.variables, same.variables):
        np.testing.assert_array_equal(a, b)
    kernels = zip(decayed_variables(one), decayed_variables(two))
    assert all(np.abs(a.numpy() - b.numpy()).max() > 0 for a, b in kernels)


# Strides and sizes ------------------------------------------------------------------------------


# resnet101 has the stride after the first 1x1 convolution, and the published rates of its first
# units are those of the others: not the same function. Nor are Model Garden's, for the latter.
OTHER_RATES = {"resnet101", "mobilenet_v3_large", "mobilenet_v3_small"}
OTHER_RATES |= {"dilated_resnet50", "dilated_resnet101", "resnet_rs50"}


# xception_65 has the code of xception_41, and wide_resnet38's rates are compared below.
SLOW = {"xception_65", "wide_resnet38"}


@pytest.mark.parametrize(
    "variant",
    _variants(sorted(set(CONVOLUTIONAL) - OTHER_RATES), by_night=LARGER - {"xception_41"} | SLOW),
)
def test_atrous_features_are_the_strided_ones_between(variant):
    """Stride 32 equals stride 8 subsampled: the same weights see the same pixels."""
    coarse, fine = (_build(variant, output_stride=stride) for stride in (32, 8))
    image = _image(65, 33)
    a, b = (model.encode(image)[model.backbone.last].numpy() for model in (coarse, fine))
    assert a.shape[1:3] == (3, 2) and b.shape[1:3] == (9, 5)
    # Maximum pooling and zero padding agree too, because 65 and 33 are multiples of 32 plus 1.
    np.testing.assert_allclose(b[:, ::4, ::4], a, atol=2e-4 * np.abs(a).max())


def test_resnet_s_has_the_published_sizes_and_rates():
    model = _build("resnet50s", output_stride=8)
    ends = model.encode(_image(65, 97))
    sizes = [tuple(ends[f"layer{i}"].shape[1:3]) for i in (1, 2, 3, 4)]
    assert sizes == [(17, 25), (9, 13), (9, 13), (9, 13)]
    rates = [unit.convolutions[1].convolution._rate for unit in model.backbone.units]
    assert rates == [1] * 3 + [1] * 4 + [1] + [2] * 5 + [2] + [4] * 2
    strides = [unit.convolutions[1].convolution._stride for unit in model.backbone.units]
    assert strides == [1] * 3 + [2] + [1] * 12


def _numpy_convolution(x, kernel, *, stride=1, pad=0, rate=1):
    """Convolution with `pad` zeros on every side, as PyTorch defines it, in float64."""
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    span = rate * (kernel.shape[0] - 1)
    height, width = ((side - span - 1) // stride + 1 for side in x.shape[1:3])
    return sum(
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        @ kernel[i // rate, j // rate]
        for i in range(0, span + 1, rate)
        for j in range(0, span + 1, rate)
    )


def test_resnet_s_equals_a_plain_computation_where_sides_are_even():
    model = _build("resnet50s", output_stride=8)
    rng = np.random.default_rng(0)
    for variable in model.backbone.variables:
        if variable.name.endswith(("gamma:0", "moving_variance:0")):
            variable.assign(rng.uniform(0.5, 1.2, variable.shape))
        elif variable.name.endswith(("beta:0", "moving_mean:0")):
            variable.assign(rng.normal(size=variable.shape) * 0.1)
    values = {variable_name(v)[len("resnet50s/") :]: v.numpy() for v in model.backbone.variables}

    def unit(x, name, **how):
        x = _numpy_convolution(x, values[f"{name}/weights"].astype(np.float64), **how)
        norm = {k: values[f"{name}/BatchNorm/{k}"] for k in ("gamma", "beta")}
        mean, variance = (values[f"{name}/BatchNorm/moving_{k}"] for k in ("mean", "variance"))
        return (x - mean) / np.sqrt(variance + 1e-5) * norm["gamma"] + norm["beta"]

    image = _image(40, 54)
    mean, deviation = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    x = (image.numpy() / 255.0 - mean) / deviation
    for i in (1, 2, 3):
        x = np.maximum(unit(x, f"conv1_{i}", stride=2 if i == 1 else 1, pad=1), 0)
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    x = np.max([x[:, i : i + 20 : 2, j : j + 27 : 2] for i in range(3) for j in range(3)], axis=0)
    ends = model.encode(image)
    for layer, layer_rates in enumerate(([1] * 3, [1] * 4, [1] + [2] * 5, [2, 4, 4]), start=1):
        for i, rate in enumerate(layer_rates, start=1):
            name, stride = f"layer{layer}/unit_{i}", 2 if (layer, i) == (2, 1) else 1
            y = np.maximum(unit(x, f"{name}/conv1"), 0)
            y = np.maximum(unit(y, f"{name}/conv2", stride=stride, pad=rate, rate=rate), 0)
            y = unit(y, f"{name}/conv3")
            x = np.maximum(y + (unit(x, f"{name}/shortcut", stride=stride) if i == 1 else x), 0)
        ours = ends[f"layer{layer}"].numpy()
        assert ours.shape == x.shape
        np.testing.assert_allclose(ours, x, rtol=0, atol=2e-5 * np.abs(x).max())


# The convolution that has the stride.
TORCH_RESNETS = {"resnet101": "conv2", "resnet101_msra": "conv1"}


@pytest.mark.parametrize("output_stride, rates", [(16, (1, 1, 1, 2)), (8, (1, 1, 2, 4))])
@pytest.mark.parametrize("variant", TORCH_RESNETS)
def test_torch_resnets_have_the_published_rates_and_strides(variant, output_stride, rates):
    backbone = _torch_resnet(variant, output_stride=output_stride, units=(3, 4, 23, 3))
    found = [unit.convolutions[1].convolution._rate for unit in backbone.units]
    grid = [rates[3] * factor for factor in (1, 2, 4)]
    assert found == [rates[0]] * 3 + [rates[1]] * 4 + [rates[2]] * 23 + grid
    strided = {
        unit.name.split("/", 1)[1]: layer.convolution.name.rsplit("/", 1)[1]
        for unit in backbone.units
        for layer in unit.convolutions
        if layer.convolution._stride == 2
    }
    where = TORCH_RESNETS[variant]
    layers = (2, 3) if output_stride == 16 else (2,)
    assert strided == {f"layer{i}/unit_1": where for i in layers}


def _torch_resnet(variant, *, output_stride=8, units=(1, 2, 1, 2), multi_grid=(1, 2, 4)):
    return ResNetTorch(
        Settings(),
        variant,
        output_stride=output_stride,
        multi_grid=multi_grid,
        bounded=False,
        units=units,
        widths=(4, 2, 3, 4, 5),
    )


@pytest.mark.parametrize("variant", TORCH_RESNETS)
def test_torch_resnets_equal_a_plain_computation_where_sides_are_even(variant):
    backbone, where = _torch_resnet(variant, multi_grid=(2, 3)), TORCH_RESNETS[variant]
    rng = np.random.default_rng(0)
    for variable in backbone.variables:
        if variable.name.endswith(("gamma:0", "moving_variance:0")):
            variable.assign(rng.uniform(0.5, 1.2, variable.shape))
        elif variable.name.endswith(("beta:0", "moving_mean:0")):
            variable.assign(rng.normal(size=variable.shape) * 0.1)
    values = {variable_name(v)[len(variant) + 1 :]: v.numpy() for v in backbone.variables}

    def unit(x, name, **how):
        x = _numpy_convolution(x, values[f"{name}/weights"].astype(np.float64), **how)
        norm = {k: values[f"{name}/BatchNorm/{k}"] for k in ("gamma", "beta")}
        mean, variance = (values[f"{name}/BatchNorm/moving_{k}"] for k in ("mean", "variance"))
        return (x - mean) / np.sqrt(variance + 1e-5) * norm["gamma"] + norm["beta"]

    # 76 / 2 = 38, and pooled 19, or 20 where the last window may reach over the border.
    image = _image(76, 52)
    x = np.maximum(unit(backbone.normalise(image).numpy(), "conv1", stride=2, pad=3), 0)
    over = 2 if variant == "resnet101_msra" else 1
    x = np.pad(x, [(0, 0), (1, over), (1, over), (0, 0)], constant_values=-np.inf)
    sides = [(side - 3) // 2 + 1 for side in x.shape[1:3]]
    assert sides == ([20, 14] if over == 2 else [19, 13])
    x = np.max(
        [
            x[:, i : i + 2 * sides[0] - 1 : 2, j : j + 2 * sides[1] - 1 : 2]
            for i in range(3)
            for j in range(3)
        ],
        axis=0,
    )
    ends = backbone(backbone.normalise(image))
    for layer, rates in enumerate(([1], [1, 1], [2], [8, 12]), start=1):
        for i, rate in enumerate(rates, start=1):
            name, stride = f"layer{layer}/unit_{i}", 2 if (layer, i) == (2, 1) else 1
            strides = {"conv1": 1, "conv2": 1, where: stride}
            y = np.maximum(unit(x, f"{name}/conv1", stride=strides["conv1"]), 0)
            y = unit(y, f"{name}/conv2", stride=strides["conv2"], pad=rate, rate=rate)
            y = unit(np.maximum(y, 0), f"{name}/conv3")
            x = np.maximum(y + (unit(x, f"{name}/shortcut", stride=stride) if i == 1 else x), 0)
        ours = ends[f"layer{layer}"].numpy()
        assert ours.shape == x.shape
        np.testing.assert_allclose(ours, x, rtol=0, atol=2e-5 * np.abs(x).max())


def test_the_caffe_model_sees_pixels_less_their_mean():
    backbone = _torch_resnet("resnet101_msra")
    image = tf.constant([[[[122.675, 116.669, 104.008], [255.0, 0.0, 104.008]]]])
    expected = [[[[0.0, 0.0, 0.0], [255 - 122.675, -116.669, 0.0]]]]
    np.testing.assert_allclose(backbone.normalise(image), expected, atol=1e-5)


def test_wide_resnet_has_the_published_sizes_and_rates():
    model = _cached("wide_resnet38", output_stride=8)
    blocks = model.backbone.blocks
    rates = {b.name.split("/")[1]: [c._rate for c in b.convolutions] for b in blocks}
    published = {name: [1, 1] for name in ("b2", "b2_1", "b2_2", "b3", "b3_1", "b3_2")}
    published |= {name: [1, 1] for name in ("b4", "b4_1", "b4_2", "b4_3", "b4_4", "b4_5")}
    published |= {"b5": [1, 2], "b5_1": [2, 2], "b5_2": [2, 2], "b6": [1, 4, 1], "b7": [1, 4, 1]}
    assert rates == published
    ends = model.encode(_image(49, 40))
    sizes = [tuple(ends[name].shape[1:]) for name in ("conv1a", "b2", "b3_2", "b4_5", "conv6")]
    assert sizes == [
        (49, 40, 64),
        (25, 20, 128),
        (13, 10, 256),
        (7, 5, 512),
        (7, 5, 4096),
    ]


def test_wide_resnet_drops_channels_by_seed():
    model = _cached("wide_resnet38", output_stride=8)

    def features(seed):
        ends = model.encode(_image(), training=True, dropout_seed=seed)
        return ends["b6"].numpy(), ends["b5_2"].numpy()

    (plain, before), (one, same), (again, _), (two, _) = map(features, (None, SEED, SEED, SEED + 1))
    np.testing.assert_allclose(before, same, atol=1e-4 * np.abs(before).max())
    assert np.abs(one - plain).max() > 1e-3 and np.abs(one - two).max() > 1e-3
    np.testing.assert_allclose(one, again, atol=1e-4 * np.abs(one).max())


def test_resnet_s_standardises_each_channel_and_pads_with_the_mean():
    backbone = _build("resnet50s").backbone
    np.testing.assert_allclose(backbone.facts.mean_pixel, (123.675, 116.28, 103.53))
    image = np.stack([np.full(3, 255.0), backbone.facts.mean_pixel])[None, None]
    mean, deviation = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    expected = np.stack([(1 - mean) / deviation, np.zeros(3)])[None, None]
    np.testing.assert_allclose(backbone.normalise(image), expected, atol=1e-5)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", [(8, 10), (9, 7), (8, 7)])
def test_pooling_has_a_border_on_every_side(size, ceil):
    # Negative, so that a border of zeros would show.
    x = np.random.default_rng(0).uniform(-9, -1, [2, *size, 3]).astype(np.float32)
    after = [1 + (ceil and side % 2 == 0) for side in size]
    widths = [(0, 0), (1, after[0]), (1, after[1]), (0, 0)]
    bordered = np.pad(x, widths, constant_values=-np.inf)
    expected = np.stack(
        [
            np.stack(
                [
                    bordered[:, i : i + 3, j : j + 3].max((1, 2))
                    for j in range(0, bordered.shape[2] - 2, 2)
                ],
                axis=1,
            )
            for i in range(0, bordered.shape[1] - 2, 2)
        ],
        axis=1,
    )
    pool = functools.partial(max_pool, ceil=ceil)
    np.testing.assert_array_equal(pool(x), expected)
    unknown = tf.function(pool, input_signature=[tf.TensorSpec([None] * 3 + [3])])
    np.testing.assert_array_equal(unknown(x), expected)


# Options of one backbone ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["xception_41", "resnet_v1_50_beta"])
def test_bounded_activations_stay_within_six(variant):
    model = _build(variant, use_bounded_activation=True)
    for variable in model.variables:
        if variable.name.endswith(("gamma:0", "weights:0")):
            variable.assign(variable * 3.0)
    ends = model.encode(_image())
    end = ends["entry_flow/block2" if "xception" in variant else "block2"]
    assert 0.0 <= np.min(end) and np.max(end) <= 6.0 and np.max(end) > 1.0


@pytest.mark.parametrize(
    "variant, before, last",
    [("resnet_v1_50_beta", "block3", "block4"), ("resnet50s", "layer3", "layer4")],
)
def test_multi_grid_changes_the_last_block_only(variant, before, last):
    plain, grid = (_build(variant, multi_grid=g) for g in (None, (1, 2, 4)))
    image = _image(65, 65)
    a, b = plain.encode(image), grid.encode(image)
    np.testing.assert_allclose(a[before], b[before], atol=1e-5)
    assert np.abs(a[last] - b[last]).max() > 1e-3


def test_mobilenet_channels_are_scaled_and_divisible():
    assert [divisible_channels(c, 0.5, 8) for c in (32, 16, 24, 96)] == [16, 8, 16, 48]
    model = _build("mobilenet_v2", depth_multiplier=0.5, divisible_by=4)
    assert model.backbone.channels["layer_3"] == 12
    assert model(_image())["logits"].shape == [1, 3, 3, 5]


# The classifier ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["xception_41", SMALL])
def test_classifier_is_a_mean_and_a_linear_map(variant):
    model = _build(variant, with_classifier=True)
    ends = model.encode(_image(batch=2))
    kernel, bias = model.classifier.convolution.kernel, model.classifier.convolution.bias
    bias.assign([1.0, 2.0, 3.0, 4.0])
    expected = tf.reduce_mean(ends[model.backbone.last], [1, 2]) @ kernel[0, 0] + bias
    np.testing.assert_allclose(model.classify(ends), expected, atol=1e-5)
    np.testing.assert_allclose(model(_image(batch=2))["image_logits"], expected, atol=1e-4)


def test_classifier_dropout_is_the_backbones_and_only_with_fine_tuned_batch_norm():
    backbone = _build("xception_41").backbone
    ends = backbone(backbone.normalise(_image()))

    def change(rate=None, **settings):
        classifier = Classifier(Settings(**settings), backbone, 4, dropout_rate=rate)
        on = classifier(ends, training=True, dropout_seed=SEED)
        return np.abs(on - classifier(ends)).max()

    assert change() > 1e-3
    assert change(fine_tune_batch_norm=False) == 0.0
    assert change(rate=0.0) == 0.0


def test_classify_without_classifier_is_an_error():
    model = _build(SMALL)
    with pytest.raises(ValueError, match="without classifier"):
        model.classify(model.encode(_image()))


# Training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize(
    "variant",
    [SMALL, *(pytest.param(v, marks=pytest.mark.nightly) for v in ("resnet_v1_50", "xception_41"))],
)
def test_training_pass_is_finite_and_reaches_every_variable(variant, precision):
    model = _build(variant, **FULL, with_classifier=True, mixed_precision=precision)
    before = [v.numpy() for v in model.non_trainable_variables]

    @tf.function
    def gradients(image):
        with tf.GradientTape() as tape:
            outputs = model(image, training=True, dropout_seed=SEED)
            loss = tf.reduce_sum(outputs["logits"] ** 2)
            loss += tf.reduce_sum(outputs["image_logits"] ** 2)
        return outputs["logits"], tape.gradient(loss, model.trainable_variables)

    try:
        logits, grads = gradients(_image(batch=2))
    except tf.errors.InvalidArgumentError as error:
        if precision == "bfloat16" and "dilation rates larger than 1" in error.message:
            pytest.skip("TensorFlow has no bfloat16 gradient of dilated convolutions on this CPU")
        raise
    assert logits.dtype == tf.float32
    for variable, gradient in zip(model.trainable_variables, grads):
        assert gradient is not None, variable.name
        assert variable.dtype == tf.float32 and np.isfinite(gradient).all(), variable.name
    assert all(np.any(a != b.numpy()) for a, b in zip(before, model.non_trainable_variables))


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_variant": "xception_66"}, "xception_65"),
        ({"output_stride": 4}, "8, 16, 32"),
        ({"atrous_rates": (6, 12, 18, 12, 24)}, "accumulate"),
        ({"atrous_rates": (0, 6)}, "positive"),
        ({"logits_kernel_size": 3}, "--logits_kernel_size"),
        ({"decoder_output_stride": (3,)}, "accepted: 4, 8"),
        ({"decoder_output_stride": (4, 8)}, "descending"),
        ({"decoder_output_stride": (32,)}, "coarser"),
        ({"decoder_output_is_logits": True}, "--decoder_output_stride=4"),
        ({"multi_grid": (1, 2, 4)}, "means nothing to efficientnet_lite0"),
        ({"model_variant": "resnet_v1_50", "multi_grid": (1, 2, 4, 1, 2, 4)}, "accumulate"),
        ({"depth_multiplier": 0.5}, "means nothing to efficientnet_lite0"),
        ({"image_pooling_crop_size": (33,)}, "height,width"),
        ({"image_pyramid": (0.0,)}, "Scales must be above 0"),
        ({"aspp_dropout_rate": 1.5}, "dropout rate"),
        ({"decoder_projection_kernel_size": 2}, "accepted: 1, 3"),
        ({"decoder_dropout_rates": (0.5, 0.1)}, "--decoder_output_stride=4"),
        ({"decoder_dropout_rates": (0.5,), "decoder_output_stride": (4,)}, "accepted: 2 in"),
        (
            {
                "decoder_dropout_rates": (0.5, 0.1),
                "decoder_output_stride": (4,),
                "decoder_use_sum_merge": True,
            },
            "cannot be used with .*--decoder_use_sum_merge",
        ),
    ],
)
def test_impossible_settings_are_explained(change, message):
    config = dataclasses.replace(ModelConfig(model_variant=SMALL), **change)
    with pytest.raises(UserError, match=message):
        build_model(config, num_classes=5, num_image_classes=4, crop_size=(33, 33))


def test_unimatchs_xception_adds_the_rectified_input_where_a_skip_has_no_convolution():
    block = Block("middle", (8, 8, 8), "sum")
    x = tf.constant(np.random.default_rng(0).normal(size=[1, 5, 5, 8]), tf.float32)
    options = {"stride": 1, "rate": 1, "unit_rates": (1, 1, 1), "bounded": False}
    plain, other = (
        XceptionModule(Settings(), "unit", 8, block, skip_after_relu=after, **options)(x)[0]
        for after in (False, True)
    )
    np.testing.assert_allclose(other - plain, tf.nn.relu(x) - x, atol=1e-5)
    with_convolution = Block("entry", (8, 8, 8), "conv")
    plain, other = (
        XceptionModule(Settings(), "unit", 8, with_convolution, skip_after_relu=after, **options)(x)
        for after in (False, True)
    )
    np.testing.assert_array_equal(plain[0], other[0])


def test_unimatchs_xception_has_its_epsilon_and_the_heads_their_own_momentum():
    model = _build(
        "xception_41",
        xception_form="unimatch",
        head_batch_norm_momentum=0.9,
        decoder_output_stride=(4,),
    )
    norms = {layer.name: layer for layer in model.submodules if isinstance(layer, BatchNorm)}
    of_backbone = {n for n in norms if n.startswith("xception_41/")}
    assert {norms[n]._epsilon for n in of_backbone} == {1e-5}
    assert {norms[n]._decay for n in of_backbone} == {0.9997}
    assert {norms[n]._decay for n in set(norms) - of_backbone} == {0.9}
    with pytest.raises(UserError, match="--xception_form"):
        _build(SMALL, xception_form="unimatch")
