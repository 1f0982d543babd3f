"""Mask refinement: values against loops in NumPy, and what it is for."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tfseg.ops import pamr

# Of both, the larger dilation reaches beyond the small images here.
DILATIONS = (1, 6)
_DIRECTIONS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def _case(seed=0, height=5, width=7, classes=3):
    rng = np.random.default_rng(seed)
    masks = rng.random([2, height, width, classes])
    masks /= masks.sum(-1, keepdims=True)
    return rng.random([2, height, width, 3]).astype(np.float32), masks.astype(np.float32)


def _reference_neighbours(x, row, column):
    """The values around one pixel of x [h, w, D], [8 len(DILATIONS), D]."""
    height, width = x.shape[:2]
    return np.stack(
        [
            x[np.clip(row + d * y, 0, height - 1), np.clip(column + d * z, 0, width - 1)]
            for d in DILATIONS
            for y, z in _DIRECTIONS
        ]
    ).astype(np.float64)


def _reference_affinity(image, row, column):
    centre = image[row, column].astype(np.float64)
    around = _reference_neighbours(image, row, column)
    deviation = np.std(np.concatenate([around, [centre] * len(DILATIONS)]), axis=0, ddof=1)
    likeness = -(np.abs(centre - around) / (1e-8 + 0.1 * deviation)).mean(-1)
    weights = np.exp(likeness - likeness.max())
    return weights / weights.sum(), deviation


def _reference_refine(image, masks, iterations):
    masks = masks.astype(np.float64)
    pixels = list(np.ndindex(masks.shape[:2]))
    weights = {pixel: _reference_affinity(image, *pixel)[0] for pixel in pixels}
    for _ in range(iterations):
        refined = [weights[pixel] @ _reference_neighbours(masks, *pixel) for pixel in pixels]
        masks = np.reshape(refined, masks.shape)
    return masks


def test_affinity_and_deviation_follow_the_formula():
    image, _ = _case()
    weights, deviation = pamr.affinity(tf.constant(image), dilations=DILATIONS)
    for n, row, column in np.ndindex(2, 5, 7):
        expected, spread = _reference_affinity(image[n], row, column)
        np.testing.assert_allclose(weights[n, row, column], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(deviation[n, row, column], spread, rtol=1e-5)


@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_refined_masks_follow_the_formula(iterations):
    image, masks = _case(1)
    actual = pamr.refine(
        tf.constant(image), tf.constant(masks), dilations=DILATIONS, iterations=iterations
    )
    for n in range(2):
        expected = _reference_refine(image[n], masks[n], iterations)
        np.testing.assert_allclose(actual[n], expected, rtol=1e-4, atol=1e-6)


def test_the_image_is_brought_to_the_masks_size():
    image, masks = _case(2)
    large = tf.image.resize(image, [10, 14], "nearest")
    # With aligned corners, and therefore not the small image again.
    resized = tf.raw_ops.ResizeBilinear(images=large, size=[5, 7], align_corners=True)
    np.testing.assert_allclose(
        pamr.refine(large, tf.constant(masks)), pamr.refine(resized, tf.constant(masks)), atol=1e-6
    )


def test_a_picture_without_contrast_gives_plain_means():
    """All weights are then 1/8 and a lone pixel of 1 is shared out among its neighbours."""
    masks = np.zeros([1, 5, 5, 1], np.float32)
    masks[0, 2, 2] = 1.0
    grey = tf.fill([1, 5, 5, 3], 0.3)
    once = pamr.refine(grey, tf.constant(masks), dilations=(1,), iterations=1).numpy()
    expected = np.zeros([5, 5])
    expected[1:4, 1:4] = 1 / 8
    expected[2, 2] = 0.0
    np.testing.assert_allclose(once[0, :, :, 0], expected, atol=1e-7)


def test_values_keep_their_range_and_their_sum_over_classes():
    image, masks = _case(3, height=30, width=26)
    refined = pamr.refine(tf.constant(image), tf.constant(masks)).numpy()
    np.testing.assert_allclose(refined.sum(-1), 1.0, atol=1e-5)
    assert (refined.max((1, 2)) <= masks.max((1, 2)) + 1e-6).all()
    assert (refined.min((1, 2)) >= masks.min((1, 2)) - 1e-6).all()


def test_masks_are_drawn_to_the_edges_of_the_image():
    """A mask that covers the object in part fills it, and does not cross its border."""
    image = np.zeros([1, 20, 20, 3], np.float32)
    image[:, :, 10:] = 1.0
    masks = np.zeros([1, 20, 20, 1], np.float32)
    masks[:, 5:15, 10:14] = 1.0
    refined = pamr.refine(tf.constant(image), tf.constant(masks))[0, :, :, 0].numpy()
    assert refined[:, :10].max() < 0.01
    assert refined[:, 10:].min() > 0.02, "all of the object has something of its mask"


def test_no_tensor_holds_the_masks_of_all_neighbours():
    classes, side = 21, 50
    image, masks = tf.zeros([1, side, side, 3]), tf.zeros([1, side, side, classes])
    graph = tf.function(pamr.refine).get_concrete_function(image, masks).graph
    body = [f.graph for name, f in graph._functions.items() if "while_body" in str(name)]
    operations = [op for g in (graph, *body) for op in g.get_operations()]
    assert sum(op.type == "StridedSlice" for op in operations if op.graph is not graph) >= 48
    sizes = [t.shape.num_elements() for op in operations for t in op.outputs if t.shape.rank]
    margin = 2 * max(pamr.DILATIONS)
    padded = (side + margin) ** 2 * classes
    assert max(sizes) <= padded
    assert padded < 48 * side**2 * classes / 5


def test_graphs_with_unknown_sizes_and_compiled_ones_give_the_same():
    image, masks = _case(4)
    expected = pamr.refine(tf.constant(image), tf.constant(masks))
    unknown = tf.TensorSpec([None, None, None, None])
    open_graph = tf.function(pamr.refine, input_signature=[unknown, unknown])
    np.testing.assert_allclose(open_graph(image, masks), expected, atol=1e-6)
    few = functools.partial(pamr.refine, dilations=DILATIONS, iterations=2)
    compiled = tf.function(few, jit_compile=True)
    np.testing.assert_allclose(compiled(image, masks), few(image, masks), atol=1e-5)
