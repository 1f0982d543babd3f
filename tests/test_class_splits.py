"""Class splits: presets, files, and what they do to labels."""

import dataclasses
import json

import numpy as np
import pytest

from tests.programs import ROOT
from tfseg.data import class_names, class_splits
from tfseg.data.class_splits import UNLABELLED, ClassSplit
from tfseg.data.specs import DATASETS, DatasetSpec
from tfseg.errors import UserError

SPEC = DatasetSpec("toy", ("background", "cat", "potted plant", "dining table", "tv"))
NO_BACKGROUND = DatasetSpec("stuff", ("person", "cat", "grass"), has_background=False)
FILE = {
    "seen": ["background", "cat"],
    "unseen": ["diningtable", "TV"],
    "validation": ["potted_plant"],
    "background": "background",
}


def write(folder, content):
    path = folder / "split.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def load(folder, spec=SPEC, *, seen_background=False, **changes):
    content = {k: v for k, v in {**FILE, **changes}.items() if v != "absent"}
    return class_splits.load(write(folder, content), spec, seen_background=seen_background)


def refused(*words):
    return pytest.raises(UserError, match="(?s)" + ".*".join(words))


# Names ------------------------------------------------------------------------------------------


def find(names, *wanted):
    return class_names.find(names, wanted, what="the list", where="--flag")


def test_names_are_found_exactly_then_loosely_then_by_alias():
    names = ["dining table", "table", "Potted-Plant", "airplane", "tv"]
    assert find(names, "table") == [1]
    # Both 'dining table' and the alias 'table' are there: the nearer one counts.
    assert find(names, "diningtable") == [0]
    wanted = ["potted_plant", "aeroplane", "tvmonitor"]
    assert find(names, *wanted) == [2, 3, 4]
    assert find(["table"], "dining table") == [0]


def test_two_lists_of_classes_are_compared_where_they_differ():
    names = [f"c{k}" for k in range(20)]
    assert class_names.compared([*names, "new"], names) == "21 classes, class 20 is 'new'"
    assert class_names.compared(names, [*names, "new"]) == "20 classes"
    assert (
        class_names.compared(["a", "b"], ["b", "a"]) == "2 classes, class 0 is 'a', class 1 is 'b'"
    )
    assert class_names.compared(names, ["x"]).endswith("class 3 is 'c3' ...")


def test_every_alias_is_written_normalised():
    for group in class_names.ALIASES:
        assert [class_names.normalised(name) for name in group] == list(group)


def test_an_unknown_name_lists_near_matches():
    with refused("'shep'", "--flag", "near matches: sheep"):
        find(["cat", "sheep", "horse"], "shep")
    with refused("'zebra'", "cat, dog"):
        find(["cat", "dog"], "zebra")


def test_a_name_that_fits_several_is_refused():
    with refused("several", "'potted plant', 'potted_plant'"):
        find(["potted plant", "potted_plant"], "pottedplant")


# Presets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, data, seen, validation, unseen",
    [
        ("spnet_voc12", "pascal_voc_seg", 15, [13, 14, 15], [16, 17, 18, 19, 20]),
        (
            "spnet_cocostuff",
            "coco_stuff",
            167,
            [3, 21, 38, 45, 51, 61, 75, 81, 93, 129, 136, 139],
            [20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171],
        ),
        ("zs3_voc_2", "pascal_voc_seg", 19, [], [10, 14]),
        ("zs3_voc_10", "pascal_voc_seg", 11, [], [1, 5, 8, 9, 10, 14, 16, 18, 19, 20]),
        ("zs3_context_4", "pascal_context", 56, [], [8, 10, 14, 18]),
        ("zs3_context_10", "pascal_context", 50, [], [1, 3, 4, 8, 10, 14, 18, 20, 32, 38]),
    ],
)
def test_published_splits(preset, data, seen, validation, unseen):
    spec = DATASETS[data]
    split = class_splits.load(preset, spec)
    assert len(split.seen) == seen
    assert list(split.validation) == validation and set(validation) <= set(split.seen)
    assert list(split.unseen) == unseen
    # Only the background of SPNet's VOC split takes no part.
    rest = set(range(spec.num_classes)) - set(split.visible)
    assert rest == ({0} if preset == "spnet_voc12" else set())
    assert split.background == (0 if preset.startswith("zs3") else None)


@pytest.mark.parametrize("data", ["voc", "context"])
def test_zs3s_splits_are_nested(data):
    spec = DATASETS["pascal_voc_seg" if data == "voc" else "pascal_context"]
    unseen = [class_splits.load(f"zs3_{data}_{k}", spec).unseen for k in (2, 4, 6, 8, 10)]
    assert [len(u) for u in unseen] == [2, 4, 6, 8, 10]
    assert all(set(a) < set(b) for a, b in zip(unseen, unseen[1:]))


def test_presets_are_those_of_the_flags_help():
    assert len(class_splits.PRESETS) == 12


def test_a_preset_of_another_data_set_is_refused():
    with refused("another data set", "coco with 81 classes", "21 classes"):
        class_splits.load("spnet_voc12", DATASETS["coco"])
    names = ("background", *(f"thing {i}" for i in range(20)))
    with refused("'pottedplant' is not among", "data set other"):
        class_splits.load("spnet_voc12", DatasetSpec("other", names))


# Files ------------------------------------------------------------------------------------------


def test_a_file_names_classes(tmp_path):
    split = load(tmp_path)
    assert (split.seen, split.unseen, split.validation) == ((0, 1, 2), (3, 4), (2,))
    assert split.background == 0 and split.visible == (0, 1, 2, 3, 4)
    # Neither background nor validation classes need to be repeated among the seen ones, nor not.
    again = load(tmp_path, seen=["cat", "potted plant"], background="Background")
    assert dataclasses.replace(again, name="") == dataclasses.replace(split, name="")


def test_a_background_that_takes_no_part(tmp_path):
    split = load(tmp_path, seen=["cat"], background=None)
    assert split.seen == (1, 2) and split.background is None and split.visible == (1, 2, 3, 4)
    with_it = load(tmp_path, seen=["cat"], background=None, seen_background=True)
    assert with_it.seen == (0, 1, 2) and with_it.background == 0
    plain = load(tmp_path, NO_BACKGROUND, seen=["cat", "person"], unseen=["grass"], validation=[],
                 background="absent")  # fmt: skip
    assert plain.seen == (0, 1) and plain.background is None


@pytest.mark.parametrize(
    "name, classes, unseen",
    [
        ("voc12_animals7", "background,cat,cow,dog,horse,person,sheep", [4, 6]),
        ("digits", "background,0,1,2,3,4,5,6,7,8,9", [8, 9, 10]),
    ],
)
def test_files_of_the_experiments(name, classes, unseen):
    spec = DatasetSpec(name, tuple(classes.split(",")))
    split = class_splits.load(str(ROOT / "experiments" / f"{name}_split.json"), spec)
    assert list(split.unseen) == unseen and split.background == 0
    assert split.without_validation().seen


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"unseen": ["cat", "tv", "diningtable"]}, ("both seen and unseen", "cat")),
        ({"unseen": ["potted plant", "tv", "diningtable"]}, ("both seen", "potted plant")),
        ({"unseen": ["tv"]}, ("leaves out", "dining table")),
        ({"unseen": ["table", "tv", "horse"]}, ("'horse' is not among", "data set toy")),
        ({"unseen": ["tv", "TV", "table"]}, ('"unseen" .* twice', "tv")),
        ({"unseen": ["background", "tv", "table"]}, ("both seen and unseen", "background")),
        ({"background": "cat"}, ("no such background", "class 1 is 'cat'", "class 0")),
        ({"background": None}, ("takes no part", "'background' in", "null")),
        ({"background": 0}, ('"background"', "name or null")),
        ({"unseen": "tv"}, ('"unseen"', "list of names")),
        ({"seen": [1]}, ('"seen"', "list of names")),
        ({"novel": []}, ("structure", "novel", '"unseen"')),
        (
            {"seen": ["background", "cat", "tv", "table"], "unseen": []},
            ("no unseen classes",),
        ),
        (
            {"seen": [], "validation": [], "unseen": ["cat", "potted plant", "table", "tv"]},
            ("no seen classes",),
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, changes, words):
    with refused(*words, "--class_split=" if "where" in words else ""):
        load(tmp_path, **changes)


def test_the_background_cannot_be_unseen(tmp_path):
    with refused("background cannot be an unseen"):
        load(tmp_path, seen=["cat"], unseen=["background", "tv", "table"], background=None)


def test_background_is_refused_where_class_0_is_none(tmp_path):
    for options in ({"seen_background": True}, {"background": "person"}):
        with refused("no such background", "class 0 is 'person'"):
            load(
                tmp_path,
                NO_BACKGROUND,
                **{"seen": ["cat", "person"], "unseen": ["grass"], "validation": [],
                   "background": None, **options},
            )  # fmt: skip
    with refused("class 0 is 'person'"):
        class_splits.load("spnet_cocostuff", DATASETS["coco_stuff"], seen_background=True)


def test_a_file_that_is_none(tmp_path):
    with refused("no such class split", "spnet_voc12", "JSON file"):
        class_splits.load("spnet_voc13", SPEC)
    with refused("not valid JSON"):
        class_splits.load(write(tmp_path, "{"), SPEC)
    with refused("structure", "list"):
        class_splits.load(write(tmp_path, "[]"), SPEC)


def test_a_split_that_comes_with_the_package_is_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = DatasetSpec("digits", ("background", *map(str, range(10))))
    split = class_splits.load("experiments/digits_split.json", spec)
    assert [spec.class_names[c] for c in split.unseen] == ["7", "8", "9"]


def test_data_sets_without_room_are_refused(tmp_path):
    with refused("ade20k", "ignore label 0"):
        class_splits.load("spnet_voc12", DATASETS["ade20k"])
    with refused("255 classes"):
        class_splits.load("x", DatasetSpec("big", tuple(map(str, range(255)))))


def test_a_split_holds_each_class_once():
    with refused("stands twice", "class ids 1"):
        ClassSplit("x", (0, 1), (1, 2))
    with refused("must be seen", "class ids 2"):
        ClassSplit("x", (0, 1), (2,), validation=(2,))
    with refused("must be seen", "class ids 3"):
        ClassSplit("x", (0, 1), (2,), background=3)


def test_json_round_trip(tmp_path):
    split = load(tmp_path).without_validation()
    assert ClassSplit.from_json(json.loads(json.dumps(split.to_json()))) == split
    spec = dataclasses.replace(SPEC, seen_unseen=split)
    assert spec == SPEC and spec.to_json()["split"]["unseen"] == [2]
    assert "split" not in SPEC.to_json()


# Tables -----------------------------------------------------------------------------------------


def test_tables_with_a_seen_background():
    split = ClassSplit("x", seen=(0, 1, 2), unseen=(3, 4), validation=(2,), background=0)
    training, evaluation = (f(6, 255) for f in (split.training_table, split.evaluation_table))
    # Class 5 is in no list: background in training, not counted in evaluation.
    assert training[:7].tolist() == [0, 1, 2, 0, 0, 0, 255]
    assert evaluation[:7].tolist() == [0, 1, 2, 3, 4, 255, 255]
    assert (training[6:] == 255).all() and (evaluation[6:] == 255).all()
    held = split.without_validation()
    assert (held.seen, held.unseen, held.held_out) == ((0, 1), (2,), (3, 4))
    assert held.training_table(6, 255)[:6].tolist() == [0, 1, 0, 0, 0, 0]
    assert held.evaluation_table(6, 255)[:6].tolist() == [0, 1, 2, 0, 0, 255]
    with refused("no validation classes"):
        held.without_validation()


def test_tables_without_background():
    split = ClassSplit("x", seen=(1, 2), unseen=(3, 4), validation=(2,))
    training = split.training_table(5, 7)
    assert training[:8].tolist() == [UNLABELLED, 1, 2, UNLABELLED, UNLABELLED, 7, 7, 7]
    assert split.evaluation_table(5, 7)[:6].tolist() == [7, 1, 2, 3, 4, 7]
    held = split.without_validation()
    assert held.training_table(5, 7)[:5].tolist() == [UNLABELLED, 1, *[UNLABELLED] * 3]
    assert held.evaluation_table(5, 7)[:5].tolist() == [7, 1, 2, 7, 7]


def test_no_unseen_id_stands_in_a_training_table():
    for name in class_splits.PRESETS:
        data = {"voc": "pascal_voc_seg", "con": "pascal_context", "coc": "coco_stuff"}
        spec = DATASETS[data[name.split("_")[1][:3]]]
        split = class_splits.load(name, spec)
        parts = [split, split.without_validation()] if split.validation else [split]
        for part in parts:
            table = part.training_table(spec.num_classes, spec.ignore_label)
            assert not np.isin(table, part.unseen + part.held_out).any()
