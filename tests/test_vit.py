"""Vision transformers and DPT: sizes, counts, precisions, methods on them, and what they refuse."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.test_methods import SPEC, make_method, make_trainer, one_replica, random_batch
from tfseg.errors import UserError
from tfseg.inference.merge import Views
from tfseg.inference.predictor import Predictor
from tfseg.models import BACKBONES, build_model
from tfseg.models.backbones import vision_transformer
from tfseg.models.backbones.vit import SHAPES, Shape, VisionTransformer, position_matrix
from tfseg.models.layers.settings import Settings
from tfseg.ops.resize import resize_bilinear
from tfseg.runs.load import check_crop_size
from tfseg.settings.methods import METHODS
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import make
from tfseg.settings.run import TrainConfig

TINY = Shape(16, 2, (0, 1, 2, 3))
HEADS = {
    "deeplab": {"aspp_convs_filters": 8},
    "dpt": {"head": "dpt", "dpt_features": 4, "dpt_channels": (4, 5, 6, 7)},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, shape in (("tiny", TINY), ("tiny_reg", dataclasses.replace(TINY, registers=2))):
        monkeypatch.setitem(BACKBONES, name, vision_transformer(name, shape))


def build(head="dpt", *, variant="tiny", with_classifier=False, crop_size=(28, 42), **config):
    return build_model(
        make(ModelConfig, model_variant=variant, **HEADS[head], **config),
        num_classes=4,
        num_image_classes=3,
        crop_size=crop_size,
        with_classifier=with_classifier,
    )


def image_of(height, width, batch=1):
    values = np.random.default_rng(0).uniform(0, 255, [batch, height, width, 3])
    return tf.constant(values, tf.float32)


# Counts and sizes -------------------------------------------------------------------------------


class _Shapes(Settings):
    """Makes shapes in place of variables: the largest network would take seconds and gigabytes."""

    def variable(self, name, shape, init, *, trainable=True):
        counted.append((trainable, int(np.prod(shape))))
        return None


counted: list[tuple[bool, int]] = []

# Published, the mask token included; registers are four tokens more.
PARAMETERS = {
    "dinov2_vits14": 22_056_576,
    "dinov2_vitb14": 86_580_480,
    "dinov2_vitl14": 304_368_640,
    "dinov2_vits14_reg": 22_056_576 + 4 * 384,
    "dinov2_vitb14_reg": 86_580_480 + 4 * 768,
    "dinov2_vitl14_reg": 304_368_640 + 4 * 1024,
}


@pytest.mark.parametrize("variant", SHAPES)
def test_parameter_counts_are_the_published_ones(variant):
    counted.clear()
    VisionTransformer(_Shapes(), variant, SHAPES[variant])
    assert sum(count for _, count in counted) == PARAMETERS[variant]
    assert [count for trained, count in counted if not trained] == [SHAPES[variant].width]


def test_the_network_says_that_it_takes_multiples_of_its_patches():
    model = build("deeplab")
    assert model.valid_size(1, 14) == (14, 14) and model.valid_size(15, 517) == (28, 518)
    check_crop_size("train_crop_size", (28, 518), model)
    with pytest.raises(UserError, match="(?s)513,513.*518,518 or 532,532"):
        check_crop_size("train_crop_size", (513, 513), model)
    assert model.feature_stride == model.logits_stride == 14
    assert build("dpt").logits_stride == 14 / 8


@pytest.mark.parametrize("variant", ["tiny", "tiny_reg"])
def test_end_points_are_at_the_stride_of_the_patches(variant):
    model = build(variant=variant)
    ends = model.encode(image_of(28, 42, batch=2))
    assert list(ends) == ["block0", "block1", "block2", "block3"]
    assert all(value.shape == [2, 2, 3, 16] for value in ends.values())
    backbone = model.backbone
    assert backbone.hypercolumn[16] == backbone.last == "block3"
    assert backbone.hypercolumn[15] == "block2"


def test_dpt_makes_logits_finer_than_the_patches():
    model = build("dpt", with_classifier=True)
    outputs = model(image_of(28, 42, batch=2))
    assert outputs["logits"].shape == [2, 16, 24, 4]
    assert outputs["features"].shape == [2, 16, 24, 4]
    assert outputs["image_logits"].shape == [2, 3]
    assert build("deeplab")(image_of(28, 42))["logits"].shape == [1, 2, 3, 4]


@pytest.mark.parametrize("variant", ["tiny", "tiny_reg"])
def test_sizes_known_only_at_run_time_give_the_same(variant):
    model = build(variant=variant)
    traced = tf.function(model, input_signature=[tf.TensorSpec([None, None, None, 3])])
    for size in ((28, 42), (518, 518), (20, 50)):
        image = image_of(*size)
        a, b = (call(image)["logits"] for call in (traced, model))
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_images_of_other_sizes_are_resized_to_the_nearest_multiple():
    model = build()
    # 35 = 2.5 patches are 3, 48 are 3, 6 are 1.
    for size, nearest in (((35, 48), (42, 42)), ((6, 20), (14, 14))):
        image = image_of(*size)
        expected = model(resize_bilinear(image, nearest))["logits"]
        np.testing.assert_allclose(model(image)["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("views", [Views((0.5, 1.0, 1.75), True), Views((1.0, 0.6), False)])
def test_several_scales_are_merged_at_the_size_of_the_image(head, views):
    found = Predictor(build(head), views, wanted=("probs",))(image_of(42, 56)).probs
    assert found.shape == [1, 42, 56, 4]
    np.testing.assert_allclose(tf.reduce_sum(found, -1), 1.0, atol=1e-5)


def test_an_image_pyramid_merges_sizes_that_are_no_multiples():
    assert build(image_pyramid=(0.5, 1.0))(image_of(42, 56))["logits"].shape[3] == 4


# The position embedding -------------------------------------------------------------------------


def test_position_embedding_is_resized_by_the_published_numbers():
    def row(size, i):
        values = position_matrix(size, size, antialias=False)[i]
        return {
            j: pytest.approx(values[j], abs=2e-6) for j in np.flatnonzero(np.abs(values) > 1e-9)
        }

    assert row(57, 0) == {0: 1.089627, 1: -0.089627}
    assert row(57, 56) == {35: -0.065887, 36: 1.065887}
    assert row(27, 1) == {0: -0.083975, 1: 0.530064, 2: 0.655710, 3: -0.101799}


@pytest.mark.parametrize("antialias", [False, True])
def test_only_the_grid_of_training_keeps_the_position_embedding(antialias):
    np.testing.assert_array_equal(position_matrix(37, 37, antialias=antialias), np.eye(37))
    # 37 rows of another width are resampled by the published code too, unless by their size alone.
    moved = np.abs(position_matrix(37, 36, antialias=antialias) - np.eye(37)).max()
    assert moved < 1e-9 if antialias else moved > 1e-3
    for sizes in ((37, 37), (37, 36), (20, 60)):
        known = position_matrix(*sizes, antialias=antialias)
        drawn = position_matrix(*map(tf.constant, sizes), antialias=antialias)
        np.testing.assert_allclose(drawn, known, atol=1e-9)


def test_registers_are_neither_patches_nor_positions():
    model = build("deeplab", variant="tiny_reg")
    registers = model.backbone.register_tokens.value
    assert registers.shape == [1, 2, 16]
    before = model.encode(image_of(28, 42))["block3"]
    registers.assign(registers * 100.0)
    after = model.encode(image_of(28, 42))["block3"]
    assert before.shape == after.shape and np.abs(after - before).max() > 1e-3


# Precision and training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head, precision",
    [
        *((head, "float32") for head in HEADS),
        ("dpt", "float16"),
        ("deeplab", "bfloat16"),
        pytest.param("dpt", "bfloat16", marks=pytest.mark.nightly),
        pytest.param("deeplab", "float16", marks=pytest.mark.nightly),
    ],
)
def test_training_pass_is_finite_and_reaches_every_variable(head, precision):
    model = build(head, mixed_precision=precision, with_classifier=True)

    @tf.function(jit_compile=precision == "float32")
    def gradients(image):
        with tf.GradientTape() as tape:
            outputs = model(image, training=True, dropout_seed=tf.constant([3, 4]))
            loss = tf.reduce_sum(outputs["logits"] ** 2)
            loss += tf.reduce_sum(outputs["image_logits"] ** 2)
        return outputs["logits"], tape.gradient(loss, model.trainable_variables)

    logits, grads = gradients(image_of(28, 42, batch=2))
    assert logits.dtype == tf.float32
    for variable, gradient in zip(model.trainable_variables, grads):
        assert gradient is not None, variable.name
        assert variable.dtype == tf.float32 and np.isfinite(gradient).all(), variable.name
        assert np.any(gradient), variable.name


@pytest.mark.parametrize("head", HEADS)
def test_low_precision_is_near_float32(head):
    image = image_of(28, 42)
    exact = build(head)(image)["logits"].numpy()
    for precision, tolerance in (("bfloat16", 0.05), ("float16", 0.01)):
        found = build(head, mixed_precision=precision)(image)["logits"].numpy()
        error = np.abs(found - exact).max()
        assert 0 < error < tolerance * np.abs(exact).max()


CROP = (28, 28)
REGIMES = [
    {"name": "supervised", "optimizer": "adamw", "parameter_groups": "encoder"},
    {"name": "pseudoseg", "weakly": True},
    {"name": "learning_pseudo_labels"},
    {"name": "spnet"},
    {"name": "strict", "model": {"head": "projection"}},
    {"name": "zs3net", "settings": {"generator_samples": 16, "generator_hidden": 8}},
]


def network(head):
    """Returns the settings of a small network with this head."""
    return {"model_variant": "tiny", "decoder_output_stride": None, **HEADS[head]}


def train_a_step(strategy, *, name, head, model=None, **options):
    config = TrainConfig(method=name, weakly=options.get("weakly", False), train_batch_size=4)
    batch = random_batch(METHODS[name].load(), config, spec=SPEC, crop=CROP)
    model = {**network(head), **(model or {})}
    trainer = make_trainer(strategy, batch, name=name, model=model, **options)
    interval = trainer.train(1)
    assert all(np.isfinite(value) for value in interval.losses.values())
    return trainer


# The one that looks into the network. (The golden case of UniMatch V2 trains on DPT.)
BY_DAY = {"pseudoseg-deeplab"}


def _pair(regime, head):
    """Returns a method and a head as parameters of a test; most by night."""
    name = f"{regime['name']}-{head}"
    marks = [] if name in BY_DAY else [pytest.mark.nightly]
    return pytest.param(regime, head, id=name, marks=marks)


# Not every method is published for, or built on, both heads.
@pytest.mark.parametrize(
    "regime, head",
    [
        _pair(regime, head)
        for regime in REGIMES
        for head in HEADS
        if head in METHODS[regime["name"]].load().heads
    ],
)
def test_methods_without_atrous_features_train_on_it(regime, head):
    train_a_step(one_replica(), head=head, **regime)


@pytest.mark.nightly
def test_two_replicas_train_it_alike(two_replicas):
    # Each replica's own denominators would make it another loss. Momentum, because AdamW takes
    # steps of full length where a gradient is nothing but rounding.
    settings = {"name": "supervised", "head": "dpt", "model": {"sync_batch_norm": True}}
    settings |= {"parameter_groups": "encoder", "head_rate_multiplier": 2.0}
    one, two = (train_a_step(s, **settings) for s in (one_replica(), two_replicas))
    assert [group.name for group in two.groups] == ["backbone_weights", "new_weights"]
    for a, b in zip(one.variables, two.variables):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=a.name)


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_it_trains_in_low_precision_compiled_or_in_parts(precision):
    how = {"float16": {"gradient_accumulation_steps": 2}, "bfloat16": {"jit_compile": True}}
    train_a_step(
        one_replica(),
        name="supervised",
        head="dpt",
        optimizer="adamw",
        model={"mixed_precision": precision},
        **how[precision],
    )


def test_a_frozen_encoder_has_no_group():
    method, _ = make_method(
        "supervised",
        optimizer="adamw",
        parameter_groups="encoder",
        model={**network("dpt"), "freeze_backbone": True},
    )
    assert [group.name for group in method.param_groups()] == ["new_weights"]


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head, config, message",
    [
        ("deeplab", {"decoder_output_stride": (4,)}, "(?s)no low-level features.*14.*head=dpt"),
        ("deeplab", {"output_stride": 8}, "(?s)--output_stride means nothing.*14"),
        ("deeplab", {"multi_grid": (1, 2, 4)}, "means nothing to tiny"),
        ("dpt", {"atrous_rates": (6, 12)}, "--head=dpt does not use --atrous_rates"),
        ("dpt", {"variant": "efficientnet_lite0"}, "(?s)--head=dpt.*dinov2_vits14"),
    ],
)
def test_what_a_vision_transformer_lacks_is_said(head, config, message):
    with pytest.raises(UserError, match=message):
        build(head, **config)


def test_slrnet_needs_shallower_features_than_patches():
    config = {"decoder_output_stride": (4,), "model_variant": "tiny", "head": "low_rank"}
    with pytest.raises(UserError, match="(?s)no low-level features.*--method=slrnet"):
        build_model(make(ModelConfig, **config), num_classes=4, num_image_classes=3, crop_size=CROP)


def test_dpt_needs_its_channels_where_none_are_published():
    for channels in (None, (4, 5, 6)):
        config = {"model_variant": "tiny", "head": "dpt", "dpt_channels": channels}
        with pytest.raises(UserError, match="--dpt_features, --dpt_channels"):
            build_model(
                make(ModelConfig, **config), num_classes=4, num_image_classes=3, crop_size=CROP
            )
