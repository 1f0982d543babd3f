"""The short-side crop: draws, flip, scale, padding, crop and blur."""

import numpy as np
import pytest

from tests.test_warped_crop import picture
from tfseg.data import pixels
from tfseg.data.augment import short_side_crop
from tfseg.data.augment.short_side_crop import ShortSideCropDraws

COMMON = {"padding_color": (1.2, 2.6, 3.0), "ignore_label": 255}


def draws_of(seed, size=(60, 90), **options):
    options = {"crop_size": (32, 40), "base_size": 36, **options}
    return short_side_crop.draw(np.random.default_rng(seed), size, **options)


def apply(image, label, draws, crop_size):
    return short_side_crop.apply(image, label, draws, crop_size=crop_size, **COMMON)


@pytest.mark.parametrize(
    "size, short, expected",
    [
        ((375, 500), 312, (312, 416)),
        ((500, 375), 312, (416, 312)),
        ((50, 71), 33, (33, 46)),
        ((40, 40), 9, (9, 9)),
        ((1, 9), 2, (2, 18)),
        ((7, 5), 1, (1, 1)),
    ],
)
def test_the_longer_side_follows_without_its_fraction(size, short, expected):
    assert short_side_crop.scaled_size(size, short) == expected


def test_the_same_seed_makes_the_same_draws():
    assert draws_of([3, 5]) == draws_of([3, 5])
    assert len({str(draws_of([3, i])) for i in range(20)}) == 20


def test_draws_lie_within_their_ranges():
    found = [draws_of(seed) for seed in range(2000)]
    sides = np.array([d.short_side for d in found])
    assert sides.min() == 18 and sides.max() == 72 and abs(sides.mean() - 45) < 1.5
    sizes = np.array([short_side_crop.scaled_size((60, 90), side) for side in sides])
    room = np.maximum(sizes, (32, 40)) - (32, 40)
    places = np.array([d.position for d in found])
    assert (places >= 0).all() and (places <= room).all()
    for axis in (0, 1):
        wide = room[:, axis] > 5
        assert abs(np.mean(places[wide, axis] / room[wide, axis]) - 0.5) < 0.03
    assert abs(np.mean([d.flip for d in found]) - 0.5) < 0.04
    blurs = [d.blur for d in found if d.blur is not None]
    assert abs(len(blurs) / 2000 - 0.5) < 0.04
    assert min(blurs) >= 0 and max(blurs) < 1 and abs(np.mean(blurs) - 0.5) < 0.04


def test_long_images_are_scaled_to_a_limit_of_pixels():
    for seed in range(20):
        side = draws_of(seed, (10, 1000), max_pixels=40_000).short_side
        assert side == min(draws_of(seed, (10, 1000)).short_side, 20)
        # Not below the image as it is.
        assert draws_of(seed, (10, 1000), max_pixels=10).short_side == 10


def test_flip_comes_first_then_scale_and_crop():
    image, label = picture(20, 31)
    draws = ShortSideCropDraws(True, 40, (3, 5), None)
    views = apply(image, label, draws, (24, 24))
    mirrored = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])
    expected = (
        pixels.resize_image(mirrored[0], (40, 62)),
        pixels.resize_label(mirrored[1], (40, 62)),
    )
    np.testing.assert_array_equal(views["image"], expected[0][3:27, 5:29])
    np.testing.assert_array_equal(views["label"], expected[1][3:27, 5:29])
    assert views["valid"].all()


def test_what_is_smaller_than_the_crop_is_padded_below_and_on_the_right():
    image, label = picture(20, 30)
    views = apply(image, label, ShortSideCropDraws(False, 10, (0, 0), None), (12, 20))
    inside = np.zeros((12, 20), bool)
    inside[:10, :15] = True
    np.testing.assert_array_equal(views["valid"], inside)
    assert (views["label"][~inside] == 255).all() and (views["label"][inside] < 255).all()
    assert (views["image"][~inside] == (1, 3, 3)).all()


def test_blur_changes_the_image_alone_and_keeps_its_mean():
    image, label = picture(40, 40)
    sharp, blurred = (
        apply(image, label, ShortSideCropDraws(False, 40, (0, 0), blur), (40, 40))
        for blur in (None, 0.9)
    )
    np.testing.assert_array_equal(sharp["image"], image)
    assert blurred["image"].std() < 0.7 * sharp["image"].std()
    assert abs(blurred["image"].mean() - sharp["image"].mean()) < 2
    for name in ("label", "valid"):
        np.testing.assert_array_equal(sharp[name], blurred[name])


def test_what_comes_back():
    image, label = picture(30, 40)
    before = image.copy()
    views = apply(image, label, draws_of(1, (30, 40)), (32, 40))
    assert {name: (x.shape, x.dtype) for name, x in views.items()} == {
        "image": ((32, 40, 3), np.uint8),
        "valid": ((32, 40), np.bool_),
        "label": ((32, 40), np.uint8),
    }
    assert (views["image"] == np.rint(views["image"])).all()
    np.testing.assert_array_equal(image, before)
    assert "label" not in apply(image, None, draws_of(1, (30, 40)), (32, 40))
