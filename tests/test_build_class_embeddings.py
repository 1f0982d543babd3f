"""Word vectors of classes from files of every kind, made here."""

import gzip
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


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=needs_gensim if kind == "word2vec .bin" else ())
        for kind in tool.FORMATS
        if kind != "fastText .bin"
    ],
)
def test_every_format_gives_the_same_vectors(tmp_path, kind):
    output = str(tmp_path / "out" / "vectors.npz")
    found = tool.build(output, CLASSES, vectors=write(tmp_path, kind))
    assert [entry.tokens for entry in found.values()] == [
        "horse",
        "mean of potted, plant",
        "airplane",
    ]
    expected = [[3, 4, 0], [2, 2, 2], [0.5, 0, 0.25]]
    np.testing.assert_array_equal([entry.vector for entry in found.values()], expected)
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
    assert [entry.tokens for entry in found.values()] == ["horse", "parts of 'horses'"]
    assert all(np.isfinite(entry.vector).all() and entry.vector.any() for entry in found.values())


def test_phrases_and_normalisation(tmp_path):
    path = write(tmp_path, "text")
    output = str(tmp_path / "vectors.npz")
    wanted = {"pottedplant": "Potted Plant", "horse plant": "horse plant"}
    found = tool.build(output, wanted, vectors=path, multi_word="phrase_token", norm="unit")
    assert [entry.tokens for entry in found.values()] == ["potted_plant", "mean of horse, plant"]
    with np.load(output) as arrays:
        np.testing.assert_allclose(np.linalg.norm(arrays["vectors"], axis=1), 1.0, rtol=1e-6)
        np.testing.assert_array_equal(arrays["vectors"][0], [0, 0, 1])


def test_words_without_a_vector_are_all_named(tmp_path):
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
    tool.read_vectors(write(tmp_path, "word2vec .bin"))
    path = tmp_path / "vectors"
    path.write_bytes(b"2 3\nhorse " + struct.pack("<2f", 1, 2))
    with pytest.raises(UserError, match="(?s)cannot be read as word2vec .bin.*vectors"):
        tool.read_vectors(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "horse,1,2\npotted plant,3,4\n",
        "class;x;y\nhorse;1;2\nPotted Plant;3;4\n",
        "horse\t1\t2\npotted plant\t3\t4\n\n",
        "horse 1 2\npotted plant 3 4\n",
        "2 2\nhorse 1 2\npotted plant 3 4\n",
        "horse, 1, 2\npotted_plant, 3, 4\nunicode \u00e9, 5, 6\n",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_class_in_each_line(tmp_path, text, packed):
    path = tmp_path / "vectors"
    data = text.encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    found = tool.build(
        str(tmp_path / "out.npz"), {"horse": "horse", "plant": "potted plant"}, vectors=str(path)
    )
    np.testing.assert_array_equal([entry.vector for entry in found.values()], [[1, 2], [3, 4]])


def test_lines_of_words_with_commas_numbers_and_strange_bytes(tmp_path):
    lines = [b", 1 2", b"horse 3 4", b"7 5 6", b"\xff\xfe 7 8", b"a 1 b 9 9", b"horse 0 0"]
    (tmp_path / "vectors").write_bytes(b"\n".join(lines))
    table = tool.read_vectors(str(tmp_path / "vectors"), wanted={"horse", "7"})
    assert list(table.key_to_index) == ["horse", "7"]
    assert table.get_vector("horse").tolist() == [3, 4]


def test_a_line_with_too_few_numbers_is_named(tmp_path):
    lines = [f"w{k} 1 2 3" for k in range(60)] + ["horse 1 2"]
    (tmp_path / "vectors").write_text("\n".join(lines))
    with pytest.raises(UserError, match="(?s)line 61.*horse 1 2.*3 numbers"):
        tool.read_vectors(str(tmp_path / "vectors"), wanted={"horse"})
    assert len(tool.read_vectors(str(tmp_path / "vectors"), wanted={"w7"}).key_to_index) == 1


@pytest.mark.parametrize("numbers", ["0 0 0", "1 1e39 2"])
def test_a_vector_that_no_training_takes_is_named(tmp_path, numbers):
    (tmp_path / "vectors").write_text(f"cow 1 2 3\nhorse {numbers}\n")
    with pytest.raises(UserError, match=f"(?s)line 2.*horse {numbers}.*not all 0"):
        tool.read_vectors(str(tmp_path / "vectors"), wanted={"horse"})
    assert len(tool.read_vectors(str(tmp_path / "vectors"), wanted={"cow"}).key_to_index) == 1


def test_background_may_lack_a_vector_and_small_files_are_named(tmp_path):
    wanted = {"background": "background", "horse": "horse"}
    path, output = write(tmp_path, "text"), str(tmp_path / "x.npz")
    assert list(tool.build(output, wanted, vectors=path, optional=["background"])) == ["horse"]
    with pytest.raises(UserError, match="(?s)'background'.*glove-wiki-gigaword-50"):
        tool.build(output, wanted, vectors=path)


def test_files_of_no_known_kind_are_refused(tmp_path):
    for content in (b"", b"\x1f\x8b\x08", b"horse\nplant\n", b"horse 1\nplant 2\n"):
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


def test_the_program(tmp_path):
    spec = DatasetSpec("toy", ("horse", "potted plant"), has_background=False)
    (tmp_path / "dataset.json").write_text(json.dumps(spec.to_json()))
    output = tmp_path / "vectors.npz"
    program = ("tfrecords_tools/build_class_embeddings.py", f"--vectors={write(tmp_path, 'text')}")
    result = run(*program, f"--output={output}", f"--dataset_dir={tmp_path}")
    assert "potted plant  mean of potted, plant" in result.stdout
    assert class_embeddings.load(str(output), spec.class_names, norm="none").width == 3


def test_the_program_wants_names(tmp_path):
    program = ("tfrecords_tools/build_class_embeddings.py", "--vectors=x", "--output=y.npz")
    assert_user_error(run(*program, check=False), "--class_names or --dataset_dir")
