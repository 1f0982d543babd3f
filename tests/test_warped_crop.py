"""The warped crop: draws, two resizes, padding, crop and flip; and windows of arrays."""

import numpy as np
import pytest
from PIL import Image

from tfseg.data import pixels
from tfseg.data.augment import warped_crop
from tfseg.data.augment.warped_crop import WarpedCropDraws

COMMON = {"padding_color": (1.0, 2.5, 3.0), "ignore_label": 255}


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, rng.choice(np.array([0, 3, 7], np.uint8), (height, width))


def draws_of(seed, **options):
    options = {"crop_size": (32, 32), "size": (51, 51), **options}
    return warped_crop.draw(np.random.default_rng(seed), **options)


def apply(image, label, draws, *, crop_size, size):
    return warped_crop.apply(image, label, draws, crop_size=crop_size, size=size, **COMMON)


# Windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [-7, -2, 0, 1, 3, 9])
@pytest.mark.parametrize("left", [-9, -1, 0, 2, 5, 8])
def test_a_window_is_a_part_of_the_padded_array(top, left):
    x = np.arange(1, 13).reshape(3, 4)
    padded = np.pad(x, 20)
    found = pixels.window(x, (top, left), (4, 6), filling=0)
    np.testing.assert_array_equal(found, padded[20 + top :, 20 + left :][:4, :6])


def test_a_window_is_filled_by_channels():
    found = pixels.window(np.zeros((1, 1, 3)), (0, -1), (1, 2), filling=(1, 2, 3))
    np.testing.assert_array_equal(found, [[[1, 2, 3], [0, 0, 0]]])


def test_resizing_is_pillows():
    image, label = picture(9, 14)
    found = pixels.resize_image(image, (5, 20)), pixels.resize_label(label, (5, 20))
    for x, kernel, resized in zip((image, label), (Image.BILINEAR, Image.NEAREST), found):
        np.testing.assert_array_equal(resized, Image.fromarray(x).resize((20, 5), kernel))


# Draws ------------------------------------------------------------------------------------------


def test_images_are_warped_to_as_much_more_than_the_crop_as_published():
    assert warped_crop.warped_size((321, 321)) == (513, 513)
    assert warped_crop.warped_size((97, 225)) == (155, 360)
    assert warped_crop.warped_size((97, 97), 100) == (100, 100)


def test_the_same_seed_makes_the_same_draws():
    assert draws_of([3, 5]) == draws_of([3, 5])
    assert len({str(draws_of([3, i])) for i in range(20)}) == 20


def test_draws_lie_within_their_ranges():
    found = [draws_of(seed, flip_probability=0.9) for seed in range(2000)]
    sides = np.array([d.size[0] for d in found])
    assert all(d.size[0] == d.size[1] for d in found)
    # Of the half-open interval from 25.5 to 76.5, rounded.
    assert sides.min() == 26 and sides.max() == 76
    assert abs(sides.mean() - 51) < 1
    room = np.maximum(sides, 51) - 32
    for places in np.array([d.position for d in found]).T:
        assert (places >= 0).all() and (places <= room).all()
        assert (places == 0).any() and (places == room).any()
        assert abs(np.mean(places / room) - 0.5) < 0.03
    assert abs(np.mean([d.flip for d in found]) - 0.9) < 0.02
    assert not any(draws_of(seed, flip_probability=0.0).flip for seed in range(20))


# Carrying them out ------------------------------------------------------------------------------


def test_an_image_of_another_shape_is_warped():
    image, label = picture(20, 45)
    views = apply(
        image, label, WarpedCropDraws((30, 30), (4, 6), False), crop_size=(20, 21), size=(30, 30)
    )
    np.testing.assert_array_equal(views["image"], pixels.resize_image(image, (30, 30))[4:24, 6:27])
    np.testing.assert_array_equal(views["label"], pixels.resize_label(label, (30, 30))[4:24, 6:27])
    assert views["valid"].all()


def test_scaling_follows_warping():
    image, label = picture(20, 45)
    views = apply(
        image, label, WarpedCropDraws((45, 45), (0, 3), False), crop_size=(20, 20), size=(30, 30)
    )
    warped = pixels.resize_image(image, (30, 30)), pixels.resize_label(label, (30, 30))
    expected = pixels.resize_image(warped[0], (45, 45)), pixels.resize_label(warped[1], (45, 45))
    np.testing.assert_array_equal(views["image"], expected[0][:20, 3:23])
    np.testing.assert_array_equal(views["label"], expected[1][:20, 3:23])


def test_what_was_made_smaller_is_padded_on_all_sides():
    image, label = picture(13, 13)
    # From 13 to 8: two rows before, three after.
    views = apply(
        image, label, WarpedCropDraws((8, 8), (0, 0), False), crop_size=(13, 13), size=(13, 13)
    )
    inside = np.zeros((13, 13), bool)
    inside[2:10, 2:10] = True
    np.testing.assert_array_equal(views["valid"], inside)
    assert (views["label"][~inside] == 255).all() and (views["label"][inside] < 255).all()
    np.testing.assert_array_equal(views["image"][~inside], [COMMON["padding_color"]] * (169 - 64))
    expected = pixels.resize_image(image, (8, 8)).reshape(-1, 3)
    np.testing.assert_array_equal(views["image"][inside], expected)


def test_a_crop_is_mirrored_with_its_padding():
    image, label = picture(13, 13)
    one, other = (
        apply(image, label, WarpedCropDraws((8, 8), (1, 0), flip), crop_size=(9, 7), size=(13, 13))
        for flip in (False, True)
    )
    assert not one["valid"][:, :2].any() and one["valid"].any()
    for name in one:
        np.testing.assert_array_equal(one[name][:, ::-1], other[name])


def test_what_comes_back():
    image, label = picture(30, 40)
    before = image.copy()
    views = apply(image, label, draws_of(1), crop_size=(32, 32), size=(51, 51))
    assert {name: (x.shape, x.dtype) for name, x in views.items()} == {
        "image": ((32, 32, 3), np.float32),
        "valid": ((32, 32), np.bool_),
        "label": ((32, 32), np.uint8),
    }
    np.testing.assert_array_equal(image, before)
    assert "label" not in apply(image, None, draws_of(1), crop_size=(32, 32), size=(51, 51))
