"""Palettes of masks: whether one index means one thing in all of them."""

import functools
from collections.abc import Sequence

import numpy as np

from tfrecords_tools.masks import open_mask
from tfseg.data.parallel import parallel_map
from tfseg.errors import UserError

# Masks that are looked at, evenly over all.
_LOOKED_AT = 500

Color = tuple[int, int, int]


def used_colors(path: str, *, max_megapixels: float) -> dict[int, Color]:
    """Returns the colour of each index that a palette mask uses; nothing for other masks.

    Args:
      path: of the mask.
      max_megapixels: cap, from the header.

    Raises:
      UserError: it cannot be read, see `masks.open_mask`.
    """
    with open_mask(path, max_megapixels=max_megapixels) as image:
        if image.mode != "P":
            return {}
        palette = image.getpalette("RGB")
        colors = [tuple(palette[i : i + 3]) for i in range(0, len(palette), 3)]
        used = np.unique(np.asarray(image)).tolist()
    return {i: colors[i] for i in used if i < len(colors)}


def check(paths: Sequence[str], *, max_megapixels: float, num_workers: int) -> None:
    """Insists that the indices of palette masks can be class ids.

    Drawing programs number the colours of every picture anew. Such indices are no class ids, though
    they look like them. Two signs together show it: an index has different colours in two masks,
    and one of these colours has another index in another mask.

    Args:
      paths: of the masks; some hundred of them are looked at.
      max_megapixels: cap, from the headers.
      num_workers: processes.

    Raises:
      UserError: they cannot be, or a mask cannot be read.
    """
    looked_at = list(paths)[:: -(-len(paths) // _LOOKED_AT) or 1]
    look = functools.partial(used_colors, max_megapixels=max_megapixels)
    color_of: dict[int, tuple[Color, str]] = {}
    index_of: dict[Color, tuple[int, str]] = {}
    moved: tuple[int, Color, str] | None = None
    for path, colors in zip(looked_at, parallel_map(look, looked_at, num_workers=num_workers)):
        for index, color in colors.items():
            index_before, where = index_of.setdefault(color, (index, path))
            color_before, _ = color_of.setdefault(index, (color, path))
            is_elsewhere = index_before != index and where != path
            if moved is None and is_elsewhere and color_before != color:
                moved = index, color, path
    if moved is None:
        return
    index, color, path = moved
    (other_color, first), (other_index, second) = color_of[index], index_of[color]
    raise UserError(
        "The masks number their colours in different orders, so the numbers are no class ids.",
        where=path,
        received=f"index {index} is the colour {_text(color)}; it is {_text(other_color)} in "
        f"{first}; the colour {_text(color)} is index {other_index} in {second}",
        accepted="masks without a palette, or with one palette for all",
        fix="say which colour is which class: --class_colors in place of --class_names",
    )


def _text(color: Color) -> str:
    return ",".join(map(str, color))
