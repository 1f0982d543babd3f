"""SLRNet: pseudo masks, regimes, losses that wait, parameter groups, wrong settings."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.test_methods import (
    SPEC,
    make_method,
    random_batch,
    toy_backbone,  # noqa: F401  (a fixture that every test here uses)
)
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.methods.slrnet import SLRNet
from tfseg.models.heads.low_rank import HeadOutput
from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.dropout import fold_seed
from tfseg.monitors import Monitors, summarise
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.slrnet import SLRNetConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.weights.checkpoint.names import by_name, variable_name

SEED = tf.constant([1, 2])
CLEAR = {"require_all_classes": False, "pretrain_steps": 0}
# A network that has learned nothing is sure of nothing.
EASY = {**CLEAR, "cutoff_low": 0.0}


def slrnet(*, model=None, spec=SPEC, train=None, **settings):
    return make_method("slrnet", model=model, spec=spec, settings=settings, **(train or {}))[0]


def batch_for(**settings):
    config = TrainConfig(method="slrnet", train_batch_size=4)
    return random_batch(SLRNet, config, settings=SLRNetConfig(**settings))


def losses(method, batch, step=0, monitors=None):
    values = method.losses(batch, tf.constant(step, tf.int64), SEED, monitors or Monitors())
    return {name: float(value) for name, value in values.items()}


# Streams -----------------------------------------------------------------------------------------


def streams(**settings):
    return SLRNet.streams(
        DataConfig(dataset_dir="a", dataset_dir_cls="b", train_split="few", train_split_cls="all"),
        TrainConfig(train_batch_size=8),
        SLRNetConfig(**settings),
    )


def test_image_labels_alone_need_one_stream():
    weak = streams()["weak"]
    assert (weak.split, weak.dataset_dir, weak.batch_size) == ("all", "b", 8)
    assert (weak.labels, weak.image_labels) == ("hidden", "record") and weak.require_foreground
    assert list(streams()) == ["weak"]


def test_batches_are_stratified_unless_published_ones_are_asked_for():
    found = streams(supervision="pixel_and_image_labels", labelled_batch_size=3)
    assert [(s.split, s.batch_size, s.labels) for s in found.values()] == [
        ("few", 3, "required"),
        ("all", 8, "hidden"),
    ]
    mixed = streams(supervision="pixel_and_image_labels", sampling="published")["mixed"]
    assert (mixed.labels, mixed.label_split, mixed.oversample) == ("listed", "few", 3)


def test_without_image_labels_no_stream_asks_for_them():
    for stream in streams(supervision="pixel_labels").values():
        assert stream.image_labels == "none" and not stream.require_foreground


def test_class_weighted_draws():
    weak = streams(image_sampling="class_weighted", draws_per_epoch=100, clutter_penalty=2.0)[
        "weak"
    ]
    assert (weak.sampling, weak.epoch_length) == ("class_weighted", 100)
    assert weak.clutter_penalty == 2.0


@pytest.mark.parametrize("supervision", ["image_labels", "pixel_labels"])
def test_the_regime_settles_the_network(supervision):
    config = SLRNet.network_config(ModelConfig(), SLRNetConfig(supervision=supervision))
    learned = supervision == "pixel_labels"
    assert config.head == "low_rank"
    assert config.head_settings.background_logit == ("learned" if learned else "constant")


# Pseudo masks ------------------------------------------------------------------------------------


def decided_output(images, num_classes=SPEC.num_classes):
    """Returns the output of a network that knows the masks, and swaps classes 1 and 2 at times."""
    truth = tf.where(images.hidden_label == SPEC.ignore_label, 0, images.hidden_label)
    truth = tf.where(truth == 1, 2, truth)
    logits = 8.0 * tf.one_hot(truth, num_classes)
    first, second = (tf.image.resize(logits, (side, side), "area") for side in (9, 5))
    return HeadOutput((first, second), (first, second), first, tf.zeros([1, num_classes, 1]))


def pseudo_mask(method, batch):
    images = method._images(batch)
    return images, method.pseudo_mask(images, decided_output(images)).numpy()


def test_pseudo_masks_hold_present_classes_and_no_padding():
    batch = batch_for()
    images, label = pseudo_mask(slrnet(**CLEAR), batch)
    assert (label[images.valid.numpy() == 0] == SPEC.ignore_label).all()
    labelled = 0
    for one, named in zip(label, batch["weak"]["image_label"].numpy()):
        found = set(np.unique(one)) - {0, SPEC.ignore_label}
        assert found <= {1 + k for k in np.flatnonzero(named)}
        labelled += len(found)
    # An image of class 1 keeps only its background, for class 2 is absent there.
    assert 0 < labelled < len(label)


def test_true_masks_stand_where_there_are_some():
    regime = {"supervision": "pixel_and_image_labels"}
    batch = batch_for(**regime)
    images, label = pseudo_mask(slrnet(**CLEAR, **regime), batch)
    np.testing.assert_array_equal(images.has_label, [True] * 4 + [False] * 4)
    np.testing.assert_array_equal(label[:4], batch["labelled"]["label"])


def test_a_crop_without_a_known_pixel_gets_a_pseudo_mask():
    regime = {"supervision": "pixel_and_image_labels"}
    batch = batch_for(**regime)
    label = batch["labelled"]["label"].numpy()
    label[2] = SPEC.ignore_label
    batch["labelled"]["label"] = tf.constant(label)
    images, pseudo = pseudo_mask(slrnet(**CLEAR, **regime), batch)
    assert not images.has_label[2] and (pseudo[2] != SPEC.ignore_label).any()


def test_the_rule_for_coco_needs_no_background_mask():
    method = slrnet(pseudo_mask_rule="foreground", cutoff_top=1.0, cutoff_low=1.0)
    # No foreground class is above its own maximum: everything is background.
    images, label = pseudo_mask(method, batch_for())
    assert (label[images.valid.numpy() > 0] == 0).all()


# Losses ------------------------------------------------------------------------------------------


def test_pseudo_masks_are_learned_from_after_some_steps():
    method = slrnet(**{**EASY, "pretrain_steps": 5})
    batch = batch_for()
    assert losses(method, batch, step=4)["segmentation"] == 0.0
    assert losses(method, batch, step=5)["segmentation"] > 0.0


def test_masks_count_from_the_first_step_on():
    regime = {"supervision": "pixel_and_image_labels", "require_all_classes": False}
    found = losses(slrnet(pretrain_steps=5, **regime), batch_for(**regime))
    assert found["labelled_segmentation"] > 0.0 and found["segmentation"] == 0.0


def test_a_batch_without_masks_has_finite_losses():
    regime = {"supervision": "pixel_labels", "sampling": "published", "pretrain_steps": 0}
    batch = batch_for(**regime)
    mixed = batch["mixed"]
    mixed["has_label"] = tf.zeros_like(mixed["has_label"])
    mixed["label"] = tf.fill(tf.shape(mixed["label"]), SPEC.ignore_label)
    found = losses(slrnet(**regime), batch)
    assert found["labelled_segmentation"] == 0.0
    assert all(np.isfinite(value) for value in found.values())


def test_replicas_without_masks(two_replicas):
    """--sampling=published draws images as they come, so a replica may have none with a mask."""
    method = slrnet(supervision="pixel_labels", sampling="published")
    values = np.array([3.0, 5.0, 7.0, 11.0], np.float32)
    # Of the global batch; each replica's alone, 0 where it has no mask; gradients of the former.
    cases = {
        (True, False, False, False): (3.0, (3.0 + 0.0) / 2, [1.0, 0, 0, 0]),
        (True, True, True, False): (5.0, (4.0 + 7.0) / 2, [1 / 3, 1 / 3, 1 / 3, 0]),
        (False, False, False, False): (0.0, 0.0, [0, 0, 0, 0]),
    }

    def of_both(x):
        def replica(x):
            with tf.GradientTape() as tape:
                tape.watch(x[0])
                mean = method.labelled_mean(*x)
            return mean, tape.gradient(mean, x[0])

        return two_replicas.run(replica, args=(x,))

    for over_replicas in (True, False):
        method.over_replicas = over_replicas
        step = tf.function(of_both)
        for has_label, (whole, apart, gradient) in cases.items():
            parts = [(values[i : i + 2], np.array(has_label[i : i + 2])) for i in (0, 2)]
            means, gradients = step(
                two_replicas.experimental_distribute_values_from_function(
                    lambda context, parts=parts: parts[context.replica_id_in_sync_group]
                )
            )
            means = [float(x) for x in two_replicas.experimental_local_results(means)]
            assert np.mean(means) == pytest.approx(whole if over_replicas else apart)
            gradients = np.concatenate(two_replicas.experimental_local_results(gradients)) / 2
            assert np.isfinite(gradients).all()
            if over_replicas:
                np.testing.assert_allclose(gradients, gradient, rtol=1e-6)


@pytest.mark.parametrize(
    "settings, changed",
    [
        ({"loss_coefficients": (2.0, 4.0, 4.0, 1.0)}, {"classification"}),
        ({"loss_coefficients": (1.0, 8.0, 4.0, 1.0)}, {"mask_consistency"}),
        ({"loss_coefficients": (1.0, 4.0, 8.0, 1.0)}, {"code_consistency"}),
        ({"loss_coefficients": (1.0, 4.0, 4.0, 2.0)}, {"segmentation"}),
        ({"positive_weights": (10.0,)}, {"classification"}),
        ({"positive_weights": (1.0, 2.0, 10.0)}, {"classification"}),
        ({"auxiliary_class_weight": 1.0}, {"classification"}),
        ({"pamr_iterations": 0}, {"segmentation"}),
        ({"cutoff_top": 1.0}, {"segmentation"}),
        ({"background_factor": 1.0}, {"segmentation"}),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_what_a_setting_changes(settings, changed):
    batch = batch_for()
    before, after = (losses(slrnet(**{**EASY, **more}), batch) for more in ({}, settings))
    assert {name for name in before if before[name] != after[name]} == changed


def test_an_image_may_need_all_its_classes():
    method, batch = slrnet(**CLEAR), batch_for()
    images = method._images(batch)
    output = decided_output(images)
    label = method.pseudo_mask(images, output)
    free = method.segmentation_losses(images, output, label).numpy()
    strict = slrnet(**{**CLEAR, "require_all_classes": True})
    checked = strict.segmentation_losses(images, output, label).numpy()
    complete = [
        len(set(np.unique(one)) - {SPEC.ignore_label}) == 1 + int(np.sum(named))
        for one, named in zip(label, images.image_label)
    ]
    assert any(complete) and not all(complete)
    np.testing.assert_array_equal(checked, np.where(complete, free, 0.0))


def test_the_second_view_may_be_mirrored():
    batch = batch_for()
    plain = losses(slrnet(**EASY), batch)
    mirrored = losses(slrnet(**EASY, second_view_flip=True), batch)
    assert plain["mask_consistency"] != mirrored["mask_consistency"]


def test_monitors_tell_how_good_pseudo_masks_are():
    monitors = Monitors()
    losses(slrnet(**EASY), batch_for(), monitors=monitors)
    figures = summarise(monitors.sums)[0]
    assert 0 < figures["labelled_pixels"] <= 1
    assert {"pseudo_mask_miou", "pseudo_mask_accuracy"} <= set(figures)


@pytest.mark.parametrize("supervision", ["image_labels", "pixel_and_image_labels", "pixel_labels"])
def test_panels_show_images_without_masks(supervision):
    regime = {"cutoff_low": 0.0, "supervision": supervision}
    batch = batch_for(**regime)
    panels = slrnet(**regime).panels(batch)
    assert list(panels) == ["image", "prediction", "pseudo_mask", "truth"]
    np.testing.assert_array_equal(panels["image"], batch["weak"]["image"])
    np.testing.assert_array_equal(panels["truth"], batch["weak"]["hidden_label"])


def test_new_layers_without_normalisation_are_told(capsys):
    method = slrnet(model={"fine_tune_batch_norm": False})
    names = set(by_name(method.model.variables))
    method.check_initial_weights(names)
    assert "--fine_tune_batch_norm=false" in capsys.readouterr().out
    # Nothing where they were trained before, or follow the data.
    method.check_initial_weights({name for name in names if "logits" in name})
    slrnet().check_initial_weights(names)
    assert capsys.readouterr().out == ""


# The optimiser -----------------------------------------------------------------------------------


def test_parameter_groups_are_the_published_ones():
    groups = {group.name: group for group in slrnet(train={"weight_decay": 5e-4}).param_groups()}
    # The toy backbone's only trained parameters are its kernels.
    assert set(groups) == {"backbone_weights", "new_weights", "new_biases"}
    assert [groups[name].lr_multiplier for name in sorted(groups)] == [1.0, 20.0, 10.0]
    assert [groups[name].weight_decay for name in sorted(groups)] == [5e-4, 0.0, 5e-4]
    assert all(group.nesterov for group in groups.values())
    leaves = {
        name: {variable_name(v).rsplit("/", 1)[-1] for v in group.variables}
        for name, group in groups.items()
    }
    assert leaves["new_biases"] == {"biases", "beta"}
    assert leaves["new_weights"] == {"weights", "depthwise_weights", "gamma"}


def test_the_published_layers_of_the_backbone_are_frozen():
    method = slrnet(model={"model_variant": "wide_resnet38", "output_stride": 8})
    backbone = method.model.backbone
    trained = {variable_name(v) for v in backbone.trainable_variables}
    assert trained and all(name.endswith("weights") for name in trained)
    first = {name.split("/")[1] for name in trained}
    assert "b3" in first and not first & {"conv1a", "b2", "b2_1", "b2_2"}
    assert any(isinstance(layer, BatchNorm) for layer in backbone.submodules)


# Wrong settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"pretrain_steps": 30000}, "--pretrain_steps"),
        ({"sampling": "published"}, "--supervision=image_labels"),
        ({"labelled_batch_size": 2}, "--labelled_batch_size"),
        ({"clutter_penalty": 2.0}, "--image_sampling=uniform"),
        ({"background_factor": 0.5, "pseudo_mask_rule": "foreground"}, "--background_factor"),
        ({"require_all_classes": False, "supervision": "pixel_labels"}, "--require_all_classes"),
        ({"loss_coefficients": (1.0, 4.0)}, "--loss_coefficients"),
        ({"pamr_dilations": (1, 0)}, "--pamr_dilations"),
        ({"pamr_dilations": ()}, "--pamr_dilations"),
        ({"cutoff_top": 0.1}, "--cutoff_low"),
        ({"positive_weights": (1.0, 2.0)}, "--positive_weights"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else x,
)
def test_wrong_settings(settings, word):
    with pytest.raises(UserError, match=word):
        slrnet(**settings)


@pytest.mark.parametrize(
    "train",
    [
        {"label_weights": (1.0,)},
        {"top_k_percent_pixels": 0.5},
        {"parameter_groups": "plain"},
        {"last_layer_gradient_multiplier": 10.0},
    ],
    ids=str,
)
def test_flags_of_other_methods_are_refused(train):
    with pytest.raises(UserError, match=next(iter(train))):
        slrnet(train=train)


def test_published_sampling_does_not_go_with_accumulation():
    with pytest.raises(UserError, match="--gradient_accumulation_steps"):
        slrnet(
            supervision="pixel_labels",
            sampling="published",
            train={"gradient_accumulation_steps": 2},
        )


def test_views_parts_and_heads_draw_their_own_dropout():
    model = slrnet().model
    seeds = [tf.constant([7, part]) for part in (0, 1)]
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, [1, 33, 33, 3]), tf.float32)
    drawn = [
        model.features(image, training=True, dropout_seed=fold_seed(seed, number)).deep
        for seed in seeds
        for number in (0, 1)
    ]
    for i, first in enumerate(drawn):
        assert all(np.any(first != second) for second in drawn[i + 1 :])


def test_the_regime_is_written_out():
    config = SLRNetConfig(supervision="pixel_labels", sampling="published")
    assert (config.cutoff_top, config.background_factor) == (0.8, 0.9)
    assert config.loss_coefficients == (1.0, 4.0, 4.0, 1.0) and config.labelled_oversampling == 7
    assert SLRNetConfig(cutoff_top=0.5).cutoff_top == 0.5


def test_a_background_class_is_needed():
    spec = DatasetSpec("streets", ("road", "car", "sky"), has_background=False)
    with pytest.raises(UserError, match="background"):
        slrnet(spec=spec)


def test_image_labels_come_from_the_records():
    data = dataclasses.replace(DataConfig(dataset_dir="a"), image_label_source="crop")
    with pytest.raises(UserError, match="image_label_source"):
        SLRNet.streams(data, TrainConfig(), SLRNetConfig())


@pytest.mark.parametrize("name", ["pseudoseg", "supervised", "learning_pseudo_labels"])
def test_other_methods_refuse_the_head(name):
    with pytest.raises(UserError, match="--head"):
        make_method(name, model={"head": "low_rank"})
