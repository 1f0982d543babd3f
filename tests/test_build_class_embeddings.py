"""Word vectors of classes from files of every kind, made here."""

import json
import struct

import numpy as np
import pytest

from tests.extras import needs_gensim
from tests.programs import assert_user_error, run
from tfrecords_tools import build_class_embeddings as tool
from tfseg.data import class_embeddings
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

WORDS = {
    "horse": [3.0, 4.0, 0.0],
    "potted": [1.0, 2.0, 3.0],
    "plant": [3.0, 2.0, 1.0],
    "potted_plant": [0.0, 0.0, 9.0],
    "airplane": [0.5, 0.0, 0.25],
}
CLASSES = {"Horse": "Horse", "potted-plant": "potted-plant", "aeroplane": "aeroplane"}


def as_text(words):
    return "".join(f"{word} {' '.join(map(str, x))}\n" for word, x in words.items())


def write(folder, kind):
    """Writes `WORDS` in a format; returns the path, whose name says nothing."""
    path = folder / "vectors"
    header = f"{len(WORDS)} 3\n"
    if kind == "text":
        path.write_text(as_text(WORDS))
    elif kind == "text with a header":
        path.write_text(header + as_text(WORDS))
    elif kind == "word2vec .bin":
        rows = [word.encode() + b" " + struct.pack("<3f", *x) + b"\n" for word, x in WORDS.items()]
        path.write_bytes(header.encode() + b"".join(rows))
    else:
        path.write_bytes(fasttext_bytes(folder))
    return str(path)


def fasttext_bytes(folder):
    """Returns a fastText model of these words, with random vectors; its first bytes sans gensim."""
    try:
        from gensim.models import FastText, fasttext
    except ImportError:
        return struct.pack("<ii", 0x2F4F16BA, 12)
    model = FastText([list(WORDS)], vector_size=3, min_count=1, bucket=50, epochs=1, seed=1)
    fasttext.save_facebook_model(model, str(folder / "model"))
    return (folder / "model").read_bytes()


@pytest.mark.parametrize("kind", tool.FORMATS)
def test_the_first_bytes_tell_the_format(tmp_path, kind):
    assert tool.detect_format(write(tmp_path, kind)) == kind


@needs_gensim
@pytest.mark.parametrize("kind", [kind for kind in tool.FORMATS if kind != "fastText .bin"])
def test_every_format_gives_the_same_vectors(tmp_path, kind):
    output = str(tmp_path / "out" / "vectors.npz")
    found = tool.build(output, CLASSES, vectors=write(tmp_path, kind))
    assert [entry.tokens for entry in found] == ["horse", "mean of potted, plant", "airplane"]
    expected = [[3, 4, 0], [2, 2, 2], [0.5, 0, 0.25]]
    np.testing.assert_array_equal([entry.vector for entry in found], expected)
    loaded = class_embeddings.load(output, list(CLASSES), norm="none")
    np.testing.assert_array_equal(loaded.values, expected)
    with np.load(output) as arrays:
        assert arrays["tokens"].tolist() == ["horse", "mean of potted, plant", "airplane"]


@needs_gensim
def test_fasttext_knows_words_by_their_parts(tmp_path):
    found = tool.build(
        str(tmp_path / "vectors.npz"),
        {"horse": "horse", "horses": "horses"},
        vectors=write(tmp_path, "fastText .bin"),
    )
    assert [entry.tokens for entry in found] == ["horse", "parts of 'horses'"]
    assert all(np.isfinite(entry.vector).all() and entry.vector.any() for entry in found)


@needs_gensim
def test_phrases_and_normalisation(tmp_path):
    path = write(tmp_path, "text")
    output = str(tmp_path / "vectors.npz")
    wanted = {"pottedplant": "Potted Plant", "horse plant": "horse plant"}
    found = tool.build(output, wanted, vectors=path, multi_word="phrase_token", norm="unit")
    assert [entry.tokens for entry in found] == ["potted_plant", "mean of horse, plant"]
    with np.load(output) as arrays:
        np.testing.assert_allclose(np.linalg.norm(arrays["vectors"], axis=1), 1.0, rtol=1e-6)
        np.testing.assert_array_equal(arrays["vectors"][0], [0, 0, 1])


@needs_gensim
def test_words_without_a_vector_are_all_named(tmp_path):
    tool.read_vectors(write(tmp_path, "text"))
    wanted = {"horse": "horse", "cow": "cow", "sheepdog": "sheep dog"}
    with pytest.raises(UserError, match="(?s)2 of 3 .*'cow', 'sheep dog'.*name: words"):
        tool.build(str(tmp_path / "x.npz"), wanted, vectors=write(tmp_path, "text"))
    with pytest.raises(UserError, match="(?s)'airplane'.*first 2.*--limit"):
        tool.build(
            str(tmp_path / "x.npz"),
            {"horse": "horse", "airplane": "airplane"},
            vectors=write(tmp_path, "text with a header"),
            limit=2,
        )


@needs_gensim
def test_a_damaged_file_is_named(tmp_path):
    tool.read_vectors(write(tmp_path, "text"))
    path = tmp_path / "vectors"
    path.write_bytes(b"2 3\nhorse " + struct.pack("<2f", 1, 2))
    with pytest.raises(UserError, match="(?s)cannot be read as word2vec .bin.*vectors"):
        tool.read_vectors(str(path))


def test_files_of_no_known_kind_are_refused(tmp_path):
    for content in (b"", b"\x1f\x8b\x08", b"horse\nplant\n"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(UserError, match="no known kind"):
            tool.detect_format(str(tmp_path / "file"))
    with pytest.raises(UserError, match="no such file"):
        tool.detect_format(str(tmp_path / "none"))


def test_names_and_their_words(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("horse\n\npottedplant: potted plant\n")
    names = tool.read_class_names(str(path))
    assert names == {"horse": "horse", "pottedplant": "potted plant"}
    for content in ("", "horse\nhorse\n", "horse:\n", ": horse\n"):
        path.write_text(content)
        with pytest.raises(UserError, match="names.txt"):
            tool.read_class_names(str(path))


@needs_gensim
def test_the_program(tmp_path):
    spec = DatasetSpec("toy", ("horse", "potted plant"), has_background=False)
    (tmp_path / "dataset.json").write_text(json.dumps(spec.to_json()))
    output = tmp_path / "vectors.npz"
    program = ("tfrecords_tools/build_class_embeddings.py", f"--vectors={write(tmp_path, 'text')}")
    result = run(*program, f"--output={output}", f"--dataset_dir={tmp_path}", check=False)
    if "gensim" in result.stderr:
        assert_user_error(result, "[embeddings]")
        raise UserError("gensim is not installed")
    assert "potted plant  mean of potted, plant" in result.stdout
    assert class_embeddings.load(str(output), spec.class_names, norm="none").width == 3


def test_the_program_wants_names(tmp_path):
    program = ("tfrecords_tools/build_class_embeddings.py", "--vectors=x", "--output=y.npz")
    assert_user_error(run(*program, check=False), "--class_names or --dataset_dir")
