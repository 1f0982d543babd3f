"""Makes the file of word vectors that --class_embeddings takes, from published vectors of words.

python tfrecords_tools/build_class_embeddings.py --vectors=GoogleNews-vectors-negative300.bin \
    --class_names=classes.txt --norm=unit --output=word2vec.npz

* --vectors is text with a word, or the name of a class, and its numbers in each line (GloVe's .txt,
  fastText's .vec, a table of your own with blanks, tabs, commas or semicolons; .gz as it is); or a
  word2vec or fastText .bin, which gensim reads (extra [embeddings]). The first bytes tell which.
  --limit=500000 takes the first words only, which are the most frequent ones.
* A small published file: python -m gensim.downloader -d glove-wiki-gigaword-50 (66 MB, 50 numbers a
  word) prints where it lies.
* --class_names has one name a line, or `name: words` where the class goes by other words than its
  name, such as `pottedplant: potted plant`. --dataset_dir takes the names of records instead.
* A name of several words (parted by blanks, '_' or '-') has the vector of its own line where there
  is one ('potted plant'), else the mean of its words' vectors, or with --multi_word=phrase_token
  the vector of the phrase ('potted_plant') where there is one.
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
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
from absl import flags

from tfrecords_tools import program, text_vectors
from tfrecords_tools.text_files import read_text
from tfseg import files
from tfseg.data import class_embeddings, class_names
from tfseg.data.specs import load_spec
from tfseg.errors import UserError

FLAGS = flags.FLAGS
MULTI_WORD = ("average", "phrase_token")
FORMATS = ("fastText .bin", "word2vec .bin", "text with a header", "text")
_SMALL = (
    "a small published file is GloVe with 50 numbers (66 MB): "
    "python -m gensim.downloader -d glove-wiki-gigaword-50 (pip install '.[embeddings]'); or write "
    "a text yourself, a class and its numbers in each line"
)
_FASTTEXT_MAGIC = struct.pack("<i", 0x2F4F16BA)
_HEADER = re.compile(rb"(\d{1,18}) (\d{1,18})\s*\n")
_COMPARED_LINES = 20
# Enough for a header and a row of numbers.
_FIRST_BYTES = 1 << 16


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string(
        "vectors", None, "Vectors of words or classes: text, or a .bin of word2vec or fastText."
    )
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
        raise UserError(
            "There is no such file of vectors.", where=f"--vectors={path}", fix=_SMALL
        ) from None
    is_packed = start[:2] == text_vectors.GZIP
    if is_packed:
        start = _unpacked(start)
    if start[:4] == _FASTTEXT_MAGIC and not is_packed:
        return "fastText .bin"
    header, form = _HEADER.match(start), text_vectors.form_of(_first_lines(start))
    if header is not None:
        if form is not None and form.width == int(header[2]):
            return "text with a header"
        if not is_packed:
            return "word2vec .bin"
    elif form is not None:
        return "text"
    raise UserError(
        "The file of vectors is of no known kind.",
        where=f"--vectors={path}",
        received=repr(start[:16]) + (" in a .gz" if is_packed else ""),
        accepted="text with a word and its numbers in each line (.gz too), word2vec .bin, fastText "
        ".bin",
        fix="unpack it if it is a .bin; " + _SMALL,
    )


def _unpacked(start: bytes) -> bytes:
    """Returns what the first bytes of a gzip file hold; nothing where they are damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(start, _FIRST_BYTES)
    except zlib.error:
        return b""


def _first_lines(start: bytes) -> list[str]:
    """Returns the first whole lines of a file; published text holds words that are no UTF-8."""
    lines = start.split(b"\n")
    if len(start) >= _FIRST_BYTES:
        lines.pop()
    return [line.decode("utf-8-sig", "replace").strip() for line in lines[:_COMPARED_LINES]]


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


def read_vectors(
    path: str, limit: int | None = None, *, wanted: Collection[str] | None = None
) -> Any:
    """Reads a file of vectors.

    Args:
      path: the file.
      limit: read only so many words; None: all.
      wanted: words that are needed, normalised; text is searched for them alone. None: all.

    Returns:
      gensim's `KeyedVectors`, or the same of text without gensim.

    Raises:
      UserError: gensim is needed and not installed, or the file is damaged or of no known kind.
    """
    kind = detect_format(path)
    if kind.startswith("text"):
        return text_vectors.read(
            path, normalised=class_names.normalised, wanted=wanted, limit=limit
        )
    _check_length(path, limit)
    try:
        from gensim.models import KeyedVectors, fasttext
    except ImportError:
        raise UserError(
            f"{kind} is read with gensim, which is not installed.",
            where=f"--vectors={path}",
            fix="pip install '.[embeddings]'; or " + _SMALL,
        ) from None
    try:
        if kind == "fastText .bin":
            return fasttext.load_facebook_vectors(path)
        return KeyedVectors.load_word2vec_format(
            path, binary=True, limit=limit, unicode_errors="replace"
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
    words = words_of(text)
    if len(words) == 1:
        return _of_word(vectors, words[0])
    # Names with blanks are lines that somebody wrote for the class.
    whole, phrase = _phrase(vectors, words, " "), _phrase(vectors, words, "_-")
    if whole or (phrase and multi_word == "phrase_token"):
        return whole or phrase
    parts = [_of_word(vectors, word) for word in words]
    if not parts or None in parts:
        return phrase
    mean = np.mean([part.vector for part in parts], axis=0)
    return Found(mean, f"mean of {', '.join(part.tokens for part in parts)}")


def words_of(text: str) -> list[str]:
    """Returns the words of a class, which blanks, '_' or '-' part."""
    return [word for word in re.split(r"[\s_-]+", text) if word]


def _phrase(vectors: Any, words: Sequence[str], joints: str) -> Found | None:
    """Returns the vector of several words that stand in the table as one."""
    changes: tuple[Callable[[str], str], ...] = (str, str.lower, str.capitalize)
    for change in changes:
        for joint in joints:
            token = joint.join(change(word) for word in words)
            if token in vectors.key_to_index:
                return Found(vectors.get_vector(token), token)
    return None


def _of_word(vectors: Any, word: str) -> Found | None:
    """Returns the vector of a word as it is written, in lower case, or by a declared alias."""
    for token in (word, word.lower(), *_aliases(word)):
        if token in vectors.key_to_index:
            return Found(vectors.get_vector(token), token)
    if hasattr(vectors, "vectors_ngrams"):
        return Found(vectors.get_vector(word), f"parts of '{word}'")
    return None


def _aliases(word: str) -> list[str]:
    plain = class_names.normalised(word)
    return [alias for group in class_names.ALIASES if plain in group for alias in group]


def needed_words(texts: Iterable[str]) -> set[str]:
    """Returns all that may be looked up for classes, normalised: names, words and aliases."""
    found = set()
    for text in texts:
        for word in (text, *words_of(text)):
            found |= {class_names.normalised(w) for w in (word, *_aliases(word))}
    return found


def build(
    output: str,
    wanted: dict[str, str],
    *,
    vectors: str,
    norm: str = "none",
    multi_word: str = "average",
    limit: int | None = None,
    optional: Collection[str] = (),
) -> dict[str, Found]:
    """Writes the vectors of classes.

    Args:
      output: FILE.npz to write: 'names', 'vectors' and 'tokens'.
      wanted: the words of every class, by its name.
      vectors: file of published vectors.
      norm, multi_word, limit: see the flags.
      optional: classes that are left out where they have no vector.

    Returns:
      What was found for each class, in the order of `wanted`, before normalisation.

    Raises:
      UserError: see `read_vectors`; words without a vector, all of them are named.
    """
    if not output.endswith(".npz"):
        raise UserError("--output must end in .npz.", where="--output", received=output)
    table = read_vectors(vectors, limit, wanted=needed_words(wanted.values()))
    found = {name: look_up(table, text, multi_word=multi_word) for name, text in wanted.items()}
    found = {n: entry for n, entry in found.items() if entry is not None or n not in optional}
    missing = [f"'{wanted[name]}'" for name, entry in found.items() if entry is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(wanted)} classes have no vector.",
            where=f"--vectors={vectors}",
            received=", ".join(missing),
            accepted="words that the file knows"
            + (f" among its first {limit}" if limit is not None else ""),
            fix="say in --class_names by which words a class goes, `name: words`"
            + (", or raise --limit" if limit is not None else "")
            + "; "
            + _SMALL,
        )
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    class_embeddings.save(
        output,
        list(found),
        class_embeddings.normalise(np.stack([entry.vector for entry in found.values()]), norm),
        tokens=np.array([entry.tokens for entry in found.values()]),
    )
    return found


def main(argv: list[str]) -> None:
    program.require("vectors", "output")
    if (FLAGS.class_names is None) == (FLAGS.dataset_dir is None):
        raise UserError(
            "Give --class_names or --dataset_dir, and not both.",
            where="--class_names, --dataset_dir",
        )
    optional: Sequence[str] = ()
    if FLAGS.class_names is not None:
        wanted = read_class_names(FLAGS.class_names)
    else:
        spec = load_spec(FLAGS.dataset_dir, "")
        wanted = dict(zip(spec.class_names, spec.class_names))
        # Methods that give background a vector say so.
        optional = spec.class_names[:1] if spec.has_background else ()
    found = build(
        FLAGS.output,
        wanted,
        vectors=FLAGS.vectors,
        norm=FLAGS.norm,
        multi_word=FLAGS.multi_word,
        limit=FLAGS.limit,
        optional=optional,
    )
    width = max(map(len, wanted))
    for name in wanted:
        tokens = found[name].tokens if name in found else "(no vector, left out)"
        print(f"  {name:<{width}}  {tokens}")
    size = next(iter(found.values())).vector.size
    print(f"{len(found)} vectors of {size} numbers: {FLAGS.output}", flush=True)


if __name__ == "__main__":
    define_flags()
    program.run(main)
