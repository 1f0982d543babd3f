"""What the converters share: lists of ids, image and mask files, and the step to one record."""

import collections
import dataclasses
import difflib
import io
import ntpath
import os
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, ImageOps

from tfrecords_tools import class_files
from tfseg import command_line, files
from tfseg.data import colormap, records, tfexample, writing
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

FLAGS = flags.FLAGS
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
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = frozenset({5, 6, 7, 8})
# Above this, looking for similar names takes too long.
_MAX_COMPARED = 20_000
# A picture without a value above it is black to the eye.
_NEARLY_BLACK = 15
_LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"})
_LOSSY_COMPRESSIONS = frozenset({"jpeg", "tiff_jpeg", "old_jpeg", "webp", "jpeg2000"})
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


# Flags and the frame ----------------------------------------------------------------------------


def define_output_flags(*, num_shards: int = 4) -> None:
    """Defines the flags that every converter has."""
    flags.DEFINE_string("output_dir", None, "Folder for the shards, indices and dataset.json.")
    flags.DEFINE_integer("num_shards", num_shards, "Files per split.")
    flags.DEFINE_integer("num_workers", os.cpu_count() or 1, "Processes.")


def define_image_flags() -> None:
    """Defines the flags of converters that read image files."""
    flags.DEFINE_float(
        "max_image_megapixels", 64.0, "Refuse images with more than this many megapixels."
    )
    flags.DEFINE_enum(
        "exif_orientation",
        "auto",
        ("auto", "apply", "ignore"),
        "What an EXIF orientation tag does. Records carry no such tag, so the pixels must lie as "
        "the mask's do. auto: turn the image where only the turned image has the mask's size, "
        "else keep it as it is stored; apply: always turn; ignore: never. Tagged images count.",
    )
    flags.DEFINE_list("splits", None, "Convert these lists only; by default all of --splits_dir.")
    flags.DEFINE_list(
        "unlabelled_splits", [], "Splits written without masks, whether or not there are any."
    )
    flags.DEFINE_bool(
        "allow_missing_masks",
        False,
        "Write images without a mask file without one, and count them.",
    )


def require(*names: str) -> None:
    """Insists on flags without a default.

    Raises:
      UserError: one is missing.
    """
    for name in names:
        if not FLAGS[name].value:
            raise UserError(f"--{name} is required.", where=f"--{name}", accepted=FLAGS[name].help)


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs a converter; a termination request cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command_line.run(main)


# Files ------------------------------------------------------------------------------------------


def read_text(path: str) -> str:
    """Reads a UTF-8 file, with or without a byte-order mark.

    Raises:
      UserError: there is no such file, or it is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except FileNotFoundError:
        raise UserError("No such file.", where=path) from None
    except IsADirectoryError:
        raise UserError("A file is needed here, not a folder.", where=path) from None
    except UnicodeDecodeError as error:
        raise UserError("A text file is not UTF-8.", where=path, received=str(error)) from None


def read_json(
    path: str, form: Any, *, what: str, accepted: str | None = None, check_texts: bool = True
) -> Any:
    """Reads a user's JSON file of any length; see `tfseg.files.read_json`.

    Raises:
      UserError: there is no such file, or it is not as `form` says.
    """
    try:
        return files.read_json(
            path, form, what=what, accepted=accepted, max_bytes=None, check_texts=check_texts
        )
    except FileNotFoundError:
        raise UserError("No such file.", where=path) from None


def read_class_names(path: str, *, has_background: bool) -> tuple[str, ...]:
    """Reads a class file: one name a line, in the order of ids.

    Raises:
      UserError: as `class_files.parse`.
    """
    return class_files.parse(read_text(path), where=path, has_background=has_background)


def composed(name: str) -> str:
    """Returns a name with accents as single characters (NFC); macOS writes some names without."""
    return unicodedata.normalize("NFC", name)


def check_folder(path: str, flag: str) -> None:
    """Insists that a flag names a folder.

    Raises:
      UserError: it does not.
    """
    if not os.path.isdir(path):
        raise UserError(f"--{flag} must be a folder that exists.", where=f"--{flag}", received=path)


def read_ids(path: str) -> list[str]:
    """Reads a list of ids, one a line; blank lines do not count.

    Raises:
      UserError: an id stands there twice, or points out of the folder.
    """
    ids = [line.strip() for line in read_text(path).splitlines()]
    ids = [i for i in ids if i]
    twice = [i for i, n in collections.Counter(ids).items() if n > 1]
    if twice:
        raise UserError(
            "A list holds an id more than once.",
            where=path,
            received=f"{len(twice)} such ids: {', '.join(twice[:5])}",
            fix="remove the repetitions",
        )
    for i in ids:
        if os.path.isabs(i) or ntpath.splitdrive(i)[0] or ".." in re.split(r"[/\\]", i):
            raise UserError("An id must be a name below the image folder.", where=path, received=i)
    return ids


def read_splits(splits_dir: str, wanted: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Reads `<split>.txt` of a folder.

    Args:
      splits_dir: folder of lists.
      wanted: names of the splits, in the order in which to convert; None: all, sorted.

    Raises:
      UserError: no lists, a wanted one is missing (names those present), or a bad or empty list.
    """
    check_folder(splits_dir, "splits_dir")
    names = [n for n in os.listdir(splits_dir) if n.endswith(".txt") and not n.startswith(".")]
    present = sorted(n[: -len(".txt")] for n in names)
    if not present:
        raise UserError("The folder holds no <split>.txt.", where=splits_dir)
    missing = [name for name in wanted or [] if name not in present]
    if missing:
        raise UserError(
            "There is no such list.",
            where=splits_dir,
            received=", ".join(missing),
            accepted=", ".join(present),
        )
    splits = {}
    for name in dict.fromkeys(wanted or present):
        splits[name] = read_ids(os.path.join(splits_dir, f"{name}.txt"))
        if not splits[name]:
            raise UserError(
                f"The list of split '{name}' is empty.",
                where=os.path.join(splits_dir, f"{name}.txt"),
            )
    return splits


class FileFinder:
    """Finds the file of an id: folder/id plus one of the known extensions, in any case.

    Composed and decomposed accents (NFC, NFD) are the same.
    """

    def __init__(self, folder: str, extensions: Iterable[str] = IMAGE_EXTENSIONS):
        self.folder, self.extensions = folder, frozenset(extensions)
        self._stems: dict[str, dict[str, list[str]]] = {}

    def _in(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            path = self._folder_on_disk(folder)
            for name in sorted(os.listdir(path)) if os.path.isdir(path) else ():
                stem, extension = os.path.splitext(name)
                if extension.lower() in self.extensions:
                    stems.setdefault(composed(stem), []).append(name)
            self._stems[folder] = stems
        return self._stems[folder]

    def _folder_on_disk(self, folder: str) -> str:
        names = [folder, *(unicodedata.normalize(form, folder) for form in ("NFC", "NFD"))]
        paths = [os.path.join(self.folder, name) for name in names]
        return next((path for path in paths if os.path.isdir(path)), paths[0])

    def find(self, i: str) -> str | None:
        """Returns the path of an id's file, None if there is none.

        Raises:
          UserError: several files fit.
        """
        folder, stem = os.path.split(i)
        names = self._in(folder).get(composed(stem), [])
        if len(names) > 1:
            raise UserError(
                f"Several files fit id '{i}'.",
                where=os.path.join(self.folder, folder),
                received=", ".join(names),
                accepted="one image of that name in --images_dir, and one mask in --masks_dir",
                fix="where one of them is the mask, put the masks into a folder of their own; "
                "else keep one of them",
            )
        return os.path.join(self._folder_on_disk(folder), names[0]) if names else None

    def near(self, i: str, most: int = 3) -> list[str]:
        """Returns files of an id's folder whose names hold the id or look like it."""
        folder, stem = os.path.split(i)
        stems = {k: names[0] for k, names in self._in(folder).items() if k != composed(stem)}
        found = [k for k in stems if composed(stem) in k]
        if not found and len(stems) < _MAX_COMPARED:
            found = difflib.get_close_matches(composed(stem), stems, n=most, cutoff=0.7)
        return [stems[k] for k in found[:most]]


def find_all(ids: Sequence[str], finder: Any, *, split: str, what: str) -> list[str]:
    """Returns the file of every id.

    Args:
      ids: of a list.
      finder: a `FileFinder`, or something like it.
      split: name of the list.
      what: 'image' or 'mask'.

    Raises:
      UserError: some have none; names how many and the first ones, and the likely cause.
    """
    paths = [finder.find(i) for i in ids]
    missing = [i for i, path in zip(ids, paths) if path is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(ids)} ids of split '{split}' have no {what}.",
            where=finder.folder,
            received=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
            accepted="<id> plus one of " + " ".join(sorted(finder.extensions)),
            fix=_advice(missing, finder, f"{split}.txt", what),
        )
    return paths


def _is_there(finder: Any, name: str) -> bool:
    """Says whether a file fits an id, or a file name."""
    try:
        return any(finder.find(i) for i in (name, os.path.splitext(name)[0]))
    except UserError:  # several
        return True


def _advice(missing: Sequence[str], finder: Any, listed_in: str, what: str) -> str:
    """Returns the next step for ids without a file."""
    # The first may be a header.
    for i in missing[:2]:
        columns = [c for c in re.split(r"\s*[\s,;|]\s*", i) if c]
        are_files = [os.path.splitext(c)[1].lower() in IMAGE_EXTENSIONS for c in columns]
        if len(columns) > 1 and (sum(are_files) > 1 or _is_there(finder, columns[0])):
            return (
                f"a line of {listed_in} holds one id, not {len(columns)} columns: leave the first "
                "one, as a path below the folder of images without extension; the mask of an id "
                "is the file of the same name in --masks_dir"
            )
    i = missing[0]
    if "\\" in i:
        return f"write '/' between folders in {listed_in}, not '\\'"
    stem, extension = os.path.splitext(i)
    if extension.lower() in finder.extensions:
        return f"ids stand in the lists without '{extension}'"
    if os.path.basename(i) != i and _is_there(finder, os.path.basename(i)):
        return f"the folder has '{os.path.basename(i)}': write ids as paths below it"
    if what == "image" and class_files.is_header(i):
        return f"the first line of {listed_in} looks like a column's header: remove it"
    near = finder.near(i)
    if what == "mask":
        by_name = ""
        if near:
            by_name = (
                f"the folder has {', '.join(near)}: give each mask the name of its image (take the "
                "ending, such as '_mask', out of the names); or "
            )
        return by_name + (
            "add the masks, list the split in --unlabelled_splits if it is used without them, "
            "or give --allow_missing_masks"
        )
    if near:
        return f"check the list and the folder, which has {', '.join(near)}"
    return "check the list and the folder"


# Images -----------------------------------------------------------------------------------------


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
            tfexample.image_size(data)  # refuses what no record may hold
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


def _orient(
    data: bytes, image: Image.Image, mask_shape: tuple[int, int] | None, mode: str
) -> tuple[bytes, Image.Image, list[str]]:
    """Decides what an EXIF orientation tag does; see --exif_orientation."""
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


# Masks ------------------------------------------------------------------------------------------


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
    try:
        image = Image.open(path)
        check_megapixels(path, image.height, image.width, max_megapixels)
        _check_stores_ids(image, path)
        step = _grey_step(image, path)
        image.load()
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
    values, notes = np.array(image), []
    if image.mode not in ("P", "L", "1", "F") and not image.mode.startswith("I"):
        values = _grey_of_equal_channels(image, path)
        notes.append("mask of equal colour channels: their value was taken as the class id")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    ids = whole_ids(values, where=path) // step
    return ids, notes + _palette_notes(image, ids)


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
            fix="make the mask again without lossy compression",
        )
    wrong = None
    if getattr(image, "n_frames", 1) > 1:
        wrong = f"{image.n_frames} pages or frames"
    elif image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:
        wrong = "inverted grey (TIFF with WhiteIsZero, 'inverting LUT' in ImageJ)"
    elif image.format == "PPM" and image.mode in ("L", "I", "RGB"):
        arguments = image.tile[0][3]
        if isinstance(arguments, tuple) and arguments[-1] not in (255, 65535):
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
    if image.mode in ("RGB", "RGBA", "LA") and _bits(image, path) <= 8:
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
        fix="save the class ids; RGB renderings of masks cannot be read",
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


def _bits(image: Image.Image, path: str) -> int:
    """Returns the bits that the file stores per value."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS, (1,)))
    return 8


def _grey_step(image: Image.Image, path: str) -> int:
    """Returns the factor by which Pillow spreads grey values of fewer than 8 bits."""
    bits = _bits(image, path) if image.mode == "L" else 8
    return 255 // (2**bits - 1) if bits < 8 else 1


def _palette_notes(image: Image.Image, ids: np.ndarray) -> list[str]:
    """Notices a palette with VOC's colours in another order than VOC's."""
    if image.mode != "P":
        return []
    used = np.flatnonzero(np.bincount(ids.reshape(-1), minlength=256))
    palette = np.array(image.getpalette("RGB"), np.int64).reshape(-1, 3)
    voc = {tuple(c): i for i, c in enumerate(colormap.pascal().tolist())}
    by_color = [voc.get(tuple(palette[i].tolist())) for i in used if i < len(palette)]
    if None not in by_color and by_color != used.tolist():
        return ["palette mask whose VOC colours stand at other indices; indices were taken as ids"]
    return []


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
      UserError: an id that the map lacks, or that is no class; names the file and the ids.
    """
    values = np.unique(ids)
    if label_map is not None:
        absent = [int(v) for v in values if int(v) not in label_map]
        if absent:
            raise UserError(
                "A mask holds ids that --label_map lacks.",
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
        raise UserError(
            "A mask holds ids beyond the classes.",
            where=where,
            received=", ".join(map(str, wrong[:20])),
            accepted=f"0 to {spec.num_classes - 1}, and {spec.ignore_label} (ignore)",
            fix="check the class names (do they begin with background?) and --ignore_label, or "
            "map the ids with --label_map",
        )
    return ids.astype(np.uint8)


# One record -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one record comes from.

    Attributes:
      id: `image/filename`.
      image: path.
      mask: path, or whatever the converter's mask reader takes; None: written without a mask.
      image_labels: class ids known from elsewhere; None: take those of the mask, if there is one.
      image_labels_unknown: do not take them from the mask either.
      notes: counted over the split.
    """

    id: str
    image: str
    mask: Any = None
    image_labels: tuple[int, ...] | None = None
    image_labels_unknown: bool = False
    notes: tuple[str, ...] = ()


MaskReader = Callable[[Any, tuple[int, int]], tuple[np.ndarray, list[str]]]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns a `Source` into a record; sent to the worker processes.

    Attributes:
      spec: the classes.
      label_map: from -> to of mask ids, or None.
      max_megapixels: cap for images and masks.
      exif_orientation: auto, apply or ignore.
      mask_reader: (mask of a `Source`, (height, width) of the stored image) -> ids and notes;
        None: `read_mask` of a path.
    """

    spec: DatasetSpec
    label_map: Mapping[int, int] | None = None
    max_megapixels: float = 64.0
    exif_orientation: str = "auto"
    mask_reader: MaskReader | None = None

    def __call__(self, source: Source) -> writing.Encoded:
        data, image, notes = read_image(source.image, max_megapixels=self.max_megapixels)
        ids = None
        if source.mask is not None:
            where = source.mask
            if not isinstance(source.mask, str):
                where = getattr(source.mask, "where", f"annotations of {source.id}")
            elif os.path.samefile(source.mask, source.image):
                raise UserError(
                    f"The mask of '{source.id}' is the image itself.",
                    where=source.image,
                    accepted="a mask of the image's name in --masks_dir, a folder of its own",
                    fix=_advice_on_pairs(source.mask),
                )
            ids, mask_notes = self._read_mask(source.mask, self._size(image))
            ids = map_ids(ids, self.label_map, self.spec, where=where)
            notes += mask_notes
        data, image, orientation_notes = _orient(
            data, image, None if ids is None else ids.shape, self.exif_orientation
        )
        if ids is not None and ids.shape != (image.height, image.width):
            raise UserError(
                f"Image and mask of '{source.id}' differ in size.",
                where=f"{source.image}, {where}",
                received=f"mask {ids.shape[0]}x{ids.shape[1]} (height x width)",
                accepted=f"{image.height}x{image.width}, the image's",
                fix="make the mask again at the image's size",
            )
        return make_record(
            source.id,
            data,
            (image.height, image.width),
            ids,
            image_labels=self._image_labels(source, ids),
            spec=self.spec,
            notes=(*source.notes, *notes, *orientation_notes),
        )

    def _size(self, image: Image.Image) -> tuple[int, int]:
        """Returns (height, width) of the image as it will be stored, as far as flags tell."""
        tag = image.getexif().get(_EXIF_ORIENTATION, 1)
        if self.exif_orientation == "apply" and tag in _TRANSPOSED:
            return image.width, image.height
        return image.height, image.width

    def _read_mask(self, mask: Any, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
        if self.mask_reader is not None:
            return self.mask_reader(mask, size)
        return read_mask(mask, max_megapixels=self.max_megapixels)

    def _image_labels(self, source: Source, ids: np.ndarray | None) -> tuple[int, ...] | None:
        if source.image_labels is not None:
            return source.image_labels
        if ids is None or source.image_labels_unknown:
            return None
        return classes_in(ids, self.spec)


def _advice_on_pairs(path: str) -> str:
    """Returns the next step where image and mask lie side by side under other names."""
    folder, name = os.path.split(path)
    near = FileFinder(folder).near(os.path.splitext(name)[0])
    beside = f" (beside it lie {', '.join(near)})" if near else ""
    return (
        f"copy the masks{beside} into a folder of their own, under the names of their images "
        "without an ending such as '_mask', and give that folder with --masks_dir"
    )


def classes_in(ids: np.ndarray, spec: DatasetSpec) -> tuple[int, ...]:
    """Returns the image-level classes of a mask: what is in it, but background and ignored."""
    return tuple(
        int(v)
        for v in np.unique(ids)
        if v != spec.ignore_label and spec.first_image_class <= v < spec.num_classes
    )


def make_record(
    record_id: str,
    image: bytes,
    size: tuple[int, int],
    ids: np.ndarray | None,
    *,
    image_labels: tuple[int, ...] | None,
    spec: DatasetSpec,
    notes: tuple[str, ...] = (),
    is_pseudo: bool = False,
) -> writing.Encoded:
    """Assembles one record.

    Args:
      record_id: `image/filename`.
      image: JPEG or PNG.
      size: (height, width), pixels.
      ids: [H, W] uint8 class ids, or None.
      image_labels: class ids, or None if unknown.
      spec: the classes.
      notes: counted over the split.
      is_pseudo: `ids` is a prediction.
    """
    data = tfexample.encode(
        image=image,
        filename=record_id,
        height=size[0],
        width=size[1],
        label=None if ids is None else encode_mask(ids),
        image_labels=image_labels,
        is_pseudo=is_pseudo,
    )
    return writing.Encoded(
        data=data,
        row=records.Row(record_id, size[0], size[1], image_labels, ids is not None),
        pixels=None if ids is None else writing.count_pixels(ids, spec),
        notes=notes,
        is_pseudo=is_pseudo,
    )


def mask_paths(
    split: str,
    ids: Sequence[str],
    finder: FileFinder | None,
    *,
    unlabelled: bool,
    allow_missing: bool,
) -> list[str | None]:
    """Returns the mask file of every id of a split, None where it is written without.

    Raises:
      UserError: masks are missing and the split may not do without.
    """
    if unlabelled or finder is None:
        return [None] * len(ids)
    if allow_missing:
        paths = [finder.find(i) for i in ids]
        if not any(paths):
            near = finder.near(ids[0])
            raise UserError(
                f"Not one of the {len(ids)} ids of split '{split}' has a mask.",
                where=finder.folder,
                received=", ".join(ids[:5]) + (" ..." if len(ids) > 5 else ""),
                accepted="<id> plus one of " + " ".join(sorted(finder.extensions)),
                fix=(f"the folder has {', '.join(near)}: " if near else "")
                + "give each mask the name of its image, or list the split in --unlabelled_splits "
                "if it is used without masks",
            )
        return paths
    return find_all(ids, finder, split=split, what="mask")


def check_unlabelled(unlabelled: Sequence[str], splits: Mapping[str, Any]) -> None:
    """Insists that --unlabelled_splits names splits that are converted.

    Raises:
      UserError: it does not.
    """
    wrong = [name for name in unlabelled if name not in splits]
    if wrong:
        raise UserError(
            "--unlabelled_splits names splits that are not converted.",
            where="--unlabelled_splits",
            received=", ".join(wrong),
            accepted=", ".join(splits),
        )


def write(
    spec: DatasetSpec,
    tasks: Mapping[str, Sequence[Any]],
    encode: Callable[[Any], writing.Encoded],
    *,
    started: float,
) -> None:
    """Writes splits as the output flags say, and prints what was written.

    Args:
      spec, tasks, encode: as for `writing.write_splits`.
      started: `time.monotonic()` of the program's start.
    """
    reports = writing.write_splits(
        FLAGS.output_dir,
        spec,
        tasks,
        encode,
        num_shards=FLAGS.num_shards,
        num_workers=FLAGS.num_workers,
    )
    finish(reports, spec, FLAGS.output_dir, started)


def finish(
    reports: Sequence[writing.SplitReport], spec: DatasetSpec, output_dir: str, started: float
) -> None:
    """Prints what was written, and warns of classes that may mean something else."""
    print(writing.describe(reports, spec))
    with_masks = [r for r in reports if r.num_masks]
    num_labelled = np.zeros(spec.num_classes, np.int64)
    num_labelled[spec.first_image_class :] = sum(r.images_per_class for r in reports)
    for warning in class_files.warnings(
        spec,
        {r.split: r.pixels for r in with_masks},
        num_labelled,
        are_pseudo=any(r.num_pseudo_labels for r in with_masks),
    ):
        print(f"warning: {warning}")
    count = sum(r.count for r in reports)
    print(f"{count} records in {time.monotonic() - started:.1f} s: {output_dir}", flush=True)
