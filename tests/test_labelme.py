"""labelme's files: shapes, painting, images, splits, and what is refused."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.programs import convert
from tests.test_converters import picture, read, save
from tests.test_own_annotations import ids_of
from tfrecords_tools import build_labelme
from tfrecords_tools.labelme import annotation as annotations
from tfrecords_tools.labelme.painting import MaskReader, ids_of as ids_of_labels
from tfrecords_tools.labelme.pairing import read_folder
from tfseg.data.encoded_image import image_size
from tfseg.errors import UserError
from tfseg.inference.pictures import decode_label

NAMES = ("background", "cat", "dog")
SQUARE = [[2, 1], [6, 1], [6, 4], [2, 4]]


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shape(label="cat", points=SQUARE, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def write(path, *shapes, image="a.jpg", size=(8, 10), data=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": image}
    content |= {"imageData": data, "imageHeight": size and size[0], "imageWidth": size and size[1]}
    path.write_text(json.dumps({**content, **more}))
    return str(path)


def paint(tmp_path, *shapes, size=(8, 10), **more):
    annotation = annotations.read(write(tmp_path / "a.json", *shapes, **more))
    ids = ids_of_labels([annotation], NAMES, (), 255)
    return MaskReader(ids)(annotation, size)


# Painting -----------------------------------------------------------------------------------------


def area(points, kind):
    """What a shape covers, with the pixels on its border."""
    expected = np.zeros((8, 10), np.uint8)
    ys, xs = np.mgrid[:8, :10]
    if kind == "circle":
        (x, y), (on_x, on_y) = points
        radius = np.hypot(on_x - x, on_y - y) + 0.5
        expected[(xs - x) ** 2 + (ys - y) ** 2 <= radius**2] = 1
    else:
        (x0, y0), (x1, y1) = np.min(points, 0), np.max(points, 0)
        expected[(xs >= x0) & (xs <= x1) & (ys >= y0) & (ys <= y1)] = 1
    return expected


@pytest.mark.parametrize(
    "kind, points",
    [
        ("polygon", SQUARE),
        (None, SQUARE),
        ("rectangle", [[2, 1], [6, 4]]),
        ("rectangle", [[6, 4], [2, 1]]),
        ("rectangle", SQUARE),
        ("oriented_rectangle", SQUARE),
        ("rotation", SQUARE),
        ("rectangle", [[-5, 3], [30, 90]]),
        ("circle", [[5, 3], [7, 3]]),
    ],
)
def test_shapes_cover_what_they_surround(tmp_path, kind, points):
    label, notes = paint(tmp_path, shape(points=points, kind=kind))
    np.testing.assert_array_equal(label, area(points, kind))
    assert label.dtype == np.uint8 and notes == []


@pytest.mark.parametrize(
    "points, mask, expected",
    [
        ([[2, 1], [4, 2]], [[1, 0, 1], [0, 1, 0]], (2, 1)),
        ([[2.0, 1.0], [4.0, 2.0]], [[255, 0, 255], [0, 255, 0]], (2, 1)),
        # At the border of the image the second point lies one pixel behind the mask.
        ([[7, 6], [10, 8]], [[1, 0, 1], [0, 1, 0]], (7, 6)),
    ],
)
def test_masks_lie_at_their_points(tmp_path, points, mask, expected):
    label, _ = paint(tmp_path, shape(points=points, kind="mask", mask=png(mask)))
    canvas = np.zeros((8, 10))
    x, y = expected
    canvas[y : y + 2, x : x + 3] = np.array(mask) > 0
    np.testing.assert_array_equal(label, canvas)


def test_later_shapes_lie_over_earlier_ones(tmp_path):
    label, _ = paint(
        tmp_path,
        shape("cat", [[0, 0], [9, 7]], "rectangle"),
        shape("dog", [[2, 2], [5, 5]], "rectangle"),
        shape("__ignore__", [[4, 4], [7, 6]], "rectangle"),
        shape("_background_", [[0, 0], [1, 1]], "rectangle"),
    )
    assert label[0, 0] == 0 and label[7, 9] == 1 and label[3, 3] == 2 and label[5, 5] == 255


@pytest.mark.parametrize("kind", ["line", "linestrip", "point", "points"])
def test_shapes_without_an_area_are_told(tmp_path, kind):
    label, notes = paint(tmp_path, shape(), shape("dog", [[1, 1], [8, 6]], kind))
    assert not (label == 2).any() and len(notes) == 1
    assert notes[0].startswith(f"{kind}: has no area")


def test_empty_and_outlying_shapes_are_told(tmp_path):
    assert "all background" in paint(tmp_path)[1][0]
    _, notes = paint(tmp_path, shape(points=[[20, 1], [30, 1], [30, 5]]), shape(points=SQUARE[:2]))
    assert "covers no pixel" in notes[0] and "less than 3 points" in notes[1]


@pytest.mark.parametrize(
    "wrong, words",
    [
        (shape(kind="cuboid"), ("shape 1", "'cat'", "cuboid", "polygon, rectangle", "linestrip")),
        (shape(label=None), ("shape 1", "no label")),
        (shape(points=[[1, 2], [3]]), ("shape 1", "polygon", "pairs")),
        (shape(points=[[1, 2], [3, 4], [5, 6]], kind="circle"), ("circle 2 pairs",)),
        (shape(points=[[1, 2]], kind="rectangle"), ("rectangle 2 or 4 pairs",)),
        (shape(points=[[1, float("nan")], [3, 4], [5, 6]]), ("pairs",)),
        (shape(points=[[1, 1e6], [3, 4], [5, 6]]), ("shape 1", "far outside", "8x10")),
        (shape(points=[[2, 1], [4, 2]], kind="mask"), ("shape 1", "'mask' is no encoded image")),
        (shape(points=[[2, 1], [4, 2]], kind="mask", mask="!"), ("'mask' is no encoded image",)),
        (shape(points=[[2, 1], [4, 2]], kind="mask", mask="AAAA"), ("mask of a shape",)),
        (shape(points=[[2, 1], [9, 7]], kind="mask", mask=png([[1]])), ("1x1", "7x8")),
        (shape(label="cow"), ("shape 1", "cow", "cat, dog", "--void_label=cow")),
        (7, ("shape 1", "received: 7")),
    ],
)
def test_malformed_shapes_name_file_and_shape(tmp_path, wrong, words):
    with pytest.raises(UserError) as error:
        paint(tmp_path, shape(), wrong)
    for word in ("a.json", *words):
        assert word in str(error.value), error.value


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"images": [], "annotations": [], "categories": []}', "build_coco.py"),
        ("[]", "list"),
        ('{"shapes": [], "imagePath": 7}', "imagePath"),
        ('{"shapes": [], "imageHeight": "8"}', "imageHeight"),
        ("{", "not valid JSON"),
    ],
)
def test_other_files_are_refused(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        annotations.read(str(tmp_path / "a.json"))
    assert "a.json" in str(error.value)


@pytest.mark.parametrize(
    "encoding, words", [("utf-16", "received: UTF-16"), ("latin-1", "received: .*byte 0xe4")]
)
def test_files_in_other_encodings_are_told_so(tmp_path, encoding, words):
    path = tmp_path / "a.json"
    path.write_text('{"shapes": [{"label": "k\xe4se"}]}', encoding)
    message = f"(?s)is not UTF-8.*a.json.*{words}.*next step: .*UTF-8"
    with pytest.raises(UserError, match=message):
        annotations.read(str(path))


def test_another_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="(?s)another size.*a.json.*8x10"):
        paint(tmp_path, size=(9, 10))
    with pytest.raises(UserError, match="--exif_orientation=ignore"):
        paint(tmp_path, size=(10, 8))
    assert paint(tmp_path, shape(), size=(9, 9), imageHeight=None)[0].shape == (9, 9)


# Images -------------------------------------------------------------------------------------------


def test_where_images_are_looked_for(tmp_path, capsys):
    """Beside the file, by Windows' path, in another folder, by the file's name, inside the file."""
    photos, notes = tmp_path / "photos", tmp_path / "notes"
    for name in ("a", "x/b", "c", "d", "without"):
        save(photos / f"{name}.jpg", picture(0))
    write(notes / "n1.json", shape(), image="..\\photos\\a.jpg")
    write(notes / "x" / "n2.json", shape(), image="C:\\Users\\me\\b.jpg")
    write(notes / "n3.json", shape(), image="c.jpg")
    write(notes / "d.json", shape(), image="renamed.jpg")
    write(notes / "e.json", shape(), image="gone.jpg", data=png(picture(1)))
    found = read_folder(str(photos), str(notes), num_workers=1)
    assert list(found) == ["a", "c", "d", "e", "without", "x/b"]
    assert found["without"].annotation is None
    assert found["a"].image.endswith("photos/a.jpg")
    assert image_size(found["e"].image.read())[1:] == (8, 10)
    assert "warning" not in capsys.readouterr().out
    write(notes / "f.json", shape(), image="gone.jpg")
    with pytest.raises(UserError, match="(?s)nowhere.*f.json.*'gone.jpg', and no imageData"):
        read_folder(str(photos), str(notes), num_workers=1)
    write(notes / "f.json", shape(), image="c.jpg")
    with pytest.raises(UserError, match="(?s)name one image.*n3.json.*f.json|f.json.*n3.json"):
        read_folder(str(photos), str(notes), num_workers=1)


def test_files_that_name_the_image_of_another_file_are_told(tmp_path, capsys):
    """Images and files were renamed, and `imagePath` was not."""
    for k in range(3):
        save(tmp_path / f"{k}.jpg", picture(k))
        write(tmp_path / f"{k}.json", shape(), image=f"{(k + 1) % 3}.jpg")
    found = read_folder(str(tmp_path), str(tmp_path), num_workers=1)
    assert found["1"].annotation.path.endswith("0.json")
    output = capsys.readouterr().out
    assert "3 files of labelme name another image" in output and "0.json names 1.jpg" in output


# The program --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Six annotated images, two without a file, one whose image is inside the file."""
    photos = tmp_path / "photos"
    for k in range(6):
        save(photos / f"p{k}.jpg", picture(k))
        write(photos / f"p{k}.json", shape(("cat", "dog")[k % 2]), image=f"p{k}.jpg")
    save(photos / "q0.jpg", picture(7))
    save(photos / "q1.jpg", picture(8))
    inside = png(picture(9))
    write(photos / "p6.json", shape("blurred"), shape("dog"), image="p6.png", data=inside)
    return tmp_path


def build(folder, *extra):
    convert(
        build_labelme,
        f"--images_dir={folder / 'photos'}",
        f"--output_dir={folder / 'out'}",
        *extra,
    )
    content = json.loads((folder / "out" / "dataset.json").read_text())
    return content, {name: entry["count"] for name, entry in content["splits"].items()}


def test_a_copy_of_the_image_beside_its_file_changes_nothing(tmp_path):
    photos, notes = tmp_path / "photos", tmp_path / "notes"
    for folder in (photos, notes):
        save(folder / "a.jpg", picture(0))
    write(notes / "a.json", shape(), image="a.jpg")
    found = read_folder(str(photos), str(notes), num_workers=1)
    assert list(found) == ["a"] and found["a"].annotation is not None
    save(photos / "a.jpg", picture(1))
    with pytest.raises(UserError, match="Two different images have one name"):
        read_folder(str(photos), str(notes), num_workers=1)


def test_records_of_a_folder_of_labelme(folder, capsys):
    content, counts = build(folder, "--void_label=blurred", "--val_fraction=0.3", "--labelled=3")
    assert content["class_names"] == ["background", "cat", "dog"]
    assert counts == {"train": 3, "unlabelled": 4, "val": 2}
    unlabelled = ids_of(folder, "unlabelled")
    assert {"q0", "q1"} <= set(unlabelled)
    listed = (folder / "out" / "lists" / "unlabelled.txt").read_text().split()
    assert listed == unlabelled
    index, examples = read(folder / "out", "val")
    for i, example in zip(index.ids, examples):
        ids = decode_label(example.label, i, None)
        expected = 2 if i == "p6" else 1 + int(i[1]) % 2
        np.testing.assert_array_equal(ids, expected * area(SQUARE, "polygon"))
        assert example.image_labels.tolist() == [expected]
    output = capsys.readouterr().out
    assert "classes: background, cat, dog" in output and "1 x image taken from its .json" in output


def test_given_lists_and_names(folder):
    (folder / "lists").mkdir()
    (folder / "lists" / "train.txt").write_text("p0.jpg\np1\n")
    (folder / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\nblurred\n")
    lists, names = f"--splits_dir={folder / 'lists'}", f"--class_names={folder / 'labels.txt'}"
    content, counts = build(folder, lists, names)
    assert content["class_names"] == ["_background_", "dog", "cat", "blurred"]
    assert counts == {"train": 2} and content["splits"]["train"]["pixels"]["cat"] == 20
    (folder / "lists" / "train.txt").write_text("p0\nq0\n")
    with pytest.raises(UserError, match="(?s)no .json of labelme.*q0"):
        build(folder, lists, names)
    (folder / "lists" / "train.txt").write_text("p0\nz\n")
    with pytest.raises(UserError, match="(?s)1 of 2 ids.*no image.*received: z"):
        build(folder, lists, names)


def test_nothing_is_written_where_a_shape_is_wrong(folder):
    write(folder / "photos" / "p3.json", shape(kind="sphere"), image="p3.jpg")
    with pytest.raises(UserError, match="(?s)unknown kind.*p3.json"):
        build(folder)
    assert not (folder / "out").exists()


def test_points_are_pixels_of_the_turned_image(folder):
    exif = Image.Exif()
    exif[0x0112] = 3
    save(folder / "photos" / "p0.jpg", picture(0), exif=exif)
    (folder / "lists").mkdir()
    (folder / "lists" / "train.txt").write_text("p0\n")
    build(folder, f"--splits_dir={folder / 'lists'}")
    _, (example,) = read(folder / "out")
    stored = np.asarray(Image.open(folder / "photos" / "p0.jpg"))
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(example.image))), stored[::-1, ::-1]
    )
