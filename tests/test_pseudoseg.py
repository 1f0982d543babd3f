"""PseudoSeg's options, passes, precision and distribution. Golden cases: tests/golden_cases."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.test_methods import (  # noqa: F401  (the fixture is used by name)
    SPEC,
    gradients_of,
    make_method,
    make_trainer,
    one_replica,
    random_batch,
    toy_backbone,
    values,
)
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.models import BACKBONES
from tfseg.models.backbones.vit import SHAPES
from tfseg.monitors import Monitors, summarise
from tfseg.ops.resize import resize_nearest
from tfseg.settings.methods import METHODS
from tfseg.settings.run import TrainConfig
from tfseg.weights.checkpoint import find, stored_networks
from tfseg.weights.checkpoint.store import Store
from tfseg.weights.initial import load_initial_weights

PseudoSeg = METHODS["pseudoseg"].load()
NO_DROPOUT = {"aspp_dropout_rate": 0.0, "classifier_dropout_rate": 0.0}


def batch_for(*, weakly=False, seed=0, **options):
    return random_batch(PseudoSeg, TrainConfig(weakly=weakly), seed=seed, **options)


def measure(*, weakly=False, step=0, batch=None, function=False, **options):
    """Returns (losses, figures) of one evaluation of a fresh method."""
    method, _ = make_method(weakly=weakly, **options)
    spec = options.get("spec", SPEC)
    batch = batch_for(weakly=weakly, spec=spec) if batch is None else batch

    def compute():
        monitors = Monitors()
        losses = method.losses(batch, tf.constant(step, tf.int64), tf.constant([1, 2]), monitors)
        return losses, monitors.sums

    losses, sums = (tf.function(compute) if function else compute)()
    return (
        {name: float(loss) for name, loss in losses.items()},
        summarise({name: value.numpy() for name, value in sums.items()})[0],
    )


# Options ----------------------------------------------------------------------------------------

UNLABELLED = [
    ({"use_attention": False}, ("sgc", "classification", "consistency")),
    ({"att_v2": False}, ("sgc", "consistency")),
    ({"att_strides": (8, 16)}, ("sgc", "consistency")),
    ({"attention_dim": 32}, ("sgc", "consistency")),
    ({"pseudo_src": "att"}, ("consistency",)),
    ({"logit_norm": False}, ("consistency",)),
    ({"temperature": 0.25}, ("consistency",)),
    ({"soft_pseudo_label": False}, ("consistency",)),
    ({"pseudo_label_threshold": 0.6}, ("consistency",)),
    ({"unlabeled_weight": 0.5}, ("consistency",)),
    ({"pixel_normalization_statistics": "batch"}, ("consistency",)),
]


@pytest.mark.parametrize("settings, changed", UNLABELLED, ids=lambda x: str(x))
def test_an_option_changes_the_losses_it_should(settings, changed):
    before, _ = measure()
    after, _ = measure(settings=settings)
    differing = {
        name for name in before if after.get(name) != pytest.approx(before[name], rel=1e-6)
    }
    assert differing == set(changed)
    assert all(np.isfinite(loss) for loss in after.values())


@pytest.mark.parametrize(
    "settings, changed",
    [
        ({"cls_with_cls": False}, ("classification",)),
        ({"mask_absent_classes": "decoder"}, ("consistency",)),
        ({"mask_absent_classes": "fused"}, ("consistency",)),
        ({"use_attention": False}, ("sgc", "consistency")),
    ],
    ids=lambda x: str(x),
)
def test_a_weakly_supervised_option_changes_the_losses_it_should(settings, changed):
    before, _ = measure(weakly=True)
    after, _ = measure(weakly=True, settings=settings)
    differing = {
        name for name in before if after.get(name) != pytest.approx(before[name], rel=1e-6)
    }
    assert differing == set(changed)


def test_the_weight_scales_the_consistency_loss():
    full, half = measure()[0], measure(settings={"unlabeled_weight": 0.5})[0]
    assert half["consistency"] == pytest.approx(full["consistency"] / 2, rel=1e-6)


def test_the_weight_can_rise_from_0():
    settings = {"unlabeled_ramp_up_steps": 10}
    at = {step: measure(settings=settings, step=step)[0]["consistency"] for step in (0, 5, 10, 99)}
    assert at[0] == 0.0
    assert at[5] == pytest.approx(at[10] / 2) and at[10] == pytest.approx(at[99])


@pytest.mark.parametrize("weakly", [False, True])
def test_the_attention_loss_trains_the_attention_alone(weakly):
    method, _ = make_method(weakly=weakly)
    step, seed = tf.constant(0, tf.int64), tf.constant([1, 2])
    with tf.GradientTape() as tape:
        loss = method.losses(batch_for(weakly=weakly), step, seed, Monitors())["sgc"]
    variables = method.trainable_variables
    reached = [
        variable
        for variable, gradient in zip(variables, tape.gradient(loss, variables))
        if gradient is not None
    ]
    assert values(reached).keys() == values(method.attention.trainable_variables).keys()


def test_image_labels_of_the_second_split_matter_only_when_weakly():
    batch = batch_for(weakly=True)
    other = {**batch, "unlabelled": dict(batch["unlabelled"])}
    other["unlabelled"]["image_label"] = 1.0 - batch["unlabelled"]["image_label"]
    before, after = (measure(weakly=True, batch=b)[0] for b in (batch, other))
    assert before["consistency"] != after["consistency"]
    assert before["classification"] != after["classification"]
    assert (before["segmentation"], before["sgc"]) == (after["segmentation"], after["sgc"])


def test_masked_pseudo_labels_hold_no_absent_class():
    batch = batch_for(weakly=True)
    only_cat = tf.constant([[1.0, 0.0, 0.0]] * 4)
    batch["unlabelled"]["image_label"] = only_cat
    method, _ = make_method(weakly=True, settings={"mask_absent_classes": "fused"})
    logits, ends = method._weak_pass(batch["unlabelled"], tf.constant([0, 0]), {})
    probs = method._pseudo_label(logits, ends, batch["unlabelled"], training=True).probs
    assert float(tf.reduce_max(probs[..., 2:])) == 0.0
    np.testing.assert_allclose(tf.reduce_sum(probs, -1), 1.0, rtol=1e-5)


def test_grad_cam_of_a_layer_that_is_not_the_last():
    last, _ = measure(function=True)
    losses, _ = measure(settings={"att_strides": (8, 15)}, function=True)
    assert all(np.isfinite(loss) for loss in losses.values())
    assert losses["sgc"] != last["sgc"]


def test_a_data_set_without_background_works():
    spec = DatasetSpec("no_background", ("cat", "dog", "cow"), has_background=False)
    losses, _ = measure(spec=spec)
    assert all(np.isfinite(loss) for loss in losses.values())


# One of each family; the others differ from it in depth, or in what the method does not see.
SIBLINGS = {"xception_41", "xception_71", "resnet_v1_101", "resnet_v1_101_beta", "resnet101s"}
SIBLINGS |= {"resnet101", "resnet101_msra", "mobilenet_v3_large", "dilated_resnet101"}
SIBLINGS |= {"dilated_resnet50"}
# tests/test_vit.py has a small one.
SIBLINGS |= set(SHAPES)


# By day one network of each published family.
BY_DAY = {"efficientnet_lite0", "mobilenet_v2", "resnet_v1_50_beta"}


@pytest.mark.parametrize(
    "variant",
    [
        v if v in BY_DAY else pytest.param(v, marks=pytest.mark.nightly)
        for v in sorted(set(BACKBONES) - SIBLINGS)
    ],
)
def test_every_family_of_backbones_can_be_used(variant):
    model = {"model_variant": variant, "decoder_output_stride": None}
    losses, figures = measure(model=model, batch=batch_for(batch_size=2))
    assert set(losses) == {"segmentation", "sgc", "classification", "consistency"}
    assert all(np.isfinite(loss) for loss in losses.values())
    assert {"decoder_miou", "sgc_miou", "fused_miou", "pseudo_label_coverage"} <= set(figures)


WRONG = [
    ({"settings": {"att_strides": (15, 17)}}, "--att_strides"),
    ({"settings": {"att_strides": ()}}, "--att_strides"),
    ({"settings": {"temperature": 0.0}}, "--temperature"),
    ({"settings": {"pseudo_label_threshold": 1.0}}, "--pseudo_label_threshold"),
    ({"settings": {"unlabeled_weight": -1.0}}, "--unlabeled_weight"),
    ({"settings": {"attention_dim": 0}}, "--attention_dim"),
    ({"settings": {"pseudo_src": "att", "use_attention": False}}, "--pseudo_src"),
    ({"settings": {"mask_absent_classes": "fused"}}, "--mask_absent_classes"),
    ({"model": {"image_pyramid": (0.5, 1.0)}}, "--image_pyramid"),
]


@pytest.mark.parametrize("wrong, flag", WRONG, ids=lambda x: str(x))
def test_settings_that_cannot_be_meant_are_refused(wrong, flag):
    with pytest.raises(UserError, match=flag):
        make_method(**wrong)


def test_several_input_scales_need_separate_passes():
    options = {"model": {"image_pyramid": (0.5, 1.0)}, "settings": {"separate_passes": True}}
    losses, _ = measure(**options)
    assert all(np.isfinite(loss) for loss in losses.values())


# Passes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weakly", [False, True])
@pytest.mark.parametrize("separate, passes", [(False, (3, 3)), (True, (5, 6))])
def test_number_of_backbone_passes(weakly, separate, passes, monkeypatch):
    method, _ = make_method(weakly=weakly, settings={"separate_passes": separate})
    calls = []
    encode = method.model.encode
    monkeypatch.setattr(method.model, "encode", lambda *a, **k: calls.append(k) or encode(*a, **k))
    method.losses(
        batch_for(weakly=weakly), tf.constant(0, tf.int64), tf.constant([1, 2]), Monitors()
    )
    assert len(calls) == passes[weakly]


def test_shared_and_separate_passes_agree_without_dropout_and_batch_statistics():
    model = {**NO_DROPOUT, "fine_tune_batch_norm": False}
    for weakly in (False, True):
        shared, _ = measure(weakly=weakly, model=model)
        separate, _ = measure(weakly=weakly, model=model, settings={"separate_passes": True})
        for name, loss in shared.items():
            assert separate[name] == pytest.approx(loss, rel=1e-5), name


def test_the_weak_pass_has_no_gradient_without_image_labels():
    batch = batch_for()
    method, _ = make_method()
    image = batch["unlabelled"]["image"]
    with tf.GradientTape() as tape:
        tape.watch(image)
        losses = method.losses(batch, tf.constant(0, tf.int64), tf.constant([1, 2]), Monitors())
        total = tf.add_n(list(losses.values()))
    assert tape.gradient(total, image) is None


def test_with_image_labels_only_the_classifier_learns_from_the_weak_view():
    batch = batch_for(weakly=True)
    method, _ = make_method(weakly=True)
    image = batch["unlabelled"]["image"]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(image)
        losses = method.losses(batch, tf.constant(0, tf.int64), tf.constant([1, 2]), Monitors())
    reached = {name for name, loss in losses.items() if tape.gradient(loss, image) is not None}
    assert reached == {"classification"}


def test_monitors_measure_against_the_hidden_masks():
    batch = batch_for()
    method, _ = make_method()
    hidden = resize_nearest(batch["unlabelled"]["hidden_label"][..., None], [9, 9])[..., 0]
    truth = tf.one_hot(hidden, SPEC.num_classes)
    shape = truth.shape[:3]
    pseudo = method._pseudo_label(
        *method._weak_pass(batch["unlabelled"], tf.constant([0, 0]), {}),
        batch["unlabelled"],
        training=True,
    )
    pseudo = dataclasses.replace(pseudo, fused=truth, confidence=tf.fill(shape, 0.95))
    monitors = Monitors()
    method._monitor(monitors, pseudo, truth[..., ::-1], batch["unlabelled"])
    figures, histograms = summarise(monitors.sums)
    assert figures["fused_miou"] == figures["fused_accuracy"] == 1.0
    assert figures["strong_accuracy"] < 0.6
    assert figures["pseudo_label_coverage"] == figures["confident_accuracy"] == 1.0
    assert histograms["pseudo_label_confidence"][-1] == 1.0


def test_unlabelled_images_without_masks_have_no_accuracy_but_a_coverage():
    batch = batch_for()
    batch["unlabelled"]["has_label"] = tf.zeros([4], tf.bool)
    batch["unlabelled"]["hidden_label"] = tf.fill([4, 33, 33], SPEC.ignore_label)
    _, figures = measure(batch=batch)
    assert set(figures) == {"pseudo_label_coverage"}


def test_panels_show_every_stage_and_change_nothing():
    method, _ = make_method(settings={"pixel_normalization_statistics": "batch"})
    before = values(method.variables)
    panels = method.panels(batch_for())
    assert list(panels) == ["image", "cam", "sgc", "decoder", "fused", "truth"]
    for name, value in values(method.variables).items():
        np.testing.assert_array_equal(value, before[name])
    method, _ = make_method(settings={"use_attention": False})
    assert list(method.panels(batch_for())) == ["image", "decoder", "fused", "truth"]


# The SGC head -----------------------------------------------------------------------------------


def test_the_sgc_head_is_the_methods_and_stored_with_the_network(tmp_path):
    method, _ = make_method()
    head = set(values(method.attention.variables))
    assert {name.split("/")[0] for name in head} == {"hyper_column", "pixel_normalization"}
    assert not head & set(values(method.model.variables))
    assert set(values(method.stored()["model"].variables)) == head | set(
        values(method.model.variables)
    )
    Store(str(tmp_path), method.stored(), {}).save(0)
    prefix = find.newest(str(tmp_path))
    assert head < set(stored_networks.stored_variables(prefix)["model"])
    # Evaluation knows the network alone.
    other, _ = make_method(seed=1)
    stored_networks.load_network(other.model, prefix)
    before = values(other.attention.variables)
    for name, value in values(method.model.variables).items():
        np.testing.assert_array_equal(values(other.model.variables)[name], value)
    assert any(np.any(before[name] != x) for name, x in values(method.attention.variables).items())
    # A new run that starts from this one takes the head too.
    coverage = load_initial_weights(
        other.model,
        str(tmp_path),
        heads=other.auxiliary_heads(),
        initialize_last_layer=True,
        last_layers_contain_logits_only=True,
    )
    assert head <= set(coverage.matched) and not coverage.unused
    for name, value in values(method.attention.variables).items():
        np.testing.assert_array_equal(values(other.attention.variables)[name], value)
    without, _ = make_method(settings={"use_attention": False})
    assert list(without.auxiliary_heads()) == []


# Distribution and precision ---------------------------------------------------------------------


def _assert_equal_steps(two_replicas, tolerance, names=None, **options):
    model = {**NO_DROPOUT, "sync_batch_norm": True, **options.pop("model", {})}
    options["settings"] = {"pseudo_label_threshold": 0.3, **options.get("settings", {})}
    weakly = options.pop("weakly", False)
    batch = batch_for(weakly=weakly)
    outcome = []
    for strategy in (one_replica(), two_replicas):
        trainer = make_trainer(strategy, batch, model=model, weakly=weakly, **options)
        interval = trainer.train(1)
        moving = values(trainer.method.model.variables)
        outcome.append((interval, gradients_of(trainer), moving))
    (one, one_gradients, one_values), (two, two_gradients, two_values) = outcome
    assert two.losses == pytest.approx(one.losses, rel=tolerance)
    assert two.figures == pytest.approx(one.figures, rel=1e-3)
    for ours, theirs in ((two_gradients, one_gradients), (two_values, one_values)):
        for name in theirs:
            if names is None or name.startswith(names):
                scale = max(np.abs(theirs[name]).max(), 1e-3)
                np.testing.assert_allclose(
                    ours[name], theirs[name], rtol=0, atol=tolerance * scale, err_msg=name
                )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.nightly),
        {"weakly": True},
        pytest.param(
            {"settings": {"pixel_normalization_statistics": "batch", "separate_passes": True}},
            marks=pytest.mark.nightly,
        ),
        pytest.param({"top_k_percent_pixels": 0.5}, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_two_replicas_equal_one_with_synchronised_statistics(two_replicas, options):
    _assert_equal_steps(two_replicas, 1e-5, **options)


@pytest.mark.nightly
def test_two_replicas_equal_one_with_xception_65(two_replicas):
    model = {"model_variant": "xception_65", "aspp_convs_filters": 256, "decoder_filters": 256}
    heads = ("logits/", "xception_65/logits", "pixel_normalization", "hyper_column")
    _assert_equal_steps(two_replicas, 1e-3, names=heads, model=model)


@pytest.mark.nightly
def test_without_synchronised_statistics_two_replicas_differ(two_replicas):
    with pytest.raises(AssertionError):
        _assert_equal_steps(two_replicas, 1e-3, model={"sync_batch_norm": False})
