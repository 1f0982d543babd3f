"""Class names as people write them down, and classes that mean something else than their name.

A class file has one name a line; the line's number, from 0, is the class id, and may stand before
the name. A header without such ids, a reserved name or an empty line shifts every class behind it
by one, which no mask gives away. So a file of another structure is an error, and a class that no
mask shows is a warning.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tfrecords_tools.text_files import read_text
from tfseg.data.class_names import is_background, normalised
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

# Masks are 8-bit images.
MAX_NAMES = 256
_MAX_NAMED = 10
# labelme writes this line first; its masks do not count it.
LABELME_IGNORE = "__ignore__"
# Names of pixels that count nowhere.
_VOID = frozenset(
    {"void", "ignore", "ignored", "unlabelled", "unlabeled", "dontcare", "undefined", "invalid"}
)
# Names of what is no class of its own, in some languages.
_REST = frozenset(
    {"other", "others", "none", "nothing", "clutter", "empty", "hintergrund", "fond", "fondo"}
)
# First lines that head a column and name no class.
_HEADERS = frozenset(
    {"name", "names", "class", "classes", "classname", "classnames", "classid", "id", "pixelvalue"}
)
# First lines that head a column where the first class should be background.
_MORE_HEADERS = frozenset(
    {"label", "labels", "labelname", "labelnames", "category", "categories", "categoryname"}
)
_TABLE_HEADERS = _HEADERS | _MORE_HEADERS | {"r", "g", "b", "red", "green", "blue", "color"}
_YAML = ("names:", "nc:", "path:", "train:", "---", "%yaml")
_NUMBERED = re.compile(r"(\d+)(\s*[:=.)]\s*|\s+)\S")
_NUMBER_BEHIND = re.compile(r"(.*\S)\s*[:=\s]\s*(\d+)")
_ID_AND_NAME = re.compile(r"(\d{1,3})(?:\s*[:,;\t|]\s*|\s+)([^\s:,;|][^,;\t|]*)")
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "'|'"}


def is_void(name: str) -> bool:
    """Says whether a name is one of pixels that count nowhere: 'void', 'unlabelled'."""
    return normalised(name) in _VOID


def is_header(line: str) -> bool:
    """Says whether a line looks like the header of a column of ids, images or names."""
    return normalised(line) in _HEADERS | {"image", "images", "filename", "file", "imageid"}


def other_structure(lines: Sequence[str]) -> str | None:
    """Says what lines are that do not hold one class name each.

    Args:
      lines: without blanks around them, none empty.

    Returns:
      A few words for "it is ...", None where nothing speaks against names.
    """
    first = lines[0]
    if first[0] in "[{<\"'":
        return "JSON, XML or a quoted list"
    if any("{" in line or "}" in line for line in lines):
        return "JSON, or a label map of TensorFlow (item { ... })"
    if first.lower().startswith(_YAML) or all(line.startswith(("- ", "* ")) for line in lines):
        return "YAML, or a list with a mark before each name"
    for mark, name in _SEPARATORS.items():
        cells = first.split(mark)
        per_line = {line.count(mark) for line in lines}
        headed = _TABLE_HEADERS & {normalised(cell) for cell in cells}
        if len(cells) > 1 and (len(per_line) == 1 or headed):
            return f"a table (CSV) of {len(cells)} columns with {name} between them"
    numbered = [_NUMBERED.match(line) for line in lines]
    if all(numbered):
        numbers = [int(m[1]) for m in numbered]
        in_turn = [n - numbers[0] for n in numbers] == list(range(len(lines)))
        # "5 cent" may be a class; 0, 1, 2, ... before every name, or "7: road", are ids.
        if (in_turn and numbers[0] < 2) or all(m[2].strip() for m in numbered):
            return "a list with a number before each name"
    behind = [_NUMBER_BEHIND.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(behind) and len({m[1] for m in behind}) == len(lines):
        numbers = [int(m[2]) for m in behind]
        # "car 1" and "car 2" may be classes.
        if numbers[0] < 2 and numbers == list(range(numbers[0], numbers[0] + len(lines))):
            return "a list with a number behind each name"
    return None


def without_ids(lines: Sequence[str]) -> list[str] | None:
    """Returns the names of lines `id name` whose ids are 0, 1, 2 and so on.

    Roboflow's `_classes.csv` is of this form, with a header.

    Args:
      lines: without blanks around them, none empty.

    Returns:
      None where the lines are something else.
    """
    rows = [_ID_AND_NAME.fullmatch(line) for line in lines]
    if not rows[0] and _TABLE_HEADERS & {normalised(c) for c in re.split("[,;\t|]", lines[0])}:
        rows = rows[1:]
    if not rows or not all(rows) or [int(row[1]) for row in rows] != list(range(len(rows))):
        return None
    return [row[2] for row in rows]


def not_in_id_order(names: Sequence[str], has_background: bool) -> str | None:
    """Says why the first names can hardly be those of ids 0, 1 and so on.

    Args:
      names: in id order, as they are given.
      has_background: whether the first is to be background.

    Returns:
      One sentence, None where nothing speaks against the order.
    """
    if LABELME_IGNORE in names:
        return f"'{LABELME_IGNORE}' is a reserved name of labelme, whose masks do not count it."
    plain = normalised(names[0])
    if plain in _HEADERS or (has_background and plain in _MORE_HEADERS):
        return f"The first name, '{names[0]}', looks like a column's header."
    if has_background and not is_background(names[0]):
        place = next((k for k, name in enumerate(names) if is_background(name)), None)
        if place is not None:
            return f"'{names[place]}' has id {place}; background is to be id 0."
    return None


def parse(text: str, *, where: str, has_background: bool) -> tuple[str, ...]:
    """Returns the names of a class file.

    Args:
      text: its content, one name a line, or `id name` with the ids 0, 1, 2 and so on; empty lines
        at its end do not count.
      where: the file.
      has_background: the first class is background.

    Raises:
      UserError: no names, one of them twice, another structure, or a line that is no class and
        shifts those behind it.
    """
    accepted = "a text file with one class name a line, in the order of the masks' ids, from 0"
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    names = [line for line in lines if line]
    if not names:
        raise UserError("The class file holds no names.", where=where, accepted=accepted)
    numbered = without_ids(names)
    if numbered is not None and len(names) == len(lines):
        names = lines = numbered
    structure = other_structure(names)
    if structure is not None:
        raise UserError(
            "The class file is no list of names, one name a line.",
            where=where,
            received=f"it is {structure}: {names[0][:60]} ...",
            accepted=accepted,
            fix="write the names alone, without header, ids and colours; where masks have these "
            "colours, give the table to build_folder.py with --class_colors",
        )
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith(("#", "//")):
            raise UserError(
                "A line of the class file names no class and would shift those behind it.",
                where=f"{where}, line {number}",
                received=line or "an empty line",
                accepted=accepted,
                fix="remove the line; if its id is in the masks, give it a name",
            )
    order = not_in_id_order(names, has_background)
    if order is not None:
        raise UserError(
            f"The class file is not in the order of class ids. {order}",
            where=where,
            received=", ".join(names[:4]) + (" ..." if len(names) > 4 else ""),
            accepted=accepted,
            fix="remove lines that are no class, and let background be the first; where the masks "
            "have other ids, give --label_map",
        )
    twice = sorted(n for n, k in Counter(names).items() if k > 1)
    if twice:
        raise UserError(
            "A class name stands there twice.",
            where=where,
            received=", ".join(twice),
            accepted=accepted,
            fix="give each class a name of its own",
        )
    return tuple(names)


def read_class_names(path: str, *, has_background: bool) -> tuple[str, ...]:
    """Reads a class file: one name a line, in the order of ids.

    Raises:
      UserError: as `parse`.
    """
    return parse(read_text(path), where=path, has_background=has_background)


def check_ignore_label(names: Sequence[str], ignore_label: int, *, where: str) -> None:
    """Insists that 8-bit masks can tell all classes and the ignore label apart.

    An ignore label below 255 may be a class on purpose.

    Raises:
      UserError: too many names.
    """
    most = MAX_NAMES - (ignore_label == MAX_NAMES - 1)
    if len(names) > most:
        raise UserError(
            "There are more classes than an 8-bit mask can hold.",
            where=where,
            received=f"{len(names)} class names",
            accepted=f"at most {most} with ignore label {ignore_label}",
            fix="leave classes out or merge them; a class that shall not count may be the "
            "--ignore_label itself",
        )


def warnings(
    spec: DatasetSpec,
    pixels: Mapping[str, np.ndarray],
    num_labelled: np.ndarray,
    *,
    are_pseudo: bool = False,
) -> list[str]:
    """Says which classes may mean something else than their name, one line each.

    Args:
      spec: the classes.
      pixels: [C + 1] by split with masks: pixels by class and, last, ignored ones.
      num_labelled: [C], images by image-level label.
      are_pseudo: some of the masks are predictions.
    """
    found = []
    if spec.num_classes > MAX_NAMES:
        found.append(f"{spec.num_classes} classes; an 8-bit mask can hold {MAX_NAMES}")
    if 0 < spec.ignore_label < spec.num_classes:
        name = spec.class_names[spec.ignore_label]
        found.append(
            f"class '{name}' has id {spec.ignore_label}, which is the ignore label: it counts "
            "nowhere"
        )
    shown = sum(pixels.values()) if pixels else np.ones(spec.num_classes + 1)
    for k, name in enumerate(spec.class_names):
        if is_void(name) and k != spec.ignore_label and shown[k]:
            found.append(
                f"class '{name}' (id {k}) is learned and counted as any other. Where its pixels "
                f"shall count nowhere: build_folder.py --label_map that maps {k} to "
                f"{spec.ignore_label}, or --void_color in place of its line in --class_colors"
            )
    structure = other_structure(spec.class_names)
    order = not_in_id_order(spec.class_names, spec.has_background)
    if structure is not None:
        found.append(f"the class names look like lines of another file, {structure}")
    elif order is not None:
        found.append(f"the class names may be shifted. {order}")
    else:
        found += _background_warning(spec, pixels)
    pixels = {split: counts for split, counts in pixels.items() if counts.any()}
    if not pixels:
        return found
    total = sum(pixels.values())
    is_class = np.arange(spec.num_classes) != spec.ignore_label
    absent = np.flatnonzero((total[:-1] == 0) & is_class).tolist()
    if absent:
        causes = _likely_causes(spec, total, absent, num_labelled, are_pseudo)
        found.append(
            f"the masks of split {', '.join(pixels)} have no pixel of {_listed(spec, absent)}. "
            f"Likely cause: {'; or '.join(causes)}"
        )
    for split, counts in pixels.items():
        only_here = np.flatnonzero((counts[:-1] == 0) & (total[:-1] > 0)).tolist()
        if only_here:
            found.append(
                f"the masks of split {split} have no pixel of {_listed(spec, only_here)}; those of "
                "other splits have"
            )
    return found


def _background_warning(spec: DatasetSpec, pixels: Mapping[str, np.ndarray]) -> list[str]:
    """Warns of a class that counts as background by its place and not by its name."""
    name = spec.class_names[0]
    if not spec.has_background or is_background(name) or normalised(name) in _REST | _VOID:
        return []
    total = sum(pixels.values(), start=np.zeros(spec.num_classes + 1))
    share = f", with {total[0] / total.sum():.1%} of the pixels," if total.any() else ""
    return [
        f"class 0{share} is called '{name}' and counts as background. If 0 is the background in "
        "the masks, the first line of the class file must be 'background'; without it every name "
        f"is one id too low (id 1 is '{spec.class_names[1]}' now). If there is no background: "
        "--has_background=false"
    ]


def _listed(spec: DatasetSpec, classes: Sequence[int]) -> str:
    listed = ", ".join(f"'{spec.class_names[k]}'" for k in classes[:_MAX_NAMED])
    if len(classes) > _MAX_NAMED:
        listed += f" and {len(classes) - _MAX_NAMED} more"
    return f"class {listed}" if len(classes) == 1 else f"{len(classes)} classes: {listed}"


def _likely_causes(
    spec: DatasetSpec,
    pixels: np.ndarray,
    absent: Sequence[int],
    num_labelled: np.ndarray,
    are_pseudo: bool,
) -> list[str]:
    """Returns why no mask may show some classes, given the pixels of all masks."""
    shown = np.flatnonzero(pixels[:-1]).tolist()
    causes = []
    ignored = pixels[-1] / pixels.sum()
    void = [k for k in absent if is_void(spec.class_names[k])]
    if void:
        causes.append(
            f"'{spec.class_names[void[0]]}' is one name too many: what counts nowhere has the "
            f"ignore label {spec.ignore_label} and no name"
        )
    # (A rim of void around objects is usual; then the masks show more than one class.)
    if ignored > 0 and len(void) < len(absent) and len(shown) <= 1:
        causes.append(
            f"{ignored:.1%} of the pixels have the ignore label {spec.ignore_label}; if "
            f"{spec.ignore_label} is a class in the masks (such as masks of 0 and 255), map it: "
            f'write {{"0": 0, "{spec.ignore_label}": {absent[0]}}} to map.json and give '
            "build_folder.py --label_map=map.json"
        )
    if labelled := [k for k in absent if num_labelled[k]]:
        causes.append(f"image-level labels alone name {_listed(spec, labelled)}")
    elif len(shown) == 1 and not ignored:
        causes.append(f"all masks are '{spec.class_names[shown[0]]}' and nothing else")
    elif absent == list(range(absent[0], spec.num_classes)) and shown:
        causes.append(
            f"the masks' ids end at {max(shown)}; a line of the class file that is no class "
            "(a header, a reserved name) would shift all names behind it"
        )
    if are_pseudo:
        causes.append("some masks are predictions, which may lack classes")
    if not causes:
        causes.append("the class is rare, or the names are in another order than the ids")
    return causes
