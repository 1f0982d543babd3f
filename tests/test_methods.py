"""The contract of every method: losses, gradients, groups, hidden labels, two replicas, resume."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.toy import ToyBackbone
from tfseg.data.class_embeddings import ClassVectors
from tfseg.data.class_splits import UNLABELLED, ClassSplit
from tfseg.data.reading import deterministic_options
from tfseg.data.specs import DatasetSpec
from tfseg.data.stream import Stream, strong_keys
from tfseg.models import BACKBONES, model_builder
from tfseg.monitors import Monitors, summarise
from tfseg.settings.data import DataConfig
from tfseg.settings.heads import HEADS
from tfseg.settings.methods import METHODS
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import check_heeded, make
from tfseg.settings.run import TrainConfig
from tfseg.training.trainer import Trainer
from tfseg.weights.checkpoint.names import variable_name
from tfseg.weights.checkpoint.store import Store

CROP = (33, 33)
# Cows have no pixel labels in zero-label runs.
SPLIT = ClassSplit("toy", seen=(0, 1, 2), unseen=(3,), background=0)
WORDS = np.random.default_rng(9).normal(size=[4, 5]).astype(np.float32)
SPEC = DatasetSpec(
    "toy",
    ("background", "cat", "dog", "cow"),
    seen_unseen=SPLIT,
    vectors=ClassVectors(WORDS, source="toy", sha256="", norm="none"),
)
# Background takes no part.
NO_BACKGROUND = dataclasses.replace(SPEC, seen_unseen=ClassSplit("toy", seen=(1, 2), unseen=(3,)))
SMALL = {
    "model_variant": "toy",
    "decoder_output_stride": (4,),
    "aspp_convs_filters": 16,
    "decoder_filters": 16,
}
# What the contract is tested with: every method, and each regime that changes its streams.
REGIMES = [
    {"name": "supervised"},
    {"name": "supervised", "weakly": True},
    {"name": "pseudoseg"},
    {"name": "pseudoseg", "weakly": True},
    {"name": "learning_pseudo_labels"},
    *(
        {
            "name": "slrnet",
            "settings": {
                "pretrain_steps": 0,
                "cutoff_low": 0.0,
                "supervision": supervision,
                **more,
            },
        }
        for supervision, more in (
            ("image_labels", {"require_all_classes": False}),
            ("pixel_and_image_labels", {"require_all_classes": False}),
            ("pixel_and_image_labels", {"require_all_classes": False, "sampling": "published"}),
            ("pixel_labels", {}),
        )
    ),
    {"name": "fixmatch"},
    {"name": "unimatch", "settings": {"labelled_loss": "hard_examples"}},
    {
        "name": "unimatch",
        "weakly": True,
        "settings": {
            "strong_loss": "class_aware",
            "class_thresholds": "balanced",
            "distribution_alignment": True,
            "confidence_threshold": 0.3,
        },
    },
    {"name": "fixmatch_v2", "settings": {"confidence_threshold": 0.3}},
    {
        "name": "unimatch_v2",
        "settings": {"class_thresholds": "balanced", "distribution_alignment": True},
    },
    {
        "name": "unimatch_v2",
        "weakly": True,
        "settings": {"strong_loss": "class_aware", "confidence_threshold": 0.3},
    },
    {"name": "spnet"},
    {"name": "spnet", "model": {"head": "projection"}, "spec": NO_BACKGROUND},
    {"name": "strict", "model": {"head": "projection"}},
    {"name": "strict", "model": {"head": "projection"}, "spec": NO_BACKGROUND},
    {"name": "strict", "model": {"head": "projection"}, "settings": {"teacher": "ema"}},
    {
        "name": "strict",
        "settings": {
            "generator_classes": "all",
            "pseudo_label_share": 50.0,
            "view_scales": (),
            "mirror_views": False,
        },
    },
    *(
        {"name": "zs3net", "settings": {"generator_samples": 16, "generator_hidden": 8, **more}}
        for more in (
            # One after the other on one replica, together on two.
            {},
            {"generator_updates": "mean"},
            {"generator_updates": "mean", "graph_context": True},
            {"generator_updates": "mean", "oracle_layout": True},
        )
    ),
]


def regime_id(regime) -> str:
    """Names a regime by its values."""
    settings = regime.get("settings", {})
    words = [regime["name"], "weakly" if regime.get("weakly") else ""]
    options = ("supervision", "sampling", "teacher", "generator_updates", "labelled_loss")
    options += ("strong_loss", "class_thresholds")
    words += [str(settings.get(name, "")) for name in options]
    words += [name for name in ("graph_context", "oracle_layout") if settings.get(name)]
    words += ["share" if "pseudo_label_share" in settings else ""]
    words += [regime.get("model", {}).get("head", "")]
    words += ["no_background" if regime.get("spec") is NO_BACKGROUND else ""]
    return "-".join(word for word in words if word)


def settings_of(regime):
    """Returns the method's settings in a regime."""
    return METHODS[regime["name"]].settings(**regime.get("settings", {}))


def config_of(regime):
    """Returns the run's settings in a regime."""
    return TrainConfig(
        method=regime["name"], weakly=regime.get("weakly", False), train_batch_size=4
    )


def batch_of(regime):
    """Returns a batch of a regime's streams."""
    return random_batch(
        METHODS[regime["name"]].load(),
        config_of(regime),
        settings=settings_of(regime),
        spec=regime.get("spec", SPEC),
    )


# Those with a stream whose masks only monitors may see.
HIDING = [
    regime
    for regime in REGIMES
    if any(
        stream.labels in ("hidden", "listed", "seen")
        for stream in METHODS[regime["name"]]
        .load()
        .streams(DataConfig(dataset_dir="none"), config_of(regime), settings_of(regime))
        .values()
    )
]


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


def random_stream(stream: Stream, batch_size: int, spec=SPEC, seed=0, crop=CROP) -> dict:
    """Returns a batch of the shape that the pipeline would give this stream.

    Images have smooth blobs, so that random networks do not give the same everywhere; the share of
    ignored pixels grows with the image's number.
    """
    rng = np.random.default_rng(seed)
    shape = (batch_size, *crop)

    def image():
        coarse = tf.constant(rng.uniform(0, 255, (batch_size, 5, 5, 3)), tf.float32)
        return tf.image.resize(coarse, crop).numpy()

    # Two classes an image, so that others are absent.
    coarse = rng.integers(0, 2, (batch_size, 4, 4))
    coarse *= 1 + np.arange(batch_size)[:, None, None] % (spec.num_classes - 1)
    label = np.kron(coarse, np.ones((9, 9), int))[:, : crop[0], : crop[1]].astype(np.int32)
    ignored = rng.random(shape) < np.linspace(0.0, 0.5, batch_size)[:, None, None]
    label[ignored] = spec.ignore_label
    valid = np.ones(shape, np.float32)
    valid[0, 20:] = 0.0
    batch = {"image": image(), "valid": valid, "index": np.arange(batch_size)}
    batch["has_label"] = np.ones(batch_size, bool)
    batch |= {key: image() for key in strong_keys(stream.strong_views)}
    if stream.boxes:
        boxes = rng.integers(1, 12, (batch_size, stream.strong_views, 4))
        boxes[0] = 0
        batch["boxes"] = boxes.astype(np.int32)
    if stream.labels in ("hidden", "listed"):
        batch["hidden_label"] = label
    if stream.labels == "listed":
        # Every second image has a mask that may be used.
        batch["has_label"] = np.arange(batch_size) % 2 == 1
        label = np.where(batch["has_label"][:, None, None], label, spec.ignore_label)
    if stream.labels == "seen":
        table, truth = (
            make(spec.num_classes, spec.ignore_label).astype(np.int32)
            for make in (spec.seen_unseen.training_table, spec.seen_unseen.evaluation_table)
        )
        batch["hidden_label"], label = truth[label], table[label]
        other = UNLABELLED if spec.seen_unseen.background is None else spec.seen_unseen.background
        batch["candidate"] = (label == other) & (valid > 0)
        label = np.where(label == UNLABELLED, spec.ignore_label, label)
    if stream.labels in ("required", "optional", "listed", "seen"):
        batch["label"] = label
    if stream.image_labels != "none":
        classes = range(spec.first_image_class, spec.num_classes)
        masks = batch.get("hidden_label", label)
        present = [[c in part for c in classes] for part in masks]
        batch["image_label"] = np.array(present, np.float32)
    return {name: tf.constant(value) for name, value in batch.items()}


def random_batch(
    method_class, config, *, batch_size=4, seed=0, spec=SPEC, crop=CROP, settings=None
):
    data = DataConfig(dataset_dir="none")
    streams = method_class.streams(data, config, settings or method_class.Config())
    return {
        name: random_stream(stream, batch_size, spec, seed + i, crop)
        for i, (name, stream) in enumerate(streams.items())
    }


def make_method(name="pseudoseg", *, weakly=False, model=None, settings=None, spec=SPEC, **train):
    """Builds a method around a small network; also returns its configuration."""
    train = {"train_batch_size": 4, "base_learning_rate": 0.01, **train}
    given = {**train, **(model or {}), **(settings or {})}
    settings = METHODS[name].settings(**(settings or {}))
    config = TrainConfig(method=name, weakly=weakly, method_settings=settings, **train)
    unheeded = HEADS[(model or {}).get("head", "deeplab")].settings.UNHEEDED
    small = {name: value for name, value in SMALL.items() if name not in unheeded}
    model_config = make(ModelConfig, **{**small, "batch_norm_momentum": 0.9, **(model or {})})
    check_heeded(given, [model_config, DataConfig(), config])
    model_config = METHODS[name].load().network_config(model_config, settings)
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    method = METHODS[name].load()(
        build_model=model_builder(model_config, spec, CROP, seed=config.seed),
        spec=spec,
        config=config,
        settings=settings,
        over_replicas=model_config.sync_batch_norm and replicas > 1,
    )
    return method, config


def make_trainer(strategy, batch, name="pseudoseg", **options):
    """Returns a trainer whose every step sees this batch, divided among the replicas."""
    with strategy.scope():
        method, config = make_method(name, **options)
    replicas = strategy.num_replicas_in_sync

    def dataset(context):
        parts = tf.nest.map_structure(
            lambda x: tf.reshape(x, [replicas, x.shape[0] // replicas, *x.shape[1:]]), batch
        )
        dataset = tf.data.Dataset.from_tensor_slices(parts).repeat()
        return dataset.with_options(deterministic_options())

    iterator = iter(strategy.distribute_datasets_from_function(dataset))
    precision = (options.get("model") or {}).get("mixed_precision", "float32")
    return Trainer(
        method=method,
        strategy=strategy,
        config=config,
        iterator=iterator,
        mixed_precision=precision,
    )


def one_replica():
    return tf.distribute.OneDeviceStrategy("/cpu:0")


def values(variables):
    return {variable_name(v): v.numpy() for v in variables}


def moments_of(trainer):
    """Returns (variable name, momentum) pairs."""
    return [
        (variable_name(v), slot.numpy())
        for group, optimizer in zip(trainer.groups, trainer.optimizers)
        for v, slot in zip(group.variables, _moments(optimizer))
    ]


def _moments(optimizer):
    """Returns the momentum of each variable; Adam's first moment has another name."""
    return optimizer._slots if hasattr(optimizer, "_slots") else optimizer._momentums


def gradients_of(trainer):
    """After the first step of a method with one network the momentum is the gradient."""
    return dict(moments_of(trainer))


def test_every_method_is_tested():
    assert {regime["name"] for regime in REGIMES} == set(METHODS)


# Their streams and steps are those of their neighbours, in other proportions.
BY_NIGHT = {
    "slrnet-pixel_and_image_labels",
    "strict-projection",
    "zs3net-mean",
    "zs3net-mean-graph_context",
}


def by_night(regimes):
    """Returns regimes as parameters of a test, those of `BY_NIGHT` marked."""
    return [
        pytest.param(regime, marks=pytest.mark.nightly) if regime_id(regime) in BY_NIGHT else regime
        for regime in regimes
    ]


@pytest.fixture(scope="module", params=by_night(REGIMES), ids=regime_id)
def regime(request):
    """Every regime; tests that take it run together, so that its step is traced once."""
    return request.param


@pytest.fixture(scope="module")
def trainer(regime):
    """A trainer on one replica before its first step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", ToyBackbone)
        return make_trainer(one_replica(), batch_of(regime), **regime)


def _check_contract(trainer):
    """Trains one step and looks at what moved."""
    method = trainer.method
    # Networks share names, so variables are told apart by themselves.
    networks = method.networks().values()
    of_networks = {id(v) for n in networks for v in n.variables}
    trainable = [id(v) for n in networks for v in n.trainable_variables]
    trainable += [id(v) for v in method.trainable_variables if id(v) not in of_networks]
    grouped = [id(v) for group in method.param_groups() for v in group.variables]
    assert sorted(grouped) == sorted(trainable)
    interval = trainer.train(1)
    assert all(np.isfinite(value) for value in interval.losses.values())
    assert trainer.step == 1
    unmoved = [name for name, value in moments_of(trainer) if not np.any(value)]
    assert unmoved == []


def test_losses_are_scalars_that_reach_every_variable(regime, trainer):
    method, batch = trainer.method, batch_of(regime)
    with tf.GradientTape() as tape:
        losses = method.losses(batch, tf.constant(0, tf.int64), tf.constant([1, 2]), Monitors())
        total = tf.add_n(list(losses.values()))
    assert all(loss.shape == [] and loss.dtype == tf.float32 for loss in losses.values())
    variables = [v for group in method.param_groups() for v in group.variables]
    missing = [v.name for v, g in zip(variables, tape.gradient(total, variables)) if g is None]
    assert missing == []


def test_contract(trainer):
    _check_contract(trainer)


def everything_of(trainer):
    """Returns every variable that a run has: of its state, its method and its optimisers."""
    variables = {f"state/{name}": v for name, v in trainer.state().items()}
    variables |= {f"method/{i}": v for i, v in enumerate(trainer.method.variables)}
    for i, optimizer in enumerate(trainer.optimizers):
        own = optimizer.variables
        own = own() if callable(own) else own
        variables |= {f"optimizer{i}/{j}": v for j, v in enumerate(own)}
    return variables


def test_a_run_that_is_restored_elsewhere_is_the_same(regime, trainer, tmp_path):
    store = Store(str(tmp_path), trainer.method.stored(), trainer.state(), 1, True)
    trainer.train(1)
    store.save(2)
    other = make_trainer(one_replica(), batch_of(regime), **regime, seed=5)
    Store(str(tmp_path), other.method.stored(), other.state(), 1, True).restore()
    expected, restored = everything_of(trainer), everything_of(other)
    assert restored.keys() == expected.keys()
    for name, variable in restored.items():
        np.testing.assert_array_equal(variable, expected[name], err_msg=f"{name} {variable.name}")


# One regime of each method that has most of what replicas can disagree on.
REPLICATED = {regime["name"]: regime for regime in REGIMES}


# UniMatch is FixMatch with more passes, in both versions. Files of their own compare PseudoSeg and
# Learning Pseudo Labels on two replicas with one.
BY_NIGHT = {"fixmatch", "fixmatch_v2", "pseudoseg", "learning_pseudo_labels"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.nightly) if n in BY_NIGHT else n for n in METHODS],
)
def test_contract_on_two_replicas(name, two_replicas):
    regime = REPLICATED[name]
    _check_contract(make_trainer(two_replicas, batch_of(regime), **regime))


@pytest.mark.parametrize(
    "regime",
    [REGIMES[0], REGIMES[3], {"name": "strict", "settings": {"teacher": "ema"}}],
    ids=regime_id,
)
def test_saving_and_restoring_changes_no_step(regime, tmp_path):
    batch = batch_of(regime)
    trainer = make_trainer(one_replica(), batch, **regime)
    trainer.train(2)
    store = Store(str(tmp_path), trainer.method.stored(), trainer.state(), 1, True)
    store.save(2)
    trainer.train(1)
    other = make_trainer(one_replica(), batch, **regime, seed=0)
    Store(str(tmp_path), other.method.stored(), other.state(), 1, True).restore()
    other.train(1)
    expected = everything_of(trainer)
    for name, variable in everything_of(other).items():
        np.testing.assert_array_equal(variable, expected[name], err_msg=name)


def test_parameter_groups_of_deeplab_and_plain_ones():
    deeplab, config = make_method("supervised", last_layer_gradient_multiplier=10.0)
    groups = {(g.gradient_multiplier, g.weight_decay) for g in deeplab.param_groups()}
    decay = config.weight_decay
    # The logits' biases learn twice as fast as their kernel; batch norm does not decay.
    assert groups == {(1.0, decay), (1.0, 0.0), (10.0, decay), (20.0, 0.0)}
    plain, _ = make_method(
        "supervised", last_layer_gradient_multiplier=10.0, parameter_groups="plain"
    )
    groups = {(g.gradient_multiplier, g.weight_decay) for g in plain.param_groups()}
    assert groups == {(1.0, decay), (10.0, decay)}


def test_a_frozen_backbone_stays_as_it_was():
    config = TrainConfig(method="pseudoseg", train_batch_size=4)
    batch = random_batch(METHODS["pseudoseg"].load(), config)
    trainer = make_trainer(one_replica(), batch, model={"freeze_backbone": True})
    model = trainer.method.model
    before = {v.ref(): v.numpy() for v in model.variables}
    trainer.train(2)
    moved = {v.name for v in model.variables if np.any(v.numpy() != before[v.ref()])}
    frozen = {v.name for v in model.backbone.variables}
    assert frozen and not frozen & moved
    assert {v.name for v in model.trainable_variables if "weights" in v.name} <= moved
    assert any(name.startswith("decoder") and "moving_mean" in name for name in moved)


@pytest.mark.parametrize("regime", by_night(HIDING), ids=regime_id)
def test_no_loss_depends_on_hidden_labels(regime):
    method, _ = make_method(**regime)
    batch = batch_of(regime)
    hidden = [stream for stream in batch.values() if "hidden_label" in stream]
    initial = {v.ref(): v.numpy() for v in method.variables}

    def measure():
        for variable in method.variables:
            variable.assign(initial[variable.ref()])
        monitors = Monitors()
        losses = method.losses(batch, tf.constant(0, tf.int64), tf.constant([1, 2]), monitors)
        return {name: loss.numpy() for name, loss in losses.items()}, summarise(monitors.sums)[0]

    losses, figures = measure()
    for stream in hidden:
        stream["hidden_label"] = (stream["hidden_label"] + 1) % SPEC.num_classes
    again, other_figures = measure()
    assert losses == again
    assert figures != other_figures


def test_the_hidden_stream_names_its_directory():
    streams = (
        METHODS["pseudoseg"]
        .load()
        .streams(DataConfig(dataset_dir="a", dataset_dir_cls="b"), TrainConfig())
    )
    assert streams["unlabelled"].dataset_dir == "b" and streams["labelled"].dataset_dir is None
    assert dataclasses.replace(streams["unlabelled"], dataset_dir=None) == Stream(
        split="train_aug", batch_size=64, strong_views=1, labels="hidden"
    )
