"""Class-aware cross entropy: values, gradients and extremes against NumPy in float64."""

import numpy as np
import tensorflow as tf

from tfseg.ops import class_aware

IGNORE = 255
EPSILON = 1e-5


def _case(seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, [2, 3, 4, 5])
    present = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0]], np.float64)
    label = rng.integers(0, 5, [2, 3, 4]).astype(np.int32)
    label[0, 0, 0] = IGNORE
    return logits, present, label


def _reference_q(logits, present, temperature):
    e = np.exp(logits / temperature)
    total = (e * present[:, None, None, :]).sum(-1, keepdims=True) + EPSILON
    return e / total


def _loss(logits, label, present, **options):
    loss, kept = class_aware.class_aware_cross_entropy(
        logits, label, tf.constant(present, tf.float32), ignore_label=IGNORE, **options
    )
    return loss, kept


def test_values_and_gradients_follow_the_formula():
    temperature = 0.8
    logits, present, label = _case()
    q = _reference_q(logits, present, temperature)
    kept = label != IGNORE
    y = np.where(kept, label, 0)[..., None]
    q_y = np.take_along_axis(q, y, -1)
    expected = np.where(kept, -np.log(q_y[..., 0] + EPSILON), 0.0)
    one_hot = np.eye(5)[y[..., 0]]
    gradient = -q_y / (q_y + EPSILON) * (one_hot - present[:, None, None, :] * q) / temperature
    variable = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss, mask = _loss(variable, label, present, temperature=temperature)
        total = tf.reduce_sum(loss)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_allclose(
        tape.gradient(total, variable), gradient * kept[..., None], rtol=1e-4, atol=1e-6
    )


def test_absent_classes_get_no_gradient_unless_they_are_the_label():
    logits, present, _ = _case(2)
    variable = tf.constant(logits, tf.float32)
    for label, touched in ((0, False), (3, True)):
        with tf.GradientTape() as tape:
            tape.watch(variable)
            loss, _ = _loss(variable, np.full([2, 3, 4], label, np.int32), present)
            total = tf.reduce_sum(loss)
        absent = tape.gradient(total, variable).numpy()[..., 3]
        assert np.any(absent != 0) == touched


def test_huge_logits_give_finite_values_and_gradients():
    logits, present, label = _case(3, scale=1e4)
    variable = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss, _ = _loss(variable, label, present)
        total = tf.reduce_sum(loss)
    assert np.isfinite(loss).all() and np.isfinite(tape.gradient(total, variable)).all()
    # An absent label far above all others is below 0, a hopeless one is capped.
    assert np.max(loss) <= -np.log(EPSILON) + 1e-4


def test_an_image_without_present_classes_gives_finite_values():
    logits, _, label = _case(4)
    loss, _ = _loss(tf.constant(logits, tf.float32), label, np.zeros([2, 5]))
    assert np.isfinite(loss).all()


def test_masked_arg_max_is_a_present_class():
    logits, present, _ = _case(5)
    best = np.argmax(class_aware.mask_absent_logits(logits, tf.constant(present, tf.float32)), -1)
    for row, allowed in zip(best, present):
        assert set(np.unique(row)) <= set(np.flatnonzero(allowed))


def test_background_is_always_present_where_there_is_one():
    image_label = tf.constant([[0.0, 1.0]])
    with_background = class_aware.present_classes(image_label, has_background=True)
    np.testing.assert_array_equal(with_background, [[1, 0, 1]])
    np.testing.assert_array_equal(
        class_aware.present_classes(image_label, has_background=False), [[0, 1]]
    )


def test_what_absent_classes_lose_goes_to_the_present_foreground():
    # Background, then three classes of which the second and the third are present.
    probs = np.array([0.2, 0.6, 0.15, 0.05], np.float32)
    logits = tf.constant(np.log(probs)[None, None, None] + 7.0)
    present = tf.constant([[1.0, 0.0, 1.0, 1.0]])
    moved = class_aware.move_absent_to_present(logits, present, has_background=True)
    np.testing.assert_allclose(tf.nn.softmax(moved)[0, 0, 0], [0.2, 0.0, 0.6, 0.2], atol=1e-6)


def test_in_an_image_without_a_class_all_is_background():
    logits, _, _ = _case(6)
    moved = class_aware.move_absent_to_present(
        tf.constant(logits, tf.float32), tf.constant([[1.0, 0, 0, 0, 0]] * 2), has_background=True
    )
    np.testing.assert_allclose(tf.nn.softmax(moved)[..., 0], 1.0)


def test_where_all_classes_are_present_nothing_moves():
    logits, _, _ = _case(7)
    logits = tf.constant(logits, tf.float32)
    moved = class_aware.move_absent_to_present(logits, tf.ones([2, 5]), has_background=True)
    np.testing.assert_allclose(moved, logits, atol=1e-5)


def test_without_a_background_class_absent_ones_are_only_masked():
    logits, present, _ = _case(8)
    logits, present = tf.constant(logits, tf.float32), tf.constant(present, tf.float32)
    np.testing.assert_array_equal(
        class_aware.move_absent_to_present(logits, present, has_background=False),
        class_aware.mask_absent_logits(logits, present),
    )
