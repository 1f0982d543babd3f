"""Makes the file of word vectors that --class_embeddings takes, from published vectors of words.

python tfrecords_tools/build_class_embeddings.py --vectors=GoogleNews-vectors-negative300.bin \
    --class_names=classes.txt --norm=unit --output=word2vec.npz

* --vectors is a word2vec .bin, a fastText .vec or .bin, or a GloVe .txt; its first bytes tell
  which, not its name. gensim reads it (extra [embeddings]); --limit=500000 takes the first words
  only, which are the most frequent ones, and most of the memory less.
* --class_names has one name a line, or `name: words` where the class goes by other words than its
  name, such as `pottedplant: potted plant`. --dataset_dir takes the names of records instead.
* A name of several words (parted by blanks, '_' or '-') has the mean of their vectors, or with
  --multi_word=phrase_token the vector of the phrase ('potted_plant') where there is one.
* Every class's line in the report says from which words its vector is; `tokens` in the file too.

SPNet and STRICT put fastText and word2vec side by side and give each class unit length: make a file
of each, --class_embeddings=fasttext.npz+word2vec.npz. ZS3Net divides word2vec's vectors by the
length of the longest for VOC (--norm=max_norm) and takes them raw for Context (--norm=none).

Source: STRICT specification 2.3; ZS3 specification 2.5.
"""

import dataclasses
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from tfrecords_tools import program
from tfrecords_tools.text_files import read_text
from tfseg import files
from tfseg.data import class_embeddings, class_names
from tfseg.data.specs import load_spec
from tfseg.errors import UserError

FLAGS = flags.FLAGS
MULTI_WORD = ("average", "phrase_token")
FORMATS = ("fastText .bin", "word2vec .bin", "text with a header", "text")
_FASTTEXT_MAGIC = struct.pack("<i", 0x2F4F16BA)
_HEADER = re.compile(rb"(\d{1,18}) (\d{1,18})\s*\n")
# Enough for a header and a row of numbers.
_FIRST_BYTES = 1 << 16


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("vectors", None, "Published vectors: word2vec, fastText or GloVe.")
    flags.DEFINE_string("class_names", None, "Text file: a name, or `name: words`, in each line.")
    flags.DEFINE_string("dataset_dir", None, "Instead: records whose class names to take.")
    flags.DEFINE_string("output", None, "The file to write, FILE.npz.")
    flags.DEFINE_enum("norm", "none", class_embeddings.NORMS, "Normalisation of the result.")
    flags.DEFINE_enum(
        "multi_word", "average", MULTI_WORD, "Names of several words: their mean, or the phrase."
    )
    flags.DEFINE_integer(
        "limit", None, "Read only so many words; fastText .bin files are read whole.", 1
    )


# Reading ------------------------------------------------------------------------------------------


def detect_format(path: str) -> str:
    """Returns which of `FORMATS` a file has, by its first bytes.

    Raises:
      UserError: no such file, or none of them.
    """
    try:
        with files.open_regular(path, what="The file of vectors") as file:
            start = file.read(_FIRST_BYTES)
    except FileNotFoundError:
        raise UserError("There is no such file of vectors.", where=f"--vectors={path}") from None
    if start[:4] == _FASTTEXT_MAGIC:
        return "fastText .bin"
    header = _HEADER.match(start)
    if header is not None:
        row = start[header.end() :].split(b"\n")[0]
        is_text = _numbers_of(row) == int(header[2])
        return "text with a header" if is_text else "word2vec .bin"
    if _numbers_of(start.split(b"\n")[0]) > 1:
        return "text"
    raise UserError(
        "The file of vectors is of no known kind.",
        where=f"--vectors={path}",
        received=repr(start[:16]),
        accepted="word2vec .bin, fastText .vec or .bin, GloVe .txt; unpacked",
    )


def _check_length(path: str, limit: int | None) -> None:
    """Compares a file with the numbers that its first line states: gensim reserves so many.

    Raises:
      UserError: it is too short for them.
    """
    with open(path, "rb") as file:
        header, size = _HEADER.match(file.read(_FIRST_BYTES)), files.file_bytes(file)
    if header is None:
        return
    words, width = int(header[1]), int(header[2])
    # A number is two bytes long at least.
    if min(words, limit or words) * width * 2 > size:
        raise UserError(
            "The file of vectors is shorter than its first line says.",
            where=f"--vectors={path}",
            received=f"{size} bytes",
            accepted=f"{words} words with {width} numbers each",
            fix="unpack or download it again",
        )


def _numbers_of(row: bytes) -> int:
    """Returns how many numbers follow a word in a line of text; 0 where it is none."""
    try:
        numbers = [float(x) for x in row.decode("utf-8").split()[1:]]
    except (UnicodeDecodeError, ValueError):
        return 0
    return len(numbers)


def read_vectors(path: str, limit: int | None = None) -> Any:
    """Reads a file of vectors.

    Args:
      path: the file.
      limit: read only so many words; None: all.

    Returns:
      gensim's `KeyedVectors`.

    Raises:
      UserError: gensim is not installed, or the file is damaged or of no known kind.
    """
    kind = detect_format(path)
    _check_length(path, limit)
    try:
        from gensim.models import KeyedVectors, fasttext
    except ImportError:
        raise UserError(
            "Word vectors are read with gensim, which is not installed.",
            where=f"--vectors={path}",
            fix="pip install '.[embeddings]'",
        ) from None
    try:
        if kind == "fastText .bin":
            return fasttext.load_facebook_vectors(path)
        return KeyedVectors.load_word2vec_format(
            path,
            binary=kind == "word2vec .bin",
            no_header=kind == "text",
            limit=limit,
            unicode_errors="replace",
        )
    except Exception as error:  # gensim raises whatever the bytes lead it to
        raise UserError(
            f"The file of vectors cannot be read as {kind}.",
            where=f"--vectors={path}",
            received=f"{type(error).__name__}: {error}",
            fix="unpack or download it again",
        ) from None


def read_class_names(path: str) -> dict[str, str]:
    """Reads names of classes, each with the words it goes by.

    Raises:
      UserError: no names, one of them twice, or one without words.
    """
    wanted: dict[str, str] = {}
    for line in read_text(path).splitlines():
        name, colon, words = (part.strip() for part in line.partition(":"))
        if not name and not colon:
            continue
        if not name or (colon and not words) or name in wanted:
            raise UserError(
                "A line of --class_names is wrong, or names a class again.",
                where=path,
                received=line,
                accepted="`name` or `name: words`",
            )
        wanted[name] = words or name
    if not wanted:
        raise UserError("--class_names is empty.", where=path)
    return wanted


# Looking up ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Found:
    """A class's vector and the words from which it is.

    Attributes:
      vector: float32 [d].
      tokens: how it came about, for the report.
    """

    vector: np.ndarray
    tokens: str


def look_up(vectors: Any, text: str, *, multi_word: str) -> Found | None:
    """Finds the vector of a class.

    Args:
      vectors: of `read_vectors`.
      text: the words of the class, parted by blanks, '_' or '-'.
      multi_word: 'average' or 'phrase_token'.

    Returns:
      None where a word has no vector.
    """
    words = [word for word in re.split(r"[\s_-]+", text) if word]
    if len(words) > 1 and multi_word == "phrase_token":
        for token in _phrases(words):
            if token in vectors.key_to_index:
                return Found(vectors.get_vector(token), token)
    parts = [_of_word(vectors, word) for word in words]
    if not parts or None in parts:
        return None
    if len(parts) == 1:
        return parts[0]
    mean = np.mean([part.vector for part in parts], axis=0)
    return Found(mean, f"mean of {', '.join(part.tokens for part in parts)}")


def _phrases(words: Sequence[str]) -> Iterator[str]:
    changes: tuple[Callable[[str], str], ...] = (str, str.lower, str.capitalize)
    for change in changes:
        for joint in "_-":
            yield joint.join(change(word) for word in words)


def _of_word(vectors: Any, word: str) -> Found | None:
    """Returns the vector of a word as it is written, in lower case, or by a declared alias."""
    plain = class_names.normalised(word)
    aliases = [alias for group in class_names.ALIASES if plain in group for alias in group]
    for token in (word, word.lower(), *aliases):
        if token in vectors.key_to_index:
            return Found(vectors.get_vector(token), token)
    if hasattr(vectors, "vectors_ngrams"):
        return Found(vectors.get_vector(word), f"parts of '{word}'")
    return None


def build(
    output: str,
    wanted: dict[str, str],
    *,
    vectors: str,
    norm: str = "none",
    multi_word: str = "average",
    limit: int | None = None,
) -> list[Found]:
    """Writes the vectors of classes.

    Args:
      output: FILE.npz to write: 'names', 'vectors' and 'tokens'.
      wanted: the words of every class, by its name.
      vectors: file of published vectors.
      norm, multi_word, limit: see the flags.

    Returns:
      What was found, in the order of `wanted`, before normalisation.

    Raises:
      UserError: see `read_vectors`; words without a vector, all of them are named.
    """
    if not output.endswith(".npz"):
        raise UserError("--output must end in .npz.", where="--output", received=output)
    table = read_vectors(vectors, limit)
    found = {name: look_up(table, text, multi_word=multi_word) for name, text in wanted.items()}
    missing = [f"'{wanted[name]}'" for name, entry in found.items() if entry is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(wanted)} classes have no vector.",
            where=f"--vectors={vectors}",
            received=", ".join(missing),
            accepted="words that the file knows"
            + (f" among its first {limit}" if limit is not None else ""),
            fix="say in --class_names by which words a class goes, `name: words`"
            + (", or raise --limit" if limit is not None else ""),
        )
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    class_embeddings.save(
        output,
        list(found),
        class_embeddings.normalise(np.stack([entry.vector for entry in found.values()]), norm),
        tokens=np.array([entry.tokens for entry in found.values()]),
    )
    return list(found.values())


def main(argv: list[str]) -> None:
    program.require("vectors", "output")
    if (FLAGS.class_names is None) == (FLAGS.dataset_dir is None):
        raise UserError(
            "Give --class_names or --dataset_dir, and not both.",
            where="--class_names, --dataset_dir",
        )
    if FLAGS.class_names is not None:
        wanted = read_class_names(FLAGS.class_names)
    else:
        names = load_spec(FLAGS.dataset_dir, "").class_names
        wanted = dict(zip(names, names))
    found = build(
        FLAGS.output,
        wanted,
        vectors=FLAGS.vectors,
        norm=FLAGS.norm,
        multi_word=FLAGS.multi_word,
        limit=FLAGS.limit,
    )
    width = max(map(len, wanted))
    for name, entry in zip(wanted, found):
        print(f"  {name:<{width}}  {entry.tokens}")
    print(f"{len(found)} vectors of {found[0].vector.size} numbers: {FLAGS.output}", flush=True)


if __name__ == "__main__":
    define_flags()
    program.run(main)
