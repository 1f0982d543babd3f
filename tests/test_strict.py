"""SPNet and STRICT: who gets pseudo labels, what is learned from them, teachers, wrong settings."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.test_methods import (
    NO_BACKGROUND,
    SPEC,
    make_method,
    make_trainer,
    one_replica,
    random_batch,
    toy_backbone,  # noqa: F401  (a fixture that every test here uses)
)
from tfseg.errors import UserError
from tfseg.methods.strict import Strict
from tfseg.monitors import Monitors, summarise
from tfseg.ops import agreement
from tfseg.settings.run import TrainConfig

SEED = tf.constant([1, 2])
IGNORE, UNSEEN = 255, 3
PROJECTION = {"head": "projection"}
# One view: what the teacher says is what counts.
ONE_VIEW = {"view_scales": (), "mirror_views": False}


def strict(*, spec=SPEC, model=PROJECTION, train=None, **settings):
    return make_method("strict", spec=spec, model=model, settings=settings, **(train or {}))[0]


def batch_for(spec=SPEC, seed=0):
    return random_batch(
        Strict, TrainConfig(method="strict", train_batch_size=4), spec=spec, seed=seed
    )


def decided(scores):
    """Returns a teacher that gives every image these scores [h, w, C], at any size."""
    scores = tf.constant(scores, tf.float32)

    def teacher(image, training, input_scale):
        assert not training
        batch = tf.shape(image)[0]
        return {"logits": tf.tile(scores[None], [batch, 1, 1, 1])}

    return teacher


def learned_from(method, batch, step=0):
    """Returns the target of the losses."""
    targets, loss = [], method.segmentation_loss
    method.segmentation_loss = lambda logits, target: targets.append(target) or loss(logits, target)
    method.losses(batch, tf.constant(step, tf.int64), SEED, Monitors())
    method.segmentation_loss = loss
    return targets[0].numpy()


def everywhere(*scores):
    """Returns the same scores at all of 3 x 3 pixels."""
    return np.tile(np.float32(scores), (3, 3, 1))


STANDARDISED = {
    "pseudo_label_scores": "standardised",
    "pseudo_label_share": 25.0,
    "generator_classes": "all",
}


# Pseudo labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, NO_BACKGROUND], ids=["background", "no_background"])
def test_only_candidates_get_pseudo_labels(spec):
    method, batch = strict(spec=spec, **ONE_VIEW), batch_for(spec)
    method.teacher = decided(everywhere(9, 9, 9, 0))
    target, train = learned_from(method, batch), batch["train"]
    candidate = train["candidate"].numpy()
    # Classes that may not be named do not count, however sure the teacher is of them.
    assert (target[candidate] == UNSEEN).all()
    np.testing.assert_array_equal(target[~candidate], train["label"].numpy()[~candidate])
    void = (train["label"].numpy() == IGNORE) & ~candidate
    assert void.any() and (target[void] == IGNORE).all()


def test_void_and_padding_get_them_where_that_is_asked_for():
    method = strict(spec=NO_BACKGROUND, pseudo_label_void=True, **ONE_VIEW)
    method.teacher = decided(everywhere(0, 0, 0, 0))
    batch = batch_for(NO_BACKGROUND)
    target = learned_from(method, batch)
    assert (target[batch["train"]["label"].numpy() == IGNORE] == UNSEEN).all()


TWO_UNSEEN = dataclasses.replace(
    SPEC, seen_unseen=dataclasses.replace(SPEC.seen_unseen, seen=(0, 1), unseen=(2, 3))
)


@pytest.mark.parametrize("disagreeing, otherwise", [("background", 0), ("ignore", IGNORE)])
def test_views_that_disagree_give_none(disagreeing, otherwise):
    method = strict(spec=TWO_UNSEEN, view_scales=(), disagreeing=disagreeing)
    # The left third is of one class, the rest of the other: in the mirror it is the right third.
    scores = everywhere(0, 0, 0, 1)
    scores[:, 0] = (0, 0, 1, 0)
    method.teacher = decided(scores)
    batch = batch_for(TWO_UNSEEN)
    target, candidate = learned_from(method, batch), batch["train"]["candidate"].numpy()
    left, middle = target[:, :, :4], target[:, :, 15:18]
    assert (left[candidate[:, :, :4]] == otherwise).all()
    assert (middle[candidate[:, :, 15:18]] == 3).all()


@pytest.mark.parametrize("spec, none", [(SPEC, 0), (NO_BACKGROUND, IGNORE)])
@pytest.mark.parametrize("answer", [1, UNSEEN])
def test_an_answer_of_a_seen_class_is_no_pseudo_label(spec, none, answer):
    method = strict(spec=spec, generator_classes="all", **ONE_VIEW)
    method.teacher = decided(everywhere(*(float(c == answer) for c in range(4))))
    batch = batch_for(spec)
    target = learned_from(method, batch)[batch["train"]["candidate"].numpy()]
    assert (target == (UNSEEN if answer == UNSEEN else none)).all()


def test_pixels_that_are_background_for_the_teacher_stay_so():
    # (--disagreeing=ignore frees those of which it is not sure, not these.)
    method = strict(generator_classes="all", disagreeing="ignore", **ONE_VIEW)
    method.teacher = decided(everywhere(5, 0, 0, 0))
    batch = batch_for()
    np.testing.assert_array_equal(learned_from(method, batch), batch["train"]["label"])


@pytest.mark.parametrize("bias, expected", [(0.0, 0), (0.2, 0), (0.3, UNSEEN)])
def test_seen_classes_can_be_made_less_likely(bias, expected):
    method = strict(generator_classes="all", teacher_seen_bias=bias, **ONE_VIEW)
    # Probabilities 0.5, 0, 0.25 and 0.25.
    method.teacher = decided(everywhere(np.log(2), -99, 0, 0))
    batch = batch_for()
    target = learned_from(method, batch)[batch["train"]["candidate"].numpy()]
    assert (target == expected).all()


@pytest.mark.parametrize("floor, expected", [(0.7, 3), (0.8, IGNORE)])
def test_unsure_answers_are_left_out(floor, expected):
    options = {"min_confidence": floor, "disagreeing": "ignore", **ONE_VIEW}
    method = strict(spec=TWO_UNSEEN, **options)
    # Of the classes that may be named class 3 has a probability of 3/4.
    method.teacher = decided(everywhere(9, 9, 0, np.log(3)))
    batch = batch_for(TWO_UNSEEN)
    target = learned_from(method, batch)[batch["train"]["candidate"].numpy()]
    assert (target == expected).all()


def test_confidence_is_the_mean_over_views():
    method = strict(spec=TWO_UNSEEN, view_scales=(), min_confidence=0.75)
    # Probabilities of class 3 are 0.9 and 0.6, each the other's mirror image.
    scores = np.log(np.float32([[[1, 1, 1, 9], [1, 1, 4, 6]]]))
    method.teacher = decided(scores)
    _, kept = method.labels_of_unseen(tf.zeros([1, 1, 2, 3]), tf.ones([1, 1, 2], tf.bool))
    assert kept.numpy().all()
    method = strict(spec=TWO_UNSEEN, view_scales=(), min_confidence=0.76)
    method.teacher = decided(scores)
    _, kept = method.labels_of_unseen(tf.zeros([1, 1, 2, 3]), tf.ones([1, 1, 2], tf.bool))
    assert not kept.numpy().any()


def test_a_share_of_every_image_is_kept():
    method = strict(pseudo_label_share=50.0, generator_classes="all", **ONE_VIEW)
    ramp = np.linspace(1, 2, 9, dtype=np.float32).reshape(3, 3, 1)
    method.teacher = decided(np.concatenate([np.zeros((3, 3, 3), np.float32), ramp], -1))
    batch = batch_for()
    target, candidate = learned_from(method, batch), batch["train"]["candidate"].numpy()
    for one, of in zip(target, candidate):
        assert (one == UNSEEN).sum() == of.sum() // 2
        rows = np.arange(33)[:, None] * np.ones(33)
        assert rows[one == UNSEEN].mean() > rows[of & (one != UNSEEN)].mean()


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_what_stands_out_in_its_image_is_of_that_class(scale):
    method = strict(spec=TWO_UNSEEN, **{**STANDARDISED, "pseudo_label_share": 50.0}, **ONE_VIEW)
    # Everywhere background is far the likeliest, and class 2 likelier than class 3, which rises to
    # the right by however little; class 2 rises to the left.
    ramp = np.linspace(-1, 1, 8, dtype=np.float32) * scale
    zero = np.zeros_like(ramp)
    scores = np.stack([zero + 9, zero, 3 - ramp, ramp], -1)[None]
    method.teacher = decided(scores)
    label, kept = method.labels_of_unseen(tf.zeros([1, 1, 8, 3]), tf.ones([1, 1, 8], tf.bool))
    np.testing.assert_array_equal(label, [[[2] * 2 + [0] * 4 + [3] * 2]])
    assert kept.numpy().all()


@pytest.mark.parametrize("disagreeing, otherwise", [("background", 0), ("ignore", IGNORE)])
def test_what_does_not_stand_out_is_background_whatever_disagreement_is(disagreeing, otherwise):
    options = {"spec": TWO_UNSEEN, "disagreeing": disagreeing, **STANDARDISED}
    batch = batch_for(TWO_UNSEEN)
    candidate = batch["train"]["candidate"].numpy()
    # In the mirror image every pixel but those in the middle is of the other class.
    ramp = np.tile(np.linspace(-8, 8, 3, dtype=np.float32), (3, 1))
    teacher = decided(np.stack([ramp * 0 + 9, ramp * 0, -ramp, ramp], -1))
    candidate[:, :, 16] = False
    for views, expected in (({"view_scales": ()}, {otherwise}), (ONE_VIEW, {0, 2, 3})):
        method = strict(**options, **views)
        method.teacher = teacher
        assert set(learned_from(method, batch)[candidate]) == expected


@pytest.mark.parametrize("disagreeing, otherwise", [("background", 0), ("ignore", IGNORE)])
def test_what_stands_out_gets_one_name_for_an_image(disagreeing, otherwise):
    options = {**STANDARDISED, "pseudo_label_share": 50.0, "pseudo_label_names": "image"}
    options.update(spec=TWO_UNSEEN, disagreeing=disagreeing)
    # Class 3 is far the likelier everywhere, in what stands out of the second image less so.
    scores = np.zeros([2, 1, 4, 4], np.float32)
    scores[..., 0] = [9, 7, 6, 9]
    scores[..., 3] = 3
    scores[0, 0, 1:3, 3], scores[1, 0, 1:3, 3] = 4, 2
    label, candidate = tf.zeros([2, 1, 4], tf.int32), tf.ones([2, 1, 4], tf.bool)

    def completed(scores, candidate=candidate, **views):
        method = strict(**options, **views)
        method.teacher = lambda image, training, input_scale: {"logits": tf.constant(scores)}
        pseudo, kept = method.labels_of_unseen(tf.zeros([2, 1, 4, 3]), candidate)
        return agreement.complete(label, pseudo, kept, candidate, otherwise=otherwise).numpy()

    np.testing.assert_array_equal(completed(scores, **ONE_VIEW), [[[0, 3, 3, 0]], [[0, 2, 2, 0]]])
    # An image in which nothing may be of an unseen class takes no part in the comparison.
    more = np.array([True, False])[:, None, None] & candidate.numpy()
    result = completed(scores, tf.constant(more), **ONE_VIEW)
    assert set(result[0, 0]) <= {0, 2, 3} and not result[1].any()
    # Of three pixels that stand out, one is another in the mirror image.
    options["pseudo_label_share"] = 75.0
    scores[:, :, 0, 0] -= 1
    o = otherwise
    np.testing.assert_array_equal(
        completed(scores, view_scales=()), [[[o, 3, 3, o]], [[o, 2, 2, o]]]
    )


def test_no_pseudo_labels_at_the_start_of_a_round():
    train = {"training_number_of_steps": 20}
    method = strict(rounds=2, pseudo_label_start=4, train=train, **ONE_VIEW)
    method.teacher = decided(everywhere(0, 0, 0, 0))
    batch = batch_for()
    found = [UNSEEN in learned_from(method, batch, step) for step in (0, 3, 4, 9, 10, 13, 14)]
    assert found == [False, False, True, True, False, False, True]


@pytest.mark.parametrize("disagreeing", ["background", "ignore"])
def test_labels_are_as_they_are_before_pseudo_labels_start(disagreeing):
    # The teacher is never sure enough, which makes a difference only later.
    options = {"min_confidence": 1.0, "disagreeing": disagreeing, "pseudo_label_start": 4}
    method = strict(spec=TWO_UNSEEN, **options, **ONE_VIEW)
    method.teacher = decided(everywhere(0, 0, 0, 1))
    batch = batch_for(TWO_UNSEEN)
    label = batch["train"]["label"].numpy()
    np.testing.assert_array_equal(learned_from(method, batch, 3), label)
    changed = learned_from(method, batch, 4) != label
    assert changed.any() == (disagreeing == "ignore")


def test_the_teacher_is_told_the_size_of_every_view():
    method = strict(view_scales=(1.5, 1.75))
    teacher, scales = method.teacher, []
    method.teacher = lambda image, training, input_scale: (
        scales.append((image.shape[1] / 33, input_scale)) or teacher(image, training=training)
    )
    method.view_logits(batch_for()["train"]["image"], (9, 9))
    assert [scale for _, scale in scales] == [1.0, 1.0, 1.5, 1.5, 1.75, 1.75]
    np.testing.assert_allclose(*zip(*scales), atol=1 / 33)


def test_targets_are_at_the_resolution_of_the_logits_where_asked_for():
    method = strict(train={"upsample_logits": False}, **ONE_VIEW)
    assert learned_from(method, batch_for()).shape == (4, 9, 9)
    assert learned_from(strict(**ONE_VIEW), batch_for()).shape == (4, 33, 33)


def test_random_sizes_of_views_depend_on_the_seed():
    # (With a window that is as much larger or smaller as the view.)
    model = {**PROJECTION, "image_pooling_crop_size": (17, 33)}
    method = strict(model=model, view_scales=(0.5, 1.75), random_view_scales=True)
    sizes = []
    teacher = method.teacher
    method.teacher = lambda image, **options: (
        sizes.append(tuple(image.shape[1:3])) or teacher(image, **options)
    )
    image = batch_for()["train"]["image"]
    for seed in ([0, 1], [0, 1], [0, 2]):
        method.view_logits(image, (9, 9), seed=tf.constant(seed))
    first, again, other = (sizes[i : i + 6] for i in (0, 6, 12))
    assert first == again != other
    assert all(16 <= side <= 57 for size in sizes for side in size)
    # In a graph the sizes are not known. (tests/test_heads.py has that with a window.)
    method = strict(model=PROJECTION, view_scales=(0.5, 1.75), random_view_scales=True)
    batch = batch_for()
    step = tf.function(
        lambda seed: method.losses(batch, tf.constant(0, tf.int64), seed, Monitors())
    )
    assert np.isfinite(step(tf.constant([3, 4]))["segmentation"])


# Losses ------------------------------------------------------------------------------------------


def cross_entropy(logits, classes):
    """Returns -log of the softmax among some classes."""
    chosen = logits[..., classes]
    return np.log(np.exp(chosen).sum(-1, keepdims=True)) - logits


def random_logits(spec=SPEC, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, 4, 5, 4)).astype(np.float32)
    target = rng.choice([*spec.seen_unseen.visible, IGNORE], (2, 4, 5)).astype(np.int32)
    return logits, target


def chosen_by(target, losses):
    safe = np.where(target == IGNORE, 0, target)[..., None]
    return np.take_along_axis(losses, safe, -1)[..., 0]


@pytest.mark.parametrize("spec", [SPEC, NO_BACKGROUND], ids=["background", "no_background"])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_is_the_cross_entropy_among_visible_classes(spec, weight):
    method = strict(spec=spec, pseudo_label_weight=weight)
    logits, target = random_logits(spec)
    losses = chosen_by(target, cross_entropy(logits, list(spec.seen_unseen.visible)))
    weights = (target != IGNORE) * np.where(target == UNSEEN, weight, 1.0)
    expected = (losses * weights).sum() / weights.sum()
    result = method.segmentation_loss(tf.constant(logits), tf.constant(target))
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    nothing = method.segmentation_loss(tf.constant(logits), tf.fill([2, 4, 5], IGNORE))
    assert nothing == 0


@pytest.mark.parametrize("background_loss", ["plain", "with_unseen"])
def test_labels_weigh_as_their_classes_and_pseudo_labels_do_not(background_loss):
    options = {"background_loss": background_loss, "pseudo_label_weight": 0.5}
    logits, target = random_logits()
    weights = np.float32([2.0, 3.0, 4.0, 100.0])
    plain, weighted = (
        strict(**options, train=train).segmentation_loss(tf.constant(logits), tf.constant(target))
        for train in ({}, {"label_weights": tuple(weights.tolist())})
    )
    losses = cross_entropy(logits, [0, 1, 2, 3])
    if background_loss == "with_unseen":
        losses[..., 0] = -np.log(np.exp(-losses[..., [0, UNSEEN]]).sum(-1))
    losses = chosen_by(target, losses)
    count = (target != IGNORE) * np.where(target == UNSEEN, 0.5, 1.0)
    of_class = np.append(weights[:UNSEEN], 1.0)[np.where(target == IGNORE, 0, target)]
    np.testing.assert_allclose(plain, (losses * count).sum() / count.sum(), rtol=1e-5)
    np.testing.assert_allclose(weighted, (losses * count * of_class).sum() / count.sum(), rtol=1e-5)


def test_background_may_hide_unseen_classes():
    method = strict(background_loss="with_unseen")
    logits, target = random_logits()
    losses = cross_entropy(logits, [0, 1, 2, 3])
    losses[..., 0] = -np.log(np.exp(-losses[..., [0, UNSEEN]]).sum(-1))
    kept = target != IGNORE
    expected = chosen_by(target, losses)[kept].mean()
    result = method.segmentation_loss(tf.constant(logits), tf.constant(target))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name, spec, without",
    [
        ("spnet", SPEC, {UNSEEN}),
        ("spnet", NO_BACKGROUND, {0, UNSEEN}),
        ("strict", SPEC, set()),
        ("strict", NO_BACKGROUND, {0}),
    ],
)
def test_classes_that_take_no_part_learn_nothing(name, spec, without):
    method, _ = make_method(name, spec=spec)
    batch = batch_for(spec)
    with tf.GradientTape() as tape:
        losses = method.losses(batch, tf.constant(0, tf.int64), SEED, Monitors())
    kernel = method.model.logits_layer.convolutions[0].kernel
    gradient = tape.gradient(losses["segmentation"], kernel).numpy()
    still = {c for c in range(4) if not np.abs(gradient[..., c]).max()}
    assert still == without


def test_spnet_is_the_cross_entropy_among_seen_classes():
    method, _ = make_method("spnet", spec=NO_BACKGROUND, model=PROJECTION, upsample_logits=False)
    train = batch_for(NO_BACKGROUND)["train"]
    losses = method.losses({"train": train}, tf.constant(0, tf.int64), SEED, Monitors())
    logits = method.model(train["image"], training=True, dropout_seed=SEED)["logits"].numpy()
    # Every pixel of the features takes the label at its upper left, floor(i 33 / 9).
    index = np.arange(9) * 33 // 9
    label = train["label"].numpy()[:, index][:, :, index]
    kept = label != IGNORE
    expected = chosen_by(label, cross_entropy(logits, [1, 2]))[kept].mean()
    np.testing.assert_allclose(losses["segmentation"], expected, rtol=1e-4)


def test_backbone_norms_are_constants_and_new_layers_learn_faster():
    method, config = make_method("spnet", model=PROJECTION)
    groups = {group.name: group for group in method.param_groups()}
    found = {n: (g.lr_multiplier, g.weight_decay, g.nesterov) for n, g in groups.items()}
    decay = config.weight_decay
    assert found == {
        "backbone_weights": (1.0, decay, False),
        "new_weights": (10.0, decay, False),
        "new_biases": (20.0, 0.0, False),
    }
    assert not any("BatchNorm" in v.name for v in groups["backbone_weights"].variables)


@pytest.mark.parametrize("name", ["spnet", "strict"])
def test_the_rules_of_zs3(name):
    """All learns and decays, new layers ten times as fast; the loss is divided by the batch."""
    rules = {"training_rules": "zs3"}
    options = {"model": {"head": "deeplab"}, "weight_decay": 5e-4}
    method, _ = make_method(name, settings=rules, **options)
    groups = {group.name: group for group in method.param_groups()}
    found = {n: (g.lr_multiplier, g.weight_decay) for n, g in groups.items()}
    assert found == {"backbone_weights": (1.0, 5e-4), "new_weights": (10.0, 5e-4)}
    backbone = {v.name.split("/")[-1] for v in groups["backbone_weights"].variables}
    assert {"gamma:0", "beta:0"} <= backbone
    assert any(v.name.endswith("biases:0") for v in groups["new_weights"].variables)
    other, _ = make_method(name, **options)
    pixel_loss, weight = tf.random.uniform([2, 4, 3, 3])
    expected = other.mean_loss(pixel_loss, weight) / 4
    np.testing.assert_allclose(method.mean_loss(pixel_loss, weight), expected, rtol=1e-6)


# Teachers ----------------------------------------------------------------------------------------


def by_name(network):
    return {v.name: v.numpy() for v in network.variables}


def test_the_teacher_becomes_a_copy_of_the_network():
    method = strict()
    student, teacher = by_name(method.model), by_name(method.teacher)
    assert student.keys() == teacher.keys()
    kernel = next(name for name in student if name.endswith("stage1/weights:0"))
    assert np.abs(student[kernel] - teacher[kernel]).max() > 0
    assert not method.teacher.trainable_variables
    method.begin_round()
    for name, value in by_name(method.teacher).items():
        np.testing.assert_array_equal(value, student[name], err_msg=name)


@pytest.mark.parametrize("teacher", ["previous_round", "ema"])
def test_the_teacher_follows_the_network_only_as_an_average(teacher):
    decay = {"teacher_decay": 0.75} if teacher == "ema" else {}
    options = {"settings": {"teacher": teacher, **decay, **ONE_VIEW}}
    trainer = make_trainer(one_replica(), batch_for(), "strict", model=PROJECTION, **options)
    start = by_name(trainer.method.model)
    trainer.train(1)
    student, followed = by_name(trainer.method.model), by_name(trainer.method.teacher)
    moved = [name for name in start if np.any(student[name] != start[name])]
    assert any("weights" in name for name in moved)
    share = 0.25 if teacher == "ema" else 0.0
    for name in start:
        expected = start[name] + share * (student[name] - start[name])
        np.testing.assert_allclose(followed[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(followed["class_vectors:0"], SPEC.vectors.values)


def test_only_a_teacher_that_has_learned_may_teach():
    method = strict()
    method.check_initial_weights(set())
    with pytest.raises(UserError, match="(?s)1 random.*logits/x.*--initialize_last_layer"):
        method.check_initial_weights({"logits/x"})
    with pytest.raises(UserError, match="start from random"):
        strict(teacher="ema").check_initial_weights({"logits/x"})
    strict(teacher="ema", pseudo_label_start=10).check_initial_weights({"logits/x"})


# What a user watches -----------------------------------------------------------------------------


def test_monitors_measure_pseudo_labels():
    method, batch = strict(**ONE_VIEW), batch_for()
    method.teacher = decided(everywhere(0, 0, 0, 0))
    monitors = Monitors()
    method.losses(batch, tf.constant(0, tf.int64), SEED, monitors)
    figures = summarise(monitors.sums)[0]
    candidate = batch["train"]["candidate"].numpy()
    truth = batch["train"]["hidden_label"].numpy()[candidate]
    assert figures["pseudo_labelled_candidates"] == 1.0
    np.testing.assert_allclose(figures["pseudo_label_precision"], (truth == UNSEEN).mean())
    assert 0 <= figures["prediction_miou"] <= 1


@pytest.mark.parametrize("name", ["spnet", "strict"])
def test_panels_hold_class_ids_of_the_size_of_the_image(name):
    method, _ = make_method(name, model=PROJECTION)
    panels = method.panels(batch_for())
    assert list(panels)[0] == "image" and {"label", "prediction", "truth"} <= set(panels)
    for key, panel in panels.items():
        assert panel.shape[:3] == [4, 33, 33]
        if key != "image":
            assert set(np.unique(panel)) <= {0, 1, 2, 3, IGNORE}


# Wrong settings ----------------------------------------------------------------------------------

WRONG = [
    ({"spec": dataclasses.replace(SPEC, seen_unseen=None)}, "--class_split"),
    ({"rounds": 7}, "--rounds(.|\n)*30002"),
    ({"rounds": 2, "train": {"optimizer": "lamb"}}, "--optimizer"),
    ({"rounds": 10, "pseudo_label_start": 3000}, "--pseudo_label_start"),
    ({"view_scales": (1.5, 0.0)}, "--view_scales"),
    ({"view_scales": (1.5,), "random_view_scales": True}, "--view_scales"),
    ({"random_view_scales": True, "train": {"jit_compile": True}}, "--jit_compile"),
    ({"teacher_seen_bias": 0.5}, "--generator_classes=all"),
    ({"teacher_decay": 0.9}, "--teacher=ema"),
    ({"pseudo_label_scores": "standardised"}, "--pseudo_label_share"),
    ({**STANDARDISED, "generator_classes": "unseen"}, "--generator_classes"),
    ({**STANDARDISED, "teacher_seen_bias": 0.5}, "--teacher_seen_bias"),
    ({**STANDARDISED, "min_confidence": 0.5}, "--min_confidence"),
    ({"pseudo_label_names": "image"}, "--pseudo_label_scores=standardised"),
    (
        {**STANDARDISED, "pseudo_label_names": "image", "train": {"train_batch_size": 1}},
        "--train_batch_size=2",
    ),
    (
        {
            **STANDARDISED,
            "pseudo_label_names": "image",
            "train": {"train_batch_size": 4, "gradient_accumulation_steps": 4},
        },
        "--train_batch_size=8",
    ),
    ({"pseudo_label_void": True}, "--pseudo_label_void"),
    ({"spec": NO_BACKGROUND, "disagreeing": "ignore"}, "--disagreeing"),
    ({"spec": NO_BACKGROUND, "background_loss": "with_unseen"}, "--background_loss"),
]


@pytest.mark.parametrize("wrong, flag", WRONG, ids=lambda x: x if isinstance(x, str) else "")
def test_settings_that_cannot_be_meant_are_refused(wrong, flag):
    with pytest.raises(UserError, match=flag):
        strict(**wrong)


def test_another_head_is_refused():
    with pytest.raises(UserError, match="low_rank"):
        make_method("spnet", model={"head": "low_rank"})
