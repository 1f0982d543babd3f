"""FixMatch, UniMatch and their second versions: what makes pseudo labels, and what learns them."""

import numpy as np
import pytest
import tensorflow as tf

from tests.test_methods import batch_of, make_method, make_trainer, one_replica, toy_backbone  # noqa: F401
from tfseg.errors import UserError
from tfseg.methods import teacher
from tfseg.methods.weak_to_strong import Guess, Mixed
from tfseg.monitors import Monitors, summarise
from tfseg.settings.data import DataConfig
from tfseg.settings.programs import training

FIRST, SECOND = ("fixmatch", "unimatch"), ("fixmatch_v2", "unimatch_v2")
STEP, SEED = tf.constant(0, tf.int64), tf.constant([1, 2])


def losses_of(method, batch, step=STEP, seed=SEED):
    """Returns losses and figures; the network's statistics are put back afterwards."""
    before = [v.numpy() for v in method.variables]
    monitors = Monitors()
    losses = method.losses(batch, step, seed, monitors)
    for variable, value in zip(method.variables, before):
        variable.assign(value)
    return {name: float(x) for name, x in losses.items()}, summarise(monitors.sums)[0]


@pytest.mark.parametrize("name", FIRST + SECOND)
def test_defaults_are_the_published_ones(name):
    settings = training(
        {"dataset_dir": "d", "train_logdir": "t", "method": name}, default_method="pseudoseg"
    )
    train, own = settings.train, settings.train.method_settings
    assert settings.data.augmentation == "long_side_crop"
    assert settings.data.augmentation_settings.padding_color == "black"
    assert (own.confidence_threshold, own.unlabeled_weight, own.labelled_loss) == (
        0.95,
        1.0,
        "cross_entropy",
    )
    assert train.learning_rate_lag_steps == 1 and train.learning_power == 0.9
    if name in FIRST:
        assert (train.base_learning_rate, train.weight_decay, train.optimizer) == (
            1e-3,
            1e-4,
            "momentum",
        )
        assert own.new_layers_learning_rate_multiplier == 10
    else:
        assert (train.base_learning_rate, train.weight_decay, train.optimizer) == (
            5e-6,
            0.01,
            "adamw",
        )
        assert own.new_layers_learning_rate_multiplier == 40 and own.teacher_decay == 0.996


@pytest.mark.parametrize("name", FIRST + SECOND)
def test_labelled_images_and_donors_follow_the_unlabelled_ones(name):
    method, config = make_method(name)
    streams = type(method).streams(DataConfig(dataset_dir="d"), config)
    views = 2 if name.startswith("unimatch") else 1
    assert streams["unlabelled"].strong_views == views and streams["unlabelled"].boxes
    others = set(streams) - {"unlabelled"}
    assert others == ({"labelled", "donor"} if name in FIRST else {"labelled"})
    assert all(streams[other].order_of == "unlabelled" for other in others)
    if name in FIRST:
        donor = streams["donor"]
        assert (donor.split, donor.labels) == (streams["unlabelled"].split, "none")


def test_everything_decays_and_new_layers_learn_faster():
    for name, multiplier in (("unimatch", 10.0), ("unimatch_v2", 40.0)):
        method, config = make_method(name)
        groups = {group.name: group for group in method.param_groups()}
        assert {g.weight_decay for g in groups.values()} == {config.weight_decay}
        assert {n: g.lr_multiplier for n, g in groups.items()} == {
            "backbone_weights": 1.0,
            "new_weights": multiplier,
        }


def test_a_pixel_counts_in_the_denominator_whether_it_is_sure_or_not():
    method, _ = make_method("unimatch", settings={"confidence_threshold": 0.8})
    shape = (1, 2, 2)
    guess = Guess(
        tf.zeros(shape, tf.int32),
        tf.constant([[[0.9, 0.7], [0.8, 0.99]]]),
        tf.constant([[[1.0, 1.0], [1.0, 0.0]]]),
        None,
    )
    # Every pixel costs log 4; two of the three that are no padding are sure.
    loss = method.guess_loss(tf.zeros([*shape, 4]), guess)
    np.testing.assert_allclose(loss, np.log(4.0) * 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "hard_examples"])
def test_class_weights_act_on_the_masks(loss):
    logits, label = tf.random.stateless_normal([1, 4, 4, 4], [1, 2]), tf.fill([1, 4, 4], 2)
    values = [
        make_method("unimatch", settings={"labelled_loss": loss}, **train)[0].labelled_loss(
            logits, label
        )
        for train in ({}, {"label_weights": (1.0, 1.0, 3.0, 1.0)})
    ]
    np.testing.assert_allclose(values[1], 3 * values[0], rtol=1e-5)


def test_a_batch_of_padding_costs_nothing():
    method, _ = make_method("unimatch")
    batch = batch_of({"name": "unimatch"})
    for stream in batch.values():
        stream["valid"] = tf.zeros_like(stream["valid"])
    losses, _ = losses_of(method, batch)
    assert losses["strong"] == losses["dropped_features"] == 0.0 and losses["segmentation"] > 0


@pytest.mark.parametrize("name", ["unimatch", "unimatch_v2"])
def test_the_weight_of_images_without_masks_rises(name):
    settings = {"confidence_threshold": 0.0, "unlabeled_weight": 2.0}
    plain, _ = make_method(name, settings=settings)
    rising, _ = make_method(name, settings={**settings, "unlabeled_ramp_up_steps": 10})
    batch = batch_of({"name": name})
    full = losses_of(plain, batch)[0]
    for step, share in ((0, 0.0), (4, 0.4), (99, 1.0)):
        found = losses_of(rising, batch, tf.constant(step, tf.int64))[0]
        for loss in set(found) - {"segmentation"}:
            np.testing.assert_allclose(found[loss], share * full[loss], rtol=1e-5)
        np.testing.assert_allclose(found["segmentation"], full["segmentation"], rtol=1e-6)


# Image-level labels -------------------------------------------------------------------------------


def test_absent_classes_are_no_pseudo_label():
    method, _ = make_method("unimatch", weakly=True)
    logits = tf.constant([[[[0.0, 1.0, 9.0, 2.0]]]])
    stream = {"image_label": tf.constant([[1.0, 0.0, 1.0]]), "valid": tf.ones([1, 1, 1])}
    guess = method.guess(logits, stream)
    np.testing.assert_array_equal(guess.label, [[[3]]])
    # The background keeps its probability; the present classes share what is left.
    probs = np.exp([0.0, 1.0, 9.0, 2.0]) / np.exp([0.0, 1.0, 9.0, 2.0]).sum()
    share = np.exp(2) / (np.exp(1) + np.exp(2))
    np.testing.assert_allclose(guess.confidence, [[[(1 - probs[0]) * share]]], rtol=1e-5)


def test_what_is_pasted_keeps_the_classes_of_its_image():
    method, _ = make_method(
        "unimatch",
        weakly=True,
        settings={"strong_loss": "class_aware", "confidence_threshold": 0.0},
    )
    logits = tf.constant([[[[0.0, 1.0, 5.0, 2.0]] * 2]])
    sure, valid = tf.ones([1, 1, 2]), tf.ones([1, 1, 2])
    own = Guess(tf.zeros([1, 1, 2], tf.int32), sure, valid, tf.constant([[1.0, 1.0, 0.0, 0.0]]))
    donor = Guess(tf.zeros([1, 1, 2], tf.int32), sure, valid, tf.constant([[1.0, 0.0, 0.0, 1.0]]))
    mixed = Mixed(tf.zeros([1, 1, 2, 3]), own, donor, tf.constant([[[False, True]]]))
    expected = [np.log(1 + np.exp(1)), np.log(1 + np.exp(2))]
    np.testing.assert_allclose(method.guess_loss(logits, mixed), np.mean(expected), rtol=1e-4)


def test_class_aware_losses_need_image_level_labels():
    with pytest.raises(UserError, match="strong_loss"):
        make_method("unimatch", settings={"strong_loss": "class_aware"})


# Thresholds ---------------------------------------------------------------------------------------


def test_classes_of_which_the_network_is_less_sure_need_less_confidence():
    method, _ = make_method(
        "unimatch", settings={"class_thresholds": "balanced", "class_threshold_momentum": 0.5}
    )
    label = tf.constant([[[0, 1], [1, 3]]])
    np.testing.assert_allclose(method.thresholds(label), 0.95)
    guess = Guess(
        label, tf.constant([[[1.0, 0.4], [0.2, 0.1]]]), tf.constant([[[1.0, 1], [1, 0]]]), None
    )
    method.follow(guess, label)
    # Padding does not count, and a class that is not there stays as it was.
    np.testing.assert_allclose(method.class_confidence, [1.0, 0.65, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(
        method.thresholds(label), 0.95 * np.array([[[1.0, 0.65], [0.65, 1.0]]]), rtol=1e-6
    )


# The first version --------------------------------------------------------------------------------


def test_features_lose_whole_channels_of_an_image():
    method, _ = make_method("unimatch")
    ends = method.model.encode(tf.random.stateless_uniform([4, 33, 33, 3], [0, 1]) * 255.0)
    assert method.model.decoder_inputs == ("stage2", "stage4")
    for name, dropped in method.dropped_features(ends, SEED).items():
        ratio = (dropped / tf.maximum(ends[name], 1e-9)).numpy()
        for image, factors in zip(ends[name].numpy(), ratio):
            for channel in range(image.shape[-1]):
                alive = image[..., channel] > 1e-6
                assert len(set(np.round(factors[..., channel][alive], 3))) <= 1
        assert set(np.unique(np.round(ratio[ends[name].numpy() > 1e-6], 3))) == {0.0, 2.0}


def test_the_decoder_sees_clean_and_dropped_features_and_batch_norm_both():
    method, _ = make_method("unimatch")
    batch = batch_of({"name": "unimatch"})
    norm = method.model.decoder[-1].convolutions[-1].pointwise.norm
    counts, call = [], norm.call
    norm.call = lambda x, **options: counts.append((x.shape[0], options)) or call(x, **options)
    method.losses(batch, STEP, SEED, Monitors())
    # The donor as in evaluation, all images twice, and both strong views.
    assert [count for count, _ in counts] == [4, 16, 8]
    assert [options["training"] for _, options in counts] == [False, True, True]


# The second version -------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 4, 5])
def test_views_keep_each_others_channels_and_half_of_the_images_all(images):
    method, _ = make_method("unimatch_v2")
    kept = set()
    for i in range(20):
        masks = method.channel_masks(images, 64, tf.constant([i, 3])).numpy()[:, 0, 0]
        first, second = masks[:images], masks[images:]
        np.testing.assert_array_equal(first + second, 2.0)
        whole = (first == 1.0).all(1)
        assert whole.sum() == images // 2
        assert set(np.unique(first[~whole])) == {0.0, 2.0}
        kept.add(tuple(whole))
    assert images == 1 or len(kept) > 1


def test_the_teacher_begins_as_a_copy_and_then_follows():
    batch = batch_of({"name": "unimatch_v2"})
    trainer = make_trainer(one_replica(), batch, "unimatch_v2")
    method = trainer.method
    model = {v.name: v for v in method.model.variables}
    start = {name: v.numpy() for name, v in model.items()}
    assert any((v.numpy() != start[v.name]).any() for v in method.teacher.variables)
    history = []
    for _ in range(3):
        trainer.train(1)
        history.append({name: v.numpy() for name, v in model.items()})
        # At first the mean of all steps.
        for v in method.teacher.variables:
            mean = np.mean([past[v.name] for past in history], axis=0)
            np.testing.assert_allclose(v.numpy(), mean, rtol=1e-4, atol=1e-6, err_msg=v.name)
    assert method.stored()["ema"].network is method.teacher


def test_the_teachers_decay_rises_to_its_limit():
    decay = teacher.running_mean_up_to(0.996)
    for step, expected in ((0, 0.0), (1, 0.5), (248, 1 - 1 / 249), (249, 0.996), (9999, 0.996)):
        np.testing.assert_allclose(decay(tf.constant(float(step))), expected, rtol=1e-6)


def test_the_donor_is_at_the_mirrored_place_of_the_batch():
    method, _ = make_method("fixmatch_v2")
    batch = batch_of({"name": "fixmatch_v2"})
    own = batch["unlabelled"]
    guess = method.guess(tf.random.stateless_normal([4, 33, 33, 4], [1, 2]), own)
    seen = {}

    def passes(labelled, views, seed):
        seen["view"] = views[0]
        return tf.zeros([4, 33, 33, 4]), [tf.zeros([4, 33, 33, 4])]

    method.passes = passes
    method.guess = lambda logits, stream: guess
    method.losses(batch, STEP, SEED, Monitors())
    view, inside = seen["view"], seen["view"].inside.numpy()
    assert inside.any()
    for name, whole in (("label", guess.label), ("image", own["image_strong"])):
        whole = whole.numpy()
        chosen = inside[..., None] if whole.ndim == 4 else inside
        np.testing.assert_array_equal(getattr(view, name), np.where(chosen, whole[::-1], whole))


def test_an_average_beside_the_teacher_is_refused():
    given = {"dataset_dir": "d", "train_logdir": "t", "method": "unimatch_v2", "ema_decay": 0.9}
    with pytest.raises(UserError, match="ema_decay"):
        training(given, default_method="pseudoseg")


# What is measured ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST + SECOND)
def test_pseudo_labels_are_measured_against_masks_that_no_loss_sees(name):
    method, _ = make_method(name, settings={"confidence_threshold": 0.0})
    _, figures = losses_of(method, batch_of({"name": name}))
    assert figures["mask_ratio"] == figures["pseudo_label_coverage"] == 1.0
    np.testing.assert_allclose(
        figures["pseudo_label_precision"], figures["teacher_accuracy"], rtol=1e-6
    )
    assert {"teacher_miou", "student_miou"} <= set(figures)


def test_each_step_draws_anew_and_the_same_step_the_same():
    method, _ = make_method("unimatch_v2", settings={"confidence_threshold": 0.0})
    batch = batch_of({"name": "unimatch_v2"})
    first, same, other = (
        losses_of(method, batch, seed=tf.constant(seed))[0] for seed in ([1, 2], [1, 2], [1, 3])
    )
    assert first == same and first["strong"] != other["strong"]


# How it is trained --------------------------------------------------------------------------------


def first_losses(name, **how):
    """Returns the losses of the first step of a run whose dropout is off."""
    model = {"aspp_dropout_rate": 0.0, **how.pop("model", {})}
    settings = {"confidence_threshold": 0.3}
    if name == "unimatch":
        settings["feature_dropout"] = 0.0
    batch = batch_of({"name": name})
    trainer = make_trainer(one_replica(), batch, name=name, model=model, settings=settings, **how)
    losses = trainer.train(1).losses
    assert all(np.isfinite(value) for value in losses.values())
    return losses


@pytest.mark.nightly
@pytest.mark.parametrize("name", FIRST + SECOND)
def test_a_compiled_step_has_the_same_losses(name):
    plain, compiled = first_losses(name), first_losses(name, jit_compile=True)
    # XLA draws other channels to drop.
    names = set(plain) - ({"strong"} if name == "unimatch_v2" else set())
    for loss in names:
        assert compiled[loss] == pytest.approx(plain[loss], rel=1e-4), loss


@pytest.mark.nightly
@pytest.mark.parametrize("name", FIRST + SECOND)
@pytest.mark.parametrize(
    "how",
    [
        {"gradient_accumulation_steps": 2},
        {"model": {"mixed_precision": "bfloat16"}},
        {"model": {"mixed_precision": "float16"}},
    ],
    ids=["in parts", "bfloat16", "float16"],
)
def test_it_trains_in_parts_and_in_low_precision(name, how):
    assert set(first_losses(name, **how)) == set(first_losses(name))
