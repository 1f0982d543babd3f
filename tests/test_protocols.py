"""The published evaluations of UniMatch: windows over an image, sides of whole patches."""

import numpy as np
import pytest
import tensorflow as tf

from tests.small_split import ToyModel
from tfseg.errors import UserError
from tfseg.inference.merge import ONE_VIEW
from tfseg.inference.predictor import Predictor
from tfseg.inference.protocols import SlidingWindow, WholePatches, wrapped
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.prediction import EvalConfig, VisConfig


def picture(height, width, seed=0):
    values = np.random.default_rng(seed).uniform(0, 255, [2, height, width, 3])
    return tf.constant(values, tf.float32)


def config_of(cls=EvalConfig, **options):
    directory = {"eval_logdir": "e"} if cls is EvalConfig else {"vis_logdir": "v"}
    crop = {"eval_crop_size": (0, 0)} if cls is EvalConfig else {"vis_crop_size": (0, 0)}
    return cls(checkpoint_dir="c", **{**directory, **crop, **options})


@pytest.mark.parametrize(
    "side, border, expected",
    [
        # Height and width of Cityscapes.
        (1024, "cut", [(0, 801), (534, 1024)]),
        (2048, "cut", [(0, 801), (534, 1335), (1068, 1869), (1602, 2048)]),
        (1024, "shift", [(0, 801), (223, 1024)]),
        (2048, "shift", [(0, 801), (534, 1335), (1068, 1869), (1247, 2048)]),
        (500, "shift", [(0, 500)]),
        (801, "shift", [(0, 801)]),
    ],
)
def test_windows_stand_where_they_are_published(side, border, expected):
    number, place = SlidingWindow(None, window=801, border=border)._places(side)
    assert [tuple(int(x) for x in place(i)) for i in range(int(number))] == expected


@pytest.mark.parametrize("border", ["cut", "shift"])
@pytest.mark.parametrize("known", [True, False])
def test_probabilities_are_means_over_the_windows_that_see_a_pixel(border, known):
    model, image = ToyModel(), picture(20, 31)
    seen = SlidingWindow(model, window=13, border=border)
    shape = image.shape if known else [None, None, None, 3]
    predict = tf.function(lambda x: seen(x), input_signature=[tf.TensorSpec(shape, tf.float32)])
    logits = predict(image)["logits"].numpy()
    total, count = np.zeros_like(logits), np.zeros((20, 31, 1))
    (rows, row_at), (columns, column_at) = seen._places(20), seen._places(31)
    for i in range(int(rows)):
        for j in range(int(columns)):
            (a, b), (c, d) = (map(int, at) for at in (row_at(i), column_at(j)))
            part = image[:, a:b, c:d]
            own = model(part, training=False)["logits"]
            total[:, a:b, c:d] += tf.nn.softmax(resize_bilinear(own, (b - a, d - c)))
            count[a:b, c:d] += 1
    assert count.min() == 1 and count.max() >= 4
    np.testing.assert_allclose(tf.nn.softmax(logits), total / count, rtol=1e-4, atol=1e-6)


def test_a_predictor_takes_a_network_behind_windows():
    model, image = ToyModel(), picture(20, 31)
    seen = wrapped(model, config_of(sliding_window=13))
    found = Predictor(seen, ONE_VIEW, wanted=("labels", "probs"))(image)
    np.testing.assert_allclose(tf.reduce_sum(found.probs, -1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(found.labels, tf.argmax(found.probs, -1))
    assert seen.mean_pixel == model.mean_pixel


@pytest.mark.parametrize(
    "size, expected",
    [((50, 37), (56, 42)), ((35, 63), (42, 63 // 14 * 14 + 14)), ((3, 14), (14, 14))],
)
def test_sides_become_the_nearest_multiple_halves_up(size, expected):
    patches = WholePatches(None, multiple=14)
    assert patches.size(tf.zeros([1, *size, 3])) == expected
    dynamic = tf.function(patches.size, input_signature=[tf.TensorSpec([1, None, None, 3])])
    assert tuple(int(side) for side in dynamic(tf.zeros([1, *size, 3]))) == expected


def test_logits_come_back_to_the_size_of_the_image():
    model, image = ToyModel(), picture(20, 31)
    found = wrapped(model, config_of(input_multiple=14))(image, training=False)["logits"]
    own = model(resize_bilinear(image, (14, 28)), training=False)["logits"]
    expected = resize_bilinear(resize_bilinear(own, (14, 28)), (20, 31))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_without_such_settings_the_network_is_itself():
    model = ToyModel()
    assert wrapped(model, config_of(eval_crop_size=(33, 33))) is model


@pytest.mark.parametrize(
    "cls, options, message",
    [
        (EvalConfig, {"sliding_window": 9, "eval_crop_size": (33, 33)}, "--eval_crop_size"),
        (VisConfig, {"input_multiple": 14, "vis_crop_size": (33, 33)}, "--vis_crop_size"),
        (EvalConfig, {"sliding_window": 9, "input_multiple": 14}, "leave out one"),
        (EvalConfig, {"sliding_window": 9, "weakly": True}, "--weakly"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(cls, options, message):
    with pytest.raises(UserError, match=message):
        wrapped(None, config_of(cls, **options))
