"""The pixels of encoded images and of image files, decoded as training decodes them."""

import numpy as np
import tensorflow as tf

from tfseg.data.image_files import (
    keeps_bytes,
    open_image_file,
    orientation_of,
    to_rgb,
    undecodable,
    upright,
)
from tfseg.errors import UserError


def decode_rgb(data: bytes) -> np.ndarray:
    """Returns a JPEG or PNG as uint8 RGB [H, W, 3], by the decoder of the input pipeline.

    Pillow's decoder differs by up to five grey levels on a JPEG.

    Raises:
      tf.errors.OpError: it cannot be decoded.
    """
    return tf.io.decode_image(data, 3, expand_animations=False).numpy()


def decode_file(path: str, *, max_megapixels: float) -> np.ndarray:
    """Returns an image file as uint8 RGB [H, W, 3], upright.

    JPEG and PNG are decoded as in training, other formats as the converters do. If the file has an
    EXIF orientation tag, the pixels are turned by it. (Those of records are not.)

    Args:
      path: the file, of one of `image_files.IMAGE_EXTENSIONS`.
      max_megapixels: cap, from the header.

    Raises:
      UserError: not there, too big, undecodable, or values of another range; names the file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError("The image cannot be read.", where=path, received=error.strerror) from None
    try:
        image = open_image_file(data, path, max_megapixels=max_megapixels)
        if keeps_bytes(image):
            pixels = decode_rgb(data)
        else:
            image.load()
            pixels = np.asarray(to_rgb(image, path))
        return upright(pixels, orientation_of(image, data))
    except UserError:
        raise
    except Exception as error:  # decoders raise many kinds, struct.error among them
        raise undecodable(path, error) from None
