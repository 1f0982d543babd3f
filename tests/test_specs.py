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


def test_distinct_colors_differ_and_are_seen():
    colors = colormap.distinct(20).astype(int)
    apart = np.linalg.norm(colors[:, None] - colors, axis=-1) + 999 * np.eye(20)
    assert apart.min() > 60
    # Neither black nor grey, which look like nothing found.
    assert (colors.max(1) > 100).all() and (np.ptp(colors, axis=1) > 50).all()
    assert len(np.unique(colormap.distinct(256), axis=0)) == 256
    np.testing.assert_array_equal(colormap.distinct(256)[:20], colors)
    np.testing.assert_array_equal(
        colormap.distinct(21, first_is_black=True), [[0, 0, 0], *colors.tolist()]
    )


@pytest.mark.parametrize(
    "names, background, first_is_black",
    [
        (("background", "cat"), True, True),
        (("_Background_", "cat"), False, True),
        (("sky", "cat"), True, False),
        (("sky", "cat"), False, False),
    ],
)
def test_black_means_background(names, background, first_is_black):
    spec = DatasetSpec("mine", names, has_background=background)
    assert spec.class_0_is_blank == first_is_black
    assert (spec.colors()[0].max() == 0) == first_is_black
    assert spec.colors()[1].max() > 0 and tuple(spec.colors()[255]) == colormap.VOID


def test_the_colors_of_published_data_sets_stay():
    voc = DATASETS["pascal_voc_seg"]
    np.testing.assert_array_equal(voc.colors(), colormap.pascal())
    # Records of it may have any name.
    mine = DatasetSpec("mine", voc.class_names)
    np.testing.assert_array_equal(mine.colors(), colormap.pascal())
    for name in ("cityscapes", "ade20k"):
        spec = DATASETS[name]
        np.testing.assert_array_equal(spec.colors(), colormap.table(spec.palette))


def test_a_palette_wins():
    spec = DatasetSpec("mine", ("background", "a", "b"), ignore_label=9, palette=((1, 2, 3),) * 3)
    assert (spec.colors()[:3] == [1, 2, 3]).all() and tuple(spec.colors()[9]) == colormap.VOID


def test_palette_is_continued_by_the_rule():
    table = colormap.table(((1, 2, 3),))
    assert table.shape == (256, 3) and table[0].tolist() == [1, 2, 3]
    assert (table[1:] == colormap.pascal()[1:]).all()
    assert len(colormap.ade20k()) == 151 and len(colormap.cityscapes()) == 19
