import numpy as np
import pytest
import tensorflow as tf

from tfseg.monitors import Monitors, summarise


def test_shares_are_ratios_of_sums():
    figures = []
    sums = {}
    for part, whole in ((1.0, 4.0), (3.0, 4.0)):
        monitors = Monitors()
        monitors.share("coverage", tf.constant(part), tf.constant(whole))
        figures.append(summarise(monitors.sums)[0]["coverage"])
        sums = {k: sums.get(k, 0) + v.numpy() for k, v in monitors.sums.items()}
    assert figures == [0.25, 0.75]
    assert summarise(sums)[0] == {"coverage": 0.5}


def test_confusions_give_accuracy_and_miou_of_weighted_pixels():
    monitors = Monitors()
    label = tf.constant([[0, 0, 1, 1, 255]])
    prediction = tf.constant([[0, 1, 1, 0, 1]])
    weight = tf.constant([[1.0, 1.0, 1.0, 0.0, 1.0]])
    monitors.confusion("decoder", label, prediction, num_classes=2, weight=weight)
    figures, _ = summarise(monitors.sums)
    assert figures["decoder_accuracy"] == pytest.approx(2 / 3)
    assert figures["decoder_miou"] == pytest.approx(0.5)


def test_sums_go_on_where_float32_stops_counting():
    """At 2^24, which a step of 64 crops of 513 x 513 pixels passes."""
    monitors, label = Monitors(), tf.zeros([3], tf.int32)
    weight = tf.constant([2.0**24, 1.0, 1.0])
    monitors.confusion("decoder", label, label, num_classes=1, weight=weight)
    monitors.histogram("confidence", tf.zeros([3]), weight)
    assert float(monitors.sums["confusion:decoder"][0, 0]) == 2**24 + 2
    assert float(monitors.sums["histogram:confidence"][0]) == 2**24 + 2


def test_histograms_hold_the_weighted_shares_of_ten_bins():
    monitors = Monitors()
    values = tf.constant([0.0, 0.05, 0.55, 1.0])
    monitors.histogram("confidence", values, tf.constant([1.0, 1.0, 0.0, 2.0]))
    _, histograms = summarise(monitors.sums)
    np.testing.assert_allclose(histograms["confidence"], [0.5] + [0.0] * 8 + [0.5])


def test_what_has_no_data_is_left_out():
    monitors = Monitors()
    monitors.share("coverage", tf.constant(0.0), tf.constant(0.0))
    none = tf.zeros([1])
    monitors.confusion("decoder", tf.constant([255]), tf.constant([0]), num_classes=2, weight=none)
    assert summarise(monitors.sums) == ({}, {})


def test_no_gradient_passes():
    x = tf.Variable(0.5)
    with tf.GradientTape() as tape:
        monitors = Monitors()
        monitors.share("x", x * 2.0, tf.constant(1.0))
        total = tf.reduce_sum(monitors.sums["share:x"])
    assert tape.gradient(total, x) is None
