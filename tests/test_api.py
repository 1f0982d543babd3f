"""The library's functions, on a small run that they train themselves."""

import json
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfseg
from tests.conftest import RECORD_SIZE
from tests.runs import evaluate as program_evaluate
from tests.toy import ToyBackbone
from tfseg.models import BACKBONES

SIZE = (RECORD_SIZE, RECORD_SIZE)
SETTINGS = {
    "model_variant": "toy",
    "decoder_output_stride": [4],
    "aspp_convs_filters": 16,
    "decoder_filters": 16,
    "train_crop_size": SIZE,
    "train_batch_size": 4,
    "training_number_of_steps": 2,
    "num_clones": 1,
}


@pytest.fixture(scope="module", autouse=True)
def toy():
    with mock.patch.dict(BACKBONES, {"toy": ToyBackbone}):
        yield


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("api") / "run"
    return tfseg.fit(dataset_dir=records, train_logdir=logdir, **SETTINGS)


@pytest.fixture(scope="module")
def folder(run):
    return run.prefix.rsplit("/", 1)[0]


def test_fit_returns_the_run_and_resumes(run, folder, records):
    assert run.step == 2 and run.prefix.endswith("model.ckpt-2")
    assert run.spec.class_names[0] == "background"
    again = tfseg.fit(
        dataset_dir=records, train_logdir=folder, **{**SETTINGS, "training_number_of_steps": 3}
    )
    assert again.step == 3 and again.record["train"]["training_number_of_steps"] == 3


def test_evaluate_gives_what_the_program_writes(folder, records, tmp_path):
    found = tfseg.evaluate(folder, dataset_dir=records, eval_crop_size=SIZE)
    written = program_evaluate(folder, records, tmp_path / "eval")
    assert found["confusion_matrix"] == written["confusion_matrix"]
    with open(f"{folder}/eval/metrics.json") as file:
        assert json.load(file)["miou"] == found["miou"]


def test_draw_writes_a_page(folder, records, tmp_path):
    result = tfseg.draw(folder, dataset_dir=records, vis_crop_size=SIZE, vis_logdir=tmp_path)
    assert 0 <= result["miou"] <= 1 and (tmp_path / "index.html").is_file()


def test_a_loaded_run_predicts_files_and_arrays(run, folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 53, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = tfseg.load(folder).predict(str(tmp_path / "photo.png"))
    assert mask.shape == (40, 53) and mask.dtype == np.int32
    np.testing.assert_array_equal(mask, tfseg.predict(folder, pixels))
    probs = tfseg.load(folder).predict_probabilities(tmp_path / "photo.png")
    np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-5)
    assert (probs.argmax(-1) == mask).mean() > 0.999


def test_a_mask_is_that_of_the_network_on_the_padded_image(run):
    pixels = np.full((33, 33, 3), 90, np.uint8)
    logits = run.network(tf.constant(pixels[None], tf.float32), training=False)["logits"]
    expected = tf.argmax(tf.image.resize(logits, SIZE), -1)[0]
    assert (run.predict(pixels) == expected.numpy()).mean() > 0.9


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda r: tfseg.load("/nowhere"), "no such checkpoint"),
        (lambda r: r.predict("/nowhere/photo.jpg"), "(?s)cannot be read.*/nowhere/photo.jpg"),
        (lambda r: r.predict(np.zeros((3, 3), np.uint8)), r"uint8 \[3, 3\]"),
        (lambda r: r.predict([[0, 0, 0]]), "(?s)of type list.*numpy.asarray"),
        (lambda r: tfseg.fit(dataset_dir="x", train_logdir="y", crop_area=(0.5, 1)), "--crop_area"),
        (lambda r: tfseg.fit(dataset_dir="/nowhere", train_logdir="y"), "/nowhere"),
        (lambda r: tfseg.fit(train_logdir="y"), "--dataset_dir is required"),
        (lambda r: tfseg.evaluate(r.prefix, dataset_dir="x", train_split="y"), "of training"),
    ],
    ids=range(8),
)
def test_what_is_wrong_is_a_user_error(run, call, words):
    with pytest.raises(tfseg.UserError, match=words):
        call(run)


def test_a_setting_that_is_none_is_a_type_error():
    with pytest.raises(TypeError, match="did you mean train_batch_size"):
        tfseg.fit(train_batchsize=3)
    with pytest.raises(TypeError, match="no setting train_split_size"):
        tfseg.evaluate("run", train_split_size=3)


def test_importing_tfseg_loads_no_tensorflow():
    from tests.test_environment import _python

    result = _python("import sys, tfseg; print('tensorflow' in sys.modules, tfseg.__all__[0])")
    assert result.stdout == "False UserError\n", result.stderr
