"""COCO's json as Roboflow, CVAT and Label Studio export it, without lists."""

import json

import pytest

from tests.programs import convert
from tests.test_converters import picture, read, save
from tests.test_own_annotations import ids_of
from tfrecords_tools import build_coco
from tfrecords_tools.coco.instances import read_instances
from tfrecords_tools.coco.lists import split_names
from tfseg.data.specs import DATASETS
from tfseg.errors import UserError

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
RUNS = {"size": [8, 10], "counts": [9, 4, 4, 4, 4, 4, 4, 4, 43]}
ROBOFLOW = (
    {"id": 0, "name": "parts", "supercategory": "none"},
    {"id": 1, "name": "bolt", "supercategory": "parts"},
    {"id": 2, "name": "nut", "supercategory": "parts"},
)


def export(path, names, categories=ROBOFLOW, folder=None, annotated=None, segmentation=None):
    """Writes an instances json and its images; image k shows the last or the last but one class.

    Args:
      path: of the json.
      names: `file_name` of the images.
      categories: of the file.
      folder: of the image files; None: that of the json.
      annotated: how many images have an annotation.
      segmentation: of all annotations.
    """
    folder = folder or path.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        save(folder / name.replace("\\", "/").rpartition("/")[2], picture(k))
    size = {"height": 8, "width": 10}
    content = {
        "images": [{"id": k, "file_name": name, **size} for k, name in enumerate(names)],
        "categories": list(categories),
        "annotations": [
            {
                "id": k,
                "image_id": k,
                "category_id": categories[-1 - k % 2]["id"],
                "segmentation": segmentation or [SQUARE],
                "bbox": [1, 1, 4, 4],
                "iscrowd": 0,
            }
            for k in range(len(names) if annotated is None else annotated)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def build(images, out, *annotations, extra=()):
    convert(
        build_coco,
        f"--images_dir={images}",
        f"--output_dir={out}",
        *(f"--annotations={path}" for path in annotations),
        *extra,
    )
    content = json.loads((out / "dataset.json").read_text())
    return content, {name: entry["count"] for name, entry in content["splits"].items()}


def hashed(name, k):
    return f"{name}{k}_jpg.rf.{k:032x}.jpg"


def test_roboflow_keeps_its_splits(tmp_path, capsys):
    files = [
        export(tmp_path / "rf" / split / "_annotations.coco.json", [hashed(split, k) for k in n])
        for split, n in (("train", range(4)), ("valid", range(2)), ("test", range(1)))
    ]
    save(tmp_path / "rf" / "more.jpg", picture(9))
    content, counts = build(tmp_path / "rf", tmp_path / "out", *files)
    assert content["class_names"] == ["background", "bolt", "nut"]
    assert counts == {"test": 1, "train": 4, "unlabelled": 1, "val": 2}
    assert content["splits"]["train"]["pixels"] == {
        "background": 4 * 64,
        "bolt": 32,
        "nut": 32,
        "(ignored)": 0,
    }
    assert ids_of(tmp_path, "val")[0] == "valid/" + hashed("valid", 0)[:-4]
    listed = (tmp_path / "out" / "lists" / "val.txt").read_text().split()
    assert listed == ids_of(tmp_path, "val")
    output = capsys.readouterr().out
    assert "'parts' (0) only heads others" in output and "warning: other versions" not in output


def test_one_file_is_drawn(tmp_path, capsys):
    """CVAT: one json beside the folder of images, run lengths, frames nobody has looked at."""
    categories = [{"id": 1, "name": "bolt", "supercategory": ""}]
    categories.append({"id": 2, "name": "nut", "supercategory": ""})
    names = [f"frame_{k:06}.PNG" for k in range(12)]
    path = tmp_path / "annotations" / "instances_default.json"
    images = tmp_path / "images"
    export(path, names, categories, images, annotated=8, segmentation=RUNS)
    extra = ("--val_fraction=0.25", "--labelled=4")
    _, counts = build(images, tmp_path / "out", path, extra=extra)
    assert counts == {"train": 4, "unlabelled": 5, "val": 3}
    assert "4 x image without annotations" not in capsys.readouterr().err
    extra = (*extra, "--empty_images=unlabelled")
    content, counts = build(images, tmp_path / "again", path, extra=extra)
    assert counts == {"train": 4, "unlabelled": 6, "val": 2}
    index, _ = read(tmp_path / "again", "unlabelled")
    assert index.has_mask.sum() == 2
    assert content["splits"]["train"]["pixels"]["(ignored)"] == 0
    assert "4 images have no annotations" in capsys.readouterr().out


@pytest.mark.parametrize(
    "form",
    [
        "images\\{}",
        "images/{}",
        "../../label-studio/data/media/upload/1/{}",
        "/data/local-files/?d=scans%2F{}",
        "http://localhost:8080/data/upload/1/{}?token=x",
        "s3://bucket/scans/{}",
        "C:\\Users\\me\\{}",
    ],
)
def test_file_names_of_label_studio(tmp_path, form):
    path = export(tmp_path / "result.json", ["0a1b-x y.jpg", "0a1b-z.jpg"], folder=tmp_path / "p")
    content = json.loads(path.read_text())
    for image in content["images"]:
        name = image["file_name"]
        image["file_name"] = form.format(name.replace(" ", "%20") if "://" in form else name)
    path.write_text(json.dumps(content))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("0a1b-x y\n0a1b-z.jpg\n")
    lists = f"--splits_dir={tmp_path / 'lists'}"
    content, _ = build(tmp_path / "p", tmp_path / "out", path, extra=[lists])
    assert content["splits"]["train"]["pixels"]["nut"] == 16
    assert ids_of(tmp_path, "train") == ["0a1b-x y", "0a1b-z"]


@pytest.mark.parametrize(
    "heading, names",
    [
        # Roboflow heads a project of one class by the class's own name.
        ({"id": 0, "name": "bolt", "supercategory": "none"}, ("background", "bolt")),
        ({"id": 0, "name": "parts", "supercategory": "none"}, ("background", "bolt")),
        ({"id": 0, "name": "nut", "supercategory": "none"}, ("background", "nut", "bolt")),
    ],
)
def test_a_category_that_only_heads_others_is_left_out(tmp_path, heading, names):
    above = heading["name"] if heading["name"] != "nut" else "none"
    categories = [heading, {"id": 1, "name": "bolt", "supercategory": above}]
    path = export(tmp_path / "i.json", ["a.jpg"], categories)
    instances = read_instances([str(path)])
    assert instances.spec.class_names == names
    assert instances.images["a"].regions[0].class_id == names.index("bolt")
    assert bool(instances.notes) == (len(names) == 2)


def test_a_heading_with_annotations_is_a_class(tmp_path):
    path = export(tmp_path / "i.json", ["a.jpg", "b.jpg"], ROBOFLOW[:2])
    assert read_instances([str(path)]).spec.class_names == ("background", "parts", "bolt")


def test_cocos_own_categories_take_its_lists(tmp_path, monkeypatch):
    categories = [{"id": k, "name": n} for k, n in enumerate(DATASETS["coco"].class_names[1:], 1)]
    path = export(tmp_path / "instances_x.json", ["a.jpg", "b.jpg", "c.jpg"], categories)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="(?s)--splits_dir must be a folder.*data_splits/coco"):
        build(tmp_path, tmp_path / "out", path)
    (tmp_path / "data_splits" / "coco").mkdir(parents=True)
    (tmp_path / "data_splits" / "coco" / "val.txt").write_text("000000000139\n")
    with pytest.raises(UserError, match="(?s)not COCO's.*a.jpg.*000000000139.*--val_fraction=0.2"):
        build(tmp_path, tmp_path / "out", path)
    _, counts = build(tmp_path, tmp_path / "out", path, extra=["--val_fraction=0.4"])
    assert counts == {"train": 2, "val": 1}


def test_images_and_files_that_do_not_fit(tmp_path, capsys):
    path = export(tmp_path / "i.json", ["a.jpg", "b.jpg", "c.jpg"], folder=tmp_path / "p")
    save(tmp_path / "q" / "z.jpg", picture(0))
    with pytest.raises(UserError, match="(?s)No image below --images_dir.*z.*a.jpg"):
        build(tmp_path / "q", tmp_path / "out", path)
    (tmp_path / "p" / "c.jpg").unlink()
    build(tmp_path / "p", tmp_path / "out", path, extra=["--val_fraction=0.5"])
    assert "1 images of the instances files are not below" in capsys.readouterr().out


@pytest.mark.parametrize(
    "files, names",
    [
        (["train/_a.json", "valid/_a.json", "test/_a.json"], ["train", "val", "test"]),
        (["x/instances_Train.json", "x/instances_Validation.json"], ["train", "val"]),
        (["a.json", "b.json"], ["a", "b"]),
        (["x/train/_a.json", "y/train/_a.json"], None),
    ],
)
def test_names_of_splits(files, names):
    if names is None:
        with pytest.raises(UserError, match="(?s)one name.*--splits_dir.*--val_fraction"):
            split_names(files)
    else:
        assert split_names(files) == dict(zip(names, files))


def test_run_lengths_and_polygons_are_one(tmp_path):
    masks = []
    for k, segmentation in enumerate(([SQUARE], RUNS)):
        path = export(tmp_path / f"{k}.json", ["a.jpg", "b.jpg"], segmentation=segmentation)
        out = tmp_path / f"out{k}"
        build(tmp_path, out, path, extra=["--val_fraction=0.5"])
        masks.append([example.label for example in read(out, "train")[1]])
    assert masks[0] == masks[1] and len(masks[0]) == 1
