"""Splits with pseudo labels: which masks and files are taken, what is refused, what is checked."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.programs import assert_user_error, run
from tfrecords_tools import build_pseudo_labels, check
from tfrecords_tools.checks.report import describe
from tfrecords_tools.encoder import make_record
from tfseg.data import prediction_files, tfexample, writing
from tfseg.data.atomic_writing import ShardWriter
from tfseg.data.record_reader import RecordReader
from tfseg.data.specs import DATASETS, DatasetSpec, load_spec
from tfseg.data.split_index import load_index

SPEC = DatasetSpec("toy", ("background", "cat", "dog"))
SIZE = (6, 8)


def png(array, mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(array, np.uint8))
    if mode is not None:
        image = image.convert(mode)
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mask_of(*classes):
    mask = np.zeros(SIZE, np.uint8)
    for row, value in enumerate(classes):
        mask[row] = value
    return mask


def encode(task):
    """Makes a record of (id, classes of its mask or None, image-level labels or None)."""
    name, classes, labels = task
    image = np.random.default_rng(list(name.encode())).integers(0, 256, (*SIZE, 3))
    mask = None if classes is None else mask_of(*classes)
    return make_record(name, png(image), SIZE, mask, image_labels=labels, spec=SPEC)


# Images a and b have masks; the others do not, and c is known to show a dog.
SPLITS = {
    "few": [("a", (1,), (1,)), ("b", (255, 2), None)],
    "all": [
        ("a", None, None),
        ("b", None, None),
        ("c", None, (2,)),
        ("x/d", None, None),
        ("e", None, (1, 2)),
    ],
    "again": [("c", None, None)],
}
IDS = ["e", "a", "c", "b", "x/d"]
PREDICTED = {"c": mask_of(2, 2), "d": mask_of(1, 255), "e": mask_of(2)}


def write_records(folder, splits=None, spec=SPEC):
    writing.write_splits(str(folder), spec, splits or SPLITS, encode, num_shards=1, num_workers=1)


@pytest.fixture
def place(tmp_path):
    """Records, a folder of predictions and a list of ids."""
    write_records(tmp_path / "records")
    (tmp_path / "raw").mkdir()
    for name, mask in PREDICTED.items():
        (tmp_path / "raw" / f"{name}.png").write_bytes(png(mask))
    (tmp_path / "ids.txt").write_text("\n".join(IDS) + "\n")
    return tmp_path


def build(place, *extra, out="records", workers=1, ids=None, labelled="few"):
    ids = f"--ids={place / 'ids.txt'}" if ids is None else ids
    return run(
        "tfrecords_tools/build_pseudo_labels.py",
        f"--dataset_dir={place / 'records'}",
        *([f"--labelled_split={labelled}"] if labelled else []),
        f"--pseudo_labels_dir={place / 'raw'}",
        *ids.split(),
        "--output_split=pseudo",
        f"--output_dir={place / out}",
        f"--num_workers={workers}",
        *extra,
        check=False,
    )


def read(folder, split):
    index = load_index(str(folder), split, load_spec(str(folder), "-"))
    with RecordReader(index, str(folder)) as reader:
        return index, {str(i): reader.read(k) for k, i in enumerate(index.ids)}


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


@pytest.mark.parametrize("out", ["records", "elsewhere"])
def test_true_masks_stay_and_others_are_predictions(place, out):
    result = build(place, "--num_shards=2", out=out, workers=2)
    assert result.returncode == 0, result.stderr
    index, examples = read(place / out, "pseudo")
    assert index.ids.tolist() == IDS and index.has_mask.all()
    _, few = read(place / "records", "few")
    _, everything = read(place / "records", "all")
    for i in IDS:
        assert examples[i].image == everything[i].image
        assert examples[i].is_pseudo == (i not in few)
        expected = pixels(few[i].label) if i in few else PREDICTED[i.split("/")[-1]]
        np.testing.assert_array_equal(pixels(examples[i].label), expected)
    labels = {
        i: None if e.image_labels is None else e.image_labels.tolist() for i, e in examples.items()
    }
    # Those of c come from the split that knows them.
    assert labels == {"a": [1], "b": None, "c": [2], "x/d": None, "e": [1, 2]}
    entry = json.loads((place / out / "dataset.json").read_text())["splits"]["pseudo"]
    assert entry["num_pseudo_labels"] == 3 and entry["num_masks"] == 5
    assert "3 masks are pseudo labels" in result.stdout


def test_a_split_and_the_labelled_one_can_stand_for_a_list(place):
    (place / "raw" / "d.png").unlink()
    result = build(place, ids="--ids_of_split=again")
    assert result.returncode == 0, result.stderr
    index, examples = read(place / "records", "pseudo")
    assert index.ids.tolist() == ["c", "a", "b"]
    assert [examples[i].is_pseudo for i in "cab"] == [True, False, False]


def test_without_a_labelled_split_every_mask_is_a_prediction(place):
    result = build(place, ids="--ids_of_split=again", labelled=None)
    assert result.returncode == 0, result.stderr
    index, examples = read(place / "records", "pseudo")
    assert index.ids.tolist() == ["c"] and examples["c"].is_pseudo
    assert "not in --ids" not in result.stdout
    result = build(place, labelled=None)
    assert_user_error(result, "2 of 5 ids without a true mask have no pseudo label", "a, b")
    for name in "ab":
        (place / "raw" / f"{name}.png").write_bytes(png(mask_of(1)))
    assert build(place, labelled=None).returncode == 0
    index, examples = read(place / "records", "pseudo")
    assert index.ids.tolist() == IDS and all(e.is_pseudo for e in examples.values())
    (place / "ids.txt").write_text("nothing\n")
    assert_user_error(build(place, labelled=None), "1 of 1 ids are in no split", "such as")


@pytest.mark.parametrize(
    "ids, words",
    [
        ("--ids_of_split=nosuch", ["nosuch", "few, again, all"]),
        ("--num_shards=1", ["neither", "--ids"]),
        ("--ids=a.txt --ids_of_split=all", ["both"]),
    ],
)
def test_images_are_given_in_one_way(place, ids, words):
    assert_user_error(build(place, ids=ids), *words)


def test_running_twice_gives_the_same_files(place):
    assert build(place).returncode == 0
    first = contents(place / "records")
    assert build(place).returncode == 0
    assert contents(place / "records") == first


def test_check_counts_pseudo_labels_and_what_their_image_labels_say(place):
    assert build(place).returncode == 0
    results, problems, _ = check.check(str(place / "records"), splits=["pseudo"])
    assert problems == [] and results[0].num_pseudo_labels == 3
    # e should show a cat too.
    assert results[0].notes["image-level label without a pixel in the mask (not wrong)"] == 1
    (place / "raw" / "c.png").write_bytes(png(mask_of(1, 2)))
    result = build(place)
    assert result.returncode == 0
    assert "1 x pseudo label with classes that the image-level labels lack" in result.stdout
    _, problems, _ = check.check(str(place / "records"), splits=["pseudo"])
    (problem,) = problems
    assert problem.kind == "class in the mask but not in the image-level labels"
    assert "id c: cat" in problem.text and "--use_image_labels" in problem.text
    report = describe(results, problems, [], SPEC, max_listed=3).splitlines()
    assert dict(zip(report[0].split(), report[1].split()))["pseudo"] == "3"


def test_a_pseudo_flag_without_a_mask_is_a_problem(tmp_path):
    image = png(np.zeros((*SIZE, 3)))
    with ShardWriter(str(tmp_path / "train-00000-of-00001.tfrecord")) as writer:
        writer.write(tfexample.encode(image=image, filename="a", height=6, width=8, is_pseudo=True))
    _, problems, _ = check.check(str(tmp_path), dataset="pascal_voc_seg")
    assert [p.kind for p in problems] == ["pseudo label without a mask"]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_one_channel_or_a_palette_of_ids(place, mode):
    image = Image.fromarray(mask_of(1, 2))
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9, 7, 7, 7])
    assert image.mode == mode
    image.save(place / "raw" / "e.png")
    assert build(place).returncode == 0
    _, examples = read(place / "records", "pseudo")
    np.testing.assert_array_equal(pixels(examples["e"].label), mask_of(1, 2))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("e", png(np.zeros((8, 6))), ("e.png", "another size", "8x6", "6x8")),
        ("e", png(mask_of(0, 3)), ("e.png", "no class ids", "received: 3", "0, ..., 2, and 255")),
        ("e", png(np.zeros((*SIZE, 3))), ("e.png", "mode RGB", "raw_segmentation_results")),
        ("e", png(mask_of(1), "RGBA"), ("e.png", "mode RGBA")),
        ("e", b"no picture", ("e.png", "cannot be decoded")),
        ("e", None, ("1 of 3 ids without a true mask have no pseudo label", "received: e")),
        ("x/d", png(mask_of(1)), ("Several pseudo labels fit id 'x/d'",)),
    ],
)
def test_a_pseudo_label_that_cannot_be_used(place, name, content, words):
    path = place / "raw" / f"{name}.png"
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    if name == "x/d":
        # In a split where names collide vis.py keeps the folders.
        write_records(place / "records", {"two": [("x/d", None, None), ("y/d", None, None)]})
    before = contents(place / "records")
    assert_user_error(build(place), *words)
    assert_user_error(build(place, out="new", workers=2), *words)
    assert contents(place / "records") == before and not (place / "new").exists()


def test_several_bad_pseudo_labels_are_counted(place):
    for name in "ce":
        (place / "raw" / f"{name}.png").write_bytes(png(np.zeros((2, 2))))
    assert_user_error(build(place), "2 of 3 pseudo labels", "e.png", "another size")


@pytest.mark.parametrize(
    "ids, words",
    [
        (
            ["a", *(f"n{k}" for k in range(7))],
            ("7 of 8 ids are in no split", "n0, n1, n2, n3, n4, ...", "few, again, all"),
        ),
        (["a", "a"], ("more than once",)),
        ([], ("list of images is empty", "ids.txt")),
    ],
)
def test_bad_lists(place, ids, words):
    (place / "ids.txt").write_text("\n".join(ids))
    before = contents(place / "records")
    assert_user_error(build(place), *words)
    assert contents(place / "records") == before


def test_labelled_images_must_have_masks(place):
    assert_user_error(build(place, "--labelled_split=again"), "1 images of split 'again'", "c")
    assert_user_error(build(place, "--labelled_split=none"), "none", "again, all, few")


@pytest.mark.parametrize("split", ["few", "all"])
def test_splits_of_true_masks_are_not_replaced(place, split):
    before = contents(place / "records")
    result = build(place, f"--output_split={split}")
    assert_user_error(result, f"would replace split '{split}'", "--output_split")
    assert contents(place / "records") == before


def test_a_broken_split_matters_only_if_it_is_needed(place):
    write_records(place / "records", {"broken": [("z", None, None)]})
    (place / "records" / "broken-00000-of-00001.tfrecord").write_bytes(b"")
    assert build(place).returncode == 0
    (place / "ids.txt").write_text("a\nz\n")
    assert_user_error(build(place), "z", "unusable, not searched: broken")


def test_colliding_names_are_taken_from_their_folders(tmp_path):
    splits = {"few": [("a", (1,), None)], "all": [("x/d", None, None), ("y/d", None, None)]}
    write_records(tmp_path / "records", splits)
    for k, folder in enumerate("xy"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        (tmp_path / "raw" / folder / "d.png").write_bytes(png(mask_of(k + 1)))
    (tmp_path / "ids.txt").write_text("x/d\ny/d\n")
    result = build(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "1 images of split 'few' are not in --ids" in result.stdout
    _, examples = read(tmp_path / "records", "pseudo")
    for k, i in enumerate(("x/d", "y/d")):
        np.testing.assert_array_equal(pixels(examples[i].label), mask_of(k + 1))


def test_one_file_for_two_ids_is_refused(tmp_path):
    splits = {"few": [("a", (1,), None)], "x": [("x/d", None, None)], "y": [("y/d", None, None)]}
    write_records(tmp_path / "records", splits)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "d.png").write_bytes(png(mask_of(1)))
    (tmp_path / "ids.txt").write_text("x/d\ny/d\n")
    assert_user_error(build(tmp_path), "One pseudo label fits two ids", "x/d, y/d")


def test_evaluation_ids_become_class_ids_again(tmp_path):
    spec = DATASETS["cityscapes"]
    truth = np.arange(48, dtype=np.uint8).reshape(SIZE) % 19
    (tmp_path / "c.png").write_bytes(png(prediction_files.raw_ids(truth, spec)))
    options = {"max_megapixels": 1}
    ids = build_pseudo_labels.read_pseudo_label(str(tmp_path / "c.png"), SIZE, spec, **options)
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, truth)
    (tmp_path / "c.png").write_bytes(png(truth))  # class ids where evaluation ids belong
    with pytest.raises(build_pseudo_labels.UserError, match="no evaluation ids"):
        build_pseudo_labels.read_pseudo_label(str(tmp_path / "c.png"), SIZE, spec, **options)
