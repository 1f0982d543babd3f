"""Runs with seen and unseen classes: calibration, modes of evaluation, swept biases, pictures."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.extras import needs_crf
from tests.small_split import (
    CROP,
    SPEC,
    ToyModel,
    make_images,
    numpy_confusion,
    numpy_logits,
    numpy_prediction,
    write_split,
)
from tfseg import metrics
from tfseg.data import pixels
from tfseg.data.augment import short_side_crop
from tfseg.data.class_splits import ClassSplit
from tfseg.errors import UserError
from tfseg.inference.decisions import Decision
from tfseg.inference.draw import draw
from tfseg.inference.evaluate import Evaluator
from tfseg.inference.merge import Views
from tfseg.inference.predictor import Predictor
from tfseg.inference.report import describe
from tfseg.inference.zero_label import MODES, evaluated_label, swept_values
from tfseg.ops.calibration import Calibration, calibrated
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import EvalConfig, VisConfig

# Classes: background, cat, dog, cow.
SEEN_BACKGROUND = ClassSplit("toy", seen=(0, 1), unseen=(2, 3), background=0)
NO_BACKGROUND = ClassSplit("toy", seen=(1, 2), unseen=(3,))
# Cow is unseen in truth; dog stands in for it.
HOLD_OUT = ClassSplit("toy", seen=(0, 1, 2), unseen=(3,), validation=(2,), background=0)


def with_split(split):
    return dataclasses.replace(SPEC, seen_unseen=split)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("records"))
    images, labels = make_images()
    write_split(folder, images, labels)
    return folder, images, labels


def evaluator_of(records, tmp_path, split, strategy=None, unseen_masks=None, **changes):
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = ToyModel()
    config = EvalConfig(eval_logdir=str(tmp_path / "eval"), eval_crop_size=CROP, **changes)
    return Evaluator(
        model,
        strategy,
        with_split(split),
        DataConfig(dataset_dir=records[0]),
        config,
        unseen_masks=unseen_masks,
    )


def numpy_probs(image, classes):
    logits = numpy_logits(ToyModel(), image)
    probs = np.zeros_like(logits)
    probs[..., classes] = np.exp(logits[..., classes])
    return probs / probs.sum(-1, keepdims=True)


def numpy_calibrated(image, split, bias, space):
    """Labels after a bias, one class after the other."""
    probs = numpy_probs(image, list(split.visible))
    scores = np.full_like(probs, -np.inf)
    for c in split.visible:
        scores[..., c] = probs[..., c] if space == "prob" else np.log(probs[..., c])
        scores[..., c] -= bias * (c in split.seen)
    return scores.argmax(-1)


def measured(label, classes, ignored=255):
    return np.where(np.isin(label, classes), label, ignored)


# Calibration ------------------------------------------------------------------------------------


def test_a_bias_by_hand():
    probs = tf.constant([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]])
    in_probs = calibrated(probs, Calibration((0, 1), 0.4))
    np.testing.assert_allclose(in_probs, [[0.1, -0.1, 0.2], [-0.3, 0.5, 0.0]], atol=1e-7)
    in_logits = calibrated(probs, Calibration((0, 1), np.log(4), "logit"))
    np.testing.assert_allclose(in_logits, [[0.125, 0.075, 0.2], [0.025, 0.225, 0.0]], rtol=1e-6)


def test_a_bias_of_logits_is_the_softmax_of_lowered_logits_but_for_a_factor():
    logits = tf.random.stateless_normal([50, 4], [1, 2])
    lowered = tf.nn.softmax(logits - 0.7 * tf.constant([1.0, 0, 1, 0]))
    found = calibrated(tf.nn.softmax(logits), Calibration((0, 2), 0.7, "logit"))
    np.testing.assert_allclose(found / tf.reduce_sum(found, -1, keepdims=True), lowered, rtol=1e-5)


def test_an_unknown_space_is_refused():
    with pytest.raises(UserError, match="prob, logit"):
        Calibration((0,), 0.1, "score")


IMAGE = np.stack(make_images([(33, 41)] * 2)[0]).astype(np.float32)
VIEWS = (
    Views(),
    Views(scales=(0.5, 1.25), flip=True),
    Views(scales=(1.0, 1.5), merge_scales="logits", scale_kernel="cubic"),
)


@pytest.mark.parametrize("views", VIEWS, ids=("one", "probs", "logits"))
@pytest.mark.parametrize("space, bias", [("prob", 0.3), ("logit", 1.2)])
def test_labels_are_those_of_calibrated_probabilities(views, space, bias):
    calibration, present = Calibration((1, 2), bias, space), tf.constant([[0.0, 1, 1, 1]] * 2)
    decisions = Decision(), Decision(calibration=calibration)
    found = Predictor(ToyModel(), views, wanted=["labels", "probs"], decision=decisions)(
        IMAGE, present
    )
    scores = calibrated(found.probs[0], calibration).numpy()[..., 1:]
    np.testing.assert_array_equal(found.labels[1], 1 + scores.argmax(-1))
    assert (found.labels[1] != found.labels[0]).numpy().any()


def test_a_class_that_may_not_be_there_does_not_win_by_the_bias():
    # With all probability in the seen classes minus 1, a zero would win.
    predictor = Predictor(ToyModel(), decision=Decision(calibration=Calibration((1, 2, 3), 1.0)))
    labels = predictor(IMAGE, tf.constant([[0.0, 1, 1, 1]] * 2)).labels
    assert set(np.unique(labels)) <= {1, 2, 3}


def test_coarse_labels_are_calibrated_too():
    model, calibration = ToyModel(), Calibration((0, 1), 0.4)
    predictor = Predictor(
        model,
        decision=Decision(calibration=calibration),
        prediction_with_upsampled_logits=False,
    )
    probs = tf.nn.softmax(model(IMAGE)["logits"])
    expected = calibrated(probs, calibration).numpy().argmax(-1)
    np.testing.assert_array_equal(predictor(IMAGE).labels[:, ::4, ::4], expected)


@pytest.mark.parametrize("views", VIEWS, ids=("one", "probs", "logits"))
def test_several_decisions_cost_one_look(views):
    calibration = Calibration((0, 1), 0.3)
    decisions = Decision(), Decision(classes=(2, 3)), Decision(calibration=calibration)
    model, present = ToyModel(), tf.ones([1, 4])
    found = Predictor(model, views, decision=decisions)(IMAGE[:1], present).labels
    looks = len(model.seen_scales)
    alone = (
        Predictor(model, views)(IMAGE[:1], present),
        Predictor(model, views)(IMAGE[:1], tf.constant([[0.0, 0, 1, 1]])),
        Predictor(model, views, decision=decisions[2])(IMAGE[:1], present),
    )
    assert len(model.seen_scales) == 4 * looks
    for one, other in zip(found, alone):
        np.testing.assert_array_equal(one, other.labels)


def test_calibrated_probabilities_of_logits_sum_to_one():
    decision = Decision(calibration=Calibration((0, 1), 0.8, "logit"))
    probs = Predictor(ToyModel(), wanted=["probs"], decision=decision)(IMAGE).probs
    np.testing.assert_allclose(tf.reduce_sum(probs, -1), 1.0, rtol=1e-5)


# Modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [SEEN_BACKGROUND, NO_BACKGROUND], ids=("seen", "none"))
@pytest.mark.parametrize("replicas, batch_size", [(1, 1), (2, 4)])
def test_each_mode_agrees_with_numpy(records, tmp_path, two_replicas, split, replicas, batch_size):
    strategy = two_replicas if replicas == 2 else None
    evaluator = evaluator_of(records, tmp_path, split, strategy, eval_batch_size=batch_size)
    matrices, _ = evaluator.confusion_matrices()
    _, images, labels = records
    of_all = [numpy_prediction(ToyModel(), x, split.visible) for x in images]
    of_unseen = [numpy_prediction(ToyModel(), x, split.unseen) for x in images]
    visible = [measured(label, split.visible) for label in labels]
    unseen = [measured(label, split.unseen) for label in labels]
    expected = [
        numpy_confusion(of_all, visible),
        numpy_confusion(of_unseen, unseen),
        numpy_confusion(of_unseen, visible),
    ]
    np.testing.assert_array_equal(matrices, expected)
    np.testing.assert_array_equal(evaluator.confusion_matrix()[0], expected[0])


@pytest.mark.parametrize("space, bias", [("prob", 0.6), ("logit", 2.0)])
def test_a_bias_weakens_seen_classes(records, tmp_path, space, bias):
    split = NO_BACKGROUND
    evaluator = evaluator_of(records, tmp_path, split, seen_bias=bias, seen_bias_space=space)
    _, images, labels = records
    found, _ = evaluator.confusion_matrices()
    predictions = [numpy_calibrated(x, split, bias, space) for x in images]
    visible = [measured(label, split.visible) for label in labels]
    np.testing.assert_array_equal(found[0], numpy_confusion(predictions, visible))
    plain, _ = evaluator_of(records, tmp_path, split).confusion_matrices()
    assert found[0, :, 3].sum() > plain[0, :, 3].sum()
    # Where seen classes may not be answered, there is nothing to weaken.
    np.testing.assert_array_equal(found[1:], plain[1:])


def test_metrics_json_has_all_modes(records, tmp_path):
    split = NO_BACKGROUND
    unseen_masks = {"oracle_layout": True, "drop_images": None}
    evaluator = evaluator_of(records, tmp_path, split, unseen_masks=unseen_masks, seen_bias=0.2)
    matrices, _ = evaluator.confusion_matrices()
    result = evaluator.evaluate(step=3, prefix="x")
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text()) == result
    found = result["zero_label"]
    assert (found["split"], found["background"], found["held_out"]) == ("toy", "takes no part", [])
    assert found["seen"] == ["cat", "dog"] and found["unseen"] == ["cow"]
    assert found["oracle_layout"] is True and found["seen_bias"] == 0.2
    groups = {"seen": split.seen, "unseen": split.unseen}
    for mode, matrix in zip(MODES, matrices):
        scores = metrics.group_scores(matrix, **groups)
        for quantity in metrics.QUANTITIES:
            if mode == "zero_label":
                assert found[mode][quantity] == {"unseen": scores[quantity]["unseen"]}
            else:
                assert found[mode][quantity] == pytest.approx(scores[quantity])
    assert found["vanilla"]["overall_accuracy"]["seen"] == 0
    # The top of the file is of the generalised mode, without the background.
    assert result["confusion_matrix"] == matrices[0].tolist()
    assert result["miou"] == pytest.approx(found["generalised"]["mean_iou"]["all"])
    assert result["class_iou"]["background"] is None
    assert result["class_iou"] == found["generalised"]["class_iou"]
    text = describe(result)
    for word in ("generalised", "zero_label", "vanilla", "harmonic", "WARNING", "--oracle_layout"):
        assert word in text
    assert "drop_images" not in text


def test_classes_of_no_part_have_no_value_where_absent_ones_are_zero(records, tmp_path):
    result = evaluator_of(records, tmp_path, NO_BACKGROUND, absent_classes="zero").evaluate(
        step=3, prefix="x"
    )
    values = result["class_iou"]
    assert values["background"] is None
    assert result["miou"] == pytest.approx((values["cat"] + values["dog"] + values["cow"]) / 3)


def test_modes_can_be_chosen_and_the_top_of_the_file_stays(records, tmp_path):
    evaluator = evaluator_of(records, tmp_path, SEEN_BACKGROUND, modes=("vanilla",))
    result = evaluator.evaluate(step=3, prefix="x")
    assert "zero_label" not in result["zero_label"] and "vanilla" in result["zero_label"]
    full = evaluator_of(records, tmp_path, SEEN_BACKGROUND).evaluate(step=3, prefix="x")
    assert result["miou"] == full["miou"]
    assert result["zero_label"]["vanilla"] == full["zero_label"]["vanilla"]


def test_without_a_split_nothing_is_said_of_modes(records, tmp_path):
    result = evaluator_of(records, tmp_path, None).evaluate(step=3, prefix="x")
    assert "zero_label" not in result and "generalised" not in describe(result)


def test_a_label_beyond_the_classes_is_named_in_spite_of_a_split(tmp_path):
    images, labels = make_images()
    labels[5][3, 2] = 200
    write_split(str(tmp_path), images, labels)
    with pytest.raises(UserError, match="200"):
        evaluator_of((str(tmp_path),), tmp_path, SEEN_BACKGROUND).evaluate(step=1, prefix="x")
    np.testing.assert_array_equal(
        evaluated_label(np.array([0, 3, 200, 255]), with_split(NO_BACKGROUND)),
        [255, 3, 200, 255],
    )


# Sweep ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["prob", "logit"])
def test_a_sweep_scores_each_bias_as_an_evaluation_of_its_own(records, tmp_path, space):
    split = HOLD_OUT.without_validation()
    evaluator = evaluator_of(
        records, tmp_path, split, seen_bias_sweep="0:1:0.25", seen_bias_space=space
    )
    found = evaluator.evaluate(step=3, prefix="x")["zero_label"]
    assert [x["seen_bias"] for x in found["seen_bias_sweep"]] == [0, 0.25, 0.5, 0.75, 1]
    for swept in found["seen_bias_sweep"]:
        alone = evaluator_of(
            records, tmp_path, split, seen_bias=swept["seen_bias"], seen_bias_space=space
        ).evaluate(step=3, prefix="x")["zero_label"]["generalised"]
        for quantity in metrics.QUANTITIES:
            assert swept[quantity] == alone[quantity]
    harmonic = {x["seen_bias"]: x["mean_iou"]["harmonic"] for x in found["seen_bias_sweep"]}
    assert harmonic[found["best_seen_bias"]] == max(harmonic.values())
    assert len(set(harmonic.values())) > 1


def test_a_sweep_never_learns_where_the_truly_unseen_are(records, tmp_path):
    """Cow pixels are background in the masks of a sweep: the same scores as if they were."""
    split = HOLD_OUT.without_validation()
    folder, images, labels = records
    hidden = [np.where(label == 3, 0, label).astype(np.uint8) for label in labels]
    write_split(str(tmp_path / "hidden"), images, hidden)
    found = [
        evaluator_of((x,), tmp_path, split, seen_bias_sweep="0:1:0.5").evaluate(step=3, prefix="x")
        for x in (folder, str(tmp_path / "hidden"))
    ]
    assert found[0]["zero_label"] == found[1]["zero_label"]
    assert found[0]["zero_label"]["held_out"] == ["cow"]
    assert not any(np.array(found[0]["confusion_matrix"])[3])
    assert not any(np.array(found[0]["confusion_matrix"])[:, 3])


@pytest.mark.parametrize(
    "text, values",
    [("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]), ("0.1:0.3:0.1", [0.1, 0.2, 0.3]), ("2:2:1", [2])],
)
def test_ranges_hold_their_last_number(text, values):
    assert swept_values(text) == values


@pytest.mark.parametrize(
    "text", ["", "0:1", "0:1:0", "1:0:0.1", "0:1:-1", "-1:1:1", "a:b:c", "0:1:1e-9", "0:inf:1"]
)
def test_other_ranges_are_refused(text):
    with pytest.raises(UserError, match="first:last:step"):
        swept_values(text)


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split, changes, words",
    [
        (None, {"seen_bias": 0.1}, ("--seen_bias", "needs a class split")),
        (None, {"modes": ("vanilla",)}, ("--modes", "--class_split")),
        (None, {"seen_bias_sweep": "0:1:1"}, ("--seen_bias_sweep", "--class_split")),
        (NO_BACKGROUND, {"modes": ("zero",)}, ("--modes", "zero_label")),
        (NO_BACKGROUND, {"seen_bias": 1.5}, ("--seen_bias", "0 to 1")),
        (NO_BACKGROUND, {"weakly": True}, ("--weakly",)),
        (NO_BACKGROUND, {"use_image_labels": True}, ("--use_image_labels",)),
        (NO_BACKGROUND, {"merge_scales": "masks"}, ("--merge_scales=masks",)),
        (NO_BACKGROUND, {"seen_bias_sweep": "0:1:1"}, ("no validation classes",)),
        (HOLD_OUT, {"seen_bias_sweep": "0:1:1"}, ("trained on 1 validation classes",)),
        (NO_BACKGROUND, {"dense_crf": True, "modes": ("vanilla",)}, ("--dense_crf",)),
        (NO_BACKGROUND, {"dense_crf": True, "seen_bias": 0.5}, ("--seen_bias_space=logit",)),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant(records, tmp_path, split, changes, words):
    with pytest.raises(UserError) as error:
        evaluator_of(records, tmp_path, split, **changes)
    for word in words:
        assert word in str(error.value)


# Resized masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, batch_size", [("warp", 4), ("short_side", 2)])
def test_images_and_masks_can_be_resized_as_published(records, tmp_path, kind, batch_size):
    evaluator = evaluator_of(
        records,
        tmp_path,
        SEEN_BACKGROUND,
        eval_resize=kind,
        eval_resize_side=21,
        eval_batch_size=batch_size,
    )
    _, images, labels = records
    predictions, resized = [], []
    for image, label in zip(images, labels):
        size = (21, 21) if kind == "warp" else short_side_crop.scaled_size(label.shape, 21)
        predictions.append(numpy_prediction(ToyModel(), pixels.resize_image(image, size)))
        resized.append(pixels.resize_label(label, size))
    found = evaluator.confusion_matrix()[0]
    np.testing.assert_array_equal(found, numpy_confusion(predictions, resized))
    result = evaluator.evaluate(step=3, prefix="x")
    assert result["prediction"]["eval_resize"] == [kind, 21]


def test_images_are_not_resized_in_two_ways(records, tmp_path):
    with pytest.raises(UserError, match="Two settings resize"):
        evaluator_of(records, tmp_path, None, eval_resize="warp", max_side=50)


# Dense CRF and pictures -------------------------------------------------------------------------


@needs_crf
def test_the_dense_crf_refines_the_generalised_mode(records, tmp_path):
    options = {"dense_crf": True, "crf_workers": 1, "eval_batch_size": 3}
    # Weak enough to leave the labels as they are.
    weak = {"crf_gaussian_compat": 0.0, "crf_bilateral_compat": 0.0}
    bias = {"seen_bias": 1.0, "seen_bias_space": "logit"}
    refined = evaluator_of(records, tmp_path, NO_BACKGROUND, **options, **weak, **bias)
    plain = evaluator_of(records, tmp_path, NO_BACKGROUND, **bias)
    matrices, _ = refined.confusion_matrices()
    assert matrices.shape == (1, 4, 4)
    np.testing.assert_array_equal(matrices[0], plain.confusion_matrix()[0])


def test_pictures_show_seen_and_unseen_classes_alone_and_the_bias(records, tmp_path):
    config = VisConfig(
        vis_logdir=str(tmp_path / "vis"),
        vis_crop_size=CROP,
        seen_bias=0.6,
        also_save_raw_predictions=True,
    )
    spec = with_split(NO_BACKGROUND)
    data_config = DataConfig(dataset_dir=records[0])
    result = draw(ToyModel(), spec, data_config, config, prefix="x", step=3)
    evaluator = evaluator_of(records, tmp_path, NO_BACKGROUND, seen_bias=0.6)
    assert result["miou"] == evaluator.evaluate(step=3, prefix="x")["miou"]
    for i, image in enumerate(records[1]):
        raw = tmp_path / "vis" / "raw_segmentation_results" / f"image_{i}.png"
        expected = numpy_calibrated(image, NO_BACKGROUND, 0.6, "prob")
        np.testing.assert_array_equal(np.asarray(Image.open(raw)), expected)
    page = (tmp_path / "vis" / "index.html").read_text()
    assert "seen bias" in page and "unseen classes" in page
