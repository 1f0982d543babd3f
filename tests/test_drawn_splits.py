"""Lists that a converter draws: shares, classes, repetition, and what cannot be drawn."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.test_converters import picture, run_tool, save
from tfrecords_tools import drawn_splits
from tfrecords_tools.drawn_splits import Wanted, draw
from tfrecords_tools.encoder import make_record
from tfrecords_tools.file_finder import FileFinder, ids_below
from tfseg.data import writing
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError
from tfseg.runs import fit
from tfseg.settings import programs

SPEC = DatasetSpec("toy", ("background", "cat", "dog", "cow"))


def masks(seed=0, count=200):
    """Returns classes by id: cats are common, cows are in 5 images, some images show nothing."""
    rng = np.random.default_rng(seed)
    cows = set(rng.choice(count, 5, replace=False).tolist())
    shown = rng.random((count, 2)) < (0.7, 0.2)
    return {
        f"i{k:03}": tuple(c + 1 for c in range(2) if shown[k, c]) + ((3,) if k in cows else ())
        for k in range(count)
    }


def shares(ids, classes):
    return [np.mean([k in classes[i] for i in ids]) for k in (1, 2)]


@pytest.mark.parametrize("labelled", [None, 20])
def test_every_image_is_in_one_split_of_the_wanted_size(labelled):
    classes, bare = masks(), ["x1", "x0"]
    splits = draw(classes, bare, Wanted(0.2, labelled))
    assert len(splits["val"]) == 40 and len(splits["train"]) == (labelled or 160)
    everything = [i for ids in splits.values() for i in ids]
    assert sorted(everything) == sorted([*classes, *bare])
    assert set(bare) <= set(splits["unlabelled"])
    assert all(ids == sorted(ids) for ids in splits.values())


@pytest.mark.parametrize("seed", range(5))
def test_classes_have_their_shares_and_rare_ones_are_everywhere(seed):
    classes = masks(seed)
    splits = draw(classes, [], Wanted(0.25, 40, seed))
    for name in ("train", "val"):
        assert any(3 in classes[i] for i in splits[name])
        np.testing.assert_allclose(
            shares(splits[name], classes), shares(classes, classes), atol=0.1
        )


@pytest.mark.parametrize("seed", range(20))
def test_the_only_image_of_a_class_trains(seed):
    # Dogs and cows are in one image each, which shows a cat too.
    classes = {f"i{k}": (1,) for k in range(20)} | {"dog": (1, 2), "cow": (1, 3)}
    splits = draw(classes, [], Wanted(0.2, seed=seed))
    assert {"dog", "cow"} <= set(splits["train"])
    assert len(splits["val"]) == 4


@pytest.mark.parametrize("images", (1, 2, 3, 4))
def test_few_training_masks_have_one_of_each_class(images):
    classes = {f"i{k}": (1, 2) if k < images else (1,) for k in range(100)}
    for seed in range(10):
        splits = draw(classes, [], Wanted(0.2, 10, seed))
        assert any(2 in classes[i] for i in splits["train"])
        assert images < 3 or any(2 in classes[i] for i in splits["val"])


@pytest.mark.parametrize("seed", range(20))
def test_no_class_goes_to_val_as_a_whole(seed):
    rng = np.random.default_rng(seed)
    # 25 images of 12 classes, most of them rare, several in an image.
    classes = {
        f"i{k}": tuple(sorted({int(c) + 1 for c in rng.geometric(0.3, 3) if c <= 12}))
        for k in range(25)
    }
    splits = draw(classes, [], Wanted(0.2, seed=seed))
    trained = {c for i in splits["train"] for c in classes[i]}
    assert trained == {c for shown in classes.values() for c in shown}


def test_every_image_is_drawn_where_there_is_no_other_choice():
    # Each image is the only one of its class.
    classes = {f"i{k}": (k + 1,) for k in range(3)}
    splits = draw(classes, [], Wanted(0.34))
    assert [len(splits[name]) for name in ("train", "val")] == [2, 1]


def test_the_draw_repeats_and_depends_on_the_seed_alone():
    classes = masks()
    shuffled = dict(reversed(classes.items()))
    assert draw(classes, [], Wanted(labelled=30)) == draw(shuffled, [], Wanted(labelled=30))
    assert draw(classes, [], Wanted(seed=1)) != draw(classes, [], Wanted(seed=2))


@pytest.mark.parametrize(
    "wanted, message",
    [({"val_fraction": 0.01}, "0 for val"), ({"labelled": 9}, "9 of the other 8 for train")],
)
def test_too_few_masks(wanted, message):
    classes = {f"i{k}": (1,) for k in range(10)}
    with pytest.raises(UserError, match=message):
        draw(classes, [], Wanted(**wanted))


@pytest.mark.parametrize(
    "wanted, flag",
    [({"val_fraction": 0.0}, "val_fraction"), ({"val_fraction": 1.0}, "val_fraction")]
    + [({"labelled": 0}, "labelled")],
)
def test_values_that_cannot_be_meant(wanted, flag):
    with pytest.raises(UserError, match=f"--{flag}"):
        Wanted(**wanted)


def test_ids_are_paths_below_the_folder(tmp_path):
    for name in ("b.png", "a/c.PNG", "masks/b.png", ".hidden/x.png"):
        save(tmp_path / name, picture(0), format="png")
    (tmp_path / "notes.txt").write_text("")
    finder = FileFinder(str(tmp_path))
    assert ids_below(finder, without=str(tmp_path / "masks")) == ["a/c", "b"]
    with pytest.raises(UserError, match="no images"):
        ids_below(FileFinder(str(tmp_path / ".hidden" / "none")))


def test_versions_of_one_photograph_in_two_splits_are_told():
    classes = {f"train/x{k // 2}_jpg.rf.{k:032x}": (1,) for k in range(20)}
    lines = drawn_splits.describe(draw(classes, [], Wanted(0.4)))
    assert any("versions of" in line and "x" in line for line in lines)
    alone = {f"x{k}_jpg.rf.{k:032x}": (1,) for k in range(20)}
    lines = drawn_splits.describe(draw(alone, [], Wanted(0.4)))
    assert not any("versions of" in line for line in lines)


# In training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "splits, given, expected",
    [
        (["train", "unlabelled", "val"], {}, "unlabelled"),
        (["train", "unlabelled", "val"], {"train_split_cls": "val"}, "val"),
        (["train", "train_aug", "unlabelled"], {}, "train_aug"),
        (["train", "val"], {}, "unlabelled"),
        (None, {}, "train_aug"),
    ],
)
def test_training_takes_the_unlabelled_split_of_drawn_lists(splits, given, expected, tmp_path):
    if splits is not None:
        content = {"splits": {name: {} for name in splits}}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    settings = programs.training(
        {"dataset_dir": str(tmp_path), "train_logdir": "run", **given}, default_method="pseudoseg"
    )
    assert fit._with_split_of_records(settings).data.train_split_cls == expected


# The program --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Ten images with masks of one class each, two without, names of classes."""
    for k in range(12):
        save(tmp_path / "images" / f"p{k:02}.jpg", picture(k))
        if k < 10:
            mask = np.zeros((8, 10))
            mask[2:5] = 1 + k % 2
            save(tmp_path / "images" / "masks" / f"p{k:02}.png", mask)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    return tmp_path


def build(folder, *extra):
    return run_tool(
        "build_folder",
        f"--images_dir={folder / 'images'}",
        f"--masks_dir={folder / 'images' / 'masks'}",
        f"--class_names={folder / 'classes.txt'}",
        f"--output_dir={folder / 'out'}",
        "--num_workers=1",
        *extra,
    )


def test_records_of_drawn_lists(folder):
    result = build(folder, "--val_fraction=0.3", "--labelled=4")
    assert result.returncode == 0, result.stderr
    assert "drawn: 4 images of train" in result.stdout
    content = json.loads((folder / "out" / "dataset.json").read_text())
    counts = {name: entry["count"] for name, entry in content["splits"].items()}
    assert counts == {"train": 4, "unlabelled": 5, "val": 3}
    spec = DatasetSpec.from_json(content, where="dataset.json")
    index = load_index(str(folder / "out"), "unlabelled", spec)
    # Masks of the images that are left over stay; two images have none.
    assert index.has_mask.sum() == 3
    listed = (folder / "out" / "lists" / "unlabelled.txt").read_text().split()
    assert listed == sorted(index.ids) and {"p10", "p11"} <= set(listed)


def test_image_labels_alone_make_one_split(tmp_path):
    (tmp_path / "images").mkdir()
    for k in range(3):
        save(tmp_path / "images" / f"p{k}.jpg", picture(k))
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    (tmp_path / "labels.csv").write_text("p0,cat\np1,cat dog\np2,dog\n")
    labels = f"--image_labels={tmp_path / 'labels.csv'}"
    result = build(tmp_path, "--masks_dir=", labels, "--labelled=1")
    assert result.returncode == 2 and "--masks_dir" in result.stderr
    result = build(tmp_path, "--masks_dir=", labels)
    assert result.returncode == 0, result.stderr
    assert "all 3 images are in split unlabelled, without a mask" in result.stdout
    assert ids_of_splits(tmp_path / "out") == {"unlabelled": {"p0", "p1", "p2"}}
    index = load_index(
        str(tmp_path / "out"), "unlabelled", DatasetSpec("folder", ("background", "cat", "dog"))
    )
    assert index.has_image_labels.all() and not index.has_mask.any()


def ids_of_splits(out):
    content = json.loads((out / "dataset.json").read_text())
    spec = DatasetSpec.from_json(content, where="dataset.json")
    return {name: set(load_index(str(out), name, spec).ids) for name in content["splits"]}


def test_a_second_draw_leaves_nothing_of_the_first(folder):
    for i in (10, 11):
        (folder / "images" / f"p{i}.jpg").unlink()
    build(folder, "--val_fraction=0.3", "--labelled=4")
    assert set(ids_of_splits(folder / "out")) == {"train", "unlabelled", "val"}
    result = build(folder, "--val_fraction=0.4", "--seed=1")
    assert "will remove" in result.stdout and "unlabelled" in result.stdout
    found = ids_of_splits(folder / "out")
    assert set(found) == {"train", "val"} and not found["train"] & found["val"]
    written = {path.name.split("-")[0].split(".")[0] for path in (folder / "out").iterdir()}
    assert "unlabelled" not in written
    lists = sorted(path.name for path in (folder / "out" / "lists").iterdir())
    assert lists == ["train.txt", "val.txt"]


def test_image_labels_alone_leave_the_splits_of_a_draw(folder, tmp_path):
    assert build(folder, "--labelled=4").returncode == 0
    before = ids_of_splits(folder / "out")
    save(tmp_path / "more" / "q0.jpg", picture(0))
    (tmp_path / "labels.csv").write_text("q0,cat\n")
    extra = (f"--images_dir={tmp_path / 'more'}", f"--image_labels={tmp_path / 'labels.csv'}")
    result = build(folder, "--masks_dir=", *extra)
    assert result.returncode == 0, result.stderr
    assert ids_of_splits(folder / "out") == {**before, "unlabelled": {"q0"}}


def test_a_draw_leaves_splits_that_were_not_drawn(folder):
    (folder / "given").mkdir()
    (folder / "given" / "unlabelled.txt").write_text("p10\np11\n")
    extra = (f"--splits_dir={folder / 'given'}", "--unlabelled_splits=unlabelled")
    assert build(folder, *extra).returncode == 0
    for i in (10, 11):
        (folder / "images" / f"p{i}.jpg").unlink()
    assert build(folder).returncode == 0
    assert set(ids_of_splits(folder / "out")) == {"train", "unlabelled", "val"}


def test_a_second_draw_that_is_stopped_shares_no_image_with_the_first(tmp_path):
    png, ids = io.BytesIO(), np.zeros((4, 4), np.uint8)
    Image.new("RGB", (4, 4)).save(png, "PNG")

    def write(splits, fails=()):
        def encode(name):
            if name in fails:
                raise UserError("Stopped.")
            return make_record(name, png.getvalue(), (4, 4), ids, image_labels=None, spec=SPEC)

        writing.write_splits(
            str(tmp_path),
            SPEC,
            splits,
            encode,
            num_shards=1,
            num_workers=1,
            together=("train", "unlabelled", "val"),
        )

    write({"train": ["a", "b"], "unlabelled": ["c"], "val": ["d"]})
    with pytest.raises(UserError, match="Stopped"):
        write({"train": ["d", "b"], "val": ["a"]}, fails=["d"])
    assert set(ids_of_splits(tmp_path)) == {"train", "unlabelled", "val"}
    with pytest.raises(UserError, match="Stopped"):
        write({"train": ["d", "b"], "val": ["a"]}, fails=["a"])
    assert ids_of_splits(tmp_path) == {"train": {"d", "b"}}


def test_a_second_draw_with_other_classes_replaces_all_of_the_first(folder):
    assert build(folder).returncode == 0
    classes = (folder / "classes.txt").read_text()
    (folder / "classes.txt").write_text(classes + "horse\n")
    # Without the two that have no mask: this draw has no split `unlabelled`.
    for i in (10, 11):
        (folder / "images" / f"p{i}.jpg").unlink()
    result = build(folder)
    assert result.returncode == 0, result.stderr
    assert set(ids_of_splits(folder / "out")) == {"train", "val"}


def test_lists_of_a_user_are_not_drawn_over(folder):
    (folder / "out" / "lists").mkdir(parents=True)
    (folder / "out" / "lists" / "train.txt").write_text("p00\n")
    result = build(folder)
    assert result.returncode == 2 and "lists that no draw has written" in result.stderr
    assert os.listdir(folder / "out" / "lists") == ["train.txt"]


@pytest.mark.parametrize("name", [" a.jpg", "b .jpg", "c\nd.jpg"])
def test_names_that_cannot_stand_in_a_list_are_refused(folder, name):
    save(folder / "images" / name, picture(0))
    with pytest.raises(UserError, match="cannot stand in a list"):
        ids_below(FileFinder(str(folder / "images")))


def test_files_of_other_extensions_are_told(folder):
    (folder / "images" / "x.heic").write_bytes(b"photo")
    (folder / "images" / "masks" / "p10.tga").write_bytes(b"mask")
    result = build(folder)
    assert "are no images by their names and are left out: 1 .heic" in result.stdout
    assert "are no masks by their names and are left out: 1 .tga" in result.stdout


def test_two_draws_at_the_same_time_are_refused(folder):
    with drawn_splits.replacing({"train": ["a"]}, str(folder / "out")):
        result = build(folder)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "at this moment" in result.stderr and "--output_dir" in result.stderr


def test_training_without_unlabelled_images_says_what_to_do(folder):
    for i in (10, 11):
        (folder / "images" / f"p{i}.jpg").unlink()
    assert build(folder).returncode == 0
    with pytest.raises(UserError, match="(?s)no split 'unlabelled'.*--labelled=N.*train_sup.py"):
        load_index(str(folder / "out"), "unlabelled", SPEC)


@pytest.mark.parametrize(
    "extra, words",
    [
        (("--splits=train",), ("--splits", "given", "--splits_dir")),
        (("--splits_dir=lists", "--labelled=3"), ("--labelled", "drawn", "--splits_dir")),
        (("--masks_dir=",), ("--masks_dir", "among images with masks")),
        (("--labelled=50",), ("too few masks", "10 images with masks")),
        (("--val_fraction=2",), ("--val_fraction", "between 0 and 1")),
    ],
    ids=lambda x: " ".join(x),
)
def test_wrong_flags(folder, extra, words):
    result = build(folder, *extra)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in result.stderr
    assert not (folder / "out").exists()
