"""Word vectors of the classes: files, rows by name, normalisation."""

import hashlib

import numpy as np
import pytest

from tfseg.data import class_embeddings
from tfseg.data.class_embeddings import normalise
from tfseg.errors import UserError

CLASSES = ("background", "aeroplane", "potted plant")
NAMES = ["potted_plant", "airplane", "horse", "background"]
VECTORS = np.array([[3.0, 4.0], [0.0, 1.0], [9.0, 9.0], [6.0, 8.0]])


def write(folder, name="vectors.npz", **arrays):
    path = folder / name
    np.savez(path, **{"names": np.array(NAMES), "vectors": VECTORS, **arrays})
    return str(path)


def refused(*words):
    return pytest.raises(UserError, match="(?s)" + ".*".join(words))


def test_rows_come_in_the_order_of_the_classes(tmp_path):
    found = class_embeddings.load(write(tmp_path), CLASSES, norm="none")
    assert found.values.dtype == np.float32 and found.width == 2
    np.testing.assert_array_equal(found.values, [[6, 8], [0, 1], [3, 4]])
    assert found.sha256 == hashlib.sha256(found.values.tobytes()).hexdigest()
    assert found.to_json() == {
        "source": str(tmp_path / "vectors.npz"),
        "sha256": found.sha256,
        "width": 2,
        "norm": "none",
    }


def test_normalisations():
    x = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalise(x, "unit"), [[0.6, 0.8], [0, 1], [0, 0]])
    np.testing.assert_allclose(normalise(x, "max_norm"), x / 5.0)
    np.testing.assert_array_equal(normalise(x, "none"), x)
    with pytest.raises(ValueError, match="norm"):
        normalise(x, "l2")


def test_several_arrays_are_put_side_by_side_before_normalisation(tmp_path):
    # A path may hold what separates files and arrays.
    folder = tmp_path / "a+b:c"
    folder.mkdir()
    first = write(folder, other=10 * VECTORS.astype(np.float32)[:, :1])
    second = write(tmp_path, "second.npz")
    found = class_embeddings.load(f"{first}:other+{second}", CLASSES, norm="unit")
    assert found.width == 3
    np.testing.assert_allclose(np.linalg.norm(found.values, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(found.values[2], np.array([30, 3, 4]) / np.sqrt(925), rtol=1e-6)
    assert found.norm == "unit" and found.source == f"{first}:other+{second}"


def test_a_class_that_takes_no_part_needs_no_row(tmp_path):
    path = write(tmp_path, names=np.array(["potted plant", "airplane", "horse", "cow"]))
    found = class_embeddings.load(path, CLASSES, norm="unit", needed=(1, 2))
    np.testing.assert_array_equal(found.values[0], [0, 0])
    with refused("'background' is not among", "vectors.npz"):
        class_embeddings.load(path, CLASSES, norm="unit")
    # Where it has one it is taken.
    found = class_embeddings.load(write(tmp_path), CLASSES, norm="none", needed=(1, 2))
    np.testing.assert_array_equal(found.values[0], [6, 8])


def test_a_missing_class_lists_near_matches(tmp_path):
    with refused("'hors'", "near matches: horse"):
        class_embeddings.load(write(tmp_path), ("hors",), norm="none")


@pytest.mark.parametrize(
    "arrays, suffix, words",
    [
        ({}, ":fasttext", ("no array 'fasttext'", "received: names, vectors")),
        ({"vectors": VECTORS[:3]}, "", ("do not fit", r"\(4,\)", r"\(3, 2\)")),
        ({"vectors": VECTORS[0]}, "", ("do not fit",)),
        ({"vectors": VECTORS.astype(str)}, "", ("do not fit",)),
        ({"names": np.arange(4)}, "", ("do not fit",)),
        ({"vectors": np.where(VECTORS == 1, np.nan, VECTORS)}, "", ("'aeroplane' is not finite",)),
        ({"vectors": np.where(VECTORS == 1, 0, VECTORS)}, "", ("'aeroplane' is zero",)),
        ({"names": np.array(NAMES, object)}, "", ("cannot be read", "plain arrays")),
        ({"names": np.array(["airplane"] * 2 + NAMES[2:])}, "", ("several names",)),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, arrays, suffix, words):
    path = write(tmp_path, **arrays)
    with refused(*words):
        class_embeddings.load(path + suffix, ("aeroplane",), norm="none")


@pytest.mark.parametrize("text", ["", "a", "a.npz:", "a.npz+", "a.npz:x:y", "a.npz:x+word2vec"])
def test_a_malformed_flag_is_refused(text):
    with refused("malformed", "FILE.npz"):
        class_embeddings.load(text, CLASSES, norm="none")


def test_a_file_that_is_none(tmp_path):
    with refused("no such file", "build_class_embeddings.py"):
        class_embeddings.load(str(tmp_path / "none.npz"), CLASSES, norm="none")
    (tmp_path / "text.npz").write_text("names")
    with refused("cannot be read"):
        class_embeddings.load(str(tmp_path / "text.npz"), CLASSES, norm="none")
    np.save(tmp_path / "array.npy", VECTORS)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with refused("cannot be read"):
        class_embeddings.load(str(tmp_path / "array.npz"), CLASSES, norm="none")
