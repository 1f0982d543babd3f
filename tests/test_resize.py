"""Resizing: known values, both grids, gradients, sizes known only at run time."""

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfseg.ops.resize import (
    cubic_matrix,
    interpolation_matrix,
    pillow_matrix,
    rescale_bilinear,
    rescale_cubic,
    resize_bilinear,
    resize_nearest,
    resize_cubic,
    resize_nearest_align_corners,
    resize_pillow,
)


def _image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_align_corners_keeps_corners_and_halves_between():
    x = tf.constant([[0.0, 2.0], [4.0, 6.0]])[None, :, :, None]
    y = resize_bilinear(x, (3, 3))[0, :, :, 0]
    np.testing.assert_allclose(y, [[0, 1, 2], [2, 3, 4], [4, 5, 6]])


@pytest.fixture(params=["CPU", "GPU"])
def either_way(request, monkeypatch):
    """Resizes as on a machine without GPUs, and as on one with them."""
    devices = ["a GPU"] if request.param == "GPU" else []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices)


@pytest.mark.parametrize("size", [(17, 25), (5, 7), (3, 2), (1, 1), (1, 9)])
def test_align_corners_equals_tensorflows_kernel(size, either_way):
    x = _image(2, 5, 7, 3)
    expected = tf.compat.v1.image.resize_bilinear(x, size, align_corners=True)
    np.testing.assert_allclose(resize_bilinear(x, size), expected, atol=2e-6)


@pytest.mark.parametrize("size", [(17, 25), (3, 2), (10, 14), (1, 1)])
def test_half_pixel_equals_tensorflows_kernel(size, either_way):
    x = _image(2, 5, 7, 3)
    expected = tf.image.resize(x, size, method="bilinear", antialias=False)
    actual = resize_bilinear(x, size, align_corners=False)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_one_pixel_spreads_over_the_result():
    y = resize_bilinear(tf.constant([[[[3.0, -1.0]]]]), (4, 5))
    np.testing.assert_array_equal(y, np.broadcast_to([3.0, -1.0], [1, 4, 5, 2]))


def test_gradient_equals_that_of_tensorflows_kernel(either_way):
    x, weights = tf.constant(_image(2, 5, 7, 3)), _image(2, 9, 13, 3, seed=1)

    def gradient(resize):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(resize(x) * weights)
        return tape.gradient(loss, x)

    expected = gradient(
        lambda t: tf.compat.v1.image.resize_bilinear(t, (9, 13), align_corners=True)
    )
    np.testing.assert_allclose(gradient(lambda t: resize_bilinear(t, (9, 13))), expected, atol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_sizes_known_only_at_run_time_give_the_same(align_corners, either_way):
    x = _image(2, 5, 7, 3)

    @tf.function(input_signature=[tf.TensorSpec([None] * 4), tf.TensorSpec([2], tf.int32)])
    def resize(image, size):
        return resize_bilinear(image, size, align_corners=align_corners)

    expected = resize_bilinear(x, (9, 4), align_corners=align_corners)
    np.testing.assert_allclose(resize(x, [9, 4]), expected, atol=1e-6)


def test_static_shape_is_kept_where_the_size_is_a_known_tensor(either_way):
    shapes = []

    @tf.function
    def run(x, y):
        shapes.append(resize_bilinear(x, tf.shape(y)[1:3]).shape)

    run(tf.zeros([2, 5, 5, 1]), tf.zeros([2, 9, 11]))
    assert shapes[0] == [2, 9, 11, 1]


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_type_is_kept(dtype, either_way):
    y = resize_bilinear(tf.ones([1, 3, 3, 1], dtype), (5, 5))
    assert y.dtype == dtype
    np.testing.assert_allclose(tf.cast(y, tf.float32), np.ones([1, 5, 5, 1]), rtol=1e-2)


def test_rows_of_the_matrix_sum_to_one():
    for align_corners in (True, False):
        matrix = interpolation_matrix(33, 129, align_corners=align_corners)
        np.testing.assert_allclose(matrix.sum(1), np.ones(129), rtol=1e-6)


def test_nearest_takes_floor():
    label = tf.constant([[0, 1, 2, 3, 4, 5]])[..., None] * tf.ones([1, 1, 1], tf.int32)
    column = tf.transpose(label, [0, 2, 1])[..., None]
    np.testing.assert_array_equal(resize_nearest(column, (1, 4))[0, 0, :, 0], [0, 1, 3, 4])


def test_nearest_align_corners_rounds_half_up():
    label = tf.constant([[[10, 20, 30, 40]]])
    # Coordinates 0, 1.5, 3 -> 0, 2, 3.
    np.testing.assert_array_equal(resize_nearest_align_corners(label, (1, 3))[0, 0], [10, 30, 40])
    assert resize_nearest_align_corners(label, (1, 1)).numpy().tolist() == [[[10]]]


@pytest.mark.parametrize("resize", [resize_nearest, resize_nearest_align_corners])
def test_nearest_with_run_time_sizes(resize):
    label = np.arange(2 * 5 * 7).reshape(2, 5, 7).astype("int32")
    traced = tf.function(
        resize,
        input_signature=[tf.TensorSpec([None] * 3, tf.int32), tf.TensorSpec([2], tf.int32)],
    )
    np.testing.assert_array_equal(traced(label, [3, 11]), resize(label, (3, 11)))


@pytest.mark.parametrize("resize", [resize_nearest, resize_nearest_align_corners])
@pytest.mark.parametrize("size", [[1, 48_000], [48_000, 1]])
def test_nearest_with_run_time_sizes_beyond_int32_products(resize, size):
    label = (np.arange(24_000) % 251).astype("uint8").reshape([1, *(n // 2 or 1 for n in size)])
    traced = tf.function(
        resize,
        input_signature=[tf.TensorSpec([None] * 3, tf.uint8), tf.TensorSpec([2], tf.int32)],
    )
    np.testing.assert_array_equal(traced(label, size), resize(label, tuple(size)))


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 1.5, 1.75, 0.3, 1.0])
@pytest.mark.parametrize("size", [(37, 45), (24, 30), (5, 2), (3, 1)])
@pytest.mark.parametrize("known", [True, False], ids=["known size", "any size"])
def test_cubic_scaling_equals_opencvs(scale, size, known):
    x = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype("float32")
    if round(scale * min(size)) == 0:
        size = None  # OpenCV has no empty images; ours keep one pixel.
    signature = tf.TensorSpec([2, *(x.shape[1:3] if known else (None, None)), 3])
    actual = tf.function(lambda y: rescale_cubic(y, scale), input_signature=[signature])(x)
    if size is None:
        assert 1 in actual.shape
        return
    for one, expected in zip(actual.numpy(), x):
        expected = cv2.resize(expected, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        np.testing.assert_allclose(one, expected.reshape(one.shape), atol=2e-4)


@pytest.mark.parametrize("size", [(9, 13), (21, 30), (10, 31)])
@pytest.mark.parametrize("known", [True, False])
def test_cubic_resizing_to_a_size_equals_opencvs(size, known):
    x = np.random.default_rng(3).uniform(0, 255, [1, 13, 25, 3]).astype(np.float32)
    signature = tf.TensorSpec(x.shape if known else [None, None, None, 3])
    sizes = tf.TensorSpec([2], tf.int32)

    @tf.function(input_signature=[signature, sizes], autograph=False)
    def resized(y, to):
        return resize_cubic(y, size if known else (to[0], to[1]))

    expected = cv2.resize(x[0], size[::-1], interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(resized(x, tf.constant(size))[0], expected, atol=1e-2)


def test_cubic_weights_sum_to_one_and_reach_two_samples():
    matrix = cubic_matrix(9, 1.5)
    assert matrix.shape == (14, 9)  # 13.5, to even
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    assert ((matrix != 0).sum(1) <= 4).all()
    np.testing.assert_allclose(cubic_matrix(tf.constant(9), 1.5), matrix, atol=1e-12)


def test_cubic_scaling_commutes_with_normalisation():
    x = np.random.default_rng(0).uniform(0, 255, (1, 8, 9, 3)).astype("float32")
    first = (rescale_cubic(x, 0.75) - 110.0) / 50.0
    np.testing.assert_allclose(first, rescale_cubic((x - 110.0) / 50.0, 0.75), atol=1e-5)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [(61, 83), (31, 42), (46, 62), (92, 124), (1, 1)])
def test_pillow_resize_equals_pillow_but_for_rounding(size, known):
    y, x = np.mgrid[:61, :83]
    image = np.stack(
        [
            127 + 100 * np.sin(x / 5) * np.cos(y / 7),
            255 * ((x // 9 + y // 6) % 2),  # hard edges, where the kernel overshoots
            np.random.default_rng(0).integers(0, 256, x.shape),
        ],
        axis=-1,
    ).astype(np.uint8)
    # Wider than high: newer versions of Pillow resize high images in the other order.
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
    signature = tf.TensorSpec([1, *(image.shape[:2] if known else (None, None)), 3])
    resize = tf.function(lambda z: resize_pillow(z, size), input_signature=[signature])
    actual = resize(image[None].astype(np.float32))[0].numpy()
    assert actual.shape == expected.shape
    difference = np.abs(actual - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001
    if size == image.shape[:2]:
        np.testing.assert_array_equal(actual, image)


def test_pillow_weights_widen_against_aliasing():
    matrix = pillow_matrix(16, 4)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    assert ((matrix != 0).sum(1) > 8).all()  # two samples of the result on either side
    assert ((pillow_matrix(4, 16) != 0).sum(1) <= 4).all()
    np.testing.assert_allclose(pillow_matrix(tf.constant(16), tf.constant(4)), matrix, atol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_scaling_steps_by_the_factor_not_by_the_ratio_of_sizes(known):
    # A ramp shows where each sample is taken.
    ramp = tf.tile(tf.range(7.0)[None, None, :, None], [1, 5, 1, 1])
    scale = 1.5 if known else tf.constant(1.5)
    result = rescale_bilinear(ramp, scale)
    assert result.shape == [1, 7, 10, 1]
    expected = np.clip((np.arange(10) + 0.5) / 1.5 - 0.5, 0, 6)
    np.testing.assert_allclose(result[0, 3, :, 0], expected, rtol=1e-6)
    by_sizes = tf.image.resize(ramp, (7, 10))[0, 3, :, 0]
    assert np.abs(by_sizes - expected).max() > 0.05, "the test must tell the two apart"


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scaling_to_whole_sizes_equals_resizing(scale):
    x = tf.random.stateless_uniform([2, 6, 8, 3], [0, 1])
    size = [int(6 * scale), int(8 * scale)]
    np.testing.assert_allclose(
        rescale_bilinear(x, scale), tf.image.resize(x, size, "bilinear"), atol=1e-6
    )
    graph = tf.function(rescale_bilinear).get_concrete_function(
        tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([])
    )
    np.testing.assert_allclose(graph(x, tf.constant(scale)), rescale_bilinear(x, scale), atol=1e-6)


def test_nothing_is_scaled_to_nothing():
    assert rescale_bilinear(tf.ones([1, 3, 3, 1]), 0.1).shape == [1, 1, 1, 1]
