"""Thresholds of pseudo masks on rows of pixels that a human can check."""

import numpy as np
import tensorflow as tf

from tfseg.ops.pseudo_masks import confident_classes, confident_foreground

IGNORE = 255
VOC = dict(cutoff_top=0.6, cutoff_low=0.2, background_factor=0.7, ignore_label=IGNORE)
COCO = dict(cutoff_top=0.5, cutoff_low=0.1, ignore_label=IGNORE)


def _row(*channels):
    """One image of one row of pixels from the masks of its classes."""
    return tf.constant(np.stack(channels, -1)[None, None], tf.float32)


def _labels(function, masks, **options):
    label = function(masks, **options)
    assert label.dtype == tf.int32
    return label[0, 0].numpy().tolist()


def test_a_class_passes_near_its_own_maximum():
    # Thresholds: background 0.7 * 1.0, class 1 0.6 * 0.5.
    masks = _row([1.0, 0.8, 0.6, 0.5], [0.0, 0.2, 0.25, 0.5])
    assert _labels(confident_classes, masks, **VOC) == [0, 0, IGNORE, 1]


def test_nothing_passes_at_or_below_the_low_cutoff():
    masks = _row([0.7, 1.0, 1.0], [0.2, 0.2, 0.1])
    assert _labels(confident_classes, masks, **VOC) == [IGNORE, 0, 0]
    assert _labels(confident_classes, _row([0.1, 0.1], [0.0, 0.0]), **VOC) == [IGNORE] * 2


def test_the_threshold_itself_does_not_pass():
    masks = _row([0.0, 0.0], [1.0, 0.5])
    options = {**VOC, "cutoff_top": 0.5}
    assert _labels(confident_classes, masks, **options) == [1, IGNORE]


def test_pixels_of_several_classes_have_no_label():
    masks = _row([0.0, 0.0, 0.0], [0.4, 0.4, 0.0], [0.3, 0.0, 0.3])
    assert _labels(confident_classes, masks, **VOC) == [IGNORE, 1, 2]


def test_maxima_are_those_of_each_image():
    dim, bright = _row([0.0, 0.0], [0.3, 0.25]), _row([0.0, 0.0], [0.9, 0.25])
    both = confident_classes(tf.concat([dim, bright], 0), **VOC)
    np.testing.assert_array_equal(both[:, 0], [[1, 1], [1, IGNORE]])


def test_background_has_its_own_factor():
    masks = _row([1.0, 0.8], [0.0, 0.0])
    assert _labels(confident_classes, masks, **VOC) == [0, 0]
    strict = {**VOC, "background_factor": 0.9}
    assert _labels(confident_classes, masks, **strict) == [0, IGNORE]


def test_coco_background_is_what_no_class_claims():
    # Normalised: 1, 0.4, 0.05.
    masks = _row([0.0, 0.0, 0.0], [0.8, 0.32, 0.04])
    assert _labels(confident_foreground, masks, **COCO) == [1, IGNORE, 0]


def test_coco_does_not_look_at_the_mask_of_background():
    foreground = [0.8, 0.32, 0.04]
    for background in ([0.0] * 3, [1.0] * 3):
        labels = _labels(confident_foreground, _row(background, foreground), **COCO)
        assert labels == [1, IGNORE, 0]


def test_coco_pixels_of_several_classes_have_no_label():
    masks = _row([0.0, 0.0], [0.5, 0.5], [0.01, 0.0])
    # However small a mask is, its maximum counts as 1.
    assert _labels(confident_foreground, masks, **COCO) == [IGNORE, 1]


def test_images_without_foreground_are_background():
    masks = _row([0.3, 0.6], [0.0, 0.0], [0.0, 0.0])
    assert _labels(confident_foreground, masks, **COCO) == [0, 0]


def test_ids_and_ignore_label_may_exceed_a_byte():
    masks = np.zeros([1, 1, 2, 301], np.float32)
    masks[0, 0, 0, 300] = 1.0
    for function, options, second in (
        (confident_classes, {**VOC, "ignore_label": 999}, 999),
        (confident_foreground, {**COCO, "ignore_label": 999}, 0),
    ):
        assert _labels(function, tf.constant(masks), **options) == [300, second]
