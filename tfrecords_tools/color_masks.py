"""Masks whose classes are colours, and the CSV that says which."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfrecords_tools.class_files import MAX_NAMES
from tfrecords_tools.masks import bits_of, open_mask, orientation_notes
from tfrecords_tools.text_files import read_text
from tfrecords_tools.unknown_values import UnknownValuesError
from tfseg.data.class_names import normalised
from tfseg.data.image_files import is_see_through
from tfseg.errors import UserError

Color = tuple[int, int, int]
_ACCEPTED = "lines 'name,r,g,b' with 0 to 255, one class a line, in the order of the ids"
_NAME_HEADERS = frozenset({"name", "class", "classname", "label"})
_CHANNELS = (("r", "red"), ("g", "green"), ("b", "blue"))
_NAMED = 5


def read_class_colors(path: str) -> dict[str, Color]:
    """Reads names and colours of classes, in the order of their ids.

    Args:
      path: CSV of the columns name, r, g and b; a first line may name them, in any order.

    Raises:
      UserError: another structure, or a name or a colour twice.
    """
    try:
        rows = [row for row in csv.reader(read_text(path).splitlines()) if any(row)]
    except csv.Error as error:
        raise UserError("A CSV cannot be read.", where=path, received=str(error)) from None
    columns = _columns(rows[0]) if rows else None
    if columns is None:
        columns, first = (0, 1, 2, 3), 0
    else:
        first = 1
    colors: dict[str, Color] = {}
    for number, row in enumerate(rows[first:], start=first + 1):
        name, color = _class_of(row, columns, where=f"{path}, line {number}")
        for what, value, before in (("name", name, colors), ("color", color, colors.values())):
            if value in before:
                raise UserError(
                    f"The CSV of classes has a {what} twice.",
                    where=f"{path}, line {number}",
                    received=value,
                )
        colors[name] = color
    if not 2 <= len(colors) <= MAX_NAMES:
        raise UserError(
            "The CSV of classes has too few or too many.",
            where=path,
            received=len(colors),
            accepted=f"2 to {MAX_NAMES} lines: {_ACCEPTED}",
        )
    return colors


def _columns(header: Sequence[str]) -> tuple[int, int, int, int] | None:
    """Returns the columns of name, r, g and b that a first line names, None if it is no header."""
    cells = [normalised(cell) for cell in header]
    found = [next((k for k, cell in enumerate(cells) if cell in _NAME_HEADERS), None)]
    found += [
        next((k for k, cell in enumerate(cells) if cell in names), None) for names in _CHANNELS
    ]
    return None if None in found else tuple(found)


def _class_of(row: Sequence[str], columns: Sequence[int], *, where: str) -> tuple[str, Color]:
    """Returns the name and the colour of a line.

    Raises:
      UserError: it has not both.
    """
    try:
        name, *channels = (row[k].strip() for k in columns)
        color = tuple(int(channel) for channel in channels)
    except (IndexError, ValueError):
        name, color = "", ()
    if not name or not all(0 <= channel <= 255 for channel in color):
        raise UserError(
            "A line of the CSV of classes is no name and colour.",
            where=where,
            received=",".join(row),
            accepted=_ACCEPTED,
        )
    return name, color


def parse_color(text: str) -> Color:
    """Returns the colour 'r,g,b' of --void_color.

    Raises:
      UserError: it is none.
    """
    try:
        color = tuple(int(channel) for channel in text.split(","))
    except ValueError:
        color = ()
    if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
        raise UserError(
            "A colour is three numbers.",
            where="--void_color",
            received=text,
            accepted="r,g,b of 0 to 255, for example --void_color=0,0,0",
        )
    return color


@dataclasses.dataclass(frozen=True)
class ColorMaskReader:
    """Reads class ids from the colours of a mask; an `encoder.MaskReader`.

    Attributes:
      ids: of each colour; the ignore label for colours that count nowhere.
      max_megapixels: cap, from the header.
    """

    ids: Mapping[Color, int]
    max_megapixels: float

    def __call__(self, path: str, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
        """Returns class ids [H, W] uint8 of a mask in RGB, or of a palette, and notes.

        Raises:
          UserError: undecodable, lossy, too big, without colours, of 16 bits, or a colour that is
            no class.
        """
        with open_mask(path, max_megapixels=self.max_megapixels) as image:
            if image.mode not in ("RGB", "RGBA", "P"):
                raise UserError(
                    "A mask has no colours.",
                    where=path,
                    received=f"mode {image.mode}",
                    accepted="RGB, or a palette, in the colours of --class_colors",
                    fix="give class ids with --class_names in place of --class_colors",
                )
            if bits_of(image, path) > 8:
                # Pillow keeps the high byte: a saved 255 would be 0.
                raise UserError(
                    "A mask has colours of more than 8 bits.",
                    where=path,
                    received=f"{bits_of(image, path)} bits per channel",
                    accepted="8 bits per channel, in the colours of --class_colors",
                    fix="save the mask with 8 bits, and check that its colours stay the same",
                )
            pixels = np.asarray(image.convert("RGB"), np.uint32)
            notes = orientation_notes(image)
            if is_see_through(image):
                notes.append(
                    "mask with transparent pixels: the colours under them were taken (check them)"
                )
        codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
        found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
        colors = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in found]
        unknown = {c: int(n) for c, n in zip(colors, counts) if c not in self.ids}
        if unknown:
            raise self._unknown(path, unknown)
        table = np.array([self.ids[color] for color in colors], np.uint8)
        return table[inverse.reshape(codes.shape)], notes

    def _unknown(self, path: str, unknown: Mapping[Color, int]) -> UnknownValuesError:
        most = sorted(unknown, key=unknown.get, reverse=True)[:_NAMED]
        named = "; ".join(f"{','.join(map(str, c))} ({unknown[c]} pixels)" for c in most)
        example = ",".join(map(str, most[0]))
        return UnknownValuesError(
            "A mask has a colour that is no class.",
            values=[",".join(map(str, c)) for c in most],
            where=path,
            received=named + (f" and {len(unknown) - _NAMED} more" * (len(unknown) > _NAMED)),
            accepted="; ".join(",".join(map(str, c)) for c in list(self.ids)[:_NAMED]) + " ...",
            fix=f"add the colour to --class_colors; or give --void_color={example}, which makes it "
            "count nowhere. Many colours come from smoothing: save the mask without it",
        )
