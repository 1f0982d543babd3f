"""Word vectors of the classes: the words that stand in for labels in zero-label runs.

Source: STRICT specification 2.3; ZS3 specification 2.5.
"""

import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfseg import files
from tfseg.data import class_names as name_rules
from tfseg.data.atomic_writing import write_atomically
from tfseg.errors import UserError
from tfseg.files import ArrayForm

NORMS = ("unit", "max_norm", "none")
NAMES, VECTORS = "names", "vectors"
_FLAG = "--class_embeddings"
_FORM = "FILE.npz[:ARRAY][+FILE.npz[:ARRAY]...]"
_PART = re.compile(r"(?P<path>.+?\.npz)(?::(?P<array>[^:+]+))?(?:\+(?=.)|$)")
# Below it a vector has no direction.
_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class ClassVectors:
    """One vector for every class of a data set.

    Args:
      values: float32 [C, D]; rows of classes that take no part may be zero.
      source: the files and arrays they come from, as given.
      sha256: of `values`.
      norm: how they were normalised: none, unit or max_norm.
    """

    values: np.ndarray
    source: str
    sha256: str
    norm: str

    @property
    def width(self) -> int:
        """Length D of a vector."""
        return self.values.shape[1]

    def to_json(self) -> dict[str, Any]:
        """Returns what tells these vectors from others, without the numbers themselves."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "width": self.width,
            "norm": self.norm,
        }


def normalise(vectors: np.ndarray, norm: str) -> np.ndarray:
    """Normalises word vectors.

    Args:
      vectors: float [C, D].
      norm: 'unit' (each row has length 1, but a zero row stays), 'max_norm' (all are divided by
        the length of the longest), or 'none'.

    Returns:
      float64 [C, D].

    Raises:
      ValueError: an unknown `norm`.

    Source: STRICT specification 2.3 ('unit', after concatenation); ZS3 specification 2.5
    ('max_norm' for VOC, 'none' for Context).
    """
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}, must be one of {NORMS}")
    vectors = np.asarray(vectors, np.float64)
    if norm == "none":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if norm == "max_norm":
        lengths = lengths.max()
    return vectors / np.maximum(lengths, _EPSILON)


def load(
    text: str, class_names: Sequence[str], *, norm: str, needed: Sequence[int] | None = None
) -> ClassVectors:
    """Reads the vectors of a data set's classes.

    Args:
      text: FILE.npz[:ARRAY][+FILE.npz[:ARRAY]...]. A file has an array 'names' of n names and an
        array 'vectors', or ARRAY, of [n, d] numbers; rows are found by the rules of
        `tfseg.data.class_names`. Several are put side by side.
      class_names: of the data set, C of them.
      norm: see `normalise`; comes after the vectors were put side by side.
      needed: ids of the classes that must have a vector; the rows of others are zero where they
        have none. None: all.

    Returns:
      float32 [C, sum of d], and where they come from.

    Raises:
      UserError: a malformed `text`, a file or array that is missing or malformed, a needed class
        without a row, or with one that is zero or not finite.
    """
    ids = range(len(class_names)) if needed is None else sorted(needed)
    parts = [_read(path, array, class_names, ids) for path, array in _parts(text)]
    vectors = np.concatenate(parts, axis=1)
    for class_id in ids:
        if np.linalg.norm(vectors[class_id]) < _EPSILON:
            raise UserError(
                f"The vector of class '{class_names[class_id]}' is zero.",
                where=f"{_FLAG}={text}",
                fix="give a file in which the class has a vector",
            )
    values = np.ascontiguousarray(normalise(vectors, norm), "<f4")
    return ClassVectors(values, text, hashlib.sha256(values.tobytes()).hexdigest(), norm)


def save(path: str, names: Sequence[str], vectors: np.ndarray, **more: np.ndarray) -> None:
    """Writes a file that `load` reads; the same content gives the same bytes.

    Args:
      path: ends in .npz.
      names: n of them.
      vectors: float [n, d].
      more: further arrays by name.
    """
    buffer = io.BytesIO()
    arrays = {NAMES: np.array(names, np.str_), VECTORS: np.asarray(vectors, np.float32), **more}
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _parts(text: str) -> list[tuple[str, str]]:
    """Returns the paths and arrays that the flag names.

    Raises:
      UserError: it has another form.
    """
    parts, end = [], 0
    while end < len(text) and (match := _PART.match(text, end)):
        parts.append((match["path"], match["array"] or VECTORS))
        end = match.end()
    if not parts or end != len(text):
        raise UserError(
            f"{_FLAG} is malformed.",
            where=_FLAG,
            received=text,
            accepted=f"{_FORM}, for example fasttext.npz+voc.npz:word2vec",
        )
    return parts


def _read(path: str, array: str, class_names: Sequence[str], needed: Sequence[int]) -> np.ndarray:
    """Returns one file's vectors in the order of the classes, float64 [C, d].

    Raises:
      UserError: see `load`.
    """
    names, vectors = _read_arrays(path, array)
    where = f"{_FLAG}={path}:{array}"
    wanted = [class_names[c] for c in needed]
    rows = dict(zip(needed, name_rules.find(names, wanted, what=path, where=where)))
    for class_id in set(range(len(class_names))) - set(needed):
        found = name_rules.matches(names, class_names[class_id])
        if len(found) == 1:
            rows[class_id] = found[0]
    result = np.zeros((len(class_names), vectors.shape[1]))
    result[list(rows)] = vectors[list(rows.values())]
    wrong = np.flatnonzero(~np.isfinite(result).all(1))
    if wrong.size:
        raise UserError(
            f"The vector of class '{class_names[wrong[0]]}' is not finite.",
            where=where,
            fix="make the file again, for example with tfrecords_tools/build_class_embeddings.py",
        )
    return result


def _read_arrays(path: str, array: str) -> tuple[list[str], np.ndarray]:
    """Returns the names and the vectors [n, d] of a file.

    Raises:
      UserError: no such file or array, or a malformed one.
    """
    if not os.path.isfile(path):
        raise UserError(
            "There is no such file of word vectors.",
            where=f"{_FLAG}={path}",
            accepted=_FORM,
            fix="make it with tfrecords_tools/build_class_embeddings.py",
        )
    forms = {NAMES: ArrayForm("U", ("n",)), array: ArrayForm("fiu", ("n", "d"))}
    arrays = files.read_npz(
        path,
        forms,
        what="The file of word vectors",
        accepted=f"an .npz file of plain arrays '{NAMES}' and '{VECTORS}', or another one by "
        f"{_FLAG}=FILE.npz:ARRAY",
    )
    names, vectors = arrays[NAMES], arrays[array]
    if not vectors.shape[1]:
        raise UserError("The vectors have no numbers.", where=f"{_FLAG}={path}:{array}")
    return names.tolist(), vectors.astype(np.float64)
