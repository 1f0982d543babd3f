"""The projection head: logits are products with word vectors, which checkpoints carry."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.test_methods import SMALL, SPEC, toy_backbone  # noqa: F401  (a fixture)
from tfseg.errors import UserError
from tfseg.models import build_model, model_builder
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import make
from tfseg.weights.checkpoint import find
from tfseg.weights.checkpoint.names import variable_name
from tfseg.weights.checkpoint.store import Store
from tfseg.weights.checkpoint.stored_networks import load_network
from tfseg.weights.initial import load_initial_weights

VECTORS = SPEC.vectors.values
IMAGE = tf.random.stateless_uniform([2, 33, 33, 3], [0, 1], 0.0, 255.0)


def network(*, vectors=VECTORS, name="model", seed=0, **config):
    return build_model(
        make(ModelConfig, **{**SMALL, "head": "projection", **config}),
        num_classes=4,
        num_image_classes=3,
        crop_size=(33, 33),
        class_vectors=vectors,
        name=name,
        seed=seed,
    )


DEEPLAB_V2 = {
    "aspp_with_batch_norm": False,
    "atrous_rates": (6, 12, 18, 24),
    "logits_kernel_size": 3,
    "decoder_output_stride": None,
}


@pytest.mark.parametrize(
    "config",
    [{}, DEEPLAB_V2, {"decoder_output_is_logits": True}, {"mixed_precision": "bfloat16"}],
    ids=["decoder", "deeplab_v2", "decoder_logits", "bfloat16"],
)
def test_logits_are_features_times_vectors(config):
    model = network(**config)
    outputs = model(IMAGE)
    assert outputs["features"].shape[-1] == 5 and outputs["logits"].shape[-1] == 4
    assert outputs["logits"].dtype == outputs["features"].dtype == tf.float32
    expected = np.einsum("nhwd,cd->nhwc", outputs["features"], VECTORS)
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    assert model.num_classes == 4


def test_vectors_are_constants_of_the_network():
    model = network()
    names = {variable_name(v) for v in model.variables}
    trained = {variable_name(v) for v in model.trainable_variables}
    assert "class_vectors" in names - trained


def test_the_published_network_has_the_published_size():
    vectors = np.zeros([15, 600])
    model = network(vectors=vectors, model_variant="resnet101_msra", **DEEPLAB_V2)
    assert sum(v.shape.num_elements() for v in model.trainable_variables) == 86_739_360


def save(model, folder, name="model"):
    step = tf.Variable(3, dtype=tf.int64)
    store = Store(str(folder), {name: model}, {"global_step": step})
    return store.save(3)


def test_a_checkpoint_brings_the_vectors(tmp_path):
    trained = network(seed=1)
    save(trained, tmp_path)
    config = make(ModelConfig, **SMALL, head="projection", projection_dim=5)
    without = dataclasses.replace(SPEC, vectors=None)
    model = model_builder(config, without, (33, 33))()
    assert not model.class_vectors.numpy().any()
    load_network(model, find.newest(str(tmp_path)), None)
    np.testing.assert_array_equal(model.class_vectors, VECTORS)
    np.testing.assert_array_equal(model(IMAGE)["logits"], trained(IMAGE)["logits"])


def test_a_spec_brings_the_vectors():
    model = model_builder(ModelConfig(**SMALL, head="projection"), SPEC, (33, 33))()
    np.testing.assert_array_equal(model.class_vectors, VECTORS)


def test_without_vectors_and_width_there_is_no_head():
    with pytest.raises(UserError, match="--class_embeddings"):
        network(vectors=None)


def test_vectors_of_another_width_are_refused():
    with pytest.raises(UserError, match=r"5 numbers(.|\n)*7, of --projection_dim"):
        network(projection_dim=7)


def load(model, path, *, last=True):
    return load_initial_weights(
        model, str(path), initialize_last_layer=last, last_layers_contain_logits_only=True
    )


def test_initial_weights_leave_the_vectors_alone(tmp_path):
    trained = network(seed=1)
    save(trained, tmp_path)
    model = network()
    coverage = load(model, tmp_path)
    assert not coverage.missing and not coverage.unused
    assert "class_vectors" not in coverage.matched
    np.testing.assert_array_equal(model(IMAGE)["logits"], trained(IMAGE)["logits"])


@pytest.mark.parametrize("other", [VECTORS + 0.1, np.ones([4, 6]), np.ones([3, 5])])
def test_initial_weights_of_other_vectors_are_refused(tmp_path, other):
    save(network(), tmp_path)
    options = {"num_classes": len(other), "num_image_classes": 3, "crop_size": (33, 33)}
    config = ModelConfig(**SMALL, head="projection")
    model = build_model(config, class_vectors=other, **options)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(UserError, match=r"other word vectors(.|\n)*--initialize_last_layer=false"):
        load(model, tmp_path)
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value)
    # A head that starts afresh learns with any.
    coverage = load(model, tmp_path, last=False)
    assert coverage.matched and "logits/semantic/weights" in coverage.excluded
    np.testing.assert_array_equal(model.class_vectors, np.float32(other))
