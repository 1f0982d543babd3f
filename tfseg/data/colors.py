"""Colours of images on bytes, as Pillow has them.

What depends on a pixel's level alone is a table of 256 entries, looked up for all channels at once.
Hues are turned and images blurred here, to Pillow's bytes in a fifth and in less than half of its
time; the rest is Pillow's. All of it releases the interpreter.
"""

import functools
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

NAMES = ("brightness", "contrast", "saturation", "hue")
_LEVELS = np.arange(256)


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


def _extremes(planes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest and the smallest colour of each pixel, uint8."""
    red, green, blue = planes
    return np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)


def _hue_entry(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Returns where in `_hues` that of each pixel stands.

    A hue depends on which colours are largest and smallest, on how far apart these are, and on how
    far the third is from the largest.
    """
    red, green, blue = planes
    largest, smallest = _extremes(planes)
    span = largest - smallest
    # In bytes, modulo 256: the gaps to the largest are 0, that of the third, and the span.
    gap = (largest - red) + (largest - green) + (largest - blue) - span
    order = (red >= green) | (green >= blue).view(np.uint8) << 1 | (blue >= red).view(np.uint8) << 2
    return order.astype(np.intp) << 16 | (gap.astype(np.uint16) << 8 | span)


@functools.cache
def _hues() -> np.ndarray:
    """Returns Pillow's hue of every kind of colour, uint8 [8 * 2^16]; see `_hue_entry`."""
    one, other = (x.astype(np.uint8) for x in np.meshgrid(_LEVELS, _LEVELS))
    none = np.zeros_like(one)
    table = np.zeros(8 << 16, np.uint8)
    # Of each kind there is one with a colour of level 0.
    for planes in ((none, one, other), (one, none, other), (one, other, none)):
        hsv = Image.fromarray(np.stack(planes, -1)).convert("HSV")
        table[_hue_entry(planes)] = np.asarray(hsv)[..., 0]
    return table


@functools.cache
def _strengths() -> np.ndarray:
    """Returns value times saturation, float32 [2^16], by largest and smallest colour.

    The saturation is Pillow's byte, so that this is not quite the difference of the two.
    """
    smallest, largest = (x.astype(np.uint8) for x in np.meshgrid(_LEVELS, _LEVELS))
    hsv = Image.fromarray(np.stack([largest, smallest, smallest], -1)).convert("HSV")
    saturation = (np.asarray(hsv)[..., 1] / 255.0).astype(np.float32)
    return (largest.astype(np.float32) * saturation).reshape(-1)


@functools.cache
def _shares() -> np.ndarray:
    """Returns by how much of the strength each colour is below the value, float32 [3, 256]."""
    sixths = _LEVELS * 6.0 / 255.0
    above = [np.abs(sixths - 3) - 1, 2 - np.abs(sixths - 2), 2 - np.abs(sixths - 4)]
    return (1.0 - np.clip(above, 0.0, 1.0)).astype(np.float32)


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turns the hue of an image.

    Args:
      image: RGB.
      turn: share of the full circle, of 255 steps here, without their fraction.
    """
    planes = cv2.split(np.asarray(image))
    largest, smallest = _extremes(planes)
    hue = _hues().take(_hue_entry(planes))
    strength = _strengths().take(largest.astype(np.uint16) << 8 | smallest)
    # 1/2 to round what is cut off.
    upper = largest.astype(np.float32) + np.float32(0.5)
    shares = np.roll(_shares(), -int(turn * 255), axis=1)
    turned = [(upper - strength * cv2.LUT(hue, share)).astype(np.uint8) for share in shares]
    return Image.fromarray(cv2.merge(turned))


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


# How often a box blurs in each direction, and the units of its weights.
_BOXES, _UNIT = 3, 1 << 24


def _box(deviation: float) -> np.ndarray:
    """Returns the weights of the box of which three in turn are nearly a Gaussian.

    The outermost ones are smaller than the others. All are whole numbers of 2^-24, which Pillow
    rounds as C does, from float32.
    """
    # Numbers that are all float32: beside others NumPy 1 computes in float64.
    one, two, three, six = np.float32((1.0, 2.0, 3.0, 6.0))
    variance = np.float32(deviation) * np.float32(deviation) / np.float32(_BOXES)
    length = np.float32(np.sqrt(12.0 * float(variance) + 1.0))
    whole = np.floor((length - one) / two)
    part = (two * whole + one) * (whole * (whole + one) - three * variance)
    part /= six * (variance - (whole + one) * (whole + one))
    radius = whole + part
    inner = 2 * int(radius) + 1
    weight = int(np.float32(_UNIT) / (two * radius + one))
    outermost = (_UNIT - inner * weight) // 2
    return np.array([outermost, *[weight] * inner, outermost]) / _UNIT


def blurred(image: Image.Image, deviation: float | None) -> Image.Image:
    """Returns an image after a Gaussian blur of that many pixels; None: as it is.

    Pillow's blur is three boxes with soft ends in each direction, rounded to bytes after each. The
    sums here are in float64, where they are exact, and take less than half of its time.

    Source: `ImagingGaussianBlur` of Pillow's src/libImaging/BoxBlur.c.
    """
    if deviation is None:
        return image
    array, box, point = np.asarray(image), _box(deviation), np.ones(1)
    for along_rows, along_columns in ((box, point), (point, box)):
        for _ in range(_BOXES):
            array = cv2.sepFilter2D(
                array, cv2.CV_64F, along_rows, along_columns, borderType=cv2.BORDER_REPLICATE
            )
            # What is cut off rounds halves up.
            array += 0.5
            array = array.astype(np.uint8)
    return Image.fromarray(array)
