"""Prediction in tiles: every pixel is covered, tiles agree with the whole, memory is a band's."""

import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from tests.small_split import SPEC, StridedToyModel, make_images, numpy_logits, write_split
from tests.toy import ToyBackbone
from tfseg.data.image_input import ImageInput
from tfseg.errors import UserError
from tfseg.inference import draw as drawing
from tfseg.inference.decisions import ARG_MAX, Decision
from tfseg.inference.evaluate import Evaluator
from tfseg.inference.image_predictor import ImagePredictor
from tfseg.inference.predictor import Prediction, Predictor
from tfseg.inference.replicas import Replicas
from tfseg.inference.settings import tiling_of
from tfseg.inference.tiles import Tiling, blended, tiled_labels
from tfseg.models import BACKBONES, build_model
from tfseg.settings.data import DataConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.prediction import EvalConfig, PredictionConfig, VisConfig


def input_of(model):
    return ImageInput(model.mean_pixel, model.valid_size)


def probabilities(model, image, tiling, strategy=None):
    replicas = Replicas(Predictor(model, wanted=("probs",)), strategy)
    found = blended(image, tiling, replicas, input_of(model))
    return np.concatenate([band.copy() for _, (band,) in found])


@pytest.mark.parametrize("side", [1, 16, 17, 18, 30, 33, 49, 50, 200])
@pytest.mark.parametrize("overlap", [0, 1, 8, 16])
def test_tiles_cover_every_pixel(side, overlap):
    tiling = Tiling(17, overlap)
    starts = tiling.starts(side)
    assert starts[0] == 0 and starts[-1] == max(0, side - 17)
    for first, second in zip(starts, starts[1:]):
        assert 0 < second - first <= 17 - overlap
    window = tiling.window(17)
    assert (window > 0).all() and window.max() <= 1
    np.testing.assert_array_equal(window, window[::-1])


def test_weights_fall_off_over_the_overlap_alone():
    np.testing.assert_allclose(Tiling(9, 2).window(9)[:4], [0.25, 0.75, 1, 1])
    np.testing.assert_array_equal(Tiling(9, 0).window(9), 1.0)


@pytest.mark.parametrize("overlap", [5, 13])
@pytest.mark.parametrize("size", [(57, 93), (20, 70), (90, 11)])
def test_tiles_on_the_grid_of_the_network_agree_with_the_whole(size, overlap):
    """The toy network looks at one pixel in four, so a tile on its grid sees what matters.

    The last tile of a side ends at the edge, which lies on the grid if the side is 1 + 4 k.
    """
    model = StridedToyModel()
    (image,), _ = make_images([size])
    logits = numpy_logits(model, image)
    expected = tf.nn.softmax(logits)
    found = probabilities(model, image, Tiling(33, overlap))
    assert found.shape == (*size, 4)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)
    on_grid = [(side - 1) % 4 == 0 or side <= 33 for side in size]
    if all(on_grid):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_tile_counts_less_near_its_edge():
    """Two tiles that say different things are blended linearly."""

    class ByTile:
        count = 1

        def __call__(self, images, present=None):
            value = 1.0 if images[0][0, 0, 0, 0] == 0 else 0.0
            probs = np.full((*images[0].shape[1:3], 2), [value, 1 - value], np.float32)
            return [Prediction(probs=probs)]

    image = np.zeros((8, 12, 3), np.uint8)
    image[:, 4:] = 9
    tiling, image_input = Tiling(8, 4), ImageInput((0, 0, 0), lambda h, w: (h, w))
    _, (found,) = next(blended(image, tiling, ByTile(), image_input))
    np.testing.assert_allclose(found[3, :, 0], [1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0, 0, 0])


def test_tiles_of_a_real_network_on_two_replicas(two_replicas, monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)
    with two_replicas.scope():
        config = ModelConfig(model_variant="toy", aspp_convs_filters=16, decoder_filters=16)
        model = build_model(config, num_classes=4, num_image_classes=3, crop_size=(33, 33))
    (image,), _ = make_images([(70, 101)])
    one = probabilities(model, image, Tiling(33, 16))
    np.testing.assert_allclose(probabilities(model, image, Tiling(33, 16), two_replicas), one)
    whole = probabilities(model, image, Tiling(129, 0))
    predictor = ImagePredictor(model, input_of(model), wanted=("labels", "probs"))
    (expected,) = predictor([image])
    np.testing.assert_allclose(whole, expected.probs, atol=1e-6)
    tiled = ImagePredictor(
        model, input_of(model), wanted=("labels", "probs"), tiling=Tiling(33, 16)
    )
    (found,) = tiled([image])
    np.testing.assert_array_equal(found.labels, one.argmax(-1))
    np.testing.assert_allclose(found.probs, one, atol=1e-3)


def test_decisions_share_the_tiles():
    model = StridedToyModel()
    (image,), _ = make_images([(40, 41)])
    decisions = (ARG_MAX, Decision((1, 2)))
    replicas = Replicas(Predictor(model, wanted=("probs",), decision=decisions))
    everything, two = tiled_labels(image, Tiling(17, 4), replicas, input_of(model))
    assert set(np.unique(two)) == {1, 2} and set(np.unique(everything)) == {0, 1, 2, 3}
    present = np.array([1, 0, 0, 1], np.float32)
    limited, _ = tiled_labels(image, Tiling(17, 4), replicas, input_of(model), present=present)
    assert set(np.unique(limited)) == {0, 3}


def test_memory_is_that_of_one_row_of_tiles():
    """4000 rows of 200 x 64 classes would take 205 MB, a row of tiles 7 MB."""

    class Probs:
        count = 1

        def __call__(self, images, present=None):
            shape = (*images[0].shape[1:3], 64)
            return [Prediction(probs=np.full(shape, 1 / 64, np.float32)) for _ in images]

    image = np.zeros((4000, 200, 3), np.uint8)
    image_input = ImageInput((0, 0, 0), lambda h, w: (h, w))
    tracemalloc.start()
    try:
        tiled_labels(image, Tiling(129, 64), Probs(), image_input)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6


# In the programs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("records"))
    # Sides on the toy network's grid, so that tiles agree with the whole.
    images, labels = make_images([(57, 93), (33, 41), (20, 17)])
    write_split(folder, images, labels)
    return folder, images, labels


def matrix_of(split, tmp_path, strategy=None, **settings):
    strategy = strategy or tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = StridedToyModel()
    config = EvalConfig(eval_logdir=str(tmp_path), checkpoint_dir="x", **settings)
    data = DataConfig(dataset_dir=split[0])
    return Evaluator(model, strategy, SPEC, data, config).confusion_matrix()[0]


def test_evaluation_in_tiles(split, tmp_path, two_replicas):
    whole = matrix_of(split, tmp_path)
    for strategy in (None, two_replicas):
        tiled = matrix_of(split, tmp_path, strategy, tile_size=33, tile_overlap=13)
        assert tiled.sum() == whole.sum()
        assert np.abs(tiled - whole).sum() < 0.002 * whole.sum()  # rounding


def test_pictures_in_tiles(split, tmp_path):
    found = []
    for settings in ({}, {"tile_size": 33, "tile_overlap": 13}):
        config = VisConfig(vis_logdir=str(tmp_path / str(len(found))), **settings)
        data = DataConfig(dataset_dir=split[0])
        drawn = drawing.draw(StridedToyModel(), SPEC, data, config, prefix="/r/m", step=1)
        found.append(drawn["miou"])
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert "33 pixels" in (tmp_path / "1" / "index.html").read_text()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"tile_size": 33, "tile_overlap": 33}, ("--tile_overlap", "0 to 32, for example 16")),
        ({"tile_size": 33, "dense_crf": True}, ("--dense_crf", "--tile_size=33")),
        ({"tile_size": 33, "weakly": True}, ("--weakly",)),
        ({"tile_size": 33, "eval_crop_size": (33, 33)}, ("--eval_crop_size",)),
        ({"tile_size": 32}, ("--tile_size", "for example 33 or 37")),
        ({"tile_size": 3}, ("--tile_size", "for example 5 or 9")),
    ],
    ids=str,
)
def test_tiles_that_cannot_be_meant(split, tmp_path, settings, words):
    with pytest.raises(UserError) as error:
        matrix_of(split, tmp_path, **settings)
    for word in words:
        assert word in str(error.value)


def test_half_of_a_tile_is_shared_by_default():
    tiling = tiling_of(PredictionConfig(tile_size=33), StridedToyModel())
    assert tiling == Tiling(33, 16)
    assert tiling_of(PredictionConfig(), StridedToyModel()) is None
