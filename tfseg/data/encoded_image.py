"""JPEG and PNG before they are decoded: format and size from the header, and what is refused."""

import io
import re
import struct
import zlib

from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

# Drawing programs write more text (XMP) and colour profiles than Pillow's 1 MiB. What all texts of
# a file may take stays limited.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The signature and the whole first chunk, whose last bytes are its checksum.
_PNG_HEADER_BYTES = 33
_PNG_END = b"IEND"
_JPEG_SIGNATURE = b"\xff\xd8"
# libpng decodes no longer sides, and JPEG has none.
MAX_SIDE = 1_000_000
# Encoders write about ten scans, and eighteen for four colours. Each costs a pass over all pixels,
# however few bytes it has.
MAX_JPEG_SCANS = 20
_JPEG_SCAN = b"\xff\xda"
# A marker. Among compressed pixels FF 00 is a byte of them, and FF FF is padding.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
# Pillow takes three reads for a segment; the longest colour profile has 255 of them.
_MAX_HEADER_READS = 4_000


class _HeaderFile(io.BytesIO):
    """An encoded image of which only so much is read that a header can be: none takes seconds."""

    num_reads = 0

    def read(self, size: int | None = -1) -> bytes:
        """Reads bytes.

        Raises:
          ValueError: too often.
        """
        self.num_reads += 1
        if self.num_reads > _MAX_HEADER_READS:
            raise ValueError("the JPEG header has too many segments")
        return super().read(size)


class _JpegFile(JpegImagePlugin.JpegImageFile):
    """A JPEG without the resolution in its Exif block: reading it may take any memory."""

    def _read_dpi_from_exif(self) -> None:
        pass


def image_size(data: bytes) -> tuple[str, int, int]:
    """Reads format and size from the header alone, so that size is known before decoding.

    Args:
      data: an encoded image. A PNG may end after its first chunk.

    Returns:
      ('jpeg' or 'png', height, width), in pixels.

    Raises:
      ValueError: neither JPEG nor PNG, the header is broken, a side is longer than `MAX_SIDE`, or
        a JPEG has more than `MAX_JPEG_SCANS` scans.
    """
    if data[:8] == PNG_SIGNATURE:
        if len(data) < _PNG_HEADER_BYTES or data[8:16] != b"\0\0\0\x0dIHDR":
            raise ValueError("the PNG header is broken")
        width, height = struct.unpack(">II", data[16:24])
        name = "png"
    elif data[:2] == _JPEG_SIGNATURE:
        name, (width, height) = "jpeg", _jpeg_size(data)
    else:
        raise ValueError("neither JPEG nor PNG")
    if not 1 <= height <= MAX_SIDE or not 1 <= width <= MAX_SIDE:
        raise ValueError(f"its header declares {height}x{width} pixels")
    return name, height, width


def check_whole_png(data: bytes) -> None:
    """Insists on a PNG up to its last byte, and on the checksums of all that a decoder needs.

    Pillow decodes a file whose last bytes are missing or whose checksums are wrong. TensorFlow does
    not, so that training would stop at it.

    Raises:
      ValueError: it is cut short or damaged.
    """
    position, name = len(PNG_SIGNATURE), b""
    while name != _PNG_END:
        start = position + 4
        end = start + 4 + int.from_bytes(data[position:start], "big")
        position = end + 4
        if position > len(data):
            raise ValueError("the PNG is cut short")
        name = data[start : start + 4]
        checksum = int.from_bytes(data[end:position], "big")
        # Chunks in small letters hold what no decoder needs.
        if name[:1].isupper() and zlib.crc32(memoryview(data)[start:end]) != checksum:
            raise ValueError(f"the PNG is damaged: wrong checksum of its part {ascii(name)[1:]}")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Returns (width, height) of a JPEG as its decoder will read them."""
    try:
        # Not Image.open, which has a limit of its own on pixels.
        size = _JpegFile(_HeaderFile(data)).size
    except Exception as error:  # Pillow's readers raise many kinds
        raise ValueError(f"the JPEG header is broken ({error})") from None
    # The quick count, which includes thumbnails and whatever follows the picture, is never too low.
    if data.count(_JPEG_SCAN) > MAX_JPEG_SCANS:
        scans = _jpeg_scans(data)
        if scans > MAX_JPEG_SCANS:
            raise ValueError(f"it has {scans} scans, and at most {MAX_JPEG_SCANS} are decoded")
    return size


def _jpeg_scans(data: bytes) -> int:
    """Counts the scans of a JPEG up to its end, not those of pictures inside its segments."""
    scans, position = 0, len(_JPEG_SIGNATURE)
    while match := _JPEG_MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        # The markers below C0 and those from D0 to D8 stand alone.
        if marker >= 0xC0 and not 0xD0 <= marker <= 0xD8:
            position += int.from_bytes(data[position : position + 2], "big")
    return scans


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Opens a JPEG or PNG with Pillow, which decodes it on use.

    Raises:
      ValueError: the header is broken, a PNG is not whole, or Pillow would decode another size than
        `image_size` says.
      Exception: whatever Pillow raises.
    """
    name, height, width = image_size(data)
    if name == "png":
        check_whole_png(data)
    plugins = {"jpeg": _JpegFile, "png": PngImagePlugin.PngImageFile}
    # Not Image.open, which has a limit of its own on pixels.
    image = plugins[name](io.BytesIO(data))
    if image.size != (width, height):
        raise ValueError(f"it has a second header, of {image.height}x{image.width} pixels")
    return image
