"""Image files as records hold them: JPEG or PNG in RGB, turned as flags say."""

import io

import numpy as np
from PIL import Image, ImageOps

from tfseg.data.encoded_image import image_size
from tfseg.errors import UserError

# The size is checked from the header before decoding, with a message of our own.
Image.MAX_IMAGE_PIXELS = None

_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = frozenset({5, 6, 7, 8})
# A picture without a value above it is black to the eye.
_NEARLY_BLACK = 15


def read_image(path: str, *, max_megapixels: float) -> tuple[bytes, Image.Image, list[str]]:
    """Reads an image and decodes it completely, as a check.

    JPEG and PNG with three colour channels keep their bytes; everything else is converted to a
    PNG with three channels of 8 bits: grey is repeated, palettes are looked up, transparency is
    dropped; of 16 bits the high byte is kept; floating-point values within 0 and 1 are multiplied
    by 255 and rounded.

    Args:
      path: the file.
      max_megapixels: cap, from the header.

    Returns:
      (encoded JPEG or PNG, the decoded image in RGB, notes).

    Raises:
      UserError: too big, undecodable, or values of another range; names the file.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        image = Image.open(io.BytesIO(data))
        check_megapixels(path, image.height, image.width, max_megapixels)
        if image.format in ("JPEG", "MPO", "PNG"):
            image_size(data)  # refuses what no record may hold
        image.load()
        rgb = _to_rgb(image, path)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds, struct.error among them
        raise UserError(
            "An image cannot be decoded.",
            where=path,
            received=f"{type(error).__name__}: {error}",
            fix="replace the file or remove its id from the lists",
        ) from None
    notes = []
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        notes.append(f"{image.format} image of several pages or frames: the first was taken")
    if max(high for _, high in rgb.getextrema()) <= _NEARLY_BLACK:
        notes.append(
            f"image nearly black, no value above {_NEARLY_BLACK} of 255 (values of "
            "another range, such as 12 bits in 16 or 0 to 1 in 8?)"
        )
    # MPO is a JPEG with further pictures behind the first (phones).
    if image.mode == "RGB" and image.format in ("JPEG", "MPO", "PNG"):
        return data, image, notes
    dropped = ""
    may_be_clear = {"A", "a"} & {*image.getbands()} or "transparency" in image.info
    if may_be_clear and image.convert("RGBA").getextrema()[3][0] < 255:
        dropped = ", transparency dropped"
    notes.insert(0, f"{image.format} image of mode {image.mode} converted to RGB PNG{dropped}")
    if image.getexif().get(_EXIF_ORIENTATION):
        rgb.getexif()[_EXIF_ORIENTATION] = image.getexif()[_EXIF_ORIENTATION]
    return encode_png(rgb), rgb, notes


def _to_rgb(image: Image.Image, path: str) -> Image.Image:
    """Returns a decoded image with three channels of 8 bits; see `read_image`."""
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        # NaN fails here too.
        if not (low >= 0 and high <= 1):
            raise UserError(
                "An image has floating-point values whose scale is not known (mode F).",
                where=path,
                received=f"values from {low:g} to {high:g}",
                accepted="floating-point values within 0 and 1, which are multiplied by 255; or 8 "
                "bits",
                fix="save the images with 8 bits, all of them scaled in the same way",
            )
        grey = np.rint(values * 255)
    else:
        # Pillow clips 16-bit grey to 255; TensorFlow keeps the high byte, and so do we.
        if low < 0 or high > 65535 or 0 < high < 256:
            raise UserError(
                f"An image has integers of another range than 16 bits (mode {image.mode}).",
                where=path,
                received=f"values from {low} to {high}",
                accepted="0 to 65535, of which the high byte is kept; or 8 bits",
                fix="save the images with 8 bits, all of them scaled in the same way",
            )
        grey = values.astype(np.int64) >> 8
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def check_megapixels(where: str, height: int, width: int, max_megapixels: float) -> None:
    """Refuses an image by its declared size.

    Raises:
      UserError: it has more than `max_megapixels` million pixels.
    """
    if height * width > max_megapixels * 1e6:
        raise UserError(
            "An image declares more pixels than are allowed.",
            where=where,
            received=f"{height}x{width}, {height * width / 1e6:.1f} megapixels",
            accepted=f"at most {max_megapixels:g} megapixels",
            fix="shrink it, remove its id from the lists, or raise --max_image_megapixels",
        )


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
    tag = image.getexif().get(_EXIF_ORIENTATION, 1)
    if exif_orientation == "apply" and tag in _TRANSPOSED:
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
    tag = image.getexif().get(_EXIF_ORIENTATION, 1)
    if tag not in range(2, 9):
        return data, image, []
    stored = (image.height, image.width)
    turned = stored[::-1] if tag in _TRANSPOSED else stored
    apply = mode == "apply" or (
        mode == "auto" and mask_shape is not None and mask_shape == turned != stored
    )
    if apply:
        upright = ImageOps.exif_transpose(image)
        return encode_png(upright), upright, ["image turned by its EXIF orientation tag"]
    return (
        data,
        image,
        ["EXIF orientation tag ignored: pixels kept as they are stored (check them)"],
    )
