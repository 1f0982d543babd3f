"""Hard examples by a probability and a count."""

import numpy as np
import tensorflow as tf

from tfseg.ops import hard_examples


def logits_of(probs):
    """Two classes; the first has these probabilities."""
    probs = np.asarray(probs, np.float64)
    return tf.constant(np.log(np.stack([probs, 1 - probs], -1)), tf.float32)


def kept(probs, label, **options):
    options = {"ignore_label": 255, "threshold": 0.7, **options}
    mask = hard_examples.hard_pixels(logits_of([probs]), tf.constant([label]), **options)
    return mask.numpy()[0].tolist()


PROBS, LABEL = [[0.5, 0.6, 0.8, 0.9, 0.99]], [[0, 0, 0, 0, 255]]


def test_unsure_pixels_count_or_at_least_so_many():
    assert kept(PROBS, LABEL, min_kept=1) == [[True, True, False, False, False]]
    assert kept(PROBS, LABEL, min_kept=3) == [[True, True, True, False, False]]
    assert kept(PROBS, LABEL, min_kept=0) == [[True, True, False, False, False]]


def test_all_count_where_there_are_fewer_than_that():
    assert kept(PROBS, LABEL, min_kept=5) == [[True, True, True, True, False]]


def test_ignored_pixels_never_count_and_are_the_easiest():
    label = [[255, 0, 0, 0, 255]]
    assert kept(PROBS, label, min_kept=2) == [[False, True, True, False, False]]
    ignored = tf.fill([1, 1, 5], 255)
    loss = hard_examples.hard_pixel_loss(logits_of([PROBS]), ignored, ignore_label=255)
    assert float(loss) == 0.0


def test_class_weights_act_on_the_loss_and_not_on_the_choice():
    logits, label = logits_of([PROBS]), tf.constant([LABEL])
    options = {"ignore_label": 255, "min_kept": 1}
    plain = hard_examples.hard_pixel_loss(logits, label, **options)
    weighted = hard_examples.hard_pixel_loss(logits, label, class_weights=(3.0, 1.0), **options)
    np.testing.assert_allclose(weighted, 3 * plain, rtol=1e-6)


def test_replicas_mine_their_batch_together(two_replicas):
    probs = np.array([[[0.1, 0.2, 0.3, 0.75]], [[0.8, 0.9, 0.91, 0.92]]])
    label = tf.zeros([1, 1, 4], tf.int32)
    options = {"ignore_label": 255, "threshold": 0.15, "min_kept": 2}

    def of_replica(context):
        return logits_of(probs[context.replica_id_in_sync_group][None])

    logits = two_replicas.experimental_distribute_values_from_function(of_replica)

    @tf.function
    def run():
        per_replica = two_replicas.run(
            lambda x: hard_examples.hard_pixel_loss(x, label, over_replicas=True, **options),
            args=(logits,),
        )
        return two_replicas.reduce("MEAN", per_replica, axis=None)

    # Twice two pixels, wherever they are.
    np.testing.assert_allclose(run(), -np.log([0.1, 0.2, 0.3, 0.75]).mean(), rtol=1e-5)
