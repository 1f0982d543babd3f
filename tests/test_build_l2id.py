"""From L2ID's folder to records: round trip, splits, refusals."""

import os
import pickle

import numpy as np
import pytest

from tests.test_converters import assert_refused, picture, pixels, read, run_tool, save
from tfrecords_tools import build_l2id
from tfrecords_tools.build_l2id import LABELS_FILE, read_labels
from tfseg.data.specs import load_spec
from tfseg.errors import UserError

FILES = ["train/a", "train/b", "val/c"]
PERSON = 124


def save_labels(root, content):
    os.makedirs(root / "Annotations", exist_ok=True)
    np.save(root / LABELS_FILE, content)


@pytest.fixture
def l2id(tmp_path):
    """Three images: a person with the last class, nothing, and the first class; one mask."""
    root = tmp_path / "l2id"
    for seed, name in enumerate(FILES):
        (root / "Data" / name).parent.mkdir(parents=True, exist_ok=True)
        save(root / "Data" / f"{name}.JPEG", picture(seed))
    labels = np.zeros((3, 200), np.float32)
    labels[0, [PERSON - 1, 199]] = labels[2, 0] = 1
    save_labels(root, {"files": FILES, "labels": labels})
    mask = np.zeros((8, 10))
    mask[2:4], mask[7] = 200, 255
    save(tmp_path / "masks" / "val" / "c.png", mask)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("train/a\n")
    (tmp_path / "lists" / "val.txt").write_text("val/c\n")
    return root


def build(l2id, *extra):
    out = l2id.parent / "out"
    words = [f"--l2id_dir={l2id}", f"--output_dir={out}", "--num_workers=1", "--num_shards=1"]
    return out, run_tool("build_l2id", *words, *extra)


def test_all_files_make_a_split_with_image_level_labels(l2id):
    out, process = build(l2id)
    assert process.returncode == 0, process.stderr
    assert "1 x image whose image-level labels name no class" in process.stdout
    index, examples = read(out)
    assert index.ids.tolist() == FILES
    assert index.has_image_labels.all() and not index.has_mask.any()
    assert [e.image_labels.tolist() for e in examples] == [[PERSON, 200], [], [1]]
    assert examples[0].image == (l2id / "Data" / "train" / "a.JPEG").read_bytes()
    names = load_spec(str(out), "-").class_names
    assert len(set(names)) == len(names) == 201
    assert (names[0], names[1], names[PERSON], names[200]) == (
        "background",
        "accordion",
        "person",
        "zebra",
    )


def test_lists_masks_and_names(l2id, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"class {k}" for k in range(1, 201)))
    lists = [f"--splits_dir={tmp_path / 'lists'}", f"--masks_dir={tmp_path / 'masks'}"]
    out, process = build(
        l2id, *lists, "--unlabelled_splits=train", f"--class_names={tmp_path / 'names.txt'}"
    )
    assert process.returncode == 0, process.stderr
    assert read(out)[0].ids.tolist() == ["train/a"]
    index, (example,) = read(out, "val")
    assert index.has_mask.all() and set(np.unique(pixels(example.label))) == {0, 200, 255}
    assert load_spec(str(out), "-").class_names[200] == "class 200"
    # Those of the file, not of the mask.
    assert example.image_labels.tolist() == [1]
    _, process = build(l2id, *lists)
    assert_refused(process, "1 of 1 ids of split 'train' have no mask", "--unlabelled_splits")


def test_labels_that_the_file_lacks_come_from_the_mask_or_nowhere(l2id, tmp_path):
    save_labels(l2id, {"files": FILES[:2], "labels": np.ones((2, 200), int)})
    words = [f"--splits_dir={tmp_path / 'lists'}", "--splits=val"]
    _, process = build(l2id, *words)
    assert_refused(process, "neither image-level labels nor a mask", "val/c", "--masks_dir")
    out, process = build(l2id, *words, f"--masks_dir={tmp_path / 'masks'}")
    assert process.returncode == 0, process.stderr
    assert read(out, "val")[1][0].image_labels.tolist() == [200]


def test_a_missing_file_of_labels_is_named(l2id):
    os.remove(l2id / LABELS_FILE)
    _, process = build(l2id)
    assert_refused(process, "The file of image-level labels is missing", str(l2id / LABELS_FILE))


@pytest.mark.parametrize(
    "words, parts",
    [
        ((), ("--l2id_dir is required",)),
        (("--l2id_dir=/nowhere", "--output_dir=out"), ("--l2id_dir must be a folder",)),
    ],
)
def test_missing_folders(words, parts):
    assert_refused(run_tool("build_l2id", *words), *parts)


def test_splits_need_lists_and_images_must_be_there(l2id):
    assert_refused(build(l2id, "--splits=val")[1], "--splits needs --splits_dir")
    os.remove(l2id / "Data" / "train" / "b.JPEG")
    assert_refused(build(l2id)[1], "1 of 3 ids", "train/b", "no image")


@pytest.mark.parametrize(
    "content, words",
    [
        ({"files": ["a"]}, "without 'files' and 'labels'"),
        ({"files": ["a"], "labels": np.zeros((2, 200))}, r"1 files, labels of shape \[2, 200\]"),
        ({"files": ["a"], "labels": np.full((1, 200), 3)}, "neither 0 nor 1"),
        ({"files": [], "labels": np.zeros((0, 200))}, "0 files"),
        ({"files": ["a", "a"], "labels": np.zeros((2, 200))}, "1 such files: a"),
        (np.zeros((3, 200)), "not a dictionary"),
    ],
)
def test_labels_of_another_structure_are_refused(tmp_path, content, words):
    save_labels(tmp_path, content)
    with pytest.raises(UserError, match=words) as error:
        read_labels(str(tmp_path / LABELS_FILE))
    assert str(tmp_path / LABELS_FILE) in str(error.value)


def test_a_damaged_file_is_refused(tmp_path):
    save_labels(tmp_path, {"files": ["a"], "labels": np.zeros((1, 200))})
    path = tmp_path / LABELS_FILE
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:60], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            read_labels(str(path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_names_and_labels_may_be_of_any_kind_of_number_and_string(tmp_path, protocol):
    content = {"files": np.array(["x/a", "b"]), "labels": [np.array([0, 1]), np.array([1, 1])]}
    content["more"] = np.float32(0.5)
    header = tmp_path / "header.npy"
    np.save(header, {})
    start = header.read_bytes()
    start = start[: start.index(b"\n") + 1]
    array = np.empty((), object)
    array[()] = content
    path = tmp_path / "labels.npy"
    path.write_bytes(start + pickle.dumps(array, protocol=protocol))
    labels = read_labels(str(path))
    assert labels.ids == {"x/a": (2,), "b": (1, 2)} and labels.num_classes == 2


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_the_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_labels(tmp_path, {"files": ["a"], "labels": Malicious()})
    with pytest.raises(UserError, match="no array, string or number"):
        read_labels(LABELS_FILE)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("names", ["a", "a\na", "a\nbackground"])
def test_names_must_fit_the_columns(tmp_path, names):
    (tmp_path / "names.txt").write_text(names)
    with pytest.raises(UserError, match="do not fit|stands there twice"):
        build_l2id.make_spec(2, str(tmp_path / "names.txt"))
    with pytest.raises(UserError, match="200 names"):
        build_l2id.make_spec(2)
