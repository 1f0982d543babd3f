"""Colours and blur of images on bytes: what they mean, and Pillow's bytes."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.test_resized_crop import picture
from tfseg.data import colors

# Rows of one colour each, and its grey value (299 red + 587 green + 114 blue) / 1000.
COLOURS = np.array([[[200, 100, 50]], [[10, 20, 30]], [[255, 255, 255]], [[90, 90, 90]]], np.uint8)
GREY = np.array([[124], [18], [255], [90]])


def adjusted(image, name, parameter):
    return np.asarray(colors.adjusted(Image.fromarray(image), name, parameter))


def test_brightness_is_a_factor():
    found = adjusted(COLOURS, "brightness", 1.3)
    expected = [[255, 130, 65], [13, 26, 39], [255] * 3, [117] * 3]
    np.testing.assert_allclose(found[:, 0], expected, atol=1.0)


def test_contrast_is_about_the_mean_grey():
    mean = int(GREY.mean() + 0.5)
    found = adjusted(COLOURS, "contrast", 0.7)
    np.testing.assert_allclose(found, mean + 0.7 * (COLOURS - float(mean)), atol=1.0)


def test_saturation_is_about_each_pixels_grey():
    found = adjusted(COLOURS, "saturation", 0.7)
    np.testing.assert_allclose(
        found[:, 0], GREY + 0.7 * (COLOURS[:, 0] - GREY.astype(float)), atol=1.0
    )
    np.testing.assert_array_equal(found[2:], COLOURS[2:])


@pytest.mark.parametrize("turn", [0.1, -0.1, 0.0, 0.034])
def test_hue_turns_and_greys_stay(turn):
    image, _ = picture(8, 9)
    found = adjusted(image, "hue", turn)
    steps = int(turn * 255)
    for before, after in zip(image.reshape(-1, 3), found.reshape(-1, 3)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255.0))
        expected = colorsys.hsv_to_rgb((hue + steps / 255.0) % 1.0, saturation, value)
        # Hue and saturation are bytes in between: a step of hue is 6 of 255 in a colour.
        np.testing.assert_allclose(after, np.multiply(expected, 255.0), atol=9.0)
    np.testing.assert_array_equal(adjusted(COLOURS[2:], "hue", turn), COLOURS[2:])


@pytest.mark.parametrize("turn", [0.1, -0.1, 0.0, 0.25, -0.5, 1.0])
def test_hues_turn_to_pillows_bytes(turn):
    # Every eighth of all colours, from another one on each time; greys; the edges of the cube.
    numbers = np.arange(int(abs(turn) * 70) % 8, 1 << 24, 8, dtype=np.uint32)
    image = np.ascontiguousarray(numbers.view(np.uint8).reshape(2048, -1, 4)[..., :3])
    image[:256, 0] = np.arange(256)[:, None]
    image[:512, 1:9] = np.random.default_rng(0).choice([0, 1, 254, 255], (512, 8, 3))
    hue, *others = Image.fromarray(image).convert("HSV").split()
    hue = hue.point([(level + int(turn * 255)) % 256 for level in range(256)])
    expected = Image.merge("HSV", (hue, *others)).convert("RGB")
    np.testing.assert_array_equal(adjusted(image, "hue", turn), np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (41, 23)])
def test_blurs_give_pillows_bytes(size):
    rng = np.random.default_rng(7)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    # At 1 and 2 many sums lie half way between two levels.
    for deviation in (0.0, 1.0, 2.0, 12.0, *rng.uniform(0.01, 2.0, 60).tolist()):
        expected = image.filter(ImageFilter.GaussianBlur(deviation))
        np.testing.assert_array_equal(colors.blurred(image, deviation), expected, f"{deviation}")
