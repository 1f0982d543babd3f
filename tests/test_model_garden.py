"""Model Garden's backbones: the package's function; our names, types, batch norm, checkpoints."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.methods import teacher
from tfseg.models import build_model, decayed_variables
from tfseg.models.backbones import model_garden
from tfseg.settings.network import ModelConfig
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.checkpoint.store import Store
from tfseg.weights.checkpoint.stored_networks import load_network
from tfseg.weights.initial import load_initial_weights

MOBILE = {"model_variant": "mobilenet_v3_small", "depth_multiplier": 0.35}
# A ResNet of the package with few blocks and channels.
SPECS = [("bottleneck", 4, 1), ("bottleneck", 6, 1), ("bottleneck", 8, 1), ("bottleneck", 8, 3)]
ENDS = (0, 1, 2, 5)


@pytest.fixture(scope="module", autouse=True)
def small_resnets():
    from official.vision.modeling.backbones import resnet_deeplab

    variants = {
        name: dataclasses.replace(variant, ends=ENDS)
        for name, variant in model_garden._VARIANTS.items()
        if "resnet" in name
    }
    with (
        mock.patch.dict(resnet_deeplab.RESNET_SPECS, {50: SPECS, 101: SPECS}),
        mock.patch.dict(model_garden._VARIANTS, variants),
    ):
        yield


def _build(model_variant="dilated_resnet50", name="model", **config):
    return build_model(
        ModelConfig(model_variant=model_variant, **config),
        num_classes=3,
        num_image_classes=2,
        crop_size=(33, 33),
        name=name,
    )


def _image(height=33, width=33, batch=1):
    values = np.random.default_rng(0).uniform(0, 255, [batch, height, width, 3])
    return tf.constant(values, tf.float32)


def _package(variant, *, output_stride):
    """Builds the package's own network with values that tell its variables apart."""
    if variant.startswith("mobilenet"):
        options = {"filter_size_scale": 0.35}
    else:
        options = {"multigrid": (1, 2, 4)}
    variant = model_garden._VARIANTS[variant]
    build = tf.autograph.experimental.do_not_convert(variant.make)
    network = build(output_stride=output_stride, **{**options, **variant.options})
    rng = np.random.default_rng(0)
    for variable in network.variables:
        if variable.name.split("/")[-1].startswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif not variable.name.split("/")[-1].startswith(("kernel", "depthwise_kernel")):
            variable.assign(rng.normal(size=variable.shape) * 0.1)
    return network


CASES = [
    # The package's end points of the first feature for decoders and of the last.
    (MOBILE, 16, "2/depthwise", "4"),
    ({"model_variant": "dilated_resnet50", "multi_grid": (1, 2, 4)}, 8, "2", "3"),
    ({"model_variant": "resnet_rs50", "multi_grid": (1, 2, 4)}, 16, "2", "4"),
]


@pytest.mark.parametrize("config, output_stride, first, last", CASES)
def test_checkpoints_of_the_package_give_its_function(tmp_path, config, output_stride, first, last):
    theirs = _package(config["model_variant"], output_stride=output_stride)
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in theirs.trainable_variables])
    wrapped = tf.train.Checkpoint(
        backbone=theirs,
        head=tf.train.Checkpoint(bias=tf.Variable([1.0])),
        optimizer=optimizer,
        global_step=tf.Variable(7),
    )
    model = _build(**config, output_stride=output_stride)
    coverage = load_initial_weights(
        model,
        wrapped.save(tmp_path / "ckpt"),
        initialize_last_layer=False,
        last_layers_contain_logits_only=True,
    )
    backbone = model.backbone
    assert set(coverage.matched) == set(by_name(backbone.variables))
    assert not any(name.startswith(backbone.scope + "/") for name in coverage.missing)
    # Of MobileNetV3: what comes after the last block.
    rest = {name.split("/")[0] for name in coverage.unused}
    assert rest == ({"head", "backbone"} if config is MOBILE else {"head"})
    assert len(coverage.unused) == (1 + 5 + 2 if config is MOBILE else 1)
    # An even size too, where padding is not the same on all sides.
    for size in ((33, 40), (64, 48)):
        image = _image(*size)
        expected = theirs(backbone.normalise(image), training=False)
        ends = model.encode(image)
        for end, name in ((backbone.low_level[4], first), (backbone.last, last)):
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(ends[end], expected[name], atol=1e-4 * scale)
    expected = theirs(backbone.normalise(image), training=True)
    ends = model.encode(image, training=True)
    scale = np.abs(expected[last]).max()
    np.testing.assert_allclose(ends[backbone.last], expected[last], atol=2e-3 * scale)
    # Moving statistics, in the order of the layers, of the decay 0.99 of both.
    moved = {v.name.split("/")[-1]: v for v in backbone.non_trainable_variables[:2]}
    for v in theirs.non_trainable_variables[:2]:
        np.testing.assert_allclose(moved[v.name.split("/")[-1]], v, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    theirs = _package("dilated_resnet50", output_stride=16)
    prefix = tf.train.Checkpoint(model=theirs).write(str(tmp_path / "ckpt"))
    for model, message in (
        (_build("resnet_rs50"), "another shape"),
        (_build(**MOBILE), "Nothing in the checkpoint fits"),
        (_build("efficientnet_lite0"), "Nothing in the checkpoint fits"),
    ):
        with pytest.raises(UserError, match=message):
            load_initial_weights(
                model, prefix, initialize_last_layer=False, last_layers_contain_logits_only=True
            )


def test_names_and_values_do_not_depend_on_what_was_built_before():
    one, same, two = _build(), _build(), _build(name="ema")
    names = list(by_name(one.backbone.variables))
    assert names[0] == "dilated_resnet50/layer_with_weights-0/kernel"
    assert "dilated_resnet50/layer_with_weights-2/_conv2/kernel" in names
    assert "dilated_resnet50/layer_with_weights-2/_norm2/moving_mean" in names
    for other in (same, two):
        assert list(by_name(other.backbone.variables)) == names
    for a, b in zip(one.variables, same.variables):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(decayed_variables(one), decayed_variables(two)):
        assert np.abs(a.numpy() - b.numpy()).max() > 0
    kernel = by_name(one.backbone.variables)[names[0]].numpy()
    # Variance 1 / fan-in, nothing beyond two deviations of what was truncated.
    assert kernel.std() == pytest.approx(147**-0.5, rel=0.05)
    assert np.abs(kernel).max() < 2.0 * 147**-0.5 / 0.879


def test_copies_and_checkpoints_give_the_same_features(tmp_path):
    model, copy = _build(), _build(name="ema")
    image = _image()
    model.encode(image, training=True)
    teacher.copy(model, to=copy)
    expected = model.encode(image)[model.backbone.last]
    np.testing.assert_array_equal(copy.encode(image)[model.backbone.last], expected)
    store = Store(str(tmp_path), {"model": model}, {"global_step": tf.Variable(3)})
    prefix = store.save(3)
    for restored in (_build(), _build(name="other")):
        assert load_network(restored, prefix, "model") == 3
        np.testing.assert_array_equal(restored.encode(image)[model.backbone.last], expected)


@pytest.mark.parametrize("config", [MOBILE, {"model_variant": "resnet_rs50"}])
def test_every_variable_learns_and_kernels_alone_decay(config):
    model = _build(**config, output_stride=32)
    backbone = model.backbone
    image = _image(batch=2)
    before = [v.numpy() for v in backbone.non_trainable_variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.encode(image, training=True)[backbone.last] ** 2)
    gradients = tape.gradient(loss, backbone.trainable_variables)
    for variable, gradient in zip(backbone.trainable_variables, gradients):
        assert gradient is not None and np.isfinite(gradient).all(), variable.name
    assert all(np.any(a != b) for a, b in zip(before, backbone.non_trainable_variables))
    assert model.losses == []
    decayed = {id(v) for v in decayed_variables(model)}
    for variable in backbone.variables:
        assert (id(variable) in decayed) == variable.name.endswith("/kernel:0"), variable.name


def test_a_frozen_backbone_does_not_change():
    model = _build(freeze_backbone=True)
    before = [v.numpy() for v in model.backbone.variables]
    model.encode(_image(batch=2), training=True)
    assert model.backbone.trainable_variables == []
    for a, b in zip(before, model.backbone.variables):
        np.testing.assert_array_equal(a, b)


def test_the_decay_of_moving_statistics_can_be_chosen():
    slow, quick = _build(), _build(batch_norm_momentum=0.5)
    for model in (slow, quick):
        model.encode(_image(batch=2), training=True)
    a, b = (
        by_name(model.backbone.variables)["dilated_resnet50/layer_with_weights-1/moving_mean"]
        for model in (slow, quick)
    )
    np.testing.assert_allclose(b, 50.0 * a.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    "precision, config", [("float16", MOBILE), ("bfloat16", {"model_variant": "resnet_rs50"})]
)
def test_arithmetic_is_narrow_and_variables_are_not(precision, config):
    wide, narrow = (_build(**config, mixed_precision=p) for p in ("float32", precision))
    assert {v.dtype for v in narrow.variables} == {tf.float32}
    ends = narrow.encode(_image())
    assert {end.dtype for end in ends.values()} == {tf.as_dtype(precision)}
    expected = wide.encode(_image())[wide.backbone.last].numpy()
    error = np.abs(ends[narrow.backbone.last].numpy().astype(np.float32) - expected).max()
    assert 0 < error < 0.1 * np.abs(expected).max()
    # Keras's layers elsewhere are as they were.
    assert tf.keras.layers.Dense(1).compute_dtype == "float32"


@pytest.mark.nightly
def test_two_replicas_take_the_statistics_of_one(two_replicas):
    image = _image(batch=4)
    alone = _build(sync_batch_norm=True)
    expected = alone.encode(image, training=True)[alone.backbone.last].numpy()
    with two_replicas.scope():
        model = _build(sync_batch_norm=True)

    @tf.function(autograph=False)
    def step():
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            part = tf.slice(image, [2 * number, 0, 0, 0], [2, -1, -1, -1])
            return model.encode(part, training=True)[model.backbone.last]

        return two_replicas.run(replica)

    parts = two_replicas.experimental_local_results(step())
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-3 * expected.max())
    for a, b in zip(model.backbone.variables, alone.backbone.variables):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-3, atol=1e-5, err_msg=b.name)


def test_settings_that_mean_nothing_are_refused():
    for config in (
        {"model_variant": "mobilenet_v3_large", "multi_grid": (1, 2, 4)},
        {"model_variant": "dilated_resnet50", "depth_multiplier": 0.5},
    ):
        with pytest.raises(UserError, match="means nothing to"):
            _build(**config)
