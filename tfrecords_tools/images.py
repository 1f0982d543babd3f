"""Image files as records hold them: JPEG or PNG in RGB, turned as flags say."""

import io
from typing import Protocol

import numpy as np
from PIL import Image

from tfseg.data.image_files import (
    DARK,
    EXIF_ORIENTATION,
    TRANSPOSED,
    is_first_of_several,
    is_see_through,
    keeps_bytes,
    load_as_stored,
    open_image_file,
    orientation_tag,
    to_rgb,
    undecodable,
    upright,
)
from tfseg.errors import UserError
from tfseg.files import open_regular


class Embedded(Protocol):
    """An image inside another file; its text names the place, for messages."""

    def read(self) -> bytes:
        """Returns the encoded image."""


def read_image(
    source: str | Embedded, *, max_megapixels: float
) -> tuple[bytes, Image.Image, list[str]]:
    """Reads an image and decodes it completely, as a check.

    JPEG and PNG with three colour channels keep their bytes; everything else is converted to a
    PNG with three channels of 8 bits, see `image_files.to_rgb`.

    Args:
      source: path of the file, or the image inside another one.
      max_megapixels: cap, from the header.

    Returns:
      (encoded JPEG or PNG, the decoded image in RGB, notes).

    Raises:
      UserError: too big, undecodable, or values of another range; names the file.
    """
    path = str(source)
    if isinstance(source, str):
        # A named pipe would be waited for.
        with open_regular(path, what="An image") as file:
            data = file.read()
    else:
        data = source.read()
    try:
        image = open_image_file(data, path, max_megapixels=max_megapixels)
        load_as_stored(image)
        rgb = to_rgb(image, path)
        see_through, is_first = is_see_through(image), is_first_of_several(image)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds, struct.error among them
        raise undecodable(path, error) from None
    notes = []
    if is_first:
        notes.append(f"{image.format} image of several pages or frames: the first was taken")
    if max(high for _, high in rgb.getextrema()) <= DARK:
        notes.append(
            f"dark image, no value above {DARK} of 255 (values of another range, such as 12 or 14 "
            "bits in 16, or 0 to 1 in 8?)"
        )
    if keeps_bytes(image):
        if see_through:
            notes.append("PNG image with a transparent colour: transparency dropped")
        return data, image, notes
    dropped = ", transparency dropped" if see_through else ""
    notes.insert(0, f"{image.format} image of mode {image.mode} converted to RGB PNG{dropped}")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation_tag(image)
    rgb.info["exif"] = exif.tobytes()
    return encode_png(rgb), rgb, notes


def encode_png(image: Image.Image) -> bytes:
    """Returns the image as PNG without metadata."""
    buffer = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, "PNG")
    return buffer.getvalue()


def size_as_stored(image: Image.Image, exif_orientation: str) -> tuple[int, int]:
    """Returns (height, width) of an image as its record will hold it, as far as flags tell.

    Args:
      image: decoded.
      exif_orientation: see --exif_orientation.
    """
    tag = orientation_tag(image)
    if exif_orientation == "apply" and tag in TRANSPOSED:
        return image.width, image.height
    return image.height, image.width


def orient(
    data: bytes, image: Image.Image, mask_shape: tuple[int, int] | None, mode: str
) -> tuple[bytes, Image.Image, list[str]]:
    """Decides what an EXIF orientation tag does; see --exif_orientation.

    Args:
      data, image: encoded and decoded.
      mask_shape: (height, width) of the image's mask, None without one.
      mode: auto, apply or ignore.

    Returns:
      (encoded, decoded, notes).
    """
    tag = orientation_tag(image)
    if tag == 1:
        return data, image, []
    stored = (image.height, image.width)
    turned = stored[::-1] if tag in TRANSPOSED else stored
    apply = mode == "apply" or (
        mode == "auto" and mask_shape is not None and mask_shape == turned != stored
    )
    if apply:
        turned_image = Image.fromarray(upright(np.asarray(image), tag))
        return encode_png(turned_image), turned_image, ["image turned by its EXIF orientation tag"]
    return (
        data,
        image,
        ["EXIF orientation tag ignored: pixels kept as they are stored (check them)"],
    )
