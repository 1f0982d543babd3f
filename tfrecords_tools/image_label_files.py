"""Image-level labels of a CSV: names of classes in a column, or a column of 0 and 1 for each class.

Source of the second form: `_classes.csv` of Roboflow's export "Multi-Label Classification".
"""

import csv
import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from tfrecords_tools.file_finder import stem_of
from tfrecords_tools.text_files import read_text
from tfseg.data.class_names import is_background, normalised
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

# Cells of a column of a class.
_SHOWN, _NOT_SHOWN = frozenset({"1", "1.0", "true", "yes"}), frozenset({"", "0", "0.0"})
_ONE_HOT = _SHOWN | _NOT_SHOWN | {"-1", "false", "no"}
# Headers, without blanks and marks, of a column of images; one of them makes a first line a header.
_ID_HEADERS = frozenset(
    {"id", "ids", "image", "imageid", "imagename", "imagepath", "filename", "filepath", "file"}
    | {"name", "path"}
)
_NAMED = 20


@dataclasses.dataclass(frozen=True)
class ImageLabels:
    """What a CSV says of images.

    Attributes:
      ids: class ids by the image's id without extension.
      unknown: names that are no class, with how often they stand there.
      notes: how the file was read, for people.
    """

    ids: Mapping[str, tuple[int, ...]]
    unknown: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def of(self, image_id: str) -> tuple[int, ...] | None:
        """Returns the class ids of an image, None where the file has no line of it."""
        # `a.jpg.jpg` has the id `a.jpg`, whose stem is another one.
        return self.ids.get(image_id, self.ids.get(stem_of(image_id)))


def read_image_labels(
    path: str, spec: DatasetSpec, *, column: str | None = None, ignore_unknown: bool = False
) -> ImageLabels:
    """Reads image-level labels.

    Args:
      path: CSV; the first line is a header if `column` is given, if its first cell says so ('id'),
        or if it names classes above cells of 0 and 1.
      spec: the classes; background cannot be named.
      column: header of the column of names.
      ignore_unknown: count names that are no class.

    Raises:
      UserError: malformed, an id twice, or unknown names.
    """
    rows = _rows(path)
    class_id = {n: k for k, n in enumerate(spec.class_names) if k >= spec.first_image_class}
    notes: list[str] = []
    columns = _class_columns(rows, class_id, path) if column is None else {}
    if columns:
        id_column, first = _id_column(rows[0], class_id), 1
        without = [name for name in class_id if name not in columns.values()]
        if without:
            notes.append(f"{path} has no column of {', '.join(without[:_NAMED])}: in no image")

        def names_of(row: Sequence[str]) -> list[str]:
            return [n for k, n in columns.items() if row[k].strip().lower() in _SHOWN]
    else:
        id_column, name_column, first = _pick_columns(rows, column, class_id, path)
        named = [row[name_column : name_column + 1] for row in rows[first:]]
        if not _ONE_HOT & set(class_id) and _is_one_hot(named):
            raise _one_hot_error(path, ", ".join(rows[0]))

        def names_of(row: Sequence[str]) -> list[str]:
            return _split_names(row[name_column], class_id)

    names = _names_by_id(rows, first, id_column, names_of, path)
    names, more = _without_numbers(names, class_id, spec, path)
    unknown = Counter(n for listed in names.values() for n in listed if n not in class_id)
    labels = {
        i: tuple(sorted({class_id[n] for n in listed if n in class_id}))
        for i, listed in names.items()
    }
    if unknown:
        first_of = {n: i for i, listed in reversed(names.items()) for n in listed}
        _check_unknown(unknown, first_of, any(labels.values()), ignore_unknown, class_id, path)
    return ImageLabels(labels, unknown, (*notes, *more))


def _rows(path: str) -> list[list[str]]:
    try:
        rows = [row for row in csv.reader(read_text(path).splitlines()) if row]
    except csv.Error as error:
        raise UserError("A CSV cannot be read.", where=path, received=str(error)) from None
    if not rows:
        raise UserError("The CSV of image-level labels is empty.", where=path)
    return rows


def _names_by_id(
    rows: Sequence[Sequence[str]],
    first: int,
    id_column: int,
    names_of: Callable[[Sequence[str]], list[str]],
    path: str,
) -> dict[str, list[str]]:
    """Returns the names on the line of each id.

    Raises:
      UserError: a line of another length, or an id twice.
    """
    names: dict[str, list[str]] = {}
    for number, row in enumerate(rows[first:], start=1 + first):
        if len(row) != len(rows[0]):
            raise UserError(
                "A line of the CSV has another number of columns.",
                where=f"{path}, line {number}",
                received=f"{len(row)}: {','.join(row)}",
                accepted=f"{len(rows[0])}, as in the first line",
                fix="separate the names of an image by spaces or ';': a.jpg,dog person",
            )
        image_id = stem_of(row[id_column].strip())
        if image_id in names:
            raise UserError(
                "The CSV holds an id twice.", where=f"{path}, line {number}", received=image_id
            )
        names[image_id] = names_of(row)
    return names


def _check_unknown(
    unknown: Counter,
    first_of: Mapping[str, str],
    some_known: bool,
    ignore_unknown: bool,
    class_id: Mapping[str, int],
    path: str,
) -> None:
    """Refuses names that are no class, unless they are to be counted and are not all there is.

    Raises:
      UserError: they may not be there.
    """
    if some_known and ignore_unknown:
        return
    listed = ", ".join(
        f"{n} ({k} x, first of {first_of[n]})" for n, k in unknown.most_common(_NAMED)
    )
    background = (
        " (background is in no line: leave it out)" if any(map(is_background, unknown)) else ""
    )
    raise UserError(
        "The CSV of image-level labels names "
        + ("unknown classes." if some_known else "unknown classes only."),
        where=path,
        received=listed,
        accepted=", ".join(class_id),
        fix=f"correct the names{background}"
        + (", or give --ignore_unknown_labels to leave them out" if some_known else ""),
    )


# A column of names --------------------------------------------------------------------------------


def _pick_columns(
    rows: list[list[str]], column: str | None, class_names: Collection[str], path: str
) -> tuple[int, int, bool]:
    """Returns (column of ids, column of names, whether there is a header)."""
    header = [cell.strip() for cell in rows[0]]
    if column is not None:
        if column not in header:
            raise UserError(
                "--image_labels_column is not in the CSV's first line.",
                where=path,
                received=column,
                accepted=", ".join(header),
            )
        return _id_column(header, class_names), header.index(column), True
    if len(header) != 2:
        hot = [_is_one_hot(row[k : k + 1] for row in rows[1:]) for k in range(1, len(header))]
        if hot and all(hot):
            raise _one_hot_error(path, ", ".join(header))
        fix = "put a comma between id and names"
        if len(header) > 2:
            fix = "name the column with --image_labels_column"
        if len(header) > 2 and all(cell in class_names for cell in header[1:]):
            fix = "put ';' between the names of an image"
            if normalised(header[0]) in _ID_HEADERS:
                fix = "write 1 where an image shows the class of a column, else 0"
        raise UserError(
            "The CSV of image-level labels does not have two columns.",
            where=path,
            received=f"{len(header)} columns: {', '.join(header)}",
            accepted="id,name name ..., with a comma between id and names; or a column of 0 and 1 "
            "for each class, with the class's name in the first line",
            fix=fix,
        )
    id_column = _id_column(header, class_names)
    return id_column, 1 - id_column, normalised(header[id_column]) in _ID_HEADERS


def _id_column(header: Sequence[str], class_names: Collection[str]) -> int:
    """Returns the place of the column of images: 'id', one headed alike, else the first.

    pandas puts a column of numbers, without a header, before it.
    """
    normal = [None if cell.strip() in class_names else normalised(cell) for cell in header]
    if "id" in normal:
        return normal.index("id")
    return next((k for k, cell in enumerate(normal) if cell in _ID_HEADERS), 0)


def _split_names(cell: str, class_id: Mapping[str, int]) -> list[str]:
    """Splits "cat dog", "cat;traffic light" and "traffic light" where that is one class."""
    if cell.strip() in class_id:
        return [cell.strip()]
    names = cell.split(";") if ";" in cell else cell.split()
    return [name.strip() for name in names if name.strip()]


def _without_numbers(
    names: Mapping[str, list[str]], class_id: Mapping[str, int], spec: DatasetSpec, path: str
) -> tuple[Mapping[str, list[str]], list[str]]:
    """Returns names in place of class ids, where these can be meant in one way only.

    That is so where the largest is the last class's id and none is below the first class's: the
    same classes counted from another number would not end or begin there.

    Raises:
      UserError: they are numbers that may count the classes in several ways.
    """
    given = {n for listed in names.values() for n in listed}
    if not given or given & set(class_id) or not all(n.isascii() and n.isdigit() for n in given):
        return names, []
    ids = {n: int(n) for n in given}
    first, last = spec.first_image_class, spec.num_classes - 1
    if min(ids.values()) >= first and max(ids.values()) == last:
        replaced = {i: [spec.class_names[ids[n]] for n in listed] for i, listed in names.items()}
        return replaced, [
            f"{path} holds class ids: {first} is '{spec.class_names[first]}', {last} is "
            f"'{spec.class_names[last]}'"
        ]
    shown = sorted(ids.values())
    raise UserError(
        "The CSV of image-level labels holds numbers in place of names.",
        where=path,
        received=", ".join(map(str, shown[:_NAMED])) + (" ..." if len(shown) > _NAMED else ""),
        accepted=f"names; or ids from {first} ('{spec.class_names[first]}') to {last} "
        f"('{spec.class_names[last]}') if the last one occurs, so that they can be meant in one "
        "way only",
        fix="write the name of the class in place of each number",
    )


# A column of 0 and 1 for each class ---------------------------------------------------------------


def _is_one_hot(rows: Iterable[Sequence[str]]) -> bool:
    """Says whether cells, one row an image, are 0 and 1 and not names."""
    cells = {cell.strip().lower() for row in rows for cell in row}
    return bool(cells - {""}) and cells <= _ONE_HOT


def _class_columns(
    rows: Sequence[Sequence[str]], class_names: Collection[str], path: str
) -> dict[int, str]:
    """Returns the headers of columns of 0 and 1, by their places; none where no class heads one.

    A column of another header counts too: it stands for a name that is no class. One of background
    does not.

    Raises:
      UserError: a class's column holds something else, or both 0 and -1.
    """
    header = [cell.strip() for cell in rows[0]]
    id_column = _id_column(header, class_names)
    cells = {
        k: {row[k].strip().lower() for row in rows[1:] if k < len(row)}
        for k in range(len(header))
        if k != id_column and (k or header[0])
    }
    hot = [k for k, found in cells.items() if found - {""} and found <= _ONE_HOT]
    if not any(header[k] in class_names for k in hot):
        return {}
    twice = [n for n, k in Counter(header[k] for k in cells).items() if k > 1 and n in class_names]
    if twice:
        raise UserError(
            "A class heads several columns of the CSV.",
            where=path,
            received=", ".join(twice),
            accepted="one column for each class",
            fix="join these columns, or give one of them the name of another class",
        )
    of_classes = {header[k]: found for k, found in cells.items() if header[k] in class_names}
    mixed = {"0", "-1"} <= set().union(*of_classes.values())
    for name, found in of_classes.items():
        wrong = sorted(found - _ONE_HOT)
        if wrong or mixed:
            raise UserError(
                f"The column of class '{name}' is not made of 0 and 1.",
                where=path,
                received=", ".join(wrong[:3]) if wrong else "0 and -1 beside each other",
                accepted="1 where an image shows the class, else 0 (or -1, and then no 0)",
                fix="decide for each image, and leave out images of which nobody knows",
            )
    return {k: header[k] for k in hot if not is_background(header[k])}


def _one_hot_error(path: str, received: str) -> UserError:
    return UserError(
        "The CSV of image-level labels seems to have a column of 0 and 1 for each class (one-hot), "
        "and does not say which.",
        where=path,
        received=received,
        accepted="a first line 'id,NAME,NAME,...' of class names above the columns; or lines "
        "'id,name name ...'",
        fix="write the names of the classes into the first line, and leave out "
        "--image_labels_column",
    )
