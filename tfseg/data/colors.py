"""Colours of images on bytes, as Pillow has them.

What depends on a pixel's level alone is a table of 256 entries, looked up for all channels at once.
Pillow releases the interpreter in each of these operations.
"""

import numpy as np
from PIL import Image, ImageFilter

NAMES = ("brightness", "contrast", "saturation", "hue")
_LEVELS = np.arange(256)
_SAME = _LEVELS.tolist()


def draw_jitter(
    rng: np.random.Generator, *, factor: float, hue: float, strength: float
) -> tuple[tuple[str, float], ...]:
    """Draws a parameter for each colour operation, and their order.

    Args:
      rng: the only source of chance.
      factor: factors are 1 - x to 1 + x.
      hue: hues are turned by -x to x full circles.
      strength: factor on both ranges, in [0, 1].

    Returns:
      (name, parameter) of each; see `adjusted`.
    """
    deviations = rng.uniform(-strength, strength, len(NAMES)).tolist()
    parameters = [1.0 + factor * x for x in deviations[:3]] + [hue * deviations[3]]
    return tuple((NAMES[i], parameters[i]) for i in rng.permutation(len(NAMES)))


def _away_from(level: int, factor: float) -> list[int]:
    """Returns the table that moves levels away from one, or towards it, cut off and truncated."""
    # Pillow's blending is in float32; it truncates and does not round.
    moved = np.float32(level) + np.float32(factor) * (_LEVELS - level).astype(np.float32)
    return np.clip(moved, 0, 255).astype(np.uint8).tolist()


def _mean_grey(image: Image.Image) -> int:
    counts = np.array(image.convert("L").histogram())
    return int(float(counts @ _LEVELS) / counts.sum() + 0.5)


def grey(image: Image.Image) -> Image.Image:
    """Returns an image whose channels are all its luma."""
    return image.convert("L").convert("RGB")


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turns the hue of an image.

    Args:
      image: RGB.
      turn: share of the full circle, of 255 steps here, without their fraction.
    """
    steps = int(turn * 255)
    hue = [(level + steps) % 256 for level in range(256)]
    return image.convert("HSV").point(hue + _SAME + _SAME).convert("RGB")


def adjusted(image: Image.Image, name: str, parameter: float) -> Image.Image:
    """Applies one colour operation.

    Args:
      image: RGB.
      name: one of `NAMES`.
      parameter: factor on the distance from black ('brightness'), from the mean grey ('contrast'),
        from grey ('saturation'); 'hue': see `turn_hue`.

    Source: UniMatch specification 2.3; the same as torchvision's on Pillow's images.
    """
    if name == "hue":
        return turn_hue(image, parameter)
    if name == "saturation":
        return Image.blend(grey(image), image, parameter)
    level = 0 if name == "brightness" else _mean_grey(image)
    return image.point(_away_from(level, parameter) * 3)


def blurred(image: Image.Image, deviation: float | None) -> Image.Image:
    """Returns an image after a Gaussian blur of that many pixels; None: as it is.

    Pillow's blur is three extended boxes in each direction, not a Gaussian kernel.
    """
    return image if deviation is None else image.filter(ImageFilter.GaussianBlur(deviation))
