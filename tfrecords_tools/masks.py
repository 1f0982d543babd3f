"""Mask files: class ids, read as they were saved, mapped and checked."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from tfrecords_tools.images import encode_png
from tfrecords_tools.unknown_values import UnknownValuesError
from tfseg.data.image_files import check_megapixels, load_as_stored, orientation_tag
from tfseg.data import colormap
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

_LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"})
_LOSSY_COMPRESSIONS = frozenset({"jpeg", "tiff_jpeg", "old_jpeg", "webp", "jpeg2000"})
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


def read_mask(path: str, *, max_megapixels: float) -> tuple[np.ndarray, list[str]]:
    """Reads a mask of class ids: one channel, or a palette, whose indices are the ids.

    Three equal channels are read as one. Floating-point masks must hold whole numbers.

    Args:
      path: a lossless image file.
      max_megapixels: cap, from the header.

    Returns:
      ([H, W] integer array, notes).

    Raises:
      UserError: undecodable, lossy, too big, or in colours.
    """
    image = open_mask(path, max_megapixels=max_megapixels)
    step = _grey_step(image, path)
    values, notes = np.array(image), []
    if image.mode not in ("P", "L", "1", "F") and not image.mode.startswith("I"):
        values = _grey_of_equal_channels(image, path)
        notes.append("mask of equal colour channels: their value was taken as the class id")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    ids = whole_ids(values, where=path) // step
    return ids, notes + _palette_notes(image, ids, path) + orientation_notes(image)


def orientation_notes(image: Image.Image) -> list[str]:
    """Notices a mask that viewers show turned: its pixels are taken as they are stored."""
    if orientation_tag(image) == 1:
        return []
    return [
        "mask with an EXIF orientation tag, which is not applied (check that it lies as its image)"
    ]


def open_mask(path: str, *, max_megapixels: float) -> Image.Image:
    """Opens and decodes a mask whose values are as they were saved.

    Raises:
      UserError: undecodable, lossy or too big.
    """
    try:
        image = Image.open(path)
        check_megapixels(path, image.height, image.width, max_megapixels)
        _check_stores_ids(image, path)
        load_as_stored(image)
        return image
    except UserError:
        raise
    except FileNotFoundError:
        raise
    except Exception as error:
        raise UserError(
            "A mask cannot be decoded.",
            where=path,
            received=f"{type(error).__name__}: {error}",
            fix="replace the file",
        ) from None


def _check_stores_ids(image: Image.Image, path: str) -> None:
    """Refuses files whose values Pillow does not give as they were saved.

    Raises:
      UserError: lossy compression, several pages, an inverted or a scaled grey.
    """
    compression = image.info.get("compression")
    if image.format in _LOSSY_FORMATS or compression in _LOSSY_COMPRESSIONS:
        what = {"MPO": "JPEG"}.get(image.format, image.format)
        raise UserError(
            f"A mask is a {what}: its compression changes class ids.",
            where=path,
            received=f"{image.format}" + (f", compression {compression}" if compression else ""),
            accepted="PNG (or another lossless format) of class ids",
            fix="make the mask again without lossy compression; if this file is a photograph, give "
            "the folder of masks in place of its folder",
        )
    wrong = None
    if getattr(image, "n_frames", 1) > 1:
        wrong = f"{image.n_frames} pages or frames"
    elif image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:
        wrong = "inverted grey (TIFF with WhiteIsZero, 'inverting LUT' in ImageJ)"
    elif image.format == "PPM" and image.mode in ("L", "I", "RGB"):
        arguments = image.tile[0][3]
        as_saved = (255,) if image.mode == "RGB" else (255, 65535)
        if isinstance(arguments, tuple) and arguments[-1] not in as_saved:
            wrong = f"a maximum of {arguments[-1]}, by which the values would be scaled"
    if wrong is not None:
        raise UserError(
            "A mask does not hold one plain map of class ids.",
            where=path,
            received=f"{image.format} with {wrong}",
            accepted="one channel of class ids, or a palette PNG whose indices are the class ids",
            fix="save the class ids as PNG with 8 bits",
        )


def _grey_of_equal_channels(image: Image.Image, path: str) -> np.ndarray:
    """Returns the value of a mask whose colour channels are equal, [H, W] uint8.

    Raises:
      UserError: they are not, some pixel is transparent, or 16 bits were cut to 8.
    """
    received = f"mode {image.mode}, {len(image.getbands())} channels"
    if image.mode in ("RGB", "RGBA", "LA") and bits_of(image, path) <= 8:
        channels = np.asarray(image)
        colors = channels[..., :3] if image.mode.startswith("RGB") else channels[..., :1]
        opaque = image.mode == "RGB" or (channels[..., -1] == 255).all()
        if opaque and (colors == colors[..., :1]).all():
            return colors[..., 0]
        if not opaque:
            received += ", transparent pixels"
    raise UserError(
        "A mask has colours, not class ids.",
        where=path,
        received=received,
        accepted="one channel of class ids, or a palette PNG whose indices are the class ids",
        fix="save the class ids; or say which colour is which class, with --class_colors",
    )


def whole_ids(values: np.ndarray, *, where: str) -> np.ndarray:
    """Returns a map of class ids as integers.

    Args:
      values: [H, W] of any kind of number.
      where: the mask's file.

    Raises:
      UserError: another shape, or values that are no whole numbers.
    """
    if values.ndim == 2 and values.dtype.kind in "uib":
        return values
    if (
        values.ndim != 2
        or values.dtype.kind != "f"
        or not np.isfinite(values).all()
        or (values != np.floor(values)).any()
    ):
        raise UserError(
            "A mask is not a map of class ids.",
            where=where,
            received=f"{values.dtype}, shape {list(values.shape)}"
            + (", values that are no whole numbers" if values.dtype.kind == "f" else ""),
            accepted="whole numbers [height, width]",
            fix="save the class ids; scores must be turned into ids first",
        )
    return values.astype(np.int64)


def read_mat(path: str, pick: Callable[[Any], Any], *, accepted: str) -> np.ndarray:
    """Reads an array of a MATLAB file.

    Args:
      path: the file.
      pick: (content by name) -> array.
      accepted: what is picked, for the message.

    Raises:
      UserError: unreadable, or another structure.
    """
    from scipy.io import loadmat

    try:
        return np.asarray(pick(loadmat(path)))
    except Exception as error:  # scipy raises many kinds on damaged files
        raise UserError(
            "A MATLAB mask cannot be read.",
            where=path,
            received=f"{type(error).__name__}: {error}",
            accepted=f"a .mat file with {accepted}",
        ) from None


def bits_of(image: Image.Image, path: str) -> int:
    """Returns the bits that the file stores per value."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS, (1,)))
    return 8


def _grey_step(image: Image.Image, path: str) -> int:
    """Returns the factor by which Pillow spreads grey values of fewer than 8 bits."""
    bits = bits_of(image, path) if image.mode == "L" else 8
    return 255 // (2**bits - 1) if bits < 8 else 1


def _palette_notes(image: Image.Image, ids: np.ndarray, path: str) -> list[str]:
    """Notices a palette whose colours tell other ids than its indices: VOC's colours, or greys.

    Raises:
      UserError: it is a GIF; programs that save one number its colours anew.
    """
    if image.mode != "P":
        return []
    used = np.flatnonzero(np.bincount(ids.reshape(-1), minlength=256))
    palette = np.array(image.getpalette("RGB"), np.int64).reshape(-1, 3)
    colors = palette[used[used < len(palette)]]
    greys = colors[:, 0] if (colors == colors[:, :1]).all() else None
    if image.format == "GIF" and not (greys is not None and greys.tolist() == used.tolist()):
        raise UserError(
            "A mask is a GIF with a palette. Programs that save a GIF number its colours anew.",
            where=path,
            received=f"indices {_few(used)} with colours {_few(map(tuple, colors.tolist()))}",
            accepted="one channel of class ids, or a palette PNG whose indices are the class ids",
            fix="save the class ids as PNG; or say which colour is which class, with "
            "--class_colors",
        )
    voc = {tuple(c): i for i, c in enumerate(colormap.pascal().tolist())}
    by_color = [voc.get(tuple(color)) for color in colors.tolist()]
    if None not in by_color and by_color != used.tolist():
        return ["palette mask whose VOC colours stand at other indices; indices were taken as ids"]
    if greys is not None and greys.tolist() != used.tolist():
        return ["palette mask whose greys are not its indices; indices were taken as ids"]
    return []


def _few(values: Iterable[object]) -> str:
    return ", ".join(map(str, list(values)[:4]))


def encode_mask(ids: np.ndarray) -> bytes:
    """Returns [H, W] uint8 class ids as a one-channel PNG without colours."""
    return encode_png(Image.fromarray(np.ascontiguousarray(ids, np.uint8)))


def map_ids(
    ids: np.ndarray, label_map: Mapping[int, int] | None, spec: DatasetSpec, *, where: str
) -> np.ndarray:
    """Maps class ids and checks that the result is one.

    Args:
      ids: [H, W] integers.
      label_map: from -> to, or None.
      spec: the classes.
      where: the mask's file.

    Returns:
      [H, W] uint8, class ids below `spec.num_classes` or the ignore label.

    Raises:
      UnknownValuesError: an id that the map lacks, or that is no class; names the file and the ids.
    """
    values = np.unique(ids)
    if label_map is not None:
        absent = [int(v) for v in values if int(v) not in label_map]
        if absent:
            raise UnknownValuesError(
                "A mask holds ids that --label_map lacks.",
                values=list(map(str, absent)),
                where=where,
                received=", ".join(map(str, absent[:20])),
                accepted=", ".join(map(str, sorted(label_map)[:300])),
                fix="add them to the map; map what shall not count to the ignore label",
            )
        mapped = np.array([label_map[int(v)] for v in values], np.int64)
        ids = mapped[np.searchsorted(values, ids)]
        values = np.unique(mapped)
    wrong = values[((values < 0) | (values >= spec.num_classes)) & (values != spec.ignore_label)]
    if len(wrong):
        raise UnknownValuesError(
            "A mask holds ids beyond the classes.",
            values=list(map(str, wrong)),
            where=where,
            received=", ".join(map(str, wrong[:20])),
            accepted=f"0 to {spec.num_classes - 1}, and {spec.ignore_label} (ignore)",
            fix="check the class names (do they begin with background?) and --ignore_label, or "
            "map the ids with --label_map",
        )
    return ids.astype(np.uint8)


def classes_in(ids: np.ndarray, spec: DatasetSpec) -> tuple[int, ...]:
    """Returns the image-level classes of a mask: what is in it, but background and ignored."""
    return tuple(
        int(v)
        for v in np.unique(ids)
        if v != spec.ignore_label and spec.first_image_class <= v < spec.num_classes
    )


def are_shares(coordinates: Iterable[float]) -> bool:
    """Says whether coordinates are shares of an image's size: within 0 and 1, and not all whole."""
    numbers = list(coordinates)
    return all(0 <= x <= 1 for x in numbers) and any(x % 1 for x in numbers)
