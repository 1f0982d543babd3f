"""--recompute=backbone: the same losses, gradients and statistics, with less kept."""

import numpy as np
import pytest
import tensorflow as tf

from tests import test_methods as methods
from tests.toy import ToyBackbone
from tfseg.models import BACKBONES, build_model
from tfseg.models.backbones.wide_resnet import WideBlock
from tfseg.models.layers.settings import Settings
from tfseg.settings.network import ModelConfig
from tfseg.training import memory

RECOMPUTE = {"recompute": "backbone"}


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


def assert_close(found, expected, message=""):
    """Insists on equality up to 1e-5 of the largest value."""
    scale = max(1.0, float(np.max(np.abs(expected)))) if np.size(expected) else 1.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale, err_msg=message)


def trained(strategy, regime, recompute, steps=1):
    model = {**regime.get("model", {}), **(RECOMPUTE if recompute else {})}
    options = {**regime, "model": model}
    trainer = methods.make_trainer(strategy, methods.batch_of(regime), **options)
    return trainer, trainer.train(steps).losses


def assert_same_step(strategy, regime, steps=1):
    """Trains with and without; variables, momenta and moving statistics must be the same."""
    (plain, losses), (again, other_losses) = (
        trained(strategy, regime, recompute, steps) for recompute in (False, True)
    )
    for name, loss in losses.items():
        assert_close(other_losses[name], loss, name)
    expected = methods.everything_of(plain)
    for name, variable in methods.everything_of(again).items():
        assert_close(variable.numpy(), expected[name].numpy(), f"{name} {variable.name}")


@pytest.mark.parametrize(
    "regime",
    [
        {"name": "supervised", "gradient_accumulation_steps": 2},
        # The backbone runs twice, once without gradient.
        {"name": "pseudoseg"},
        pytest.param({"name": "pseudoseg", "weakly": True}, marks=pytest.mark.nightly),
        pytest.param({"name": "supervised", "jit_compile": True}, marks=pytest.mark.nightly),
        *(
            pytest.param({"name": name}, marks=pytest.mark.nightly)
            for name in ("unimatch", "learning_pseudo_labels", "slrnet", "strict")
        ),
        *(
            pytest.param(
                {"name": "supervised", "model": {"mixed_precision": precision}},
                marks=pytest.mark.nightly,
            )
            for precision in ("bfloat16", "float16")
        ),
    ],
    ids=str,
)
def test_a_step_is_the_same(regime):
    assert_same_step(methods.one_replica(), regime)


@pytest.mark.parametrize(
    "sync, parts", [(True, 1), pytest.param(False, 2, marks=pytest.mark.nightly)]
)
def test_a_step_on_two_replicas_is_the_same(two_replicas, sync, parts):
    regime = {
        "name": "supervised",
        "model": {"sync_batch_norm": sync},
        "gradient_accumulation_steps": parts,
    }
    assert_same_step(two_replicas, regime)


def gradients_and_statistics(layer, variables, x, **how):
    """Returns the result of a layer in training, its gradients, and its variables after that."""

    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            result = layer(x, training=True, **how)
            loss = tf.add_n([tf.reduce_sum(tf.sin(y)) for y in tf.nest.flatten(result)])
        return result, tape.gradient(loss, [x, *variables], unconnected_gradients="zero")

    result, gradients = run(x)
    return tf.nest.flatten(result) + gradients, [v.numpy() for v in layer.variables]


def test_dropout_inside_a_unit_draws_the_same_mask_again():
    x = tf.random.stateless_normal([4, 5, 5, 8], [1, 2])
    seed = tf.constant([3, 4])
    found = []
    for recompute in (False, True):
        block = WideBlock(
            Settings(momentum=0.5),
            "block",
            8,
            (4, 6, 8),
            kernel_sizes=(1, 3, 1),
            stride=1,
            rates=(1, 2, 1),
            project=True,
            dropout_rate=0.5,
        )
        block.recompute = recompute
        variables = block.trainable_variables
        found.append(gradients_and_statistics(block, variables, x, dropout_seed=seed))
    for one, other in zip(*found):
        for a, b in zip(one, other):
            assert_close(a, b)


def test_units_are_not_kept_and_the_prediction_of_memory_knows():
    kept = []
    for recompute in (False, True):
        trainer, _ = trained(methods.one_replica(), {"name": "supervised"}, recompute)
        graph = trainer.step_function.get_concrete_function(trainer.iterator).graph
        kept.append(memory.activation_bytes(graph))
        seconds = [op for op in graph.get_operations() if "gradient_recomputed" in op.name]
        assert any(op.type == "Conv2D" for op in seconds) == recompute
    # The toy's head is larger than its backbone.
    assert kept[1] < 0.9 * kept[0]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "variant",
    ["efficientnet_lite0", "wide_resnet38", "mobilenet_v3_small", "resnet_rs50", "dinov2_vits14"],
)
def test_real_backbones_give_the_same(variant):
    side = 28 if variant.startswith("dinov2") else 33
    image = tf.random.stateless_uniform([2, side, side, 3], [1, 2]) * 255.0
    how = {"dropout_seed": tf.constant([3, 4])}
    found = []
    for recompute in ("none", "backbone"):
        model = build_model(
            ModelConfig(model_variant=variant, batch_norm_momentum=0.9, recompute=recompute),
            num_classes=5,
            num_image_classes=4,
            crop_size=(side, side),
        )
        units = [part for part in model.backbone.submodules if getattr(part, "recompute", False)]
        assert len(units) > 8 * (recompute == "backbone")
        variables = model.trainable_variables
        found.append(gradients_and_statistics(model, variables, image, **how))
    for one, other in zip(*found):
        for a, b in zip(one, other):
            assert_close(a, b)


@pytest.mark.nightly
@pytest.mark.parametrize("variant", BACKBONES)
def test_every_backbone_has_units(variant):
    model = build_model(
        ModelConfig(model_variant=variant, recompute="backbone"),
        num_classes=5,
        num_image_classes=4,
        crop_size=(33, 33),
    )
    inside = {id(v) for v in model.backbone.variables}
    units = [part for part in model.backbone.submodules if getattr(part, "recompute", False)]
    of_units = {id(v) for unit in units for v in unit.variables}
    assert of_units <= inside and len(of_units) > 0.9 * len(inside)
