"""Golden cases `unimatch/f`, `unimatch/g`: CutMix boxes, colours, geometry, whole samples."""

import functools
import os
import re

import numpy as np
from PIL import Image

from tfseg.data import colors, cutmix, pixels
from tfseg.data.augment import long_side_crop
from tfseg.data.augment.long_side_crop import LongSideCropDraws, StrongDraws
from tfseg.models.backbones.base import STANDARDISED

IGNORE = 255
# Of an unlabelled image's padding, in the published mask.
PADDING = 254
BLACK = (0.0, 0.0, 0.0)
# One grey level, as the cases allow; label maps are exact.
GREY_LEVEL = 1
_DRAWS = 5000
_ORDER = ("brightness", "contrast", "saturation", "hue")


@functools.lru_cache(maxsize=4)
def load(path):
    with np.load(path) as arrays:
        return dict(arrays)


# Boxes --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _drawn_boxes(size: int) -> np.ndarray:
    rng = np.random.default_rng(17)
    boxes = [cutmix.draw(rng, (size, size), probability=1.0) for _ in range(_DRAWS)]
    return np.array(boxes, np.float64)


def _statistic(name: str, size: int) -> np.ndarray:
    top, left, height, width = _drawn_boxes(size).T
    return {
        "area_fraction": height * width / size**2,
        "ratio_h_over_w": height / width,
        "width_fraction": width / size,
        "height_fraction": height / size,
        "x_fraction": left / size,
        "y_fraction": top / size,
        "right_gap_fraction": (size - left - width) / size,
    }[name]


def _box_quantities(path):
    names = {name.partition("/")[0] for name in load(path) if "/" in name}
    return sorted(names) + ["fraction_without_box"]


def _check_boxes(path, name):
    arrays = load(path)
    size = int(arrays["crop_size"])
    if name == "given":
        for row, expected in zip(
            arrays["given/area_ratio_x_y_tries"], arrays["given/expected_y_x_h_w"]
        ):
            area, ratio, x, y, _ = row
            height, width = cutmix.shape(area * size * size, ratio)
            assert [int(y), int(x), height, width] == expected.tolist()
        return
    if name == "fraction_without_box":
        rng = np.random.default_rng(3)
        none = np.mean([cutmix.draw(rng, (size, size)) == cutmix.NONE for _ in range(_DRAWS)])
        deviations = 5 * np.sqrt(0.25 / _DRAWS)
        np.testing.assert_allclose(none, arrays[name], atol=deviations)
        return
    values = _statistic(name, size)
    found = np.quantile(values, arrays["quantile_levels"])
    assert (np.abs(found - arrays[f"{name}/quantiles"]) <= arrays[f"{name}/tolerance"]).all()
    assert abs(values.mean() - arrays[f"{name}/mean"]) <= arrays[f"{name}/mean_tolerance"]
    assert values.min() >= arrays[f"{name}/min"] - 0.02 * arrays[f"{name}/max"]
    assert values.max() <= arrays[f"{name}/max"] * 1.02


# Pieces -------------------------------------------------------------------------------------------


def assert_grey_levels(actual, expected):
    difference = np.abs(np.asarray(actual, np.int32) - expected.astype(np.int32))
    assert difference.max() <= GREY_LEVEL, f"{(difference > GREY_LEVEL).mean():.4f} of the values"


def jitter_of(order, factors) -> tuple[tuple[str, float], ...]:
    """Returns the draws of a jitter from the published order and factors."""
    return tuple((_ORDER[i], float(factors[i])) for i in order)


def _piece_quantities(path):
    return sorted({name.partition("/")[0] for name in load(path) if "/" in name}) + ["normalised"]


def _views_of_geometry(arrays, name):
    height, width = arrays["input"].shape[:2]
    x, y = arrays[f"{name}/crop_xy"].tolist()
    draws = LongSideCropDraws(
        int(arrays[f"{name}/long_side"]), (y, x), bool(arrays[f"{name}/flip"])
    )
    return long_side_crop.apply(
        arrays["input"],
        arrays["mask"],
        draws,
        crop_size=(int(arrays["crop_size"]),) * 2,
        padding_color=BLACK,
        ignore_label=int(arrays[f"{name}/ignore_value"]) if f"{name}/ignore_value" in arrays else 0,
    )


def _check_geometry(arrays, name):
    size = long_side_crop.scaled_size(arrays["input"].shape[:2], int(arrays[f"{name}/long_side"]))
    assert_grey_levels(pixels.resize_image(arrays["input"], size), arrays[f"{name}/resized"])
    np.testing.assert_array_equal(nearest(arrays["mask"], size), arrays[f"{name}/resized_mask"])
    views = _views_of_geometry(arrays, name)
    assert_grey_levels(views["image"], arrays[f"{name}/expected"])
    np.testing.assert_array_equal(views["label"], arrays[f"{name}/expected_mask"])


def nearest(mask, size):
    rows, columns = (pixels.nearest_positions(a, b) for a, b in zip(mask.shape, size))
    return mask[np.ix_(rows, columns)]


def _check_piece(path, name):
    arrays = load(path)
    if name.startswith("geometry"):
        _check_geometry(arrays, name)
        return
    if name == "normalised":
        (of,) = [key for key in arrays if key.startswith("normalised_of_")]
        views = _views_of_geometry(arrays, of.removeprefix("normalised_of_"))
        assert_normalised(views["image"], arrays[of])
        return
    image = Image.fromarray(arrays["input"])
    expected = arrays[f"{name}/expected"]
    if name == "grey":
        found = [colors.grey(image)]
        expected = expected[None]
    elif name == "blur":
        found = [colors.blurred(image, float(sigma)) for sigma in arrays["blur/sigma"]]
    elif name == "jitter":
        draws = zip(arrays["jitter/order"], arrays["jitter/factors_bcsh"])
        found = [
            long_side_crop.strong_view(image, StrongDraws(jitter_of(*draw), False, None))
            for draw in draws
        ]
    else:
        operation = name.removeprefix("op_")
        found = [
            colors.adjusted(image, operation, float(factor)) for factor in arrays[f"{name}/factor"]
        ]
    assert_grey_levels(np.stack([np.asarray(x) for x in found]), expected)


def assert_normalised(image, expected):
    """Compares a crop with the published one after its mean and deviation."""
    normalised = np.asarray(image, np.float32) / 255.0
    mean = np.array(STANDARDISED.mean_pixel) / 255.0
    deviation = np.array([0.229, 0.224, 0.225])
    found = np.moveaxis((normalised - mean) / deviation, -1, 0)
    np.testing.assert_allclose(found, expected, atol=GREY_LEVEL / 255.0 / 0.22 + 1e-5)


def _check_nearest(path, name):
    arrays = load(path)
    expected = arrays[f"{name}/expected"]
    np.testing.assert_array_equal(nearest(arrays["mask"], expected.shape), expected)


# Whole samples ------------------------------------------------------------------------------------


def _sample_quantities(path):
    return sorted({name.partition("/")[0] for name in load(path) if name.startswith("sample")})


def _strong_draws(arrays, name):
    jittered = bool(arrays[f"{name}/jitter_applied"])
    sigma = float(arrays[f"{name}/blur_sigma"])
    return StrongDraws(
        jitter_of(arrays[f"{name}/jitter_order"], arrays[f"{name}/factors_bcsh"])
        if jittered
        else (),
        bool(arrays[f"{name}/grey_applied"]),
        sigma if sigma > 0 else None,
    )


def _check_sample(path, name):
    arrays = load(path)
    views = sorted({m[1] for m in (re.match(rf"{name}/(view\d+)/", key) for key in arrays) if m})
    x, y = arrays[f"{name}/crop_xy"].tolist()
    draws = LongSideCropDraws(
        int(arrays[f"{name}/long_side"]),
        (y, x),
        bool(arrays[f"{name}/flip"]),
        tuple(_strong_draws(arrays, f"{name}/{view}") for view in views),
    )
    found = long_side_crop.apply(
        arrays["input"],
        arrays["mask"],
        draws,
        crop_size=(int(arrays["crop_size"]),) * 2,
        padding_color=BLACK,
        ignore_label=PADDING,
    )
    assert_normalised(found["image"], arrays[f"{name}/expected_weak_normalised"])
    for key, view in zip(("image_strong", "image_strong_2"), views):
        assert_grey_levels(found[key], arrays[f"{name}/{view}/expected"])
    ignored = np.where(found["valid"] > 0, 0, IGNORE)
    np.testing.assert_array_equal(ignored, arrays[f"{name}/expected_ignore"])


def _g_quantities(path):
    file = os.path.basename(path)
    if "nearest" in file:
        return sorted({name.partition("/")[0] for name in load(path) if "/" in name})
    return _sample_quantities(path) if "pipeline" in file else _piece_quantities(path)


def _check_g(path, name):
    file = os.path.basename(path)
    check = _check_nearest if "nearest" in file else _check_piece
    (_check_sample if "pipeline" in file else check)(path, name)


CASES = {
    "unimatch/f": (_box_quantities, _check_boxes),
    "unimatch/g": (_g_quantities, _check_g),
}
