"""--recompute=backbone: the same losses, gradients and statistics, with less kept."""

import numpy as np
import pytest
import tensorflow as tf

from tests import test_methods as methods
from tests.toy import ToyBackbone
from tfseg.models import BACKBONES, build_model
from tfseg.models.backbones.wide_resnet import WideBlock
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.recomputation import AGAIN_SCOPE
from tfseg.models.layers.settings import Settings
from tfseg.models.layers.units import ConvBatchNorm
from tfseg.settings.network import ModelConfig
from tfseg.training import memory


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


@pytest.fixture(autouse=True)
def no_fusion():
    """Has both computed by the same kernels, on every CPU.

    TensorFlow fuses batch norm with its ReLU in one graph and not in the other, and the two round
    differently: a gradient whose sums cancel (1e-8 beside others of 5) then differs by a third of a
    per mille of what it is compared with.
    """
    before = tf.config.optimizer.get_experimental_options().get("remapping", True)
    tf.config.optimizer.set_experimental_options({"remapping": False})
    yield
    tf.config.optimizer.set_experimental_options({"remapping": before})


def assert_close(found, expected, message=""):
    """Insists on equality up to 1e-5 of the largest value."""
    largest = np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest, err_msg=message)


def same_step(strategy, regime):
    """Makes a step without and with; losses, variables, momenta and statistics must be the same.

    Returns the two trainers.
    """
    found = []
    for recompute in ("none", "backbone"):
        options = {**regime, "model": {**regime.get("model", {}), "recompute": recompute}}
        trainer = methods.make_trainer(strategy, methods.batch_of(regime), **options)
        found.append((trainer, trainer.train(1).losses))
    (plain, losses), (again, other_losses) = found
    for name, loss in losses.items():
        assert_close(other_losses[name], loss, name)
    expected = methods.everything_of(plain)
    for name, variable in methods.everything_of(again).items():
        assert_close(variable.numpy(), expected[name].numpy(), f"{name} {variable.name}")
    return plain, again


@pytest.mark.nightly
@pytest.mark.parametrize(
    "regime",
    [
        {"name": "supervised"},
        {"name": "supervised", "gradient_accumulation_steps": 2},
        {"name": "supervised", "jit_compile": True},
        {"name": "supervised", "model": {"mixed_precision": "bfloat16"}},
        {"name": "supervised", "model": {"mixed_precision": "float16"}},
        # The backbone runs several times, with and without gradient.
        {"name": "pseudoseg"},
        {"name": "pseudoseg", "weakly": True},
        {"name": "unimatch"},
        {"name": "learning_pseudo_labels"},
        {"name": "slrnet"},
        {"name": "strict"},
    ],
    ids=str,
)
def test_a_step_of_every_kind_is_the_same(regime):
    same_step(methods.one_replica(), regime)


@pytest.mark.nightly
@pytest.mark.parametrize("sync, parts", [(True, 1), (False, 2)])
def test_a_step_on_two_replicas_is_the_same(two_replicas, sync, parts):
    regime = {
        "name": "supervised",
        "model": {"sync_batch_norm": sync},
        "gradient_accumulation_steps": parts,
    }
    same_step(two_replicas, regime)


def test_synchronised_batch_norm_is_the_same_and_recorded_once(two_replicas):
    """Collective operations happen in the second computation too."""
    images = [tf.random.stateless_normal([2, 5, 5, 3], [i, 2]) for i in range(2)]
    found = []
    for recompute in (False, True):
        with two_replicas.scope():
            settings = Settings(momentum=0.5, sync_batch_norm=True)
            convolution = Conv2D(settings, "unit", 3, 4, 3)
            unit = ConvBatchNorm(convolution, settings, activation=tf.nn.relu)
        unit.recompute = recompute

        @tf.function
        def run(unit=unit):
            def one():
                context = tf.distribute.get_replica_context()
                x = tf.stack(images)[context.replica_id_in_sync_group]
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(tf.sin(unit(x, training=True)))
                return loss, tape.gradient(loss, unit.trainable_variables)

            results = two_replicas.run(one)
            return tf.nest.flatten(
                tf.nest.map_structure(two_replicas.experimental_local_results, results)
            )

        found.append([*run(), *(v.numpy() for v in unit.variables)])
    for one, other in zip(*found):
        assert_close(other, one)


def gradients_of(layer, x, **how):
    """Returns a function of `x`: a layer's results in training, and gradients of their sine."""

    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            results = tf.nest.flatten(layer(x, training=True, **how))
            loss = tf.add_n([tf.reduce_sum(tf.sin(y)) for y in results])
        sources = [x, *layer.trainable_variables]
        return [*results, *tape.gradient(loss, sources, unconnected_gradients="zero")]

    return run.get_concrete_function(x)


class Chain(tf.keras.layers.Layer):
    """Three blocks with dropout inside, such as WideResNet's."""

    def __init__(self, recompute):
        super().__init__(name="chain")
        settings = Settings(momentum=0.5)
        how = dict(kernel_sizes=(1, 3, 1), stride=1, rates=(1, 2, 1), project=True)
        self.blocks = [
            WideBlock(settings, f"block{i}", 8, (4, 6, 8), dropout_rate=0.5, **how)
            for i in range(3)
        ]
        for block in self.blocks:
            block.recompute = recompute

    def call(self, x, training, dropout_seed):
        for block in self.blocks:
            x, _ = block(x, training=training, dropout_seed=dropout_seed)
        return x


def test_dropout_draws_the_same_mask_again_and_the_prediction_of_memory_knows():
    x = tf.random.stateless_normal([4, 5, 5, 8], [1, 2])
    found, predicted = [], []
    for recompute in (False, True):
        chain = Chain(recompute)
        run = gradients_of(chain, x, dropout_seed=tf.constant([3, 4]))
        predicted.append(memory.activation_bytes(run.graph))
        found.append([*run(x), *(v.numpy() for v in chain.variables)])
    for one, other in zip(*found):
        assert_close(other, one)
    assert predicted[1] < 0.7 * predicted[0]


def assert_same_network(variant, side):
    """Compares results, gradients and statistics; returns the convolutions computed again."""
    image = tf.random.stateless_uniform([2, side, side, 3], [1, 2]) * 255.0
    found = []
    for recompute in ("none", "backbone"):
        model = build_model(
            ModelConfig(model_variant=variant, batch_norm_momentum=0.9, recompute=recompute),
            num_classes=5,
            num_image_classes=4,
            crop_size=(side, side),
        )
        run = gradients_of(model, image, dropout_seed=tf.constant([3, 4]))
        found.append([*run(image), *(v.numpy() for v in model.variables)])
        again = [op.type for op in run.graph.get_operations() if AGAIN_SCOPE in op.name]
    for one, other in zip(*found):
        assert_close(other, one)
    return again


def test_a_network_is_the_same():
    # All four convolutions of the backbone, and no other.
    assert assert_same_network("toy", 33).count("Conv2D") == 4


@pytest.mark.nightly
@pytest.mark.parametrize(
    "variant",
    ["efficientnet_lite0", "wide_resnet38", "mobilenet_v3_small", "resnet_rs50", "dinov2_vits14"],
)
def test_real_backbones_are_the_same(variant):
    again = assert_same_network(variant, 28 if variant.startswith("dinov2") else 33)
    assert len([kind for kind in again if kind in ("Conv2D", "MatMul")]) > 8


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
