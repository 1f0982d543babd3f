"""Evaluation: every image once, for any batch size and replica count; waiting for checkpoints."""

import dataclasses
import glob
import json
import os
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.extras import needs_crf
from tests.small_split import (
    CROP,
    SIZES,
    SPEC,
    StridedToyModel,
    ToyModel,
    make_images,
    numpy_confusion,
    numpy_logits,
    numpy_prediction,
    write_split,
)
from tests.toy import ToyBackbone
from tfseg.data.image_input import padded_size
from tfseg.data.split_index import load_index
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.inference import image_progress
from tfseg.inference.classes import classes_present
from tfseg.inference.evaluate import Evaluator
from tfseg.inference.image_progress import ImageProgress
from tfseg.inference.report import describe
from tfseg.inference.scores import summarize
from tfseg.inference.settings import check, crf_settings
from tfseg.inference.watch import evaluate_repeatedly, exiting_on_sigterm, watch_checkpoints
from tfseg.models import BACKBONES, build_model
from tfseg.ops import dense_crf
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.data import DataConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.prediction import EvalConfig
from tfseg.weights.checkpoint import find, writing
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.checkpoint.store import Store


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A folder of records, its images and its masks."""
    folder = str(tmp_path_factory.mktemp("records"))
    images, labels = make_images()
    write_split(folder, images, labels)
    return folder, images, labels


def config_of(folder, tmp_path, **changes):
    return DataConfig(dataset_dir=folder), EvalConfig(
        eval_logdir=str(tmp_path / "eval"),
        checkpoint_dir=str(tmp_path / "train"),
        **{"eval_crop_size": CROP, **changes},
    )


def evaluator_of(folder, tmp_path, strategy=None, model=None, **changes):
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    if model is None:
        with strategy.scope():
            model = ToyModel()
    data_config, config = config_of(folder, tmp_path, **changes)
    return Evaluator(model, strategy, SPEC, data_config, config)


def numpy_matrix(split):
    _, images, labels = split
    model = ToyModel()
    return numpy_confusion([numpy_prediction(model, x) for x in images], labels)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_one_replica_agrees_with_numpy(split, tmp_path, batch_size):
    evaluator = evaluator_of(split[0], tmp_path, eval_batch_size=batch_size)
    matrix, _ = evaluator.confusion_matrix()
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, numpy_matrix(split))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_each_image_padded_to_its_own_size_agrees_with_numpy(split, tmp_path, batch_size):
    settings = {"eval_crop_size": None, "eval_batch_size": batch_size}
    evaluator = evaluator_of(split[0], tmp_path, model=StridedToyModel(), **settings)
    np.testing.assert_array_equal(evaluator.confusion_matrix()[0], numpy_matrix(split))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_two_replicas_agree_with_numpy(split, tmp_path, two_replicas, batch_size):
    evaluator = evaluator_of(split[0], tmp_path, two_replicas, eval_batch_size=batch_size)
    matrix, _ = evaluator.confusion_matrix()
    np.testing.assert_array_equal(matrix, numpy_matrix(split))


# A whole network around the toy backbone by day, around the default one by night.
TOY = {"model_variant": "toy", "aspp_convs_filters": 16, "decoder_filters": 16}
REAL = pytest.mark.parametrize(
    "network", [TOY, pytest.param({}, marks=pytest.mark.nightly)], ids=["toy", "default"]
)


@REAL
def test_a_real_network_counts_the_same_for_any_batch_and_replicas(
    split, tmp_path, two_replicas, network, monkeypatch
):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)
    matrices = []
    for strategy, batch_size in ((None, 1), (two_replicas, 8)):
        with (strategy or tf.distribute.get_strategy()).scope():
            config = ModelConfig(**network)
            model = build_model(config, num_classes=4, num_image_classes=3, crop_size=CROP)
        evaluator = evaluator_of(split[0], tmp_path, strategy, model, eval_batch_size=batch_size)
        matrices.append(evaluator.confusion_matrix()[0])
    pixels = sum(int((label != 255).sum()) for label in split[2])
    assert matrices[0].sum() == pixels
    np.testing.assert_array_equal(matrices[1], matrices[0])


def test_metrics_are_written(split, tmp_path):
    evaluator = evaluator_of(split[0], tmp_path, eval_batch_size=4)
    result = evaluator.evaluate(step=70, prefix="/run/model.ckpt-70")
    matrix = numpy_matrix(split)
    hit, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    content = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert content == result
    assert content["miou"] == pytest.approx(np.mean(hit / union))
    assert content["pixel_accuracy"] == pytest.approx(hit.sum() / matrix.sum())
    false_positives = (matrix.sum(0) - hit) / union
    assert list(content["class_false_positives"].values()) == pytest.approx(list(false_positives))
    false_negatives = (matrix.sum(1) - hit) / union
    assert list(content["class_false_negatives"].values()) == pytest.approx(list(false_negatives))
    assert list(content["class_iou"]) == ["background", "cat", "dog", "cow"]
    assert list(content["class_iou"].values()) == pytest.approx(list(hit / union))
    assert content["confusion_matrix"] == matrix.tolist()
    assert content["num_images"] == 9
    assert (content["step"], content["checkpoint"]) == (70, "/run/model.ckpt-70")
    assert not glob.glob(str(tmp_path / "eval" / ".*"))
    tags = scalars(tmp_path / "eval")
    assert tags["eval/miou_overall"] == (70, pytest.approx(content["miou"]))
    assert tags["eval/miou_class_3"] == (70, pytest.approx(content["class_iou"]["cow"]))
    assert tags["eval/iou/cow"] == tags["eval/miou_class_3"]
    assert "mIoU" in describe(result) and "every pixel" not in describe(result)


@pytest.mark.parametrize(
    "matrix, told",
    [([[9, 0], [3, 0]], True), ([[9, 0], [2, 1]], False), ([[0, 0], [0, 0]], False)],
)
def test_a_network_that_predicts_background_alone_is_told(matrix, told):
    result = summarize(
        np.array(matrix), DatasetSpec("t", ("background", "cat")), classes=np.arange(2)
    )
    result |= {"step": 1, "num_images": 1, "confusion_matrix": matrix}
    assert ("every pixel was predicted as 'background'" in describe(result)) == told


def events(folder):
    """Reads TensorBoard scalars: (step, tag, value), by step."""
    found = []
    for path in glob.glob(str(folder / "events.*")):
        for event in tf.compat.v1.train.summary_iterator(path):
            for value in event.summary.value:
                found.append((event.step, value.tag, float(tf.make_ndarray(value.tensor))))
    return sorted(found)


def scalars(folder):
    """Returns the last value of each scalar: {tag: (step, value)}."""
    return {tag: (step, value) for step, tag, value in events(folder)}


def test_a_class_without_true_pixels_is_null(tmp_path):
    images, labels = make_images(num_classes=2)
    write_split(str(tmp_path / "records"), images, labels)
    evaluator = evaluator_of(str(tmp_path / "records"), tmp_path)
    result = evaluator.evaluate(step=-1, prefix="x")
    assert result["class_iou"]["dog"] is None and result["class_iou"]["cow"] is None
    # Both were predicted, so both count as 0 in the mean.
    matrix = np.array(result["confusion_matrix"])
    assert matrix[:, 2].sum() and matrix[:, 3].sum()
    assert result["miou"] == pytest.approx(
        (result["class_iou"]["background"] + result["class_iou"]["cat"]) / 4
    )
    assert not {"eval/miou_class_2", "eval/iou/dog"} & set(scalars(tmp_path / "eval"))


def test_image_level_metrics_come_from_all_pairs(split, tmp_path):
    folder, images, labels = split
    model = ToyModel(with_classifier=True)
    evaluator = evaluator_of(folder, tmp_path, model=model, weakly=True, eval_batch_size=3)
    result = evaluator.evaluate(step=1, prefix="x")
    right = found = present = both = 0
    for image, label in zip(images, labels):
        size = [33 if n <= 33 else 65 if n <= 65 else 97 for n in image.shape[:2]]
        padded = np.full((*size, 3), 127.5, np.float32)
        padded[: image.shape[0], : image.shape[1]] = image
        scores = model(padded[None])["image_logits"][0].numpy()
        for class_id in (1, 2, 3):
            is_there, says_so = class_id in label, scores[class_id - 1] >= 0
            right += is_there == says_so
            found, present, both = found + says_so, present + is_there, both + is_there * says_so
    assert result["cls_overall"] == right / (3 * len(images))
    assert result["cls_precision"] == both / found
    assert result["cls_recall"] == both / present
    assert scalars(tmp_path / "eval")["eval/cls_recall"][1] == pytest.approx(both / present)


def test_images_without_masks_are_named(tmp_path):
    images, labels = make_images()
    write_split(str(tmp_path), images, [None, *labels[1:4], None, *labels[5:]])
    with pytest.raises(UserError) as error:
        evaluator_of(str(tmp_path), tmp_path)
    assert "2 of 9" in str(error.value) and "image_0, image_4" in str(error.value)


def test_a_label_beyond_the_classes_names_the_image(tmp_path, capsys):
    images, labels = make_images()
    labels[5][3, 2] = 200
    write_split(str(tmp_path), images, labels)
    with pytest.raises(UserError) as error:
        evaluator_of(str(tmp_path), tmp_path, eval_batch_size=3).evaluate(step=1, prefix="x")
    assert "image_5" in str(error.value) and "200" in str(error.value)
    assert not os.path.exists(tmp_path / "eval" / "metrics.json")


@pytest.mark.parametrize("drop", [True, False])
def test_no_metrics_where_an_image_is_missing_or_counted_twice(split, tmp_path, drop):
    evaluator = evaluator_of(split[0], tmp_path)
    batches = list(evaluator._dataset)
    evaluator._dataset = batches[1:] if drop else batches + batches[:1]
    with pytest.raises(RuntimeError, match="1 of 9 images were not counted exactly once"):
        evaluator.evaluate(step=1, prefix="x")
    assert not os.path.exists(tmp_path / "eval" / "metrics.json")


def test_an_unknown_split_names_those_present(split, tmp_path):
    with pytest.raises(UserError, match="val"):
        evaluator_of(split[0], tmp_path, eval_split="test")


@pytest.mark.parametrize("scales", [(), (0.0,), (-1.0, 1.0), (float("nan"),), (1.0, 100.0)])
def test_scales_must_be_positive(split, tmp_path, scales):
    with pytest.raises(UserError, match="--eval_scales"):
        evaluator_of(split[0], tmp_path, eval_scales=scales)


def save(folder, model, step):
    os.makedirs(folder, exist_ok=True)
    return Store(str(folder), {"model": model}, {}).save(step)


def test_a_checkpoint_is_loaded_and_measured(split, tmp_path):
    prefix = save(tmp_path / "train", ToyModel(), 5)
    data_config, config = config_of(split[0], tmp_path)
    config = dataclasses.replace(config, checkpoint_dir=prefix)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    result = evaluate_repeatedly(ToyModel(seed=3), strategy, SPEC, data_config, config)
    assert result["confusion_matrix"] == numpy_matrix(split).tolist()
    assert (result["step"], result["checkpoint"]) == (5, prefix)


def test_each_new_checkpoint_is_evaluated_with_its_own_weights(split, tmp_path, monkeypatch):
    first, second = ToyModel(seed=1), ToyModel(seed=2)
    save(tmp_path / "train", first, 1)
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            save(tmp_path / "train", second, 2)

    real_watch = watch_checkpoints
    monkeypatch.setattr(
        "tfseg.inference.watch.watch_checkpoints",
        lambda *arguments: real_watch(*arguments, sleep=sleep),
    )
    data_config, config = config_of(
        split[0], tmp_path, max_number_of_evaluations=2, eval_interval_secs=7
    )
    result = evaluate_repeatedly(
        ToyModel(seed=3), tf.distribute.OneDeviceStrategy("/cpu:0"), SPEC, data_config, config
    )
    expected = numpy_confusion([numpy_prediction(second, x) for x in split[1]], split[2])
    assert result["confusion_matrix"] == expected.tolist()
    assert waited == [7, 7]
    steps = [step for step, tag, _ in events(tmp_path / "eval") if tag == "eval/miou_overall"]
    assert steps == [1, 2]


def test_a_prefix_is_evaluated_once(tmp_path):
    prefix = save(tmp_path, ToyModel(), 3)
    save(tmp_path, ToyModel(), 4)
    assert list(watch_checkpoints(prefix, 1, 0, sleep=pytest.fail)) == [prefix]


def test_waiting_is_announced_once(tmp_path, capsys):
    def sleep(seconds):
        sleep.calls += 1
        if sleep.calls == 3:
            save(tmp_path, ToyModel(), 9)

    sleep.calls = 0
    found = list(watch_checkpoints(str(tmp_path), 300, 1, sleep=sleep))
    assert found == [str(tmp_path / "model.ckpt-9")]
    output = capsys.readouterr().out
    assert output.count("waiting for a first checkpoint") == 1 and "300 s" in output


def test_a_damaged_newer_checkpoint_does_not_bring_back_the_old_one(tmp_path):
    save(tmp_path, ToyModel(), 1)

    def sleep(seconds):
        sleep.calls += 1
        if sleep.calls == 1:
            with open(save(tmp_path, ToyModel(), 2) + ".index", "ab") as file:
                file.write(b"x")
        elif sleep.calls == 3:
            save(tmp_path, ToyModel(), 3)

    sleep.calls = 0
    found = list(watch_checkpoints(str(tmp_path), 1, 2, sleep=sleep))
    assert [find.step_of(prefix) for prefix in found] == [1, 3]


def test_a_missing_directory_is_an_error_and_no_wait(tmp_path):
    with pytest.raises(UserError):
        next(watch_checkpoints(str(tmp_path / "none"), 1, 0, sleep=pytest.fail))


class StopWaiting(Exception):
    pass


def test_a_checkpoint_without_a_state_file_is_no_wait(tmp_path, capsys):
    prefix = str(tmp_path / "model")
    writing.export(prefix, {"model": by_name(ToyModel().variables)})
    os.remove(prefix + ".manifest.json")
    watch = watch_checkpoints(str(tmp_path), 1, 1, sleep=pytest.fail)
    assert list(watch) == [prefix]
    os.remove(prefix + ".index")

    def stop(seconds):
        raise StopWaiting

    with pytest.raises(StopWaiting):
        next(watch_checkpoints(str(tmp_path), 1, 1, sleep=stop))
    assert "model: index or data files are missing" in capsys.readouterr().out


def test_nobody_waits_for_checkpoints_among_photographs(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"photo")
    with pytest.raises(UserError, match="(?s)no checkpoint.*a.jpg.*--train_logdir"):
        next(watch_checkpoints(str(tmp_path), 1, 1, sleep=pytest.fail))


def test_sigterm_ends_the_wait(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, exiting_on_sigterm():
        next(
            watch_checkpoints(
                str(tmp_path), 1, 0, sleep=lambda _: os.kill(os.getpid(), signal.SIGTERM)
            )
        )
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_lines_tell_rate_and_time_left(capsys, monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(image_progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(image_progress.sys.stderr, "isatty", lambda: False, raising=False)
    with ImageProgress("evaluating val", 100) as progress:
        progress.add(10)  # after 20 s
    assert capsys.readouterr().out.splitlines() == [
        "evaluating val: 10/100 images, 0.5 images/s, 0:03:00 left",
        "evaluating val: 10 images in 40.0 s, 0.2 images/s",
    ]


def test_settings_that_cannot_be(split, tmp_path):
    with pytest.raises(UserError, match="--eval_batch_size"):
        evaluator_of(split[0], tmp_path, eval_batch_size=0)
    config = dataclasses.replace(config_of(split[0], tmp_path)[1], eval_interval_secs=-1)
    with pytest.raises(UserError, match="negative"):
        next(watch_checkpoints(str(tmp_path), config.eval_interval_secs, 0))


# Image-level labels, dense CRF, conventions -------------------------------------------------------

# Classes 1 to 3 by image; never those of the masks, which hold all.
ALLOWED = [(1,), (2, 3), (), (1, 3), (2,), (1, 2, 3), (3,), (2,), (1,)]
SETTINGS = {"crf_workers": 1, "crf_iterations": 2, "crf_bilateral_sxy": 5.0}


@pytest.fixture(scope="module")
def labelled_split(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("labelled"))
    images, labels = make_images()
    write_split(folder, images, labels, image_labels=ALLOWED)
    return folder, images, labels


def numpy_restricted_matrix(split):
    _, images, labels = split
    predictions = [
        numpy_prediction(ToyModel(), x, {0, *classes}) for x, classes in zip(images, ALLOWED)
    ]
    return numpy_confusion(predictions, labels)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("replicas", [1, 2])
def test_predictions_keep_to_the_image_level_labels(
    labelled_split, tmp_path, two_replicas, batch_size, replicas
):
    evaluator = evaluator_of(
        labelled_split[0],
        tmp_path,
        two_replicas if replicas == 2 else None,
        eval_batch_size=batch_size,
        use_image_labels=True,
    )
    matrix, _ = evaluator.confusion_matrix()
    np.testing.assert_array_equal(matrix, numpy_restricted_matrix(labelled_split))
    assert (matrix != numpy_matrix(labelled_split)).any()


@REAL
def test_a_real_network_keeps_to_them_bit_for_bit(
    labelled_split, tmp_path, two_replicas, network, monkeypatch
):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)
    matrices = []
    for strategy, batch_size in ((None, 1), (two_replicas, 8)):
        with (strategy or tf.distribute.get_strategy()).scope():
            config = ModelConfig(**network)
            model = build_model(config, num_classes=4, num_image_classes=3, crop_size=CROP)
        evaluator = evaluator_of(
            labelled_split[0],
            tmp_path,
            strategy,
            model,
            eval_batch_size=batch_size,
            use_image_labels=True,
            eval_scales=(0.75, 1.0),
            merge_scales="logits",
            scale_kernel="cubic",
            add_flipped_images=True,
        )
        matrices.append(evaluator.confusion_matrix()[0])
    np.testing.assert_array_equal(matrices[1], matrices[0])


def test_a_record_without_image_level_labels_is_named(tmp_path):
    images, labels = make_images()
    write_split(str(tmp_path), images, labels, image_labels=[*ALLOWED[:4], None, *ALLOWED[5:]])
    with pytest.raises(UserError) as error:
        evaluator_of(str(tmp_path), tmp_path, use_image_labels=True)
    text = str(error.value)
    for word in ("1 of 9", "image_4", "val-00000-of-00001.tfrecord", "record 4"):
        assert word in text
    assert "image/class/label" in text and "--use_image_labels" in text


def test_without_background_an_image_without_classes_is_named(tmp_path):
    spec = dataclasses.replace(SPEC, has_background=False)
    images, labels = make_images(SIZES[:2])
    write_split(str(tmp_path), images, labels, image_labels=[(0, 3), ()])
    index = load_index(str(tmp_path), "val", spec)
    arguments = {"dataset_dir": str(tmp_path), "split": "val"}
    with pytest.raises(UserError, match="image_1"):
        classes_present(index, spec, **arguments)
    index.image_labels[1, 2] = 1
    present = classes_present(index, spec, **arguments)
    np.testing.assert_array_equal(present, [[1, 0, 0, 1], [0, 0, 1, 0]])


def numpy_refined_matrix(split, *, classes=None):
    """The CRF on NumPy's probabilities of every image, at its own size."""
    _, images, labels = split
    settings = {**dense_crf.LEARNING_PSEUDO_LABELS, "iterations": 2, "bilateral_sxy": 5.0}
    predictions = []
    for i, image in enumerate(images):
        logits = numpy_logits(ToyModel(), image)
        present = np.ones(4)
        if classes is not None:
            present = np.isin(np.arange(4), [0, *classes[i]])
        exp = np.exp(logits - logits.max(-1, keepdims=True)) * present
        probs = exp / exp.sum(-1, keepdims=True)
        predictions.append(dense_crf.refined_labels((i, probs, image, present), **settings)[1])
    return numpy_confusion(predictions, labels)


@needs_crf
@pytest.mark.parametrize("batch_size, replicas", [(1, 1), (4, 2)])
@pytest.mark.parametrize("use_image_labels", [False, True])
def test_the_crf_refines_every_image_at_its_own_size(
    labelled_split, tmp_path, two_replicas, batch_size, replicas, use_image_labels
):
    evaluator = evaluator_of(
        labelled_split[0],
        tmp_path,
        two_replicas if replicas == 2 else None,
        eval_batch_size=batch_size,
        dense_crf=True,
        use_image_labels=use_image_labels,
        **SETTINGS,
    )
    matrix, _ = evaluator.confusion_matrix()
    expected = numpy_refined_matrix(labelled_split, classes=ALLOWED if use_image_labels else None)
    np.testing.assert_array_equal(matrix, expected)
    assert (matrix != numpy_matrix(labelled_split)).any()


@needs_crf
def test_processes_give_what_one_gives_and_image_level_metrics_stay(labelled_split, tmp_path):
    found = []
    for options in (
        {"dense_crf": True, **SETTINGS},
        {"dense_crf": True, **SETTINGS, "crf_workers": 2},
        {},
    ):
        evaluator = evaluator_of(
            labelled_split[0],
            tmp_path,
            model=ToyModel(with_classifier=True),
            weakly=True,
            eval_batch_size=4,
            **options,
        )
        found.append(evaluator.confusion_matrix())
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == found[2][1]


@needs_crf
def test_resized_images_are_refined_and_counted_at_their_original_size(tmp_path):
    images, labels = make_images([(20, 30), (41, 23)])
    write_split(str(tmp_path), images, labels)
    data_config, config = config_of(str(tmp_path), tmp_path, dense_crf=True, crf_workers=1)
    data_config = dataclasses.replace(data_config, min_resize_value=33, max_resize_value=65)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    evaluator = Evaluator(ToyModel(), strategy, SPEC, data_config, config)
    matrix, _ = evaluator.confusion_matrix()
    assert matrix.sum() == sum(int((label != 255).sum()) for label in labels)


@needs_crf
def test_what_was_done_is_written_beside_the_metrics(labelled_split, tmp_path):
    evaluator = evaluator_of(
        labelled_split[0],
        tmp_path,
        use_image_labels=True,
        dense_crf=True,
        eval_scales=(0.75, 1.0),
        merge_scales="logits",
        absent_classes="zero",
        **SETTINGS,
    )
    result = evaluator.evaluate(step=1, prefix="x")
    content = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert content == result
    assert content["absent_classes"] == "zero"
    assert content["prediction"] == {
        "crop_size": [33, 33],
        "resize_value": None,
        "eval_scales": [0.75, 1.0],
        "add_flipped_images": False,
        "merge_scales": "logits",
        "scale_kernel": "bilinear",
        "tile_size": None,
        "tile_overlap": None,
        "max_side": None,
        "eval_resize": None,
        "sliding_window": None,
        "input_multiple": None,
        "class_filter": None,
        "use_image_labels": True,
        "dense_crf": {
            "iterations": 2,
            "gaussian_sxy": 3.0,
            "gaussian_compat": 3.0,
            "bilateral_sxy": 5.0,
            "bilateral_srgb": 13.0,
            "bilateral_compat": 10.0,
        },
    }


def test_absent_classes_can_count_as_zero(tmp_path):
    images, labels = make_images(num_classes=2)
    spec = dataclasses.replace(SPEC, class_names=(*SPEC.class_names, "nowhere"))
    write_split(str(tmp_path / "records"), images, labels)
    means = {}
    for absent in ("skip", "zero"):
        data_config, config = config_of(str(tmp_path / "records"), tmp_path, absent_classes=absent)
        strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
        evaluator = Evaluator(ToyModel(), strategy, spec, data_config, config)
        result = evaluator.evaluate(step=1, prefix="x")
        means[absent] = result["miou"]
        assert result["class_iou"]["nowhere"] == (None if absent == "skip" else 0.0)
    assert means["zero"] == pytest.approx(means["skip"] * 4 / 5)


@pytest.mark.parametrize("flag", ["crf_iterations", "crf_bilateral_compat", "crf_workers"])
def test_flags_of_the_crf_need_the_crf(split, tmp_path, flag):
    with pytest.raises(UserError, match=f"--{flag} needs --dense_crf"):
        evaluator_of(split[0], tmp_path, **{flag: 4})


def test_the_crf_without_its_library_fails_before_any_work(split, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(UserError, match="pip install"):
        evaluator_of(split[0], tmp_path, dense_crf=True)


def test_defaults_of_the_crf_flags_are_those_of_learning_pseudo_labels():
    config = EvalConfig(eval_logdir="x", checkpoint_dir="x")
    assert crf_settings(config) == dense_crf.LEARNING_PSEUDO_LABELS


# Merged masks and the class filter ----------------------------------------------------------------

FILTER = {"merge_scales": "masks", "fp_cut": 0.4, "topk_classes": 2, "bg_pow": 3.0}


@pytest.mark.parametrize("replicas", [1, 2])
def test_filtered_masks_are_counted_and_written(split, tmp_path, two_replicas, replicas):
    strategy = two_replicas if replicas == 2 else tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = ToyModel(with_classifier=True)
    settings = {**FILTER, "suppressed_class": "dog", "eval_batch_size": 4, "weakly": True}
    evaluator = evaluator_of(split[0], tmp_path, strategy, model, **settings)
    result = evaluator.evaluate(step=1, prefix="x")
    expected = np.zeros([4, 4], np.int64)
    for image, label in zip(*split[1:]):
        size = padded_size(image.shape[:2], CROP, lambda *size: size)
        padded = np.full((1, *size, 3), 127.5, np.float32)
        padded[0, : image.shape[0], : image.shape[1]] = image
        outputs = ToyModel(with_classifier=True)(padded)
        masks = resize_bilinear(tf.nn.softmax(outputs["logits"]), size)[0].numpy()
        scores = tf.sigmoid(outputs["image_logits"])[0].numpy()
        masks[..., 1:] *= (scores > 0.4) & (scores >= np.sort(scores)[-2])
        masks = masks ** [3, 1, 6, 1]
        prediction = masks[: image.shape[0], : image.shape[1]].argmax(-1)
        expected += numpy_confusion([prediction], [label])
    np.testing.assert_array_equal(result["confusion_matrix"], expected)
    assert result["prediction"]["class_filter"] == {
        "fp_cut": 0.4,
        "topk_classes": 2,
        "bg_pow": 3.0,
        "suppressed_class": "dog",
    }
    assert result["cls_overall"] is not None


@needs_crf
def test_the_crf_takes_filtered_masks(split, tmp_path):
    model = ToyModel(with_classifier=True)
    found = []
    for crf in ({}, {"dense_crf": True, **SETTINGS}):
        evaluator = evaluator_of(split[0], tmp_path, model=model, **FILTER, **crf)
        found.append(evaluator.confusion_matrix()[0])
    assert found[0].sum() == found[1].sum() and (found[0] != found[1]).any()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"eval_scales": (0.5, 1.5), "merge_scales": "masks"}, ("--eval_scales", "include 1")),
        ({"fp_cut": 0.3}, ("--merge_scales=masks",)),
        ({"bg_pow": 3.0, "merge_scales": "logits"}, ("--merge_scales=masks",)),
        ({**FILTER, "use_image_labels": True}, ("leave out --use_image_labels",)),
        ({**FILTER, "suppressed_class": "horse"}, ("--suppressed_class", "cat, dog, cow")),
        ({**FILTER, "suppressed_class": "background"}, ("--suppressed_class", "cat, dog, cow")),
    ],
    ids=str,
)
def test_filters_that_cannot_be_meant(split, tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        evaluator_of(split[0], tmp_path, model=ToyModel(with_classifier=True), **changes)
    for word in words:
        assert word in str(error.value)


def test_a_filter_needs_a_background(split, tmp_path):
    _, config = config_of(split[0], tmp_path, **FILTER)
    with pytest.raises(UserError, match="--fp_cut, --topk_classes, --bg_pow"):
        check(config, dataclasses.replace(SPEC, has_background=False))


@pytest.mark.parametrize("changes", [FILTER, {"weakly": True}], ids=str)
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_network_without_scores_is_refused(split, tmp_path, two_replicas, replicas, changes):
    strategy = two_replicas if replicas == 2 else None
    evaluator = evaluator_of(split[0], tmp_path, strategy, eval_batch_size=4, **changes)
    with pytest.raises(UserError, match="no image-level scores"):
        evaluator.evaluate(step=1, prefix="x")
