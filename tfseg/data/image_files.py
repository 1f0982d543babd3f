"""Image files of any format that the converters read, before they are records or predictions."""

import io
import re
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from tfseg.data.encoded_image import check_whole_png, image_size
from tfseg.errors import UserError

# The size is checked from the header before decoding, with a message of our own.
Image.MAX_IMAGE_PIXELS = None

IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".ppm",
)
EXIF_ORIENTATION = 0x0112
# An image without a value above it is dark to the eye: of 16 bits only 14 may be in use.
DARK = 63
# Values of that tag by which rows are columns.
TRANSPOSED = frozenset({5, 6, 7, 8})


def open_image_file(data: bytes, path: str, *, max_megapixels: float) -> Image.Image:
    """Opens an image with Pillow, which decodes it on use.

    Args:
      data: content of the file.
      path: the file, for messages.
      max_megapixels: cap, from the header.

    Raises:
      UserError: too big.
      Exception: whatever Pillow raises; see `undecodable`.
    """
    image = Image.open(io.BytesIO(data))
    check_megapixels(path, image.height, image.width, max_megapixels)
    if image.format in ("JPEG", "MPO", "PNG"):
        image_size(data)  # refuses what no record may hold
    if image.format == "PNG":
        check_whole_png(data)
    return image


def load_as_stored(image: Image.Image) -> None:
    """Decodes an opened image without turning it.

    Pillow turns a TIFF by its orientation tag and drops the tag; it does so with no other format.
    """
    if image.format != "TIFF":
        image.load()
        return
    exif = image.getexif()
    tag = exif.get(EXIF_ORIENTATION, 1)
    exif[EXIF_ORIENTATION] = 1
    image.load()
    exif[EXIF_ORIENTATION] = tag


def undecodable(path: str, error: Exception) -> UserError:
    """Returns the user's view of whatever a decoder raised."""
    # Pillow's own words name the object that it read from.
    if isinstance(error, UnidentifiedImageError):
        received = "no image that Pillow knows"
    else:
        # TensorFlow's name its nodes.
        words = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error), flags=re.DOTALL).strip()
        received = f"{type(error).__name__}: {words}"
    return UserError(
        "An image cannot be decoded.",
        where=path,
        received=received,
        fix="replace the file or leave it out",
    )


def is_first_of_several(image: Image.Image) -> bool:
    """Whether an opened image is the first page or frame of several in its file."""
    # The further pictures of an MPO show the same (phones).
    return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def is_see_through(image: Image.Image) -> bool:
    """Whether a pixel of a decoded image is transparent, wholly or in part."""
    may_be = {"A", "a"} & {*image.getbands()} or "transparency" in image.info
    return bool(may_be) and image.convert("RGBA").getextrema()[3][0] < 255


def keeps_bytes(image: Image.Image) -> bool:
    """Whether a record holds the file as it is: JPEG and PNG with three colour channels."""
    # MPO is a JPEG with further pictures behind the first (phones).
    return image.mode == "RGB" and image.format in ("JPEG", "MPO", "PNG")


def to_rgb(image: Image.Image, path: str) -> Image.Image:
    """Returns a decoded image with three channels of 8 bits.

    Grey is repeated, palettes are looked up, transparency is dropped; of 16 bits the high byte is
    kept; floating-point values within 0 and 1 are multiplied by 255 and rounded.

    Raises:
      UserError: values of another range; names the file.
    """
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
            fix="shrink it, leave it out, or raise --max_image_megapixels",
        )


def orientation_tag(image: Image.Image) -> int:
    """Returns the value of an image's EXIF orientation tag, 1 to 8.

    It is 1 where there is none, and where the block of tags is damaged: the pixels may be sound.
    """
    try:
        tag = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow's readers raise many kinds
        return 1
    return tag if tag in range(1, 9) else 1


def orientation_of(image: Image.Image, data: bytes) -> int:
    """Returns what `orientation_tag` does, without decoding a PNG.

    Args:
      image: opened, or decoded where its format is neither JPEG nor PNG.
      data: content of its file.
    """
    # Where a PNG has no such chunk Pillow would decode it to look for one at the end.
    if image.format == "PNG" and b"eXIf" not in data:
        return 1
    return orientation_tag(image)


# What the values of the tag ask for, of [H, W, channels].
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 3),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns pixels [H, W, channels] turned as the value of an EXIF orientation tag says."""
    turn = _TURNS.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))
