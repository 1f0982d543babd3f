"""Colours of class ids.

`pascal` comes from the bits of the id, `cityscapes` is the data set's own. For `ade20k` the colours
are **not** the data set's: they follow the bit rule too (class 0, "other", is black), so that no
table of 150 colours has to be trusted. `distinct` is for data sets without colours of their own:
the bit rule makes the first classes dark, and ids 1, 8 and 9 three reds. Records may carry a
palette in `dataset.json`.
"""

import functools

import numpy as np

Palette = tuple[tuple[int, int, int], ...]
BLACK = (0, 0, 0)
# PASCAL VOC's colour of void.
VOID = (224, 224, 192)

_CITYSCAPES: Palette = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)


def pascal(num_entries: int = 256) -> np.ndarray:
    """Returns the colour map of PASCAL VOC, [num_entries, 3] uint8.

    The lowest three bits of the id are the top bits of red, green and blue, the next three the
    second highest ones, and so on. Ids above 255 continue the rule for nine bits, as the
    published 512-entry table does.

    Source: the VOC development kit's rule.
    """
    ids = np.arange(num_entries)
    colors = np.zeros((num_entries, 3), np.int64)
    for k in range(8):
        for channel in range(3):
            colors[:, channel] |= ((ids >> (3 * k + channel)) & 1) << (7 - k)
    return colors.astype(np.uint8)


def cityscapes() -> np.ndarray:
    """Returns Cityscapes' colours of the 19 train ids, [19, 3] uint8."""
    return np.array(_CITYSCAPES, np.uint8)


def ade20k() -> np.ndarray:
    """Returns colours for ADE20K's 151 ids by the bit rule, [151, 3] uint8 (not MIT's table)."""
    return pascal(151)


def _lab(colors: np.ndarray) -> np.ndarray:
    """Returns sRGB colours, [n, 3] within 0 and 255, as CIELAB (D65), [n, 3]."""
    share = colors / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]]
    xyz = linear @ np.array(to_xyz) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@functools.lru_cache
def _distinct(num_entries: int) -> Palette:
    levels = np.arange(0, 256, 15)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _lab(candidates)
    # Colours that stand out from dark and bright photographs.
    visible = (lab[:, 0] > 35) & (lab[:, 0] < 88) & (np.hypot(lab[:, 1], lab[:, 2]) > 30)
    candidates, lab = candidates[visible], lab[visible]
    # Far from these, too, which mean background, void or nothing.
    taken = _lab(np.array([BLACK, VOID, (255, 255, 255), (128, 128, 128)]))
    distance = np.linalg.norm(lab[:, None] - taken, axis=-1).min(axis=1)
    chosen = []
    for _ in range(num_entries):
        k = int(np.argmax(distance))
        chosen.append(candidates[k])
        distance = np.minimum(distance, np.linalg.norm(lab - lab[k], axis=1))
    return as_palette(np.array(chosen))


def distinct(num_entries: int, *, first_is_black: bool = False) -> np.ndarray:
    """Returns colours that differ as much as possible, [num_entries, 3] uint8.

    Each is the colour that is farthest from those before it, so the first colours are the same
    whatever the number of classes is.

    Args:
      num_entries: how many.
      first_is_black: entry 0 is black, and the others follow.

    Source: Glasbey et al., "Colour displays for categorical images", 2007: distances in CIELAB.
    """
    colors = _distinct(num_entries)
    if first_is_black:
        colors = (BLACK, *colors)
    return np.array(colors[:num_entries], np.uint8)


COLORMAPS = {"pascal": pascal, "cityscapes": cityscapes, "ade20k": ade20k}


def as_palette(colors: np.ndarray) -> Palette:
    """Returns an [n, 3] array as the tuple that `DatasetSpec.palette` holds."""
    return tuple(tuple(int(x) for x in row) for row in colors)


def table(palette: Palette, num_entries: int = 256) -> np.ndarray:
    """Returns [num_entries, 3] uint8: the palette, continued by `pascal` where it is shorter."""
    colors = pascal(num_entries)
    n = min(len(palette), num_entries)
    colors[:n] = np.array(palette[:n], np.uint8).reshape(n, 3)
    return colors
