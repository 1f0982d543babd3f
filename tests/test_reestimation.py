"""Batch norm statistics measured anew: exact over batches, and nothing else changes."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.toy import ToyBackbone
from tfseg.models import BACKBONES, build_model
from tfseg.models.layers.batch_norm import BatchNorm, PooledStatistics
from tfseg.models.layers.settings import Settings
from tfseg.runs import reestimation
from tfseg.runs.record import write_record
from tfseg.settings.network import ModelConfig
from tfseg.weights.checkpoint import find
from tfseg.weights.checkpoint.names import by_name, variable_name
from tfseg.weights.checkpoint.store import Store
from tfseg.weights.checkpoint.stored_networks import deployable_network, load_network

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


def network(**changes):
    config = ModelConfig(
        model_variant="toy",
        head="low_rank",
        decoder_output_stride=(4,),
        aspp_convs_filters=16,
        decoder_filters=8,
        aspp_dropout_rate=0.5,
        **changes,
    )
    return build_model(config, num_classes=4, num_image_classes=3, crop_size=(33, 33))


def images(count, side=33):
    return tf.constant(RNG.uniform(0, 255, [count, side, side, 3]), tf.float32)


def values(model):
    return {name: v.numpy() for name, v in by_name(model.variables).items()}


def test_statistics_are_those_of_all_pixels_of_unequal_batches():
    norm = BatchNorm(Settings(), "norm", 3)
    parts = [RNG.normal(5.0, 2.0 + i, [i + 1, 4, 5, 3]).astype(np.float32) for i in range(3)]
    norm.pooled = PooledStatistics(3)
    for part in parts:
        norm(tf.constant(part), training=False)
    mean, variance = norm.pooled.result()
    pixels = np.concatenate([part.reshape(-1, 3) for part in parts])
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, pixels.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(3))


def test_evaluation_with_them_normalises_as_the_batch_did():
    norm = BatchNorm(Settings(), "norm", 3)
    x = tf.constant(RNG.normal(5.0, 2.0, [8, 16, 16, 3]), tf.float32)
    norm.pooled = PooledStatistics(3)
    by_batch = norm(x, training=False)
    mean, variance = norm.pooled.result()
    norm.pooled = None
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)
    # The moving variance is the unbiased one: n / (n - 1).
    np.testing.assert_allclose(norm(x, training=False), by_batch, atol=2e-3)


def test_a_network_keeps_its_variables_and_frozen_norms_take_no_part():
    model = network()
    before = values(model)
    batch = images(2)
    logits = model(batch)["logits"]
    measured = reestimation.estimate(model, [batch, images(2)])
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    np.testing.assert_array_equal(model(batch)["logits"], logits)
    assert measured and all("/moving_" in name for name in measured)
    # SLRNet's ASPP keeps mean 0 and variance 1 (--low_rank_freeze_aspp_statistics).
    assert not any(name.startswith("aspp") for name in measured)
    assert any(name.startswith("segmentation/") for name in measured)
    assert all(np.isfinite(value).all() for value in measured.values())


def test_gate_and_dropout_are_those_of_evaluation():
    model, batch = network(), images(2)
    first, second = (reestimation.estimate(model, [batch]) for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    # Twice the same images are the same statistics, but for n / (n - 1).
    twice = reestimation.estimate(model, [batch, batch])
    for name, value in first.items():
        np.testing.assert_allclose(twice[name], value, rtol=0.02, atol=1e-6, err_msg=name)


def test_what_is_written(tmp_path):
    logdir = tmp_path / "run"
    model, ema = network(), network()
    ema.variables[0].assign(ema.variables[0] + 1.0)
    store = Store(str(logdir), {"model": model, "ema": ema}, {})
    logdir.mkdir()
    store.save(7)
    write_record(str(logdir), {"model": {"head": "low_rank"}})
    before = {path.name: path.read_bytes() for path in logdir.iterdir()}
    prefix = reestimation.write(
        str(logdir), network, lambda: [images(2)], num_batches=1, facts={"images": 2}
    )
    assert prefix == str(logdir / "reestimated" / "model.ckpt-7")
    assert {p.name: p.read_bytes() for p in logdir.iterdir() if p.is_file()} == before
    record = json.loads((logdir / "reestimated" / "config.json").read_text())
    assert record == {"model": {"head": "low_rank"}, "reestimated_batch_norm": {"images": 2}}
    assert find.newest(str(logdir / "reestimated")) == prefix
    assert deployable_network(prefix) == "model"
    for name, source in (("model", model), ("ema", ema)):
        written = network()
        assert load_network(written, prefix, name) == 7
        changed = {
            key
            for key, value in values(written).items()
            if not np.array_equal(value, values(source)[key])
        }
        learning = reestimation.learning_norms(source)
        assert changed and changed <= {
            variable_name(v) for n in learning for v in (n.moving_mean, n.moving_variance)
        }


def test_a_network_without_learned_statistics_has_no_such_norms():
    assert reestimation.learning_norms(network())
    assert not reestimation.learning_norms(network(fine_tune_batch_norm=False))
