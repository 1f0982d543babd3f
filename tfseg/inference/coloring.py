"""Class ids in colour: palettes, overlays, panels. Arrays in, arrays out."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tfseg.data import colormap
from tfseg.data.specs import DatasetSpec
from tfseg.errors import check_choice

_OVERLAY_OPACITY = 0.55
_STRIP_ROWS = 256


def colors_of(spec: DatasetSpec, colormap_type: str | None = None) -> np.ndarray:
    """Returns the colour of every class id and of the ignore label, [at least 256, 3] uint8.

    Args:
      spec: the data set.
      colormap_type: 'distinct' or an entry of `colormap.COLORMAPS`; None: those of the data set.

    Raises:
      UserError: there is no such colour map.
    """
    if colormap_type is None:
        return spec.colors()
    if colormap_type == "distinct":
        palette = colormap.as_palette(spec.distinct_colors())
        return dataclasses.replace(spec, palette=palette).colors()
    accepted = (*colormap.COLORMAPS, "distinct")
    check_choice(colormap_type, accepted, flag="colormap_type", what="colour map")
    palette = colormap.as_palette(colormap.COLORMAPS[colormap_type]())
    return colormap.table(palette, max(256, spec.num_classes))


def overlay(
    image: np.ndarray, prediction: np.ndarray, spec: DatasetSpec, colors: np.ndarray
) -> np.ndarray:
    """Returns the image tinted by the prediction; a blank class 0 (`DatasetSpec`) stays clear.

    Args:
      image: uint8 [H, W, 3].
      prediction: class ids [H, W].
      spec: the data set.
      colors: of `colors_of`.

    Returns:
      uint8 [H, W, 3].
    """
    opacity = np.full(len(colors), _OVERLAY_OPACITY, np.float32)
    if spec.class_0_is_blank:
        opacity[0] = 0.0
    result = np.empty_like(image)
    # In strips: of a large image the floats would take many times the image's memory.
    for start in range(0, len(image), _STRIP_ROWS):
        rows = slice(start, start + _STRIP_ROWS)
        tint = opacity[prediction[rows]][..., np.newaxis]
        mixed = image[rows] * (1 - tint) + colors[prediction[rows]] * tint
        result[rows] = np.rint(mixed).astype(np.uint8)
    return result


def panel(pictures: Sequence[np.ndarray], spec: DatasetSpec) -> np.ndarray:
    """Returns pictures of one image side by side, for TensorBoard.

    Args:
      pictures: each RGB 0..255 [H, W, 3]; class ids or ignore label, integer [h, w]; or float in
        [0, 1] [h, w], shown in grey. All are brought to the size of the first.
      spec: the data set, for its colours.

    Returns:
      uint8 [H, W times the number of pictures, 3].
    """
    colors = colors_of(spec)
    height, width = pictures[0].shape[:2]
    shown = []
    for picture in map(np.asarray, pictures):
        if picture.ndim == 3:
            rgb = np.clip(np.rint(picture.astype(np.float32)), 0, 255).astype(np.uint8)
        elif np.issubdtype(picture.dtype, np.integer):
            rgb = colors[picture]
        else:
            grey = np.rint(np.clip(picture, 0.0, 1.0) * 255).astype(np.uint8)
            rgb = np.repeat(grey[..., None], 3, axis=-1)
        shown.append(Image.fromarray(rgb).resize((width, height), Image.Resampling.NEAREST))
    return np.concatenate([np.asarray(image) for image in shown], axis=1)
