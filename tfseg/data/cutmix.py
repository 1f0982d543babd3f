"""The box of CutMix: what part of a view is taken from another image.

Source: French et al., "Semi-supervised semantic segmentation needs strong, varied perturbations",
BMVC 2020; UniMatch specification 2.4.
"""

import math
from collections.abc import Sequence

import numpy as np

_PROBABILITY = 0.5
# Shares of the view's area, and heights over widths.
_AREAS, _RATIOS = (0.02, 0.4), (0.3, 1 / 0.3)
NONE = (0, 0, 0, 0)


def shape(pixels: float, ratio: float) -> tuple[int, int]:
    """Returns height and width of a box of an area and a ratio, without their fractions."""
    return int(math.sqrt(pixels * ratio)), int(math.sqrt(pixels / ratio))


def draw(
    rng: np.random.Generator, size: Sequence[int], *, probability: float = _PROBABILITY
) -> tuple[int, int, int, int]:
    """Draws the box of one view.

    The area is drawn once; shape and place are drawn again until the box lies in the view, so that
    the area stays uniform and flat boxes are somewhat rarer than high ones.

    Args:
      rng: the only source of chance.
      size: height and width of the view in pixels.
      probability: that there is a box at all.

    Returns:
      Top, left, height, width in pixels; `NONE` where there is no box.
    """
    if rng.random() >= probability:
        return NONE
    pixels = rng.uniform(*_AREAS) * size[0] * size[1]
    while True:
        height, width = shape(pixels, rng.uniform(*_RATIOS))
        top, left = (int(rng.integers(side)) for side in size)
        if top + height <= size[0] and left + width <= size[1]:
            return top, left, height, width
