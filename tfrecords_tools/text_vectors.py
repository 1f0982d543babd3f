"""Vectors of words in text: a word or the name of a class, and its numbers, in each line.

GloVe's and fastText's text files are of this form, and so is a table that somebody wrote down: the
parts of a line may be blanks, tabs, commas or semicolons apart, and a name may hold blanks. Only
the lines that are wanted are kept, so that a file of any length takes little memory.
"""

import dataclasses
import gzip
import itertools
import math
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from tfseg import files
from tfseg.errors import UserError

GZIP = b"\x1f\x8b"
_HEADER = re.compile(r"\s*(\d{1,18})[\s,;]+(\d{1,18})\s*")
_SEPARATORS = (";", "\t", ",", None)
# A list of names with a number each is no file of vectors.
_LEAST_NUMBERS = 2
# Lines by which the width is found out: a name may end in a number.
_FIRST_LINES = 50
_MAX_LINE = 1 << 20
_SHOWN = 60


class TextVectors:
    """Vectors by word; the part of gensim's `KeyedVectors` that is used here.

    Attributes:
      key_to_index: place of each word or name that was kept.
    """

    def __init__(self, words: list[str], vectors: np.ndarray):
        self.key_to_index = {word: k for k, word in enumerate(words)}
        self._vectors = vectors

    def get_vector(self, word: str) -> np.ndarray:
        """Returns the vector of a word, float32 [d]."""
        return self._vectors[self.key_to_index[word]]


def _lines(path: str) -> Iterator[str]:
    """Yields the lines of a file, packed with gzip or not.

    Raises:
      UserError: no regular file, not text, damaged, or a line of a length that no vector has.
    """
    where = f"--vectors={path}"
    with files.open_regular(path, what="The file of vectors") as file:
        is_packed = file.read(2) == GZIP
        file.seek(0)
        content = gzip.GzipFile(fileobj=file) if is_packed else file
        try:
            while line := content.readline(_MAX_LINE + 1):
                if len(line) > _MAX_LINE:
                    raise UserError(
                        "A line of the file of vectors is too long for one.",
                        where=where,
                        received=f"more than {_MAX_LINE} bytes",
                    )
                # Published files hold a few words that are no UTF-8.
                yield line.decode("utf-8-sig", "replace").strip()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                "The file of vectors cannot be unpacked.",
                where=where,
                received=f"{type(error).__name__}: {error}",
                fix="download it again",
            ) from None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _numbers_at_end(parts: Sequence[str]) -> int:
    """Returns how many of the parts behind the first are numbers, counted from the end."""
    count = 0
    while count < len(parts) - 1 and _is_number(parts[-1 - count]):
        count += 1
    return count


@dataclasses.dataclass(frozen=True)
class Form:
    """How the lines of a file are built.

    Attributes:
      separator: of the parts of a line; None: blanks.
      width: numbers of each line.
      has_header: the first line holds the number of words and the width, or names of columns.
    """

    separator: str | None
    width: int
    has_header: bool


def form_of(lines: Sequence[str]) -> Form | None:
    """Returns how the first lines of a file are built, None where they are no vectors of words."""
    if not lines:
        return None
    told = bool(_HEADER.fullmatch(lines[0]))
    found = None
    for separator in _SEPARATORS:
        counts = [_numbers_at_end(line.split(separator)) for line in lines if line]
        has_header = len(counts) > 1 and (told or not counts[0])
        width = min(counts[has_header:], default=0)
        if width >= _LEAST_NUMBERS and (found is None or width > found.width):
            found = Form(separator, width, has_header)
    return found


def read(
    path: str,
    *,
    normalised: Callable[[str], str],
    wanted: Collection[str] | None = None,
    limit: int | None = None,
) -> TextVectors:
    """Reads the vectors of words.

    Args:
      path: the file.
      normalised: text -> text, by which words are compared.
      wanted: words and names as `normalised` returns them, and each word of such a name; None: all.
      limit: read only so many words; None: all.

    Raises:
      UserError: not such a file, or a line of a wanted word with another number of numbers.
    """
    where, first = f"--vectors={path}", list(itertools.islice(_lines(path), _FIRST_LINES))
    form = form_of(first)
    if form is None:
        raise UserError(
            "The file of vectors has no numbers behind its words.",
            where=where,
            received=repr(first[0][:_SHOWN]) if first else "an empty file",
            accepted="a word or the name of a class, and its numbers, in each line",
        )
    found: dict[str, list[float]] = {}
    lines = itertools.islice(_lines(path), form.has_header, None)
    for number, line in enumerate(itertools.islice(lines, limit), start=1 + form.has_header):
        # Most lines are told by their first word, which is much faster than to read the numbers.
        start = line.split(form.separator, 1)[0] if line else ""
        if not start or (wanted is not None and normalised(start) not in wanted):
            continue
        parts = [part.strip() for part in line.split(form.separator)]
        numbers = _numbers_at_end(parts)
        name = (form.separator or " ").join(parts[: max(len(parts) - form.width, 1)])
        if name in found or (wanted is not None and normalised(name) not in wanted):
            continue
        if numbers < form.width:
            raise UserError(
                "A line of the file of vectors has another number of numbers.",
                where=f"{where}, line {number}",
                received=line[:_SHOWN],
                accepted=f"a name and {form.width} numbers",
            )
        with np.errstate(over="ignore"):
            vector = np.array([float(x) for x in parts[-form.width :]], np.float32)
        if not np.isfinite(vector).all() or not vector.any():
            raise UserError(
                "A vector cannot be used.",
                where=f"{where}, line {number}",
                received=line[:_SHOWN],
                accepted="finite numbers (of 32 bits) that are not all 0",
            )
        found[name] = vector
    vectors = np.array(list(found.values()), np.float32).reshape(len(found), form.width)
    return TextVectors(list(found), vectors)
