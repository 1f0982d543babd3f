"""Single images and masks on the host: decoding, padding, the original size."""

import numpy as np
import tensorflow as tf

from tfseg.data import framing, tfexample
from tfseg.errors import UserError
from tfseg.inference.decoding import decode_rgb
from tfseg.ops.resize import resize_bilinear, resize_nearest_align_corners


def without_padding(x: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Cuts the padding off the rows and columns of one image's [H, W, ...], by `valid` [H, W]."""
    rows, columns = int(valid.any(axis=1).sum()), int(valid.any(axis=0).sum())
    return x[:rows, :columns]


def resized_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns integers [h, w] at another size, [height, width], each the nearest one."""
    if labels.shape == (height, width):
        return labels
    return resize_nearest_align_corners(labels[np.newaxis], (height, width))[0].numpy()


def resized_probabilities(probs: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns floats [h, w, C] at another size, [height, width, C], interpolated."""
    if probs.shape[:2] == (height, width):
        return probs
    return resize_bilinear(probs[np.newaxis], (height, width))[0].numpy()


def original_labels(labels: np.ndarray, valid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Brings labels to the size of the original image.

    Args:
      labels: integers [H, W] of the padded, perhaps resized image.
      valid: [H, W], true inside the image.
      height, width: of the original.

    Returns:
      [height, width], nearest labels where the image was resized.
    """
    return resized_labels(without_padding(labels, valid), height, width)


def original_probabilities(
    probs: np.ndarray, valid: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Brings probabilities to the size of the original image.

    Args:
      probs: float32 [H, W, C] of the padded, perhaps resized image.
      valid, height, width: as for `original_labels`.

    Returns:
      float32 [height, width, C], interpolated where the image was resized.
    """
    return resized_probabilities(without_padding(probs, valid), height, width)


def decode_image(data: bytes, location: framing.Location | None = None) -> np.ndarray:
    """Returns the encoded image of a record as uint8 RGB [H, W, 3], as the network sees it.

    Raises:
      RecordError: it cannot be decoded; names the location.
    """
    try:
        return decode_rgb(data)
    except tf.errors.OpError as error:
        raise framing.RecordError(
            "An encoded image cannot be decoded.",
            location=location,
            key=tfexample.IMAGE,
            received=error.message[:200],
            fix="repair or remove the image and make the records again",
        ) from None


def decode_label(
    data: bytes, image_id: str, location: framing.Location | None = None
) -> np.ndarray:
    """Returns an encoded mask as int64 [H, W].

    Raises:
      UserError: it cannot be decoded or has more than one channel; names the image.
    """
    label = tfexample.decode_pixels(data, location=location, key=tfexample.LABEL)
    if label.ndim != 2:
        raise UserError(
            "A mask is not a picture of class ids.",
            where=f"image {image_id}",
            received=f"{label.shape[-1]} channels",
            accepted="one channel",
            fix="make the records again with tfrecords_tools, which convert palettes",
        )
    return label.astype(np.int64)
