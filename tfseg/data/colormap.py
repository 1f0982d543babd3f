"""Colours of class ids.

`pascal` comes from the bits of the id, `cityscapes` is the data set's own. For `ade20k` the colours
are **not** the data set's: they follow the bit rule too (class 0, "other", is black), so that no
table of 150 colours has to be trusted. Records carry a palette of their own in `dataset.json`.
"""

import numpy as np

Palette = tuple[tuple[int, int, int], ...]

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


COLORMAPS = {"pascal": pascal, "cityscapes": cityscapes, "ade20k": ade20k}


def as_palette(colors: np.ndarray) -> Palette:
    """Returns an [n, 3] array as the tuple that `DatasetSpec.palette` holds."""
    return tuple(tuple(int(x) for x in row) for row in colors)


def table(palette: Palette | None, num_entries: int = 256) -> np.ndarray:
    """Returns [num_entries, 3] uint8: the palette, continued by `pascal` where it is shorter."""
    colors = pascal(num_entries)
    if palette is not None:
        n = min(len(palette), num_entries)
        colors[:n] = np.array(palette[:n], np.uint8).reshape(n, 3)
    return colors
