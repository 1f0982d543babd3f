"""The composed augmentation: draws, colours, geometry, crops, with numbers checked by hand."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tfseg.data.augment import base, composition
from tfseg.data.augment.composition import GEOMETRIC, PHOTOMETRIC, CompositionDraws, Scene

MEAN = (123.6, 116.2, 103.9)
# Not 255: nothing may take the usual value for granted.
IGNORE = 200
FILLINGS = {"mean_pixel": MEAN, "ignore_label": IGNORE}
SIZES = [(1, 1), (1, 9), (13, 2), (20, 31), (33, 33), (50, 45)]
CROP = (33, 31)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    label = rng.choice(np.array([0, 3, 7, IGNORE], np.uint8), (height, width))
    return image, label


def scene_of(height, width, seed=0):
    image, label = picture(height, width, seed)
    return Scene(image, np.ones((height, width), np.uint8), label)


def draws_of(seed, **options):
    return composition.draw(np.random.default_rng(seed), **{"ops": 2, **options})


def compose(image, label, draws, crop_size=CROP, **options):
    return composition.compose(image, label, draws, crop_size=crop_size, **FILLINGS, **options)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


# Draws ------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_draws_and_bytes():
    image, label = picture(40, 50)
    assert draws_of([3, 5]) == draws_of([3, 5])
    assert_same(compose(image, label, draws_of([3, 5])), compose(image, label, draws_of([3, 5])))
    assert len({str(draws_of([3, i])) for i in range(20)}) == 20


def test_the_number_of_photometric_operations_is_uniform():
    ops, count = 3, 4000
    found = np.zeros(ops + 1)
    for seed in range(count):
        draws = draws_of(seed, ops=ops)
        assert len(draws.photometric) + len(draws.geometric) == ops
        found[len(draws.photometric)] += 1
    # Four standard deviations of a count with probability 1/4.
    np.testing.assert_allclose(found, count / 4, atol=4 * np.sqrt(count * 3 / 16))


def test_every_operation_is_as_frequent_as_the_others_of_its_kind():
    draws = [draws_of(seed) for seed in range(4000)]
    for kind, names in (("photometric", PHOTOMETRIC), ("geometric", GEOMETRIC)):
        drawn = [name for d in draws for name, _ in getattr(d, kind)]
        expected = len(drawn) / len(names)
        for name in names:
            assert abs(drawn.count(name) - expected) < 4 * np.sqrt(expected), name
    assert {len(PHOTOMETRIC), len(GEOMETRIC)} == {9, 4}
    # With replacement.
    assert any(len(d.geometric) == 2 and d.geometric[0][0] == d.geometric[1][0] for d in draws)


def test_parameters_fill_the_published_ranges():
    found = {}
    for seed in range(6000):
        draws = draws_of(seed)
        for name, parameter in (*draws.photometric, *draws.geometric):
            found.setdefault(name, []).append(parameter)
    ranges = {
        **dict.fromkeys(("autocontrast", "invert", "sharpness", "solarize"), (0, 1)),
        **dict.fromkeys(("brightness", "color", "contrast", "equalize"), (0.5, 1.5)),
        "scale": (0.5, 2),
        "shear": (-0.3, 0.3),
    }
    for name, (low, high) in ranges.items():
        values = np.array(found[name])
        assert low <= values.min() < low + 0.05 * (high - low), name
        assert high >= values.max() > high - 0.05 * (high - low), name
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low), name
    assert set(found["posterize"]) == set(range(1, 9))
    assert set(found["rotation"]) == set(range(-45, 46))
    assert 0.45 < np.mean(found["flip"]) < 0.55


def test_flip_and_scale_follow_their_settings():
    options = {"ops": 4, "flip_probability": 0.0, "scale_range": (0.9, 1.1)}
    moves = [move for seed in range(500) for move in draws_of(seed, **options).geometric]
    assert not any(value for name, value in moves if name == "flip")
    scales = [value for name, value in moves if name == "scale"]
    assert 0.9 <= min(scales) and max(scales) <= 1.1


# Colours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, parameter, expected",
    [
        ("autocontrast", 1.0, [50, 101, 150]),
        ("autocontrast", 0.0, [0, 130, 255]),
        ("brightness", 0.5, [25, 50, 75]),
        ("brightness", 1.5, [75, 151, 225]),
        ("invert", 0.0, [205, 154, 105]),
        ("invert", 0.25, [166, 140, 116]),
        ("solarize", 0.4, [50, 101, 105]),
        ("solarize", 0.39, [50, 154, 105]),
        ("posterize", 1, [0, 0, 128]),
        ("posterize", 8, [50, 101, 150]),
        ("color", 0.5, [50, 101, 150]),
        ("contrast", 1.0, [50, 101, 150]),
        # About their mean of 100 and a third.
        ("contrast", 0.5, [75, 100, 125]),
    ],
)
def test_grey_values_after(name, parameter, expected):
    image = np.repeat(np.array([50, 101, 150], np.uint8)[None, :, None], 3, 2)
    actual = composition.adjust_colors(image, name, parameter)
    np.testing.assert_array_equal(actual[0], np.repeat(np.array(expected)[:, None], 3, 1))


def test_equalize_goes_beyond_the_image():
    # Two values, equalised to the ends of the range; Pillow lets images of few pixels be.
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:16] = 140
    equalized = composition.adjust_colors(image, "equalize", 0.0)
    assert set(np.unique(equalized)) == {0, 255}
    beyond = composition.adjust_colors(image, "equalize", 1.5)
    assert set(np.unique(beyond)) == {150, 82}


def test_sharpness_zero_is_the_smoothed_image():
    image = np.full((5, 5, 3), 13, np.uint8)
    image[2, 2] = 26
    smooth = composition.adjust_colors(image, "sharpness", 0.0)[..., 0]
    # Kernel of ones about a five, over thirteen.
    assert smooth[2, 2] == 18 and smooth[1, 1] == 14 and smooth[0, 0] == 13


@pytest.mark.parametrize("name", PHOTOMETRIC)
@pytest.mark.parametrize("size", SIZES)
def test_colour_operations_take_any_size_and_leave_their_input(name, size):
    image, _ = picture(*size)
    before = image.copy()
    result = composition.adjust_colors(image, name, 1)
    assert result.shape == image.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_stretching_a_constant_image_changes_nothing(name, value):
    image = np.full((6, 7, 3), value, np.uint8)
    np.testing.assert_array_equal(composition.adjust_colors(image, name, 0.0), image)


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_a_grey_image_stays_grey(name):
    image = np.repeat(picture(9, 11)[0][..., :1], 3, 2)
    parameter = 3 if name == "posterize" else 0.6
    result = composition.adjust_colors(image, name, parameter)
    assert (result == result[..., :1]).all()


def test_an_unknown_operation_is_a_defect():
    image, label = picture(4, 4)
    for kind in ("photometric", "geometric"):
        draws = CompositionDraws(
            **{"photometric": (), "geometric": (), "crop": (0, 0), kind: (("hsv", 1),)}
        )
        with pytest.raises(ValueError, match="hsv"):
            compose(image, label, draws)


# Geometry ---------------------------------------------------------------------------------------


def test_scale_by_two_repeats_labels():
    scene = scene_of(5, 7)
    scaled = composition.scale(scene, 2.0)
    np.testing.assert_array_equal(scaled.label, scene.label.repeat(2, 0).repeat(2, 1))
    assert scaled.image.shape == (10, 14, 3) and scaled.valid.min() == 1


def test_scale_that_keeps_the_size_keeps_the_pixels():
    scene = scene_of(20, 30)
    scaled = composition.scale(scene, 1.01)
    np.testing.assert_array_equal(scaled.image, scene.image)
    np.testing.assert_array_equal(scaled.label, scene.label)


@pytest.mark.parametrize("factor", [0.5, 0.501, 0.77, 1.3, 2.0])
@pytest.mark.parametrize("size", SIZES)
def test_scaled_sides_are_rounded_and_never_zero(size, factor):
    scaled = composition.scale(scene_of(*size), factor)
    expected = tuple(max(1, round(side * factor)) for side in size)
    assert scaled.image.shape == (*expected, 3)
    assert scaled.label.shape == scaled.valid.shape == expected


def test_scale_does_not_outgrow_its_limits():
    scene = scene_of(20, 30)
    assert composition.scale(scene, 2.0, max_pixels=1350).image.shape == (30, 45, 3)
    # Never smaller than the image itself, which was let in.
    assert composition.scale(scene, 2.0, max_pixels=10).image.shape == (20, 30, 3)
    long = composition.scale(scene_of(2, 20000), 2.0)
    assert long.image.shape[1] == composition.MAX_SIDE_PX
    turned = composition.rotate(long, 1, **FILLINGS)
    assert turned.image.shape == long.image.shape


def test_flip_mirrors_everything():
    scene = scene_of(5, 8)
    flipped = composition.flip(scene)
    np.testing.assert_array_equal(flipped.image, scene.image[:, ::-1])
    np.testing.assert_array_equal(flipped.label, scene.label[:, ::-1])
    assert flipped.valid.shape == (5, 8)


def test_warps_by_nothing_change_nothing():
    scene = scene_of(20, 31)
    for result in (
        composition.rotate(scene, 0, **FILLINGS),
        composition.shear(scene, (0.0, 0.0), **FILLINGS),
    ):
        np.testing.assert_array_equal(result.image, scene.image)
        np.testing.assert_array_equal(result.label, scene.label)
        assert result.valid.all()


def test_rotation_is_counter_clockwise_about_the_centre():
    label = np.zeros((41, 41), np.uint8)
    label[20, 35] = 7
    scene = Scene(np.zeros((41, 41, 3), np.uint8), np.ones((41, 41), np.uint8), label)
    rows, columns = np.nonzero(composition.rotate(scene, 45, **FILLINGS).label == 7)
    # From the right to the upper right; the centre lies half a pixel off the middle one.
    assert abs(rows.mean() - 9.5) <= 1 and abs(columns.mean() - 30.5) <= 1


@pytest.mark.parametrize("coefficients", [(0.3, 0.0), (0.0, -0.3), (0.25, 0.125)])
def test_shear_moves_pixels_where_the_formula_says(coefficients):
    height, width = 30, 50
    a, b = coefficients
    label = np.zeros((height, width), np.uint8)
    label[10:17, 20:27] = 5
    scene = Scene(np.zeros((height, width, 3), np.uint8), np.ones_like(label), label)
    rows, columns = np.nonzero(composition.shear(scene, coefficients, **FILLINGS).label == 5)
    # The centre of the square, y = 13 and x = 23; width and height change places in the shift.
    assert abs(columns.mean() - (23 + a * 13 - a * width / 2)) < 0.6
    assert abs(rows.mean() - (13 + b * 23 - b * height / 2)) < 0.6


@pytest.mark.parametrize("operation", ["rotate", "shear"])
def test_what_a_warp_brings_in_is_marked_and_filled(operation):
    scene = dataclasses.replace(scene_of(40, 40), label=np.full((40, 40), 3, np.uint8))
    parameter = 45 if operation == "rotate" else (0.3, 0.3)
    warped = getattr(composition, operation)(scene, parameter, **FILLINGS)
    outside = warped.valid == 0
    assert 20 < outside.sum() < 800
    np.testing.assert_array_equal(warped.label == IGNORE, outside)
    # Far enough from the image's edge, which the cubic kernel smears.
    filled = warped.image[(warped.image == [123, 116, 103]).all(-1)]
    assert len(filled) > 10


# Crops ------------------------------------------------------------------------------------------


def test_positions_cover_the_room_and_stay_in_it():
    shares = np.linspace(0, 1, 200, endpoint=False)
    last = np.nextafter(1.0, 0.0)
    for size, room in ((40, 7), (33, 0), (26, 7)):
        found = {composition.crop_position((33, size), (33, 33), (s, s)) for s in (*shares, last)}
        assert found == {(left, 0) for left in range(room + 1)}


def test_a_crop_shows_a_window_of_larger_and_the_whole_of_smaller_images():
    scene = scene_of(40, 20)
    crop = composition.crop(scene, (5, 3), crop_size=CROP, **FILLINGS)
    np.testing.assert_array_equal(crop["image"][:, 5:25], scene.image[3:36])
    np.testing.assert_array_equal(crop["label"][:, 5:25], scene.label[3:36])
    outside = np.ones(CROP, bool)
    outside[:, 5:25] = False
    np.testing.assert_array_equal(crop["valid"] == 0, outside)
    np.testing.assert_array_equal(crop["image"][outside], np.tile(np.float32(MEAN), (363, 1)))
    assert (crop["label"][outside] == IGNORE).all()


@pytest.mark.parametrize("size", SIZES)
def test_without_operations_a_crop_of_the_images_size_is_the_image(size):
    image, label = picture(*size)
    for seed in range(5):
        result = compose(image, label, draws_of(seed, ops=0), crop_size=size)
        np.testing.assert_array_equal(result["image"], image)
        np.testing.assert_array_equal(result["label"], label)
        assert result["valid"].all()


# All of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_any_draws_give_whole_crops_with_labels_of_the_input(size):
    image, label = picture(*size)
    before = image.copy(), label.copy()
    for seed in range(150):
        draws = draws_of(seed, ops=seed % 5)
        result = compose(image, label, draws)
        assert result["image"].shape == (*CROP, 3) and result["image"].dtype == np.float32
        assert result["label"].shape == CROP and result["label"].dtype == np.uint8
        assert result["valid"].shape == CROP and result["valid"].dtype == np.bool_
        assert 0 <= result["image"].min() and result["image"].max() <= 255
        assert set(np.unique(result["label"])) <= {0, 3, 7, IGNORE}
        assert (result["label"][result["valid"] == 0] == IGNORE).all()
        assert set(np.unique(result["valid"])) <= {0, 1}
        without = compose(image, None, draws)
        assert "label" not in without
        np.testing.assert_array_equal(without["image"], result["image"])
        np.testing.assert_array_equal(without["valid"], result["valid"])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_operations_run_in_the_drawn_order():
    image, label = picture(20, 31)
    draws = CompositionDraws(
        photometric=(("invert", 0.0), ("posterize", 2)),
        geometric=(("rotation", 30), ("scale", 1.5)),
        crop=(0.0, 0.0),
    )
    result = compose(image, label, draws, crop_size=(30, 46))
    colours = composition.adjust_colors(255 - image, "posterize", 2)
    scene = Scene(colours, np.ones(label.shape, np.uint8), label)
    expected = composition.scale(composition.rotate(scene, 30, **FILLINGS), 1.5)
    np.testing.assert_array_equal(result["image"], expected.image)
    np.testing.assert_array_equal(result["label"], expected.label)


def test_threads_do_not_disturb_each_other():
    base.use_one_thread_per_call()
    scenes = [picture(60 + i, 70 - i, seed=i) for i in range(8)]

    def job(i):
        return compose(*scenes[i % 8], draws_of(i, ops=3))

    alone = [job(i) for i in range(160)]
    with ThreadPoolExecutor(8) as pool:
        for expected, found in zip(alone, pool.map(job, range(160))):
            assert_same(expected, found)
