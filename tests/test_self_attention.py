import numpy as np
import pytest
import tensorflow as tf

from tfseg.models.layers.convolutions import decayed_variables
from tfseg.models.layers.settings import Settings
from tfseg.models.self_attention import SelfAttentionCAM


def make(**options):
    settings = Settings(momentum=0.5, fine_tune_batch_norm=False)
    return SelfAttentionCAM(
        settings, **{"in_channels": 5, "num_classes": 4, "attention_dim": 6, **options}
    )


def inputs(classes=3, seed=0):
    rng = np.random.default_rng(seed)
    maps = tf.constant(rng.random((2, 3, 4, classes)), tf.float32)
    deep = tf.constant(rng.normal(size=(2, 3, 4, 3)), tf.float32)
    shallow = tf.constant(rng.normal(size=(2, 5, 7, 2)), tf.float32)
    return maps, [deep, shallow], tf.ones([2, 9, 13, 1])


def test_variables_have_the_published_names_and_no_weight_decay():
    layer = make()
    assert {v.name.split(":")[0]: v.shape.as_list() for v in layer.variables} == {
        "hyper_column/key/weights": [1, 1, 5, 6],
        "hyper_column/query/weights": [1, 1, 5, 6],
        "pixel_normalization/weights": [1, 1, 4, 4],
        "pixel_normalization/BatchNorm/beta": [4],
        "pixel_normalization/BatchNorm/moving_mean": [4],
        "pixel_normalization/BatchNorm/moving_variance": [4],
    }
    assert decayed_variables(layer) == []
    first = {v.name.split(":")[0] for v in make(version=1).variables}
    assert {n for n in first if "pixel" in n} == {
        "pixel_normalization/weights",
        "pixel_normalization/biases",
    }


def test_attention_spreads_maps_and_background_fills_up():
    layer = make()
    maps, hypercolumn, valid = inputs()
    result = layer(maps, hypercolumn, valid)
    np.testing.assert_allclose(tf.reduce_sum(result["attention"], -1), np.ones([2, 12]), rtol=1e-5)
    refined = result["maps"].numpy()
    spread = tf.matmul(result["attention"], tf.reshape(maps, [2, 12, 3]))
    np.testing.assert_allclose(refined[..., 1:], tf.reshape(spread, [2, 3, 4, 3]) + maps, rtol=1e-5)
    np.testing.assert_allclose(refined[..., 0], 2.0 - refined[..., 1:].max(-1), rtol=1e-5)


def test_a_data_set_without_background_gets_no_background_channel():
    layer = make(num_classes=3, has_background=False)
    assert layer(*inputs())["logits"].shape.as_list() == [2, 3, 4, 3]


def test_batch_statistics_are_recorded_in_training_only():
    layer = make()
    before = layer.norm.moving_mean.numpy()
    layer(*inputs(), training=False)
    np.testing.assert_array_equal(layer.norm.moving_mean.numpy(), before)
    logits = layer(*inputs(), training=True)["logits"].numpy()
    np.testing.assert_allclose(logits.mean((0, 1, 2)), 0.0, atol=1e-5)
    assert np.abs(layer.norm.moving_mean.numpy() - before).max() > 1e-3


def test_moving_statistics_follow_at_once_where_the_step_is_given():
    settings = Settings(fine_tune_batch_norm=False)
    slow = SelfAttentionCAM(settings, in_channels=5, num_classes=4, attention_dim=6)
    slow(*inputs(), training=True)
    assert np.abs(slow.norm.moving_mean.numpy()).max() < 1e-2
    fast = SelfAttentionCAM(settings, in_channels=5, num_classes=4, attention_dim=6)
    before = fast(*inputs(), training=True, step=tf.constant(0, tf.int64))["logits"]
    after = fast(*inputs(), training=False)["logits"]
    np.testing.assert_allclose(fast.norm.moving_mean, slow.norm.moving_mean * 900, rtol=1e-3)
    assert np.corrcoef(np.ravel(before), np.ravel(after))[0, 1] > 0.9


def test_moving_statistics_make_an_image_independent_of_its_neighbours():
    layer = make()
    maps, hypercolumn, valid = inputs()
    together = layer(maps, hypercolumn, valid)["logits"][:1]
    alone = layer(maps[:1], [f[:1] for f in hypercolumn], valid[:1])["logits"]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError):
        alone = layer(maps[:1], [f[:1] for f in hypercolumn], valid[:1], training=True)["logits"]
        together = layer(maps, hypercolumn, valid, training=True)["logits"][:1]
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
