"""Files of pictures: encoded, and written whole or not at all."""

import contextlib
import io
import os

import numpy as np
from PIL import Image

from tfseg import sharing
from tfseg.errors import naming_file

_JPEG_QUALITY = 90


def png(array: np.ndarray) -> bytes:
    """Returns integers [H, W] or uint8 RGB [H, W, 3] as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(array: np.ndarray) -> bytes:
    """Returns uint8 RGB [H, W, 3] as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def write(path: str, content: bytes) -> None:
    """Writes a file under a temporary name and renames it; makes its folder.

    Unlike `atomic_writing.write_atomically` it does not wait for the disk: pictures can be drawn
    again, and there are thousands.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = sharing.temporary_path(path)
    try:
        with naming_file(path), open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
