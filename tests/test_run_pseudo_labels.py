"""The pseudo labels of a run against masks that its training hid, and the report on them."""

import json
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
import tensorflow as tf

from tests.programs import ROOT
from tests.toy import ToyBackbone
from tfseg.data.specs import load_spec
from tfseg.errors import UserError
from tfseg.models import BACKBONES, model_builder
from tfseg.runs import record
from tfseg.runs.pseudo_labels import Judged, PseudoLabels
from tfseg.settings.methods import METHODS
from tfseg.settings.programs import training
from tfseg.training.trainer import method_state
from tfseg.weights.checkpoint.store import Store

sys.path.insert(0, str(ROOT / "experiments"))
import reliability

SHARED = {
    "train_split": "train",
    "train_split_cls": "train_aug",
    "model_variant": "toy",
    "decoder_output_stride": (4,),
    "aspp_convs_filters": 8,
    "decoder_filters": 8,
    "train_crop_size": (33, 33),
    "train_batch_size": 4,
}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


def saved_run(folder, records, method, *, change=lambda made: None, **more):
    """Leaves a run's first checkpoint, `change`d but without a step; returns its method."""
    given = {
        **SHARED,
        "dataset_dir": str(records),
        "train_logdir": str(folder),
        "method": method,
        **more,
    }
    settings = training(given, default_method="pseudoseg")
    spec = load_spec(str(records), "")
    made = METHODS[method].load()(
        build_model=model_builder(settings.network, spec, (33, 33)),
        spec=spec,
        config=settings.train,
        settings=settings.train.method_settings,
    )
    folder.mkdir()
    record.write(str(folder), settings.sections, spec, {})
    change(made)
    state = {"step": tf.Variable(0, dtype=tf.int64), **method_state(made)}
    Store(str(folder), made.stored(), state, 5, True).save(0)
    return made


def test_weights_of_the_run_label_its_hidden_masks(records, tmp_path):
    made = saved_run(tmp_path / "run", records, "pseudoseg", cutout_half_size=2)
    run = PseudoLabels(str(tmp_path / "run"))
    # SGC is the method's, not the network's.
    for name in ("key", "query"):
        mine, saved = (getattr(m.attention, name).kernel for m in (run._method, made))
        np.testing.assert_array_equal(mine, saved)
    found = run.judged(8)
    assert set(found) == {"decoder", "sgc", "fused", "sharpened"}
    decoder, fused, sharpened = (found[kind] for kind in ("decoder", "fused", "sharpened"))
    # 8 crops of 9 x 9 cells, without what is padded or cut out of the strong views.
    assert 100 < decoder.label.size == fused.label.size <= 8 * 81
    np.testing.assert_array_equal(sharpened.label, fused.label)
    assert (sharpened.confidence >= fused.confidence - 1e-6).all()


def test_what_the_method_remembers_takes_part(records, tmp_path):
    # Predictions were nearly all of class 0, of which the masks have nothing.
    means = np.full([2, 2, load_spec(str(records), "").num_classes], 1.0, np.float32)
    means[0, 0, 0], means[1, 0, 1:] = 0.0, 0.0

    def change(made):
        made.class_areas.means.assign(means)

    saved_run(tmp_path / "run", records, "unimatch", change=change, distribution_alignment=True)
    run = PseudoLabels(str(tmp_path / "run"))
    np.testing.assert_array_equal(run._method.class_areas.means, means)
    assert 0 not in run.judged(4)["teacher"].label


def test_labels_are_right_where_they_are_the_truth(records, tmp_path):
    saved_run(tmp_path / "run", records, "unimatch")
    run = PseudoLabels(str(tmp_path / "run"), dataset_dir=str(records))
    classes = run.spec.num_classes

    def truth(batch):
        hidden = batch["unlabelled"]["hidden_label"]
        sure = tf.one_hot(hidden, classes)
        return {"truth": 0.75 * sure, "other": tf.roll(sure, 1, -1)}

    run._method.pseudo_labels = truth
    found = run.judged(4)
    assert found["truth"].right.all() and not found["other"].right.any()
    assert (found["truth"].confidence == 0.75).all()
    labels, counts = np.unique(found["truth"].label, return_counts=True)
    assert labels.size > 1 and counts.sum() == found["truth"].label.size


def test_records_that_were_moved_serve_both_streams(records, tmp_path):
    saved_run(tmp_path / "run", records, "unimatch", dataset_dir_cls=str(tmp_path / "gone"))
    run = PseudoLabels(str(tmp_path / "run"), dataset_dir=str(records))
    assert run.judged(4)["teacher"].label.size


@pytest.mark.parametrize(
    "method, more",
    (
        ("learning_pseudo_labels", {}),
        ("pseudoseg", {"cutout_half_size": 2}),
        ("unimatch", {}),
    ),
)
def test_masks_that_training_knows_are_not_judged(records, tmp_path, method, more):
    saved_run(tmp_path / "run", records, method, train_split="train_aug", **more)
    with pytest.raises(UserError, match="'train_aug' that were looked at has a mask"):
        PseudoLabels(str(tmp_path / "run")).judged(4)


def test_images_with_masks_may_all_be_in_the_other_split(records, tmp_path):
    saved_run(tmp_path / "run", records, "learning_pseudo_labels", train_split="val")
    assert PseudoLabels(str(tmp_path / "run")).judged(4)["hybrid"].label.size


def test_a_run_without_pseudo_labels_is_refused(records, tmp_path):
    saved_run(tmp_path / "run", records, "supervised")
    with pytest.raises(UserError, match="supervised makes no pseudo labels") as error:
        PseudoLabels(str(tmp_path / "run"))
    accepted = error.value.accepted.split(", ")
    assert {"pseudoseg", "unimatch", "learning_pseudo_labels"} <= set(accepted)
    assert "strict" not in accepted
    with pytest.raises(UserError, match="holds no checkpoint"):
        PseudoLabels(str(tmp_path))


def test_the_report_has_every_figure(tmp_path):
    confidence = np.repeat(np.float32([0.9, 0.5]), 200)
    right = np.arange(400) % 4 != 0
    judged = Judged(np.repeat(np.uint8([0, 1]), 200), confidence, right)
    about = {"method": "pseudoseg", "kind": "fused", "train_split": "labeled_24_seed0"}
    entry = {**about, **reliability.figures_of(judged, ("background", "cat", "dog"), 10)}
    assert entry["accuracy"] == 0.75 == entry["area_under_precision"]
    assert entry["expected_calibration_error"] == pytest.approx((0.15 + 0.25) / 2)
    by_class = entry["class_calibration_error"]
    assert by_class["cat"] == pytest.approx(0.25) and by_class["dog"] is None
    above = {row["threshold"]: row for row in entry["thresholds"]}
    assert above[0.6]["coverage"] == 0.5 and above[0.95]["precision"] is None
    json.dumps(entry, allow_nan=False)
    row = reliability.table([entry]).splitlines()[-1]
    assert row == (
        "| pseudoseg: fused | labeled_24_seed0 | 0.750 | 0.700 | 0.200 | 0.750 | 0.966 | 0.150 | "
        "0.250 | - |"
    )
    drawing = xml.etree.ElementTree.fromstring(reliability.chart([entry]))
    circles = list(drawing.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 2
