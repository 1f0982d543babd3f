"""Learning Pseudo Labels: who learns from what, the running counts, replicas, options."""

import numpy as np
import pytest
import tensorflow as tf

from tests.test_methods import (
    SPEC,
    make_method,
    make_trainer,
    moments_of,
    one_replica,
    random_batch,
    toy_backbone,  # noqa: F401  (a fixture that every test here uses)
)
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.methods.learning_pseudo_labels import LearningPseudoLabels
from tfseg.monitors import Monitors, summarise
from tfseg.settings.data import DataConfig
from tfseg.settings.run import TrainConfig
from tfseg.weights.checkpoint.store import Store
from tfseg.weights.checkpoint.stored_networks import deployable_network, stored_variables

NAME = "learning_pseudo_labels"
NO_DROPOUT = {"aspp_dropout_rate": 0.0}


def batch_for(**options):
    return random_batch(LearningPseudoLabels, TrainConfig(method=NAME), **options)


def measure(batch, monitors=None, *, method=None, **options):
    method = method or make_method(NAME, model=NO_DROPOUT, **options)[0]
    with tf.GradientTape() as tape:
        losses = method.losses(
            batch, tf.constant(0, tf.int64), tf.constant([1, 2]), monitors or Monitors()
        )
        total = tf.add_n(list(losses.values()))
    pseudo = method.pseudo_net.trainable_variables
    return {k: v.numpy() for k, v in losses.items()}, tape.gradient(total, pseudo)


def changed_labels(batch):
    labelled = {**batch["labelled"]}
    # Another present class of the same image wherever there is one.
    labelled["label"] = tf.where(labelled["label"] == 255, 255, 0)
    return {**batch, "labelled": labelled}


def test_pseudo_net_never_learns_from_the_masks():
    batch = batch_for()
    losses, gradients = measure(batch)
    others, other_gradients = measure(changed_labels(batch))
    assert losses["pseudo_segmentation"] == others["pseudo_segmentation"]
    assert losses["hybrid_segmentation"] != others["hybrid_segmentation"]
    for a, b in zip(gradients, other_gradients):
        np.testing.assert_array_equal(a, b)


def test_the_image_weights_scale_cross_training_alone():
    batch = batch_for()
    weighted, _ = measure(batch)
    unweighted, _ = measure(batch, settings={"score_power": 0.0})
    assert weighted["cross_training"] < unweighted["cross_training"]
    assert {k: v for k, v in weighted.items() if k != "cross_training"} == {
        k: v for k, v in unweighted.items() if k != "cross_training"
    }


@pytest.mark.parametrize(
    "settings, changed",
    [
        (
            {"cce_temperature": 0.5},
            {"hybrid_segmentation", "pseudo_segmentation", "cross_training"},
        ),
        ({"score_counts_void": False}, {"cross_training"}),
        ({"score_power": 1.0}, {"cross_training"}),
        ({"score_momentum": 0.5}, {"cross_training"}),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_an_option_changes_the_losses_it_should(settings, changed):
    batch = batch_for()
    before, _ = measure(batch)
    after, _ = measure(batch, settings=settings)
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize("counts_as, learns", [("one", True), ("zero", False)])
def test_classes_that_were_never_right_count_as_one_or_as_zero(counts_as, learns):
    batch = batch_for()
    # Void alone: no class was ever predicted right.
    labelled = {**batch["labelled"], "label": tf.fill([4, 33, 33], 255)}
    losses, _ = measure({**batch, "labelled": labelled}, settings={"zero_iou_counts_as": counts_as})
    assert (losses["cross_training"] > 0.0) == learns
    assert losses["hybrid_segmentation"] == 0.0


def test_class_weights_act_on_masks_alone():
    batch = batch_for()
    before, _ = measure(batch)
    after, _ = measure(batch, label_weights=(2.0,) * 4)
    assert after["hybrid_segmentation"] == pytest.approx(2 * before["hybrid_segmentation"])
    assert {n for n in before if before[n] != after[n]} == {"hybrid_segmentation"}


def test_masks_of_the_second_split_replace_predictions():
    batch = batch_for()
    before, _ = measure(batch)
    weak = {**batch["weak"], "has_label": tf.zeros(4, tf.bool)}
    after, _ = measure({**batch, "weak": weak})
    assert before["pseudo_segmentation"] != after["pseudo_segmentation"]
    assert before["hybrid_segmentation"] == after["hybrid_segmentation"]


def test_running_counts_decay_and_grow():
    method, _ = make_method(NAME, model=NO_DROPOUT)
    batch = batch_for()
    np.testing.assert_array_equal(method.counts, [[1] * 4, [0] * 4, [0] * 4])
    measure(batch, method=method)
    label = batch["labelled"]["label"].numpy()
    truth = np.bincount(label[label != 255], minlength=4)
    np.testing.assert_allclose(method.counts[0], 0.99 + truth, rtol=1e-6)
    assert np.sum(method.counts[1]) == label.size
    measure(batch, method=method)
    np.testing.assert_allclose(method.counts[0], 0.99 * (0.99 + truth) + truth, rtol=1e-6)


def test_running_counts_are_in_the_checkpoint(tmp_path):
    batch = batch_for()
    trainer = make_trainer(one_replica(), batch, NAME)
    trainer.train(2)
    networks = trainer.method.networks()
    prefix = Store(str(tmp_path), networks, trainer.state()).save(2)
    other = make_trainer(one_replica(), batch, NAME)
    Store(str(tmp_path), other.method.networks(), other.state()).restore()
    np.testing.assert_array_equal(other.method.counts, trainer.method.counts)
    assert deployable_network(prefix) == "hybrid"
    assert set(stored_variables(prefix)) == {"hybrid", "pseudo"}


def test_both_networks_start_differently():
    method, _ = make_method(NAME)
    pairs = zip(method.model.trainable_variables, method.pseudo_net.trainable_variables)
    kernels = [(a, b) for a, b in pairs if "weights" in a.name]
    assert kernels and all(np.any(a.numpy() != b.numpy()) for a, b in kernels)


@pytest.mark.parametrize("schedule, decays", [("constant", False), ("decay", True)])
def test_the_rate_of_pseudo_net_is_constant_as_published_or_decays(schedule, decays):
    batch = batch_for()
    trainer = make_trainer(
        one_replica(),
        batch,
        NAME,
        settings={"pseudo_net_schedule": schedule},
        training_number_of_steps=4,
    )

    def rates(step):
        schedules = {g.name: o._learning_rate for g, o in zip(trainer.groups, trainer.optimizers)}
        return {name: float(s(step)) if callable(s) else float(s) for name, s in schedules.items()}

    start, later = rates(0), rates(2)
    assert start["hybrid_logits"] == pytest.approx(10 * start["hybrid"])
    assert start["pseudo"] == pytest.approx(start["hybrid"])
    assert later["hybrid"] < start["hybrid"] and later["hybrid_logits"] < start["hybrid_logits"]
    assert (later["pseudo"] < start["pseudo"]) == decays
    assert (later["pseudo_logits"] < start["pseudo_logits"]) == decays


def test_everything_decays():
    method, config = make_method(NAME)
    assert all(group.weight_decay == config.weight_decay for group in method.param_groups())


def test_monitors_measure_both_networks_on_hidden_masks_only():
    batch = batch_for()
    monitors = Monitors()
    measure(batch, monitors)
    figures, histograms = summarise(monitors.sums)
    assert {"hybrid_miou", "pseudo_miou", "image_weight"} <= set(figures)
    assert sum(histograms["image_weight"]) == pytest.approx(1.0)
    weak = {**batch["weak"], "has_label": tf.ones(4, tf.bool)}
    monitors = Monitors()
    measure({**batch, "weak": weak}, monitors)
    assert "hybrid_miou" not in summarise(monitors.sums)[0]


def test_panels_show_both_networks_and_change_nothing():
    method, _ = make_method(NAME)
    before = [v.numpy() for v in method.variables]
    panels = method.panels(batch_for())
    assert list(panels) == ["image", "hybrid", "pseudo", "truth"]
    for a, b in zip(before, method.variables):
        np.testing.assert_array_equal(a, b)


def test_a_data_set_without_background_works():
    spec = DatasetSpec("stuff", SPEC.class_names, has_background=False)
    batch = batch_for(spec=spec)
    losses, _ = measure(batch, spec=spec)
    assert all(np.isfinite(value) for value in losses.values())


def test_gradient_accumulation_decays_the_counts_once_a_step():
    batch = batch_for()
    counts = []
    for parts in (1, 2):
        trainer = make_trainer(
            one_replica(), batch, NAME, model=NO_DROPOUT, gradient_accumulation_steps=parts
        )
        trainer.train(1)
        counts.append(trainer.method.counts.numpy()[0])
    np.testing.assert_allclose(counts[0], counts[1], rtol=0.01)


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_two_replicas_equal_one_with_synchronised_statistics(two_replicas, parts):
    batch = batch_for(batch_size=8) if parts == 2 else batch_for()
    model = {**NO_DROPOUT, "sync_batch_norm": True}
    outcome = []
    for strategy in (one_replica(), two_replicas):
        trainer = make_trainer(
            strategy, batch, NAME, model=model, gradient_accumulation_steps=parts
        )
        interval = trainer.train(1)
        outcome.append((interval.losses, moments_of(trainer), trainer.method.counts))
    (one, one_moments, one_counts), (two, two_moments, two_counts) = outcome
    if parts == 2:
        # Two replicas cut the batch into other parts than one, so only the counts must agree.
        np.testing.assert_allclose(one_counts[0], two_counts[0], rtol=5e-3)
        return
    assert two == pytest.approx(one, rel=1e-5)
    np.testing.assert_array_equal(one_counts, two_counts)
    for (name, ours), (_, theirs) in zip(two_moments, one_moments):
        scale = max(np.abs(theirs).max(), 1e-3)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize(
    "train, flag",
    [
        ({"top_k_percent_pixels": 0.5}, "--top_k_percent_pixels"),
        ({"upsample_logits": False}, "--upsample_logits"),
    ],
)
def test_flags_that_it_does_not_use_are_refused(train, flag):
    with pytest.raises(UserError, match=flag):
        make_method(NAME, **train)


def test_image_labels_of_a_crop_are_refused():
    data = DataConfig(dataset_dir="none", image_label_source="crop")
    with pytest.raises(UserError, match="--image_label_source"):
        LearningPseudoLabels.streams(data, TrainConfig())


def test_compiled_steps_on_several_replicas_are_refused(two_replicas):
    with two_replicas.scope(), pytest.raises(UserError, match="--jit_compile"):
        make_method(NAME, jit_compile=True)
