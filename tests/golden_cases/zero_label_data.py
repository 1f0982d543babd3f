"""Golden cases `strict/transforms` and `zs3/transforms`: the published augmentations and lookup.

Draws are made from the recorded random values. Labels of STRICT's training crops went through
the case's own class map, which is an input here (`strict/class_maps` compares such maps).
"""

import functools

import numpy as np

from tfseg.data import pixels
from tfseg.data.augment import short_side_crop, warped_crop
from tfseg.models.backbones.base import STANDARDISED
from tfseg.ops.class_vectors import pixel_vectors

_BLACK, _IGNORE = (0, 0, 0), 255


@functools.lru_cache(maxsize=4)
def _load(path):
    with np.load(path) as arrays:
        return dict(arrays)


# STRICT -----------------------------------------------------------------------------------------

_MEAN_BGR = np.array([104.008, 116.669, 122.675], np.float32)
_STRICT_INPUTS = ("_image_rgb", "_label", "_scale", "_crop_ijhw", "_flip_draw")
# The published program mirrors where the draw is above this.
_FLIP_ABOVE = 0.1


def _strict_quantities(path):
    def is_input(name):
        is_result = name.endswith("_out_label")
        return name == "seen_map" or (name.endswith(_STRICT_INPUTS) and not is_result)

    return [name for name in _load(path) if not is_input(name)]


def _strict_size(arrays, case):
    """Height and width of the warped image: recorded where a case has one of testing."""
    if "eval_out_label" in arrays:
        return arrays["eval_out_label"].shape
    return warped_crop.warped_size(arrays[f"{case}_crop_ijhw"][2:].tolist())


def _strict_draws(arrays, case):
    size = _strict_size(arrays, case)
    top, left, _, _ = arrays[f"{case}_crop_ijhw"].tolist()
    scaled = tuple(round(side * float(arrays[f"{case}_scale"])) for side in size)
    return warped_crop.WarpedCropDraws(
        scaled, (top, left), bool(arrays[f"{case}_flip_draw"] > _FLIP_ABOVE)
    )


@functools.lru_cache(maxsize=4)
def _strict_views(path, case):
    arrays = _load(path)
    return warped_crop.apply(
        arrays[f"{case}_image_rgb"],
        arrays[f"{case}_label"],
        _strict_draws(arrays, case),
        crop_size=arrays[f"{case}_crop_ijhw"][2:].tolist(),
        size=_strict_size(arrays, case),
        padding_color=_BLACK,
        ignore_label=_IGNORE,
    )


def _check_strict(path, name):
    arrays = _load(path)
    expected = arrays[name]
    case, _, quantity = name.partition("_")
    if case == "eval":
        # The image of testing is the first of training, and its label is as it was.
        size = _strict_size(arrays, "train0")
        image = pixels.resize_image(arrays["train0_image_rgb"], size)
        label = pixels.resize_label(arrays["train0_label"], size)
    elif quantity == "flipped":
        assert _strict_draws(arrays, case).flip == bool(expected)
        return
    else:
        views = _strict_views(path, case)
        image, label = views["image"], arrays["seen_map"][views["label"]]
    if quantity == "out_bgr_uint8":
        np.testing.assert_array_equal(image[..., ::-1].transpose(2, 0, 1), expected)
    elif quantity == "out_label":
        np.testing.assert_array_equal(label, expected)
    elif quantity == "out_sum":
        total = np.sum(image[..., ::-1] - _MEAN_BGR, dtype=np.float64)
        np.testing.assert_allclose(total, expected, rtol=1e-6)
    else:
        raise AssertionError(f"{path} holds {name}, which no check knows")


# ZS3 --------------------------------------------------------------------------------------------

# `contains_unseen` has no recorded input: which labels and which lists of classes were asked is
# not in the file. The filter itself takes a list of ids (--drop_images).
_ZS3_INPUTS = ("contains_unseen", "emb_table", "emb_label_in")
_ZS3_TRAINING_INPUTS = ("_image", "_label", "_crop_size", "_draws", "_draw_kinds")


def _zs3_quantities(path):
    def is_input(name):
        is_given = name.startswith("t") and name.endswith(_ZS3_TRAINING_INPUTS)
        return (is_given and not name.endswith("_out_label")) or name in _ZS3_INPUTS

    return [name for name in _load(path) if not is_input(name)]


def _zs3_draws(arrays, case):
    """The recorded values in their order: flip, short side, left, top, whether to blur, how."""
    flip, side, left, top, blurs, *radius = arrays[f"{case}_draws"].tolist()
    kinds = arrays[f"{case}_draw_kinds"].tolist()
    assert kinds == ["random", *["randint"] * 3, "random", *["random"] * len(radius)]
    assert (blurs < 0.5) == bool(radius)
    blur = radius[0] if radius else None
    return short_side_crop.ShortSideCropDraws(flip < 0.5, int(side), (int(top), int(left)), blur)


def _zs3_views(arrays, case, *, with_blur=True):
    draws = _zs3_draws(arrays, case)
    if not with_blur:
        draws = short_side_crop.ShortSideCropDraws(
            draws.flip, draws.short_side, draws.position, None
        )
    side = int(arrays[f"{case}_crop_size"])
    return short_side_crop.apply(
        arrays[f"{case}_image"],
        arrays[f"{case}_label"],
        draws,
        crop_size=(side, side),
        padding_color=_BLACK,
        ignore_label=_IGNORE,
    )


def _check_zs3(path, name):
    arrays = _load(path)
    expected = arrays[name]
    case, _, quantity = name.partition("_")
    if case.startswith("v"):
        # The images of validation are those of training.
        train = "t" + case[1:]
        resize = {"image": pixels.resize_image, "label": pixels.resize_label}[quantity]
        given = arrays[f"{train}_{quantity}"]
        size = short_side_crop.scaled_size(given.shape[:2], int(arrays[f"{train}_crop_size"]))
        np.testing.assert_array_equal(resize(given, size), expected)
    elif name == "emb_map":
        label = arrays["emb_label_in"]
        actual = pixel_vectors(arrays["emb_table"], label, ignore_label=_IGNORE).numpy()
        np.testing.assert_array_equal(actual.transpose(2, 0, 1), expected)
    elif name == "emb_label_out":
        # The published lookup changes void and restores it; ours leaves the label alone.
        label = arrays["emb_label_in"].copy()
        pixel_vectors(arrays["emb_table"], label, ignore_label=_IGNORE)
        np.testing.assert_array_equal(label, expected)
    elif quantity in ("after_scalecrop", "after_blur"):
        views = _zs3_views(arrays, case, with_blur=quantity == "after_blur")
        np.testing.assert_array_equal(views["image"], expected)
    elif quantity == "out":
        scale, offset = (np.array(x, np.float32) for x in (STANDARDISED.scale, STANDARDISED.offset))
        actual = (_zs3_views(arrays, case)["image"] - offset) / scale
        np.testing.assert_allclose(actual.transpose(2, 0, 1), expected, rtol=1e-6, atol=2e-6)
    elif quantity == "out_label":
        np.testing.assert_array_equal(_zs3_views(arrays, case)["label"], expected)
    else:
        raise AssertionError(f"{path} holds {name}, which no check knows")


CASES = {
    "strict/transforms": (_strict_quantities, _check_strict),
    "zs3/transforms": (_zs3_quantities, _check_zs3),
}
