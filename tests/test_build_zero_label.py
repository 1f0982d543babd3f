"""Converters of Pascal-Context and COCO-Stuff."""

import numpy as np
import pytest
from scipy.io import savemat

from tests.test_converters import assert_refused, picture, pixels, read, run_tool, save
from tfrecords_tools import build_coco_stuff, build_pascal_context
from tfseg.data.shards import splits_present
from tfseg.data.specs import DATASETS, load_spec
from tfseg.errors import UserError

# Pascal-Context ---------------------------------------------------------------------------------

CONTEXT = DATASETS["pascal_context"]
# As there: all classes in some order, some of a name with blanks, and others between.
NUMBERS = {name: 7 * i + 2 for i, name in enumerate(CONTEXT.class_names[1:])}
LABELS = "\n".join(
    [*(f"{i}: {name.replace('potted', 'potted ')}" for name, i in NUMBERS.items()), "3: unicorn"]
)


@pytest.fixture
def context(tmp_path):
    """Two images, masks of many classes, their list, and a split of each."""
    label = np.zeros((8, 10), np.uint16)
    label[0], label[1], label[2] = NUMBERS["aeroplane"], NUMBERS["wood"], NUMBERS["pottedplant"]
    label[3], label[4] = 3, 60000
    for k, name in enumerate(("2008_000002", "2008_000003")):
        save(tmp_path / "images" / f"{name}.jpg", picture(k))
        (tmp_path / "trainval").mkdir(exist_ok=True)
        savemat(tmp_path / "trainval" / f"{name}.mat", {"LabelMap": label})
    (tmp_path / "labels.txt").write_text(LABELS)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("2008_000002\n")
    (tmp_path / "lists" / "val.txt").write_text("2008_000003\n")
    return tmp_path


def run_context(root, *extra):
    return run_tool(
        "build_pascal_context",
        f"--images_dir={root / 'images'}",
        f"--annotations_dir={root / 'trainval'}",
        f"--splits_dir={root / 'lists'}",
        f"--output_dir={root / 'out'}",
        "--num_workers=1",
        *extra,
    )


def test_context_round_trip(context):
    process = run_context(context)
    assert process.returncode == 0, process.stderr
    out = str(context / "out")
    assert splits_present(out) == ["train", "val"]
    assert load_spec(out, "-") == CONTEXT
    _, (example,) = read(out, "val")
    label = pixels(example.label)
    # Classes of no name here and numbers beyond the list are background, as is the unlabelled.
    np.testing.assert_array_equal(label[:, 0], [1, 59, 16, 0, 0, 0, 0, 0])
    assert example.image_labels.tolist() == [1, 16, 59]


def test_context_refusals(context):
    (context / "labels.txt").write_text(LABELS.replace(": wood", ": would"))
    process = run_context(context)
    assert_refused(process, "lacks 1 of the 59 classes", "wood", "--labels")
    (context / "labels.txt").unlink()
    assert_refused(run_context(context), "no list of the masks' classes", "--labels")
    (context / "other.txt").write_text(LABELS)
    (context / "trainval" / "2008_000003.mat").unlink()
    process = run_context(context, f"--labels={context / 'other.txt'}")
    assert_refused(process, "1 of 1 ids of split 'val' have no mask", "<id> plus one of .mat")


def test_a_list_of_another_form_is_refused(tmp_path):
    (tmp_path / "labels.txt").write_text("1: accordion\naeroplane\n")
    with pytest.raises(UserError, match="line 2"):
        build_pascal_context.read_labels(str(tmp_path / "labels.txt"))


@pytest.mark.parametrize(
    "content",
    [
        {"Label": np.zeros((2, 2))},
        {"LabelMap": np.zeros((2, 2, 2))},
        {"LabelMap": np.full((2, 2), 0.5)},
        {"LabelMap": np.full((2, 2), -1)},
    ],
)
def test_masks_of_another_form_are_refused(tmp_path, content):
    savemat(tmp_path / "x.mat", content)
    with pytest.raises(UserError, match="x.mat"):
        build_pascal_context.MaskReader(NUMBERS)(str(tmp_path / "x.mat"), (2, 2))


# COCO-Stuff -------------------------------------------------------------------------------------


@pytest.fixture
def stuff(tmp_path):
    """Images and masks of two folders."""
    for k, name in enumerate(("train2017/a", "train2017/b", "val2017/c")):
        save(tmp_path / "coco" / f"{name}.jpg", picture(k))
        label = np.full((8, 10), 181)
        label[0], label[1] = 0, 255
        save(tmp_path / "maps" / f"{name}.png", label)
    return tmp_path


def run_stuff(root, *extra):
    return run_tool(
        "build_coco_stuff",
        f"--images_dir={root / 'coco'}",
        f"--masks_dir={root / 'maps'}",
        f"--output_dir={root / 'out'}",
        "--num_workers=1",
        "--num_shards=1",
        *extra,
    )


def test_stuff_round_trip(stuff):
    process = run_stuff(stuff)
    assert process.returncode == 0, process.stderr
    out = str(stuff / "out")
    assert splits_present(out) == ["train2017", "val2017"]
    assert load_spec(out, "-") == DATASETS["coco_stuff"]
    index, (example, _) = read(out, "train2017")
    assert index.ids.tolist() == ["train2017/a", "train2017/b"]
    np.testing.assert_array_equal(pixels(example.label)[:, 0], [0, 255, *[181] * 6])
    # Class 0 is a person, no background.
    assert example.image_labels.tolist() == [0, 181]


def test_stuff_lists_may_hold_bare_ids(stuff):
    (stuff / "lists").mkdir()
    (stuff / "lists" / "few.txt").write_text("c\ntrain2017/a\n")
    process = run_stuff(stuff, f"--splits_dir={stuff / 'lists'}")
    assert process.returncode == 0, process.stderr
    assert read(str(stuff / "out"), "few")[0].ids.tolist() == ["c", "train2017/a"]


def test_stuff_refusals(stuff):
    assert_refused(run_stuff(stuff, "--splits=test2017"), "test2017", "train2017, val2017")
    (stuff / "coco" / "val2017" / "c.jpg").unlink()
    assert_refused(run_stuff(stuff), "1 of 1 ids of split 'val2017' have no image")


def test_folders_without_masks_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folders"):
        build_coco_stuff.splits_of_folders(str(tmp_path))
    (tmp_path / "val2017").mkdir()
    with pytest.raises(UserError, match="holds no masks"):
        build_coco_stuff.splits_of_folders(str(tmp_path))
