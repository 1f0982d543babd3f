"""Augmentation: draws, windows, colours, padding; the same eager and inside tf.data."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from tfseg.data.augment import deeplab
from tfseg.data.augment.base import image_label_of, scale_factors
from tfseg.data.augment.color_planes import adjust_hue, adjust_saturation
from tfseg.data.augment.deeplab import (
    BRIGHTNESS,
    CONTRAST,
    SATURATION,
    DeepLabDraws,
    draw,
    draw_strong,
    grid_of,
    jitter_crop,
    jitter_window,
    resize_label_window,
    resize_window,
    scaled_size,
    training_views,
)
from tfseg.data.reading import size_in_range
from tfseg.settings.data import DataConfig

MEAN = (123.0, 115.0, 103.0)
IGNORE = 255
SCALES = scale_factors(0.5, 2.0, 0.25)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    label = rng.choice(np.array([0, 3, 7, IGNORE], np.uint8), (height, width))
    return tf.constant(image), tf.constant(label)


def draws(**changes):
    values = {
        "scale": 1.0,
        "crop_offset": [0, 0],
        "flip": False,
        "jitter_order": [0, 1, 2, 3],
        "brightness": 0.0,
        "contrast": 1.0,
        "saturation": 1.0,
        "hue": 0.0,
        "cutout_center": [0, 0],
        **changes,
    }
    return DeepLabDraws(**{name: tf.constant(value) for name, value in values.items()})


def views(image, label, d, crop=(33, 41), strong=()):
    return training_views(
        image, label, d, crop_size=crop, mean_pixel=MEAN, ignore_label=IGNORE, strong=strong
    )


def test_further_strong_views_share_the_geometry_alone():
    seed, options = tf.constant([3, 4]), {"crop_size": (33, 41)}
    first = draw(seed, tf.constant([40, 50]), scales=SCALES, **options)
    second, third, again = (draw_strong(first, seed, i, **options) for i in (2, 3, 2))
    fields = {"brightness", "contrast", "saturation", "hue", "cutout_center"}
    for name in DeepLabDraws.__dataclass_fields__:
        values = [getattr(d, name).numpy() for d in (first, second, third, again)]
        np.testing.assert_array_equal(values[1], values[3])
        if name in fields:
            assert len({str(value) for value in values}) == 3, name
        elif name != "jitter_order":
            np.testing.assert_array_equal(values[0], values[1])
            np.testing.assert_array_equal(values[0], values[2])


# Draws ------------------------------------------------------------------------------------------


def test_scales_are_those_of_the_published_code():
    np.testing.assert_array_equal(SCALES, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0])
    np.testing.assert_array_equal(scale_factors(0.7, 0.7, 0.25), np.float32([0.7]))
    assert scale_factors(0.5, 2.0, 0.0) is None


@pytest.mark.parametrize("limits", [(2.0, 0.5), (0.0, 1.0), (-1.0, 1.0)])
def test_scales_out_of_order_are_refused(limits):
    with pytest.raises(ValueError, match="positive and ordered"):
        scale_factors(*limits, 0.25)


def many_draws(count, size=(40, 50), crop=(33, 41), **options):
    options = {"scales": SCALES, **options}

    def one(seed):
        d = draw(seed, tf.constant(size), crop_size=crop, **options)
        return {name: getattr(d, name) for name in DeepLabDraws.__dataclass_fields__}

    seeds = tf.stack([tf.range(count), tf.zeros(count, tf.int32)], 1)
    dataset = tf.data.Dataset.from_tensor_slices(seeds).map(one).batch(count)
    return {name: value.numpy() for name, value in next(iter(dataset)).items()}


def test_draws_cover_their_ranges_and_nothing_else():
    found = many_draws(4000)
    values, counts = np.unique(found["scale"], return_counts=True)
    np.testing.assert_array_equal(values, SCALES)
    assert counts.min() > 450  # 571 expected
    scaled = np.stack([np.trunc(40 * found["scale"]), np.trunc(50 * found["scale"])], 1)
    room = np.maximum(scaled - [33, 41], 0)
    assert (found["crop_offset"] >= 0).all() and (found["crop_offset"] <= room).all()
    at_two = found["scale"] == 2.0
    assert set(found["crop_offset"][at_two][:, 0]) == set(range(48))
    assert 0.45 < found["flip"].mean() < 0.55
    orders, counts = np.unique(found["jitter_order"], axis=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 100  # 167 expected
    for name, low, high in (
        ("brightness", -0.5, 0.5),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -0.25, 0.25),
    ):
        span = high - low
        assert low <= found[name].min() < low + 0.01 * span
        assert high - 0.01 * span < found[name].max() <= high
    assert set(found["cutout_center"][:, 1]) == set(range(41))


def test_draws_are_unrelated():
    found = many_draws(4000)
    names = ("scale", "flip", "brightness", "contrast", "saturation", "hue")
    correlation = np.corrcoef([found[name].astype(float) for name in names])
    assert np.abs(correlation - np.eye(len(names))).max() < 0.06


def test_step_0_draws_continuous_scales():
    scale = many_draws(500, scales=None, scale_range=(0.9, 1.1))["scale"]
    assert len(np.unique(scale)) > 490
    assert 0.9 <= scale.min() < 0.91 and 1.09 < scale.max() <= 1.1


# Geometry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.0, 1.25, 1.37, 2.0])
@pytest.mark.parametrize("window", [(11, 13), (18, 25)])  # a small part, or most of the image
def test_a_window_is_a_part_of_the_antialiased_resize(scale, window):
    image, _ = picture(37, 51)
    size = scaled_size(tf.constant([37, 51]), tf.constant(scale, tf.float32))
    whole = tf.image.resize(image, size, antialias=True).numpy()
    np.testing.assert_array_equal(size, np.trunc(np.float32([37, 51]) * np.float32(scale)))
    offset = size - tf.constant(window)  # down to the last pixel, where weights are clipped
    part = resize_window(image, size, offset, tf.constant(window))
    np.testing.assert_allclose(part, whole[-window[0] :, -window[1] :], atol=1e-3)


def test_a_label_window_is_a_part_of_the_align_corners_resize():
    from tfseg.ops.resize import resize_nearest_align_corners

    _, label = picture(37, 51)
    whole = resize_nearest_align_corners(label[None], (55, 76))[0].numpy()
    part = resize_label_window(
        label, tf.constant([55, 76]), tf.constant([3, 5]), tf.constant([11, 13])
    )
    np.testing.assert_array_equal(part, whole[3:14, 5:18])


@pytest.mark.parametrize("side, scaled", [(23_170, 46_340), (24_000, 48_000), (60_000, 90_001)])
def test_label_windows_of_long_images_are_exact(side, scaled):
    """Products of two such sides are beyond int32."""
    label = (np.arange(side) % 251).astype(np.uint8)
    i = np.arange(scaled - 33, scaled)
    expected = label[(2 * i * (side - 1) + scaled - 1) // (2 * scaled - 2)]
    for axis in (0, 1):
        size = [3, 3]
        size[axis] = scaled
        part = resize_label_window(
            tf.constant(np.repeat(np.expand_dims(label, 1 - axis), 3, 1 - axis)),
            tf.constant(size),
            tf.constant([scaled - 33, 0] if axis == 0 else [0, scaled - 33]),
            tf.constant([33, 3] if axis == 0 else [3, 33]),
        )
        np.testing.assert_array_equal(np.moveaxis(part, axis, 1), [expected] * 3)


def test_identity_draws_pad_and_crop_only():
    image, label = picture(20, 60)
    out = views(image, label, draws(crop_offset=[0, 7]))
    np.testing.assert_array_equal(out["image"][:20], image[:, 7:48])
    np.testing.assert_array_equal(out["image"][20:], np.broadcast_to(MEAN, (13, 41, 3)))
    np.testing.assert_array_equal(out["label"][:20], label[:, 7:48])
    assert (out["label"].numpy()[20:] == IGNORE).all()
    np.testing.assert_array_equal(out["valid"].numpy()[:, 0], [1.0] * 20 + [0.0] * 13)
    assert out["label"].dtype == label.dtype and out["valid"].dtype == tf.bool


def test_all_views_are_flipped_together():
    image, label = picture(40, 50)
    d = {"scale": 1.5, "crop_offset": [5, 9], "hue": 0.2, "cutout_center": [10, 60]}
    strong = [draws(**d), draws(**{**d, "hue": -0.1, "cutout_center": [0, 20]})]
    plain = views(image, label, draws(**d), strong=strong)
    flipped = views(image, label, draws(**d, flip=True), strong=strong)
    for name in ("image", "image_strong", "image_strong_2", "label", "valid"):
        np.testing.assert_array_equal(flipped[name], plain[name].numpy()[:, ::-1])


def test_the_cut_out_hides_a_square_from_all_but_the_weak_view():
    crop = (129, 161)
    image, label = picture(*crop)
    center = (30, 80)  # rows -20..79, of which 0..79 exist; columns 30..129
    d = draws(crop_offset=[0, 0], cutout_center=list(center))
    weak = views(image, label, d, crop)
    strong = views(image, label, d, crop, strong=[d])
    np.testing.assert_array_equal(strong["image"], weak["image"])
    hole = np.zeros(crop, bool)
    hole[0:80, 30:130] = True
    np.testing.assert_array_equal(strong["valid"].numpy() == 0, hole)
    np.testing.assert_array_equal(strong["label"], np.where(hole, IGNORE, weak["label"]))
    np.testing.assert_array_equal(strong["image_strong"].numpy()[hole], [MEAN] * hole.sum())
    np.testing.assert_allclose(
        strong["image_strong"].numpy()[~hole], weak["image"].numpy()[~hole], atol=1e-3
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 41), (40, 50), (90, 20)])
def test_labels_take_only_values_of_the_input(size):
    image, label = picture(*size)
    for i in range(30):
        d = draw(tf.constant([i, 1]), tf.constant(size), crop_size=(33, 41), scales=SCALES)
        out = views(image, label, d, strong=[d] * (i % 2))
        assert out["image"].shape == (33, 41, 3)
        assert set(np.unique(out["label"])) <= {*np.unique(label), IGNORE}
        # Outside the image and in the hole there is no label.
        assert (out["label"].numpy()[out["valid"].numpy() == 0] == IGNORE).all()
        assert np.isfinite(out["image"]).all()


def test_eager_and_inside_tf_data_agree():
    image, label = picture(40, 50)

    def make(seed):
        d = draw(seed, tf.shape(label), crop_size=(33, 41), scales=SCALES)
        return views(image, label, d, strong=[d])

    seeds = tf.constant([[i, 5] for i in range(12)])
    for seed, inside in zip(seeds, tf.data.Dataset.from_tensor_slices(seeds).map(make)):
        for name, value in make(seed).items():
            np.testing.assert_allclose(inside[name], value, atol=1e-3, err_msg=name)


def test_a_stream_without_labels_has_no_label():
    image, _ = picture(40, 50)
    assert set(views(image, None, draws(), strong=[draws()])) == {"image", "image_strong", "valid"}


# Colours ----------------------------------------------------------------------------------------


def planes_of(*colours):
    """Colour planes [3, 1, n] of n pixels."""
    return tf.constant(np.float32(colours).T[:, None, :])


COLOURS = (
    (0.8, 0.3, 0.1), (0.2, 0.9, 0.5), (0.1, 0.4, 0.7), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0),
    (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.6, 0.6, 0.2), (0.3, 0.7, 0.7), (0.7, 0.2, 0.7),
)  # fmt: skip


def through_hsv(change):
    rows = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*c))) for c in COLOURS]
    return np.float32(rows).T[:, None, :]


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.5])
def test_saturation_is_scaled_in_hsv(factor):
    actual = adjust_saturation(planes_of(*COLOURS), tf.constant(factor))
    expected = through_hsv(lambda h, s, v: (h, min(1.0, s * factor), v))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("delta", [-0.25, -0.1, 0.0, 0.2, 0.25])
def test_hue_is_turned_in_hsv(delta):
    actual = adjust_hue(planes_of(*COLOURS), tf.constant(delta))
    expected = through_hsv(lambda h, s, v: ((h + delta) % 1.0, s, v))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 3, 0, 2), (2, 3, 0, 1), (3, 0, 1, 2)])
def test_jitter_of_a_window_is_a_window_of_the_jitter(order):
    """Against TensorFlow's operations on the whole image, clipped after each."""
    image = tf.cast(picture(30, 44)[0], tf.float32)
    d = draws(jitter_order=list(order), brightness=0.3, contrast=1.4, saturation=1.5, hue=-0.2)
    x = image / 255.0
    for operation in order:
        if operation == BRIGHTNESS:
            x = tf.image.adjust_brightness(x, 0.3)
        elif operation == CONTRAST:
            x = tf.image.adjust_contrast(x, 1.4)
        elif operation == SATURATION:
            x = tf.image.adjust_saturation(x, 1.5)
        else:
            x = tf.image.adjust_hue(x, -0.2)
        x = tf.clip_by_value(x, 0.0, 1.0)
    actual = jitter_window(image, d, tf.constant([4, 9]), tf.constant([20, 31]))
    np.testing.assert_allclose(actual, x[4:24, 9:40] * 255.0, atol=1e-3)


@pytest.mark.parametrize("order", [(1, 3, 0, 2), (2, 3, 0, 1)])
def test_a_crop_is_jittered_about_the_mean_of_the_points_that_are_given(order):
    image = tf.cast(picture(30, 44)[0], tf.float32)
    d = draws(jitter_order=list(order), brightness=0.3, contrast=1.4, saturation=1.5, hue=-0.2)
    expected = jitter_window(image, d, tf.constant([4, 9]), tf.constant([20, 31]))
    np.testing.assert_array_equal(jitter_crop(image[4:24, 9:40], image, d), expected)


def test_large_images_are_jittered_about_the_mean_of_a_grid(monkeypatch):
    y, x = np.mgrid[:90, :130]
    waves = [np.sin(x / 9 + y / 31), np.cos(y / 7), np.sin((x + y) / 5)]
    image = tf.constant(np.stack([128 + 127 * wave for wave in waves], -1), tf.float32)
    label = tf.zeros([90, 130], tf.uint8)
    for order in ((1, 0, 2, 3), (0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1)):
        colors = {"brightness": 0.4, "contrast": 0.5, "hue": 0.2}
        # The hole lies beside the crop.
        d = draws(scale=1.5, jitter_order=list(order), cutout_center=[500, 500], **colors)
        whole = views(image, label, d, strong=[d])
        with monkeypatch.context() as patch:
            patch.setattr(deeplab, "WHOLE_PX", 4000)
            grid = views(image, label, d, strong=[d])
        np.testing.assert_allclose(grid["image_strong"], whole["image_strong"], atol=1.0)
        assert (grid["image_strong"] != whole["image_strong"]).numpy().any()
        np.testing.assert_allclose(grid["image"], whole["image"], atol=1e-3)


@pytest.mark.parametrize("scaled", [(1024, 1025), (2048, 4096), (1500, 900), (1, 2**21)])
def test_a_grid_has_a_quarter_of_the_limit_to_all_of_it(scaled):
    points = grid_of(tf.zeros([4, 6, 3], tf.uint8), tf.constant(scaled)).shape[:2]
    assert 2**18 <= np.prod(points) <= 1.01 * 2**20


# Sizes and image-level labels -------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, limits, expected",
    [
        ((375, 500), (None, None, None), (375, 500)),
        ((100, 200), (50, None, None), (50, 100)),
        ((100, 200), (300, None, None), (300, 600)),
        ((100, 200), (300, 400, None), (200, 400)),
        ((100, 200), (50, None, 16), (65, 113)),
        ((97, 194), (97, None, 16), (97, 209)),
    ],
)
def test_resize_to_range(size, limits, expected):
    minimum, maximum, factor = limits
    config = DataConfig(min_resize_value=minimum, max_resize_value=maximum, resize_factor=factor)
    assert size_in_range(*size, config) == expected


@pytest.mark.parametrize("ignore, expected", [(255, [0, 1, 0, 1]), (4, [0, 1, 0, 0])])
def test_image_labels_of_a_crop_are_the_classes_in_it(ignore, expected):
    label = tf.constant([[0, 2, 2], [4, 0, ignore]])
    actual = image_label_of(label, num_classes=5, first_class=1, ignore_label=ignore)
    np.testing.assert_array_equal(actual, expected)
    with_class_0 = image_label_of(label, num_classes=5, first_class=0, ignore_label=ignore)
    np.testing.assert_array_equal(with_class_0, [1, *expected])


def test_flips_and_jitter_can_be_turned_down():
    for i in range(20):
        seed, size = tf.constant([i, 7]), tf.constant([40, 40])
        options = {"crop_size": (33, 33), "scales": SCALES}
        usual = draw(seed, size, **options)
        assert not draw(seed, size, flip_probability=0.0, **options).flip
        assert draw(seed, size, flip_probability=1.0, **options).flip
        half = draw(seed, size, jitter_strength=0.5, **options)
        np.testing.assert_allclose(half.brightness, usual.brightness / 2, rtol=1e-6)
        np.testing.assert_allclose(half.contrast - 1, (usual.contrast - 1) / 2, atol=1e-6)
        np.testing.assert_allclose(half.saturation - 1, (usual.saturation - 1) / 2, atol=1e-6)
        np.testing.assert_allclose(half.hue, usual.hue / 2, rtol=1e-6)


def test_without_cut_out_only_colours_differ():
    image = tf.fill([33, 33, 3], 100.0)
    draws = draw(tf.constant([1, 2]), tf.constant([33, 33]), crop_size=(33, 33), scales=SCALES)
    options = {"crop_size": (33, 33), "mean_pixel": (0.0, 0.0, 0.0), "ignore_label": 255}
    label = tf.ones([33, 33], tf.int32)
    whole = training_views(image, label, draws, strong=[draws], cutout_half_size=0, **options)
    plain = training_views(image, label, draws, **options)
    np.testing.assert_array_equal(whole["valid"], plain["valid"])
    np.testing.assert_array_equal(whole["label"], plain["label"])
    holed = training_views(image, label, draws, strong=[draws], cutout_half_size=5, **options)
    assert np.sum(whole["valid"].numpy() & ~holed["valid"].numpy()) >= 25
