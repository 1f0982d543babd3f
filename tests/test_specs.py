"""Descriptions of data sets and their colours."""

import json

import numpy as np
import pytest

from tfseg.data import colormap
from tfseg.data.specs import DATASETS, DatasetSpec, load_spec
from tfseg.errors import UserError


@pytest.mark.parametrize(
    "name, classes, image_classes, ignore",
    [
        ("pascal_voc_seg", 21, 20, 255),
        ("coco", 81, 80, 255),
        ("cityscapes", 19, 19, 255),
        ("ade20k", 151, 150, 0),
        ("pascal_context", 60, 59, 255),
        ("coco_stuff", 182, 182, 255),
    ],
)
def test_published_datasets(name, classes, image_classes, ignore):
    spec = DATASETS[name]
    assert (spec.num_classes, spec.num_image_classes) == (classes, image_classes)
    assert spec.ignore_label == ignore
    assert len(set(spec.class_names)) == classes


def test_known_ids():
    assert DATASETS["pascal_voc_seg"].class_names[15] == "person"
    assert DATASETS["coco"].class_names[1] == "person"
    assert DATASETS["coco"].class_names[80] == "toothbrush"
    city = DATASETS["cityscapes"]
    assert city.eval_ids[city.class_names.index("car")] == 26
    assert DATASETS["ade20k"].class_names[150] == "flag"
    context, stuff = DATASETS["pascal_context"], DATASETS["coco_stuff"]
    assert context.class_names[1] == "aeroplane" and context.class_names[59] == "wood"
    assert stuff.class_names[0] == "person" and stuff.class_names[91] == "banner"
    assert stuff.class_names[171] == "wall-concrete"


def test_json_round_trip():
    for spec in DATASETS.values():
        assert DatasetSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": []},
        {"class_names": ["a", "a"]},
        {"class_names": None},
        {"ignore_label": 256},
        {"ignore_label": "x"},
        {"palette": [[0, 0]]},
        {"palette": [[0, 0, 256]]},
        {"name": None, "class_names": 3},
    ],
)
def test_malformed_description(change):
    content = {**DATASETS["pascal_voc_seg"].to_json(), **change}
    with pytest.raises(UserError, match="dataset.json"):
        DatasetSpec.from_json(content)


def test_dataset_json_wins(tmp_path):
    own = DatasetSpec("mine", ("background", "cat"))
    (tmp_path / "dataset.json").write_text(json.dumps(own.to_json()))
    assert load_spec(str(tmp_path), "coco") == own


def test_records_without_description(tmp_path):
    assert load_spec(str(tmp_path), "coco") is DATASETS["coco"]
    with pytest.raises(UserError, match="cityscapes, coco"):
        load_spec(str(tmp_path), "unheard-of")
    with pytest.raises(UserError, match="does not exist"):
        load_spec(str(tmp_path / "none"), "coco")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_spec(str(tmp_path), "coco")


def test_pascal_colors():
    colors = colormap.pascal(512)
    assert colors[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colors[15].tolist() == [192, 128, 128]
    assert colors[255].tolist() == [224, 224, 192]
    # Nine bits of id give 512 distinct colours.
    assert len(np.unique(colors, axis=0)) == 512


def test_palette_is_continued_by_the_rule():
    table = colormap.table(((1, 2, 3),))
    assert table.shape == (256, 3) and table[0].tolist() == [1, 2, 3]
    assert (table[1:] == colormap.pascal()[1:]).all()
    assert len(colormap.ade20k()) == 151 and len(colormap.cityscapes()) == 19
