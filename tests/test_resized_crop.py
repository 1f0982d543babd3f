"""The resized crop: draws, colours, resizing, with numbers checked by hand and by formula."""

import math

import numpy as np
import pytest
from PIL import Image

from tfseg.data.augment import resized_crop
from tfseg.data.augment.resized_crop import ResizedCropDraws
from tfseg.data.colors import adjusted


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, rng.choice(np.array([0, 3, 7, 255], np.uint8), (height, width))


def draws_of(seed, size=(60, 80), **options):
    return resized_crop.draw(np.random.default_rng(seed), size, **options)


def whole(size, *, flip=False, colors=()):
    return ResizedCropDraws((0, 0, *size), flip, colors)


# Draws ------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_draws():
    assert draws_of([3, 5]) == draws_of([3, 5])
    assert len({str(draws_of([3, i])) for i in range(20)}) == 20


def test_areas_and_shapes_lie_within_their_ranges():
    height, width, areas, ratios, places = 300, 400, [], [], []
    for seed in range(2000):
        top, left, h, w = draws_of(seed, (height, width), area=(0.2, 0.5)).box
        assert 0 <= top <= height - h and 0 <= left <= width - w
        areas.append(h * w / (height * width))
        ratios.append(math.log(w / h))
        places.append((top / max(1, height - h), left / max(1, width - w)))
    assert 0.198 < min(areas) < 0.21 and 0.49 < max(areas) < 0.503
    assert abs(np.mean(areas) - 0.35) < 0.01
    limit = math.log(4 / 3)
    assert -limit - 0.01 < min(ratios) < -0.9 * limit and 0.9 * limit < max(ratios) < limit + 0.01
    assert abs(np.mean(ratios)) < 0.02
    np.testing.assert_allclose(np.mean(places, 0), 0.5, atol=0.03)


@pytest.mark.parametrize(
    "size, box",
    [
        # Nine tenths of it fit in no allowed shape: the widest, the narrowest, in the middle.
        ((30, 90), (0, 25, 30, 40)),
        ((100, 12), (42, 0, 16, 12)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_what_fits_in_no_shape_is_cut_from_the_middle(size, box):
    assert {draws_of(seed, size).box for seed in range(20)} == {box}


def test_an_image_of_an_allowed_shape_is_taken_whole_when_no_crop_fits():
    # Crops of all of the area fit only with exactly the image's shape.
    boxes = {draws_of(seed, (97, 113), area=(1.0, 1.0)).box for seed in range(50)}
    assert (0, 0, 97, 113) in boxes


def test_flips_and_jitter_have_the_published_ranges():
    found = [draws_of(seed) for seed in range(1000)]
    assert abs(np.mean([d.flip for d in found]) - 0.5) < 0.05
    orders = {tuple(name for name, _ in d.colors) for d in found}
    assert len(orders) == math.factorial(4)
    for name, low, high in (
        ("brightness", 0.7, 1.3),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.7, 1.3),
        ("hue", -0.1, 0.1),
    ):
        values = np.array([dict(d.colors)[name] for d in found])
        assert low <= values.min() and values.max() <= high
        np.testing.assert_allclose(
            np.quantile(values, [0.02, 0.5, 0.98]),
            np.quantile([low, high], [0.02, 0.5, 0.98]),
            atol=0.08 * (high - low),
        )


def test_the_strength_and_probability_can_be_nothing():
    for seed in range(20):
        draws = draws_of(seed, flip_probability=0.0, jitter_strength=0.0)
        assert not draws.flip
        assert dict(draws.colors) == {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}
        assert draws_of(seed, flip_probability=1.0).flip


# Resizing ---------------------------------------------------------------------------------------


def cubic_matrix(n_in, n_out):
    """Weights of each output pixel: Keys' kernel with a = -1/2, widened when shrinking."""
    scale = n_in / n_out
    width = max(scale, 1.0)
    distance = (np.arange(n_in) + 0.5 - (np.arange(n_out)[:, None] + 0.5) * scale) / width
    x = np.abs(distance)
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
    weights = np.where(x < 2, weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(12, 17), (40, 50), (13, 40), (21, 19)])
def test_images_are_resized_by_the_widened_cubic_kernel(size):
    image, _ = picture(*size)
    found = resized_crop.apply(image, None, whole(size), crop_size=(21, 19))["image"]
    # Columns first, and rounded between.
    rows = np.einsum("ab,hbc->hac", cubic_matrix(size[1], 19), image.astype(np.float64))
    expected = np.einsum("ab,bwc->awc", cubic_matrix(size[0], 21), np.clip(np.rint(rows), 0, 255))
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=1.0)


# Odd, so that no centre falls between two pixels.
@pytest.mark.parametrize("size", [(13, 17), (41, 51), (13, 41)])
def test_label_maps_take_the_nearest_pixel(size):
    image, label = picture(*size)
    found = resized_crop.apply(image, label, whole(size), crop_size=(21, 19))["label"]
    rows = ((np.arange(21) + 0.5) * size[0] / 21).astype(int)
    columns = ((np.arange(19) + 0.5) * size[1] / 19).astype(int)
    np.testing.assert_array_equal(found, label[np.ix_(rows, columns)])


def test_a_crop_knows_nothing_of_what_is_around_it():
    image, label = picture(30, 40)
    other = image.copy()
    inside = np.zeros(image.shape[:2], bool)
    inside[5:17, 10:31] = True
    other[~inside] = 0
    draws = ResizedCropDraws((5, 10, 12, 21), True, ())
    views = resized_crop.apply(image, label, draws, crop_size=(24, 42))
    again = resized_crop.apply(other, label, draws, crop_size=(24, 42))
    np.testing.assert_array_equal(views["image"], again["image"])
    # Twice the size and mirrored: image and label together.
    np.testing.assert_array_equal(views["label"][::2, ::-2], label[5:17, 10:31])


def test_what_comes_back():
    image, label = picture(30, 40)
    before = image.copy()
    views = resized_crop.apply(image, label, draws_of(1, (30, 40)), crop_size=(9, 11))
    assert {name: (x.shape, x.dtype) for name, x in views.items()} == {
        "image": ((9, 11, 3), np.uint8),
        "valid": ((9, 11), np.bool_),
        "label": ((9, 11), np.uint8),
    }
    assert views["valid"].all() and set(np.unique(views["label"])) <= set(np.unique(label))
    np.testing.assert_array_equal(image, before)
    assert "label" not in resized_crop.apply(image, None, draws_of(1), crop_size=(9, 11))


# Colours ----------------------------------------------------------------------------------------


def test_colours_change_the_image_in_their_order():
    image, label = picture(20, 20)
    one, other = (
        resized_crop.apply(image, label, whole((20, 20), colors=colors), crop_size=(20, 20))
        for colors in (
            (("brightness", 1.3), ("contrast", 0.7)),
            (("contrast", 0.7), ("brightness", 1.3)),
        )
    )
    assert (one["image"] != other["image"]).any()
    np.testing.assert_array_equal(one["label"], label)
    expected = adjusted(Image.fromarray(image), "brightness", 1.3)
    expected = adjusted(expected, "contrast", 0.7)
    np.testing.assert_array_equal(one["image"], np.asarray(expected))
