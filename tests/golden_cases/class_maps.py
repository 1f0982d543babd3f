"""Golden cases of class splits: what label values become in training and evaluation."""

import dataclasses
import os

import numpy as np
import pytest

from tests.golden_cases.lpl_model import load
from tfseg.data import class_splits
from tfseg.data.specs import DATASETS
from tfseg.errors import UserError

IGNORE = 255
# What a regime's maps are computed from; its other arrays are compared.
CLASS_LISTS = ("seen_classes", "novel_classes", "seen_novel_classes")
# What the published maps write for pixels that are not labelled.
HOLES = {"seen_map": -1, "cls_map": IGNORE, "all_map": -1}
# The case made from the lists of the real data set.
VOC = "class_maps_voc12"


def _quantities(path):
    return [name for name in load(path) if name.rpartition("/")[2] not in CLASS_LISTS]


def _split(arrays, regime, path):
    """Returns the regime's split: from its lists of ids, or the preset of the same name."""
    seen, unseen = (
        tuple(arrays[f"{regime}/{kind}_classes"].tolist()) for kind in ("seen", "novel")
    )
    background = 0 if regime == "bkg" else None
    split = class_splits.ClassSplit("case", seen, unseen, background=background)
    if os.path.basename(path) == f"{VOC}.npz":
        preset = class_splits.load(
            "spnet_voc12", DATASETS["pascal_voc_seg"], seen_background=regime == "bkg"
        )
        assert (preset.seen, preset.unseen, preset.background) == (seen, unseen, background)
    return split


def _maps(path, regime):
    arrays = load(path)
    split = _split(arrays, regime, path)
    # Logits of the published network: seen classes first, in the order of the list.
    order = [*split.seen, *split.unseen]
    np.testing.assert_array_equal(order, arrays[f"{regime}/seen_novel_classes"])
    num_classes = max(order) + 1
    only_seen = dataclasses.replace(split, unseen=())
    tables = {
        "seen_map": split.training_table(num_classes, IGNORE),
        "cls_map": only_seen.evaluation_table(num_classes, IGNORE),
        "all_map": split.evaluation_table(num_classes, IGNORE),
    }
    places = np.full(256, -1)
    places[order] = np.arange(len(order))
    # The published training map does not tell candidates from void: both are holes.
    return {
        name: np.where(places[table] < 0, HOLES[name], places[table])
        for name, table in tables.items()
    }


def _check(path, name):
    regime, _, quantity = name.rpartition("/")
    assert quantity in HOLES, f"{path} holds {name}, which no check knows"
    order = load(path)[f"{regime}/seen_novel_classes"]
    if len(set(order)) < len(order):
        # Published for a data set without background: class 0 then stands twice. Refused here.
        with pytest.raises(UserError, match="stands twice"):
            _maps(path, regime)
        return
    np.testing.assert_array_equal(_maps(path, regime)[quantity], load(path)[name])


CASES = {"strict/class_maps": (_quantities, _check)}
