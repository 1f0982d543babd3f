"""The long-side crop: draws, sizes, padding, crop and mirror, strong views."""

import dataclasses

import numpy as np
import pytest

from tests.test_warped_crop import picture
from tfseg.data import pixels
from tfseg.data.augment import long_side_crop
from tfseg.data.augment.long_side_crop import LongSideCropDraws, StrongDraws

COMMON = {"padding_color": (0.0, 0.0, 0.0), "ignore_label": 255}


def draws_of(seed, size=(60, 90), **options):
    options = {"crop_size": (32, 40), "strong_views": 2, **options}
    return long_side_crop.draw(np.random.default_rng(seed), size, **options)


def apply(image, label, draws, crop_size):
    return long_side_crop.apply(image, label, draws, crop_size=crop_size, **COMMON)


@pytest.mark.parametrize(
    "size, long, expected",
    [
        ((375, 500), 321, (241, 321)),
        ((500, 375), 321, (321, 241)),
        ((50, 50), 33, (33, 33)),
        ((1, 90), 45, (1, 45)),
        ((1, 900), 45, (1, 45)),
    ],
)
def test_the_shorter_side_follows_with_halves_up(size, long, expected):
    assert long_side_crop.scaled_size(size, long) == expected


def test_the_same_seed_makes_the_same_draws_and_more_views_change_none():
    assert draws_of([3, 5]) == draws_of([3, 5])
    assert len({str(draws_of([3, i])) for i in range(20)}) == 20
    one, two = draws_of(4, strong_views=1), draws_of(4)
    assert two.strong[:1] == one.strong
    assert dataclasses.replace(two, strong=()) == dataclasses.replace(one, strong=())


def test_draws_lie_within_their_ranges():
    found = [draws_of(seed) for seed in range(2000)]
    sides = np.array([d.long_side for d in found])
    assert sides.min() == 45 and sides.max() == 180 and abs(sides.mean() - 112.5) < 3
    sizes = np.array([long_side_crop.scaled_size((60, 90), side) for side in sides])
    room = np.maximum(sizes, (32, 40)) - (32, 40)
    places = np.array([d.position for d in found])
    assert (places >= 0).all() and (places <= room).all()
    assert abs(np.mean([d.flip for d in found]) - 0.5) < 0.04
    views = [view for d in found for view in d.strong]
    for share, expected in (
        (np.mean([bool(v.colors) for v in views]), 0.8),
        (np.mean([v.grey for v in views]), 0.2),
        (np.mean([v.blur is not None for v in views]), 0.5),
    ):
        assert abs(share - expected) < 0.03
    parameters = np.array(
        [[dict(v.colors)[n] for n in ("contrast", "hue")] for v in views if v.colors]
    )
    assert (np.abs(parameters - (1, 0)) <= (0.5, 0.25)).all()
    np.testing.assert_allclose(parameters.std(0), np.array([1.0, 0.5]) / np.sqrt(12), rtol=0.03)
    assert len({tuple(name for name, _ in v.colors) for v in views}) == 25
    blurs = np.array([v.blur for v in views if v.blur is not None])
    assert blurs.min() >= 0.1 and blurs.max() <= 2.0 and abs(blurs.mean() - 1.05) < 0.04


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("long_side", [61, 97, 150])
def test_a_crop_is_that_of_the_whole_scaled_image(flip, long_side):
    image, label = picture(60, 90)
    before = image.copy()
    size = long_side_crop.scaled_size((60, 90), long_side)
    top, left = (max(0, side - crop) // 2 for side, crop in zip(size, (32, 40)))
    draws = LongSideCropDraws(long_side, (top, left), flip)
    found = apply(image, label, draws, (32, 40))
    whole = pixels.resize_image(image, size)[top : top + 32, left : left + 40]
    labels = pixels.resize_label(label, size)[top : top + 32, left : left + 40]
    step = -1 if flip else 1
    np.testing.assert_array_equal(found["image"], whole[:, ::step])
    np.testing.assert_array_equal(found["label"], labels[:, ::step])
    assert found["valid"].all() and found["image"].dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    assert set(apply(image, None, draws, (32, 40))) == {"image", "valid"}


@pytest.mark.parametrize("flip", [False, True])
def test_small_images_are_padded_below_and_on_the_right_before_the_mirror(flip):
    image, label = picture(60, 90)
    found = apply(image, label, LongSideCropDraws(45, (0, 0), flip), (40, 50))
    step = -1 if flip else 1
    valid = found["valid"][:, ::step]
    np.testing.assert_array_equal(valid[:30, :45], 1.0)
    assert valid.sum() == 30 * 45
    assert (found["image"][found["valid"] == 0] == 0).all()
    assert (found["label"][found["valid"] == 0] == 255).all()


def test_strong_views_are_the_crop_in_other_colours():
    image, label = picture(60, 90)
    strong = (
        StrongDraws((), False, None),
        StrongDraws((), True, None),
        StrongDraws((("brightness", 1.5),), False, 1.0),
    )
    found = apply(image, label, LongSideCropDraws(90, (3, 5), True, strong), (32, 40))
    np.testing.assert_array_equal(found["image_strong"], found["image"])
    grey = found["image_strong_2"]
    np.testing.assert_array_equal(grey[..., :1].repeat(3, -1), grey)
    np.testing.assert_allclose(grey[..., 0], found["image"] @ [0.299, 0.587, 0.114], atol=1)
    assert found["image_strong_3"].mean() > found["image"].mean()
    assert found["image_strong_3"].std() < found["image"].std()
