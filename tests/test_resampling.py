"""Windows of resized images, against Pillow's own resize."""

import numpy as np
import pytest
from PIL import Image

from tfseg.data import pixels, resampling

KERNELS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def resized(image, size, kernel):
    """Widths first: Pillow 13 takes heights first where that is less work, older ones never do."""
    wide = Image.fromarray(image).resize((size[1], image.shape[0]), kernel)
    return np.asarray(wide.resize((size[1], size[0]), kernel))


def window_of(rng, size):
    starts = [int(rng.integers(side)) for side in size]
    return [slice(a, int(rng.integers(a + 1, side + 1))) for a, side in zip(starts, size)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_windows_have_pillows_bytes(kernel):
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width, *size = (int(x) for x in rng.integers(1, 90, 4))
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        rows, columns = window_of(rng, size)
        expected = resized(image, size, kernel)
        found = resampling.resized_window(image, size, (rows, columns), kernel)
        np.testing.assert_array_equal(found, expected[rows, columns])


@pytest.mark.parametrize("sides", [(200, 300), (300, 200), (128, 64), (97, 98)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_are_rounded_as_pillow_rounds_them(kernel, sides):
    """Ratios of small whole numbers and of powers of 2, where sums of weights are often at 1/2."""
    image = np.random.default_rng(1).integers(0, 256, (3, sides[0], 3), np.uint8)
    whole = [slice(0, 3), slice(0, sides[1])]
    found = resampling.resized_window(image, (3, sides[1]), whole, kernel)
    np.testing.assert_array_equal(found, resized(image, (3, sides[1]), kernel))


def test_images_that_are_multiplied_in_parts_are_the_same(monkeypatch):
    image = np.random.default_rng(2).integers(0, 256, (40, 30, 3), np.uint8)
    options = {"size": (50, 70), "window": (slice(3, 44), slice(9, 61)), "kernel": KERNELS[0]}
    expected = resampling.resized_window(image, **options)
    monkeypatch.setattr(resampling, "_AT_A_TIME", 100)
    np.testing.assert_array_equal(resampling.resized_window(image, **options), expected)


# The last two lie beside the image.
@pytest.mark.parametrize("position", [(0, 0), (5, 9), (-4, 12), (20, -3), (-20, 0), (3, 80)])
def test_a_crop_after_several_resizes_is_a_window_of_the_last(position):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (30, 41, 3), np.uint8)
    label = rng.integers(0, 9, (30, 41), np.uint8)
    sizes, crop, color = [(50, 50), (23, 61)], (16, 18), np.array([1.5, 2.0, 250.0], np.float32)
    found = resampling.scaled_crop(
        image,
        label,
        sizes=sizes,
        position=position,
        crop_size=crop,
        padding_color=color,
        ignore_label=99,
    )
    whole = {"image": image, "label": label}
    for size in sizes:
        whole["image"] = resized(whole["image"], size, KERNELS[0])
        whole["label"] = pixels.resize_label(whole["label"], size)
    whole["valid"] = np.ones(sizes[-1], np.bool_)
    whole["image"] = whole["image"].astype(np.float32)
    for name, filling in (("image", color), ("label", 99), ("valid", False)):
        expected = pixels.window(whole[name], position, crop, filling=filling)
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_views_are_mirrored_whatever_they_hold():
    rng = np.random.default_rng(4)
    views = {
        "image": rng.random((5, 7, 3), np.float32),
        "label": rng.integers(0, 9, (5, 7), np.uint8),
        "valid": rng.random((5, 7)) < 0.5,
    }
    for name, found in resampling.mirrored(views).items():
        assert found.dtype == views[name].dtype
        np.testing.assert_array_equal(found, views[name][:, ::-1])
