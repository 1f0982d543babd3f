"""Exported files: they agree with the network, need no tfseg, and are whole or not there."""

import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import tfseg
from tests.programs import assert_user_error, run
from tests.runs import NETWORK
from tests.toy import ToyBackbone
from tfseg.exporting import comparison, savedmodel, selective, tflite
from tfseg.exporting.comparison import Comparison, Limits
from tfseg.exporting.pictures import MadeUpPictures, RecordPictures
from tfseg.exporting.serving import Serving
from tfseg.exporting.task import Task
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.inference.decisions import ARG_MAX, Decision
from tfseg.models import BACKBONES, build_model
from tfseg.settings.export import FORMATS, TFLiteSettings
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import make

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "runs_34dfcb6"
RUN, RECORDS = FIXTURES / "pseudoseg", FIXTURES / "records"
SPEC = DatasetSpec("toy", ("background", "cat", "dog", "cow"))
SIZE = (33, 41)
SMALL = {"aspp_convs_filters": 8, "decoder_filters": 8, "decoder_output_stride": (4,)}
LIGHTEST = {"model_variant": "mobilenet_v2", "depth_multiplier": 0.1, "divisible_by": 2}
TOY = {"model_variant": "toy"}
METADATA = {"class_names": list(SPEC.class_names), "palette": [[0, 0, 0]] * 4}


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """A run of the toy network with averaged weights, whose records are gone."""
    folder = tmp_path_factory.mktemp("toy")
    logdir = folder / "run"
    shutil.copytree(RECORDS, folder / "records")
    run(
        "train_sup.py",
        *NETWORK,
        "--ema_decay=0.9",
        "--training_number_of_steps=2",
        f"--dataset_dir={folder / 'records'}",
        f"--train_logdir={logdir}",
    )
    shutil.rmtree(folder / "records")
    return logdir


def network_of(model_variant, head="deeplab", **settings):
    """Returns a network with weights as they were drawn, but logits that differ."""
    settings = {**SMALL, **settings, "model_variant": model_variant, "head": head}
    config = make(ModelConfig, **settings)
    network = build_model(
        config,
        num_classes=4,
        num_image_classes=3,
        crop_size=(33, 33),
        class_vectors=np.eye(4) if head == "projection" else None,
    )
    for variable in network.trainable_variables:
        if "logits" in variable.name and variable.shape.rank == 4:
            variable.assign(100.0 * variable)
    return network


def exported(network, format_name, path, *, decision=ARG_MAX, **settings):
    """Writes a network in a format and compares it on made-up images."""
    file_format = FORMATS[format_name].load()
    own = make(FORMATS[format_name].settings, **settings)
    file_format.check(own, network)
    size = SIZE if file_format.TAKES_ONE_SIZE else None
    checkpoint = comparison.of_checkpoint(network, decision)
    made_up = MadeUpPictures(size)
    file_format.write(
        Task(Serving(network, decision), own, METADATA, checkpoint, size, made_up), str(path)
    )
    found = comparison.compare(checkpoint, file_format.load(str(path)), made_up, SPEC)
    found.check(file_format.limits(own), format_name)
    return found


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_file_agrees_with_the_network(format_name, tmp_path):
    # Tests of the program below have mobilenet_v2, those by night every backbone.
    network = network_of("toy", atrous_rates=(1, 2))
    # TensorFlow takes such a path for a pattern.
    folder = tmp_path / "my data [v2] *"
    folder.mkdir()
    found = exported(network, format_name, folder / "file")
    assert found.equal_pixels > 0.999 and found.largest_difference < 1e-3


@pytest.mark.nightly
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("variant", BACKBONES)
def test_a_file_of_every_backbone_agrees(variant, format_name, tmp_path):
    exported(network_of(variant), format_name, tmp_path / "file")


HEADS = {
    "low_rank": {"head": "low_rank"},
    "low_rank of two views": {"head": "low_rank", "low_rank_test_views": 2},
    "projection": {"head": "projection"},
    "sum of logits": {
        "aspp_with_batch_norm": False,
        "logits_kernel_size": 3,
        "atrous_rates": (1, 2),
        "decoder_output_stride": None,
    },
    "pyramid": {"image_pyramid": (0.5, 1.0)},
    "decoder gives logits": {"decoder_output_is_logits": True, "decoder_use_sum_merge": True},
    "pooling window": {"image_pooling_crop_size": (33, 33)},
}


@pytest.mark.nightly
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("head", HEADS)
def test_a_file_of_every_head_agrees(head, format_name, tmp_path):
    network = network_of(**LIGHTEST, **HEADS[head])
    exported(network, format_name, tmp_path / "file")


@pytest.mark.nightly
@pytest.mark.parametrize("quantization", ["float16", "dynamic"])
def test_a_smaller_file_agrees_nearly(quantization, tmp_path):
    network = network_of(**LIGHTEST)
    path = tmp_path / "file"
    found = exported(network, "tflite", path, tflite_quantization=quantization)
    assert found.equal_pixels > 0.9
    assert path.stat().st_size < 4 * network.count_params()


def test_layers_stay_in_float32_until_8_bits_agree(tmp_path):
    network = network_of(**TOY)
    checkpoint, shown = comparison.of_checkpoint(network, ARG_MAX), MadeUpPictures(SIZE)
    agreement, shares, kept = selective.Agreement(checkpoint, shown), [], []
    for wanted in (0.0, 1.0):
        settings = make(TFLiteSettings, tflite_quantization="int8", int8_agreement=wanted)
        task = Task(Serving(network), settings, METADATA, checkpoint, SIZE, shown)
        kept.append(tflite.write(task, str(tmp_path / "file"))["float_layers"])
        shares.append(agreement(tflite.load(str(tmp_path / "file"))))
    assert kept[0] == [] and len(kept[1]) >= 4 and shares[1] > shares[0]


def test_only_classes_that_take_part_are_answered():
    serving = Serving(network_of(**TOY), Decision((1, 3)))
    found = serving(tf.constant([picture.image for picture in MadeUpPictures(SIZE)]))
    assert set(np.unique(found["labels"])) <= {1, 3}
    assert not found["probabilities"].numpy()[..., [0, 2]].any()


@pytest.mark.parametrize("size", [(1, 1), (17, 17), (16, 18), (120, 97)])
def test_sides_are_padded_alike_in_numbers_and_tensors(size):
    network = network_of(**LIGHTEST)
    expected = tuple(-(-(side - 1) // 16) * 16 + 1 for side in size)
    assert network.valid_size(*size) == expected
    found = tf.function(lambda h, w: network.valid_size(h, w))(*map(tf.constant, size))
    assert tuple(int(side) for side in found) == expected


# The program --------------------------------------------------------------------------------------


def export(output, *flags, checkpoint=RUN, **options):
    return run(
        "export.py",
        f"--checkpoint_dir={checkpoint}",
        f"--dataset_dir={RECORDS}",
        "--compare_split=train",
        f"--output={output}",
        *flags,
        **options,
    )


WITHOUT_TFSEG = """
import sys
sys.modules["tfseg"] = None
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
found = loaded(image=tf.constant(np.load(sys.argv[2])))
np.savez(sys.argv[3], **{name: value.numpy() for name, value in found.items()})
"""


def test_a_saved_model_needs_no_tfseg(tmp_path):
    output = export(tmp_path / "out").stdout
    assert "equal pixels" in output and "milliseconds an image" in output
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 53, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    words = [tmp_path / "out" / "saved_model", tmp_path / "images.npy", tmp_path / "found.npz"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TFSEG, *map(str, words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, trained = np.load(tmp_path / "found.npz"), tfseg.load(RUN)
    assert found["labels"].dtype == np.uint8 and found["labels"].shape == images.shape[:3]
    for image, labels, probs in zip(images, found["labels"], found["probabilities"]):
        assert (labels == trained.predict(image)).mean() > 0.999
        np.testing.assert_allclose(probs, trained.predict_probabilities(image), atol=1e-4)


def test_the_folder_tells_what_the_file_is(toy_run, tmp_path):
    found = tfseg.export(
        toy_run,
        tmp_path / "out",
        format="tflite",
        tflite_quantization="float16",
        dataset_dir=RECORDS,
        compare_split="train",
        size=[33, 33],
    )
    assert json.loads((tmp_path / "out" / "metadata.json").read_text()) == found
    assert found["class_names"][:2] == ["background", "0"] and found["palette"][1] == [128, 0, 0]
    assert found["comparison"]["images"] == 4 and found["comparison"]["miou"] is not None
    with zipfile.ZipFile(tmp_path / "out" / "model.tflite") as archive:
        assert archive.read("labels.txt").decode().split("\n")[:2] == ["background", "0"]
        assert json.loads(archive.read("metadata.json"))["size"] == [33, 33]
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("| 1 | 0 | #800000 |", "mIoU", "SHA-256", "train_sup.py --model_variant", "step"):
        assert words in card, words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_onnx_file_has_names_and_colours(toy_run, tmp_path):
    import onnx as library

    # The records of the run are gone: images are made up, in sizes that have to be padded.
    found = tfseg.export(toy_run, tmp_path / "out", format="onnx", network="ema")
    assert found["comparison"]["images_of"] == "made-up images"
    assert found["comparison"]["miou"] is None and found["comparison"]["largest_difference"] < 1e-3
    model = library.load(tmp_path / "out" / "model.onnx")
    properties = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert properties["class_names"][0] == "background" and len(properties["palette"]) == 11


def test_a_file_that_disagrees_is_not_written(toy_run, tmp_path, monkeypatch):
    def wrong(path):
        return lambda image: (np.full(image.shape[:2], 10), np.zeros([*image.shape[:2], 11]))

    monkeypatch.setattr(savedmodel, "load", wrong)
    result = export(tmp_path / "out", checkpoint=toy_run, check=False)
    assert_user_error(result, "other labels than the checkpoint", "0.999")
    assert not list(tmp_path.iterdir())


def test_limits_are_those_that_were_set():
    found = Comparison(4, 0.99, 0.1, 1.0, 1.0, miou=0.50, checkpoint_miou=0.515)
    found.check(Limits(equal_pixels=0.98, miou_loss=0.02), "file")
    with pytest.raises(UserError, match="(?s)other labels.*0.990000"):
        found.check(Limits(equal_pixels=0.999), "file")
    with pytest.raises(UserError, match="(?s)worse than the checkpoint.*0.5050"):
        found.check(Limits(miou_loss=0.01), "file")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--format=coreml"], ["format", "savedmodel"]),
        (["--size=33,33"], ["--size is no setting of --format=savedmodel"]),
        (["--format=tflite", "--size=33"], ["two positive sides"]),
        (["--format=tflite", "--calibration_images=3"], ["--calibration_images", "int8"]),
        (["--format=tflite", "--tflite_quantization=int8", "--compare_split=v"], ["train_aug"]),
        (["--network=teacher"], ["ema"]),
        (["--format=onnx", f"--checkpoint_dir={FIXTURES / 'float16'}"], ["float16", "savedmodel"]),
        (["--checkpoint_dir=/nowhere"], ["/nowhere"]),
    ],
    ids=range(8),
)
def test_what_is_wrong_is_told_and_nothing_written(tmp_path, flags, words):
    assert_user_error(export(tmp_path / "out", *flags, check=False), *words)
    assert not list(tmp_path.iterdir())


def test_int8_without_images_is_told(tmp_path):
    # The records of the run are gone.
    with pytest.raises(UserError, match="(?s)needs images with masks.*ranges.*--dataset_dir"):
        tfseg.export(RUN, tmp_path / "out", format="tflite", tflite_quantization="int8")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert_user_error(export(tmp_path / "out", check=False), "in use", str(tmp_path / "out"))
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_onnx_without_the_extra_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    result = export(tmp_path / "out", "--format=onnx", checkpoint="/nowhere", check=False)
    assert_user_error(result, "pip install '.[onnx]'")


# Images -------------------------------------------------------------------------------------------


def test_images_are_fitted_into_one_size():
    spec = tfseg.load(RUN).spec
    whole = list(RecordPictures(str(RECORDS), "train", spec))
    padded = list(RecordPictures(str(RECORDS), "train", spec, 2, (40, 50), (1, 2, 3)))
    assert len(whole) == 4 and len(padded) == 2 and whole[0].shown == (33, 33)
    np.testing.assert_array_equal(padded[0].image[:33, :33], whole[0].image)
    np.testing.assert_array_equal(padded[1].label, whole[3].label)
    assert (padded[0].image[33:] == (1, 2, 3)).all() and padded[0].image.shape == (40, 50, 3)
    (smaller,) = RecordPictures(str(RECORDS), "train", spec, 1, (20, 17))
    assert smaller.shown == (17, 17) and smaller.label.shape == (17, 17)
    assert set(np.unique(smaller.label)) <= set(np.unique(whole[0].label))
