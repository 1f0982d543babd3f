import numpy as np
import pytest
import tensorflow as tf

from tfseg.ops import losses

RNG = np.random.default_rng(0)


def numpy_cross_entropy(logits, label):
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, label[..., None], -1)[..., 0]


def test_loss_is_the_mean_over_pixels_that_are_not_ignored():
    logits = RNG.normal(size=[2, 5, 5, 3]).astype(np.float32)
    label = RNG.integers(0, 3, size=[2, 5, 5]).astype(np.int32)
    label[0, :2] = 255
    expected = numpy_cross_entropy(logits, np.where(label == 255, 0, label))[label != 255].mean()
    actual = losses.segmentation_loss(tf.constant(logits), tf.constant(label), ignore_label=255)
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_all_ignored_gives_zero_loss_and_zero_gradient():
    logits = tf.Variable(RNG.normal(size=[1, 3, 3, 4]).astype(np.float32))
    with tf.GradientTape() as tape:
        loss = losses.segmentation_loss(logits, tf.fill([1, 5, 5], 255), ignore_label=255)
    assert float(loss) == 0.0
    assert not np.any(tape.gradient(loss, logits).numpy())


def test_ignored_pixels_receive_no_gradient():
    logits = tf.Variable(RNG.normal(size=[1, 2, 2, 3]).astype(np.float32))
    label = tf.constant([[[0, 255], [1, 2]]])
    with tf.GradientTape() as tape:
        loss = losses.segmentation_loss(logits, label, ignore_label=255)
    gradient = tape.gradient(loss, logits).numpy()
    assert not np.any(gradient[0, 0, 1])
    assert np.all(np.abs(gradient[0, 1]).sum(-1) > 0)


def test_top_k_keeps_the_hardest_and_divides_by_the_nonzero():
    pixel_loss = tf.constant([[4.0, 1.0, 0.0, 3.0, 0.0, 0.0, 2.0, 0.0]])
    assert float(losses.hardest_pixels_mean(pixel_loss, tf.constant(0.25))) == pytest.approx(3.5)
    assert float(losses.hardest_pixels_mean(pixel_loss, tf.constant(0.75))) == pytest.approx(2.5)


def test_top_k_of_more_pixels_than_float32_counts_keeps_no_more_than_all():
    pixels = 2**24 + 3  # the next float32 is one more
    assert int(losses.number_of_hardest(tf.constant(pixels), tf.constant(1.0))) == pixels


def test_top_k_fraction_falls_linearly():
    def at(step):
        return float(losses.top_k_fraction(tf.constant(step), final=0.25, ramp_steps=100))

    assert [at(0), at(50), at(100), at(1000)] == pytest.approx([1.0, 0.625, 0.25, 0.25])
    assert losses.top_k_fraction(tf.constant(3), final=1.0, ramp_steps=100) is None


@pytest.mark.parametrize("top_k", [None, 0.4])
def test_over_replicas_the_mean_of_losses_is_that_of_the_global_batch(two_replicas, top_k):
    logits = RNG.normal(size=[4, 6, 6, 3]).astype(np.float32)
    label = RNG.integers(0, 3, size=[4, 6, 6]).astype(np.int32)
    label[0] = 255
    label[2, 3] = 255
    fraction = None if top_k is None else tf.constant(top_k)
    whole = losses.segmentation_loss(
        tf.constant(logits), tf.constant(label), ignore_label=255, top_k=fraction
    )

    def replica_values(context):
        i = context.replica_id_in_sync_group
        return logits[2 * i : 2 * i + 2], label[2 * i : 2 * i + 2]

    parts = two_replicas.experimental_distribute_values_from_function(replica_values)

    @tf.function
    def step(x):
        def replica(x):
            return losses.segmentation_loss(
                *x, ignore_label=255, top_k=fraction, over_replicas=True
            )

        return two_replicas.reduce("MEAN", two_replicas.run(replica, args=(x,)), axis=None)

    assert float(step(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_multi_label_loss_is_the_mean_over_images_and_classes():
    logits = np.array([[0.0, 2.0], [-1.0, 3.0]], np.float32)
    target = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    prob = 1 / (1 + np.exp(-logits))
    expected = -(target * np.log(prob) + (1 - target) * np.log(1 - prob)).mean()
    assert float(losses.multi_label_loss(tf.constant(logits), tf.constant(target))) == (
        pytest.approx(expected, rel=1e-5)
    )


def test_the_weighted_mean_divides_by_the_weights_of_kept_pixels():
    logits = RNG.normal(size=[1, 1, 4, 3]).astype(np.float32)
    label, weights = np.array([[[0, 2, 255, 1]]], np.int32), np.array([1.0, 5.0, 100.0])
    kept = label != 255
    cross_entropy = numpy_cross_entropy(logits, np.where(kept, label, 0))[kept]
    of_pixel = weights[label[kept]]
    options = {"ignore_label": 255, "class_weights": tuple(weights)}
    by_weights, by_pixels = (
        losses.segmentation_loss(
            tf.constant(logits), tf.constant(label), denominator=denominator, **options
        )
        for denominator in ("weights", "pixels")
    )
    total = (of_pixel * cross_entropy).sum()
    assert float(by_weights) == pytest.approx(total / of_pixel.sum(), rel=1e-5)
    assert float(by_pixels) == pytest.approx(total / 3, rel=1e-5)


def test_focal_of_the_mean_by_hand():
    """A mean cross entropy of ln 4 is a probability of a quarter."""
    loss = losses.focal_of_mean(tf.constant(np.log(4.0)))
    assert float(loss) == pytest.approx(0.5 * 0.75**2 * np.log(4.0), rel=1e-6)
