"""Brightness, contrast, saturation and hue of colour planes, float32 [3, H, W] in 0..1.

On planes every operation runs over long rows, several times as fast as TensorFlow's kernels for
interleaved colours.

Source: PseudoSeg specification, section 3.
"""

import tensorflow as tf


def adjust_brightness(planes: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Adds `delta` to colour planes, float32 [3, H, W] in 0..1."""
    return planes + delta


def channel_means(planes: tf.Tensor) -> tf.Tensor:
    """Returns the mean of each colour plane, float32 [3, 1, 1]."""
    return tf.reduce_mean(planes, axis=[1, 2], keepdims=True)


def adjust_contrast(
    planes: tf.Tensor, factor: tf.Tensor, mean: tf.Tensor | None = None
) -> tf.Tensor:
    """Scales colour planes about their means.

    Args:
      planes: float32 [3, H, W] in 0..1.
      factor: float32 scalar.
      mean: float32 [3, 1, 1]; None: the planes' own.
    """
    mean = channel_means(planes) if mean is None else mean
    return planes * factor + mean * (1.0 - factor)


def _extremes(planes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns each pixel's largest and smallest colour, [H, W] each."""
    red, green, blue = planes[0], planes[1], planes[2]
    largest = tf.maximum(tf.maximum(red, green), blue)
    return largest, tf.minimum(tf.minimum(red, green), blue)


# Keeps quotients of grey pixels finite; they are multiplied by 0 afterwards.
_TINY = 1e-20


def adjust_saturation(planes: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales the saturation of colour planes in HSV, clipped to 1.

    With V = max, S = (max - min) / max: at constant H and V a colour is V - S (...), so scaling S
    by k scales every V - colour by k, and S k <= 1 means k <= max / (max - min).

    Args:
      planes: float32 [3, H, W] in 0..1.
      factor: float32 scalar, at least 0.
    """
    largest, smallest = _extremes(planes)
    k = tf.minimum(factor, largest / tf.maximum(largest - smallest, _TINY))
    return largest - (largest - planes) * k


def adjust_hue(planes: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Turns the hue of colour planes.

    Args:
      planes: float32 [3, H, W] in 0..1.
      delta: float32 scalar, share of the full circle.
    """
    red, green, blue = planes[0], planes[1], planes[2]
    largest, smallest = _extremes(planes)
    chroma = largest - smallest
    over_chroma = 1.0 / tf.maximum(chroma, _TINY)
    # The hue in sixths of the circle, and back: colour n is V - C clip(min(k, 4 - k), 0, 1) with
    # k = (n + 6 H) mod 6 and n = 5, 3, 1 for red, green, blue.
    hue = tf.where(
        red >= largest,
        (green - blue) * over_chroma,
        tf.where(
            green >= largest, (blue - red) * over_chroma + 2.0, (red - green) * over_chroma + 4.0
        ),
    )
    hue += 6.0 * delta
    turned = []
    for n in (5.0, 3.0, 1.0):
        k = hue + n
        k -= 6.0 * tf.floor(k * (1.0 / 6.0))
        turned.append(largest - chroma * tf.clip_by_value(tf.minimum(k, 4.0 - k), 0.0, 1.0))
    return tf.stack(turned)


def clipped(planes: tf.Tensor) -> tf.Tensor:
    """Returns colour planes with all values within 0..1."""
    return tf.clip_by_value(planes, 0.0, 1.0)
