"""Batches of zero-label runs: what hides unseen classes, and images that are left out."""

import dataclasses

import numpy as np
import pytest

from tests.small_split import SPEC, make_images, write_split
from tests.test_pipeline import COUNT, MEAN, SIZES, dataset_of, settings, take, write
from tfseg.data import sampling
from tfseg.data.class_splits import UNLABELLED, ClassSplit
from tfseg.data.evaluation_batches import make_eval_dataset
from tfseg.data.image_input import ImageInput
from tfseg.data.sources import make_sources
from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.settings.data import DataConfig

# Classes: background, cat, dog, cow.
SPLITS = {
    "background seen": ClassSplit("x", (0, 1), (2, 3), background=0),
    "background unlabelled": ClassSplit("x", (1,), (2, 3)),
    "settings, background seen": ClassSplit("x", (0, 1), (2,), background=0, held_out=(3,)),
    "settings, background unlabelled": ClassSplit("x", (1,), (2,), held_out=(3,)),
}
(AUGMENTATIONS,) = (
    field.metadata["choices"]
    for field in dataclasses.fields(DataConfig)
    if field.name == "augmentation"
)
SEEN = Stream("train", COUNT, labels="seen")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("records"))
    write(path, image_labels=[[1]] * COUNT)
    return path


def spec_of(split):
    return dataclasses.replace(SPEC, seen_unseen=split)


def batches(config, stream, split, *, count=3):
    """Returns the stream's batches, with a data set that has this class split."""
    sources = make_sources({"s": stream}, spec_of(split), config)
    found = take(dataset_of(config, {"s": stream}, sources=sources), count)
    return [element["s"] for element in found]


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_no_unseen_class_reaches_a_label(folder, augmentation, split):
    config = settings(folder, augmentation=augmentation)
    whole = batches(config, dataclasses.replace(SEEN, labels="required"), split)
    shown = batches(config, SEEN, split)
    void = padding = 0
    for raw, batch in zip(whole, shown):
        np.testing.assert_array_equal(batch["image"], raw["image"])
        masks, label, candidate = raw["label"], batch["label"], batch["candidate"]
        seen = np.isin(masks, split.seen)
        assert set(np.unique(label)) <= {*split.seen, 255}
        np.testing.assert_array_equal(label[seen], masks[seen])
        # What stands where no label may be, and whether a pseudo label may come there.
        hidden = ~seen & (masks != 255)
        assert hidden.any()
        assert (label[hidden] == (255 if split.background is None else 0)).all()
        assert (label[masks == 255] == 255).all()
        open_to = hidden | (masks == 0)
        np.testing.assert_array_equal(candidate, open_to & (raw["valid"] > 0))
        void += (masks == 255).sum()
        padding += (raw["valid"] == 0).sum()
        # Monitors know the unseen classes, and no others.
        known = np.isin(masks, split.visible)
        np.testing.assert_array_equal(batch["hidden_label"][known], masks[known])
        held_out = np.isin(masks, split.held_out)
        other = 255 if split.background is None else 0
        assert (batch["hidden_label"][held_out] == other).all()
        assert (batch["hidden_label"][~known & ~held_out] == 255).all()
    assert void and (padding or augmentation not in ("deeplab", "composition"))


@pytest.mark.parametrize("background", [0, None])
def test_masks_without_unseen_classes_give_the_same_batches(folder, tmp_path, background):
    split = SPLITS["background seen" if background == 0 else "background unlabelled"]
    images, labels = make_images(SIZES)
    changed = {
        "merged": [np.where(np.isin(x, split.unseen), 0, x).astype(np.uint8) for x in labels],
        "permuted": [np.array([0, 1, 3, 2, *range(4, 256)], np.uint8)[x] for x in labels],
    }
    expected = batches(settings(folder), SEEN, split)
    for name, masks in changed.items():
        (tmp_path / name).mkdir()
        write(str(tmp_path / name), images=images, labels=masks)
        differing = 0
        for a, b in zip(expected, batches(settings(tmp_path / name), SEEN, split)):
            assert set(a) == set(b)
            for key in set(a) - {"hidden_label"}:
                np.testing.assert_array_equal(a[key], b[key], err_msg=f"{name} {key}")
            differing += (a["hidden_label"] != b["hidden_label"]).sum()
        assert differing > 0


def test_batches_have_the_vocabulary(folder):
    split = SPLITS["background seen"]
    config = settings(folder)
    streams = {"s": dataclasses.replace(SEEN, strong_views=1)}
    sources = make_sources(streams, spec_of(split), config)
    spec = dataset_of(config, streams, sources=sources).element_spec["s"]
    assert set(spec) == {
        *("image", "image_strong", "label", "candidate", "hidden_label"),
        *("valid", "has_label", "index"),
    }
    for key, dtype in (("label", "int32"), ("hidden_label", "int32"), ("candidate", "bool")):
        assert spec[key].shape == (COUNT, 33, 33) and spec[key].dtype == dtype


def test_what_would_name_unseen_classes_is_refused():
    for image_labels in ("record", "crop"):
        with pytest.raises(UserError, match="'none' with labels='seen'"):
            Stream("train", 4, labels="seen", image_labels=image_labels)


def test_a_class_split_is_needed(folder):
    with pytest.raises(UserError, match="--class_split"):
        make_sources({"s": SEEN}, SPEC, settings(folder))


def test_masks_are_needed(tmp_path):
    _, labels = make_images(SIZES)
    spec = spec_of(SPLITS["background seen"])
    write(str(tmp_path), labels=[None] * COUNT)
    with pytest.raises(UserError, match="has a mask"):
        make_sources({"s": SEEN}, spec, settings(tmp_path))
    write(str(tmp_path), labels=[None, *labels[1:]])
    source = make_sources({"s": SEEN}, spec, settings(tmp_path))["s"]
    with pytest.raises(UserError, match="image_0.*no mask"):
        source.fetch(0)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_evaluation_labels_are_those_of_visible_classes(folder, split):
    _, labels = make_images(SIZES)
    dataset = make_eval_dataset(
        "train",
        spec_of(split),
        DataConfig(dataset_dir=folder),
        ImageInput(MEAN, lambda height, width: (height, width), (65, 65)),
        batch_size=1,
    )
    table = split.evaluation_table(4, 255)
    assert not (table == UNLABELLED).any()
    for i, batch in enumerate(dataset):
        height, width = SIZES[i]
        found = batch["label"].numpy()[0]
        np.testing.assert_array_equal(found[:height, :width], table[labels[i]])
        assert (found[height:] == 255).all() and (found[:, width:] == 255).all()


# Left-out images --------------------------------------------------------------------------------


def dropping(folder, *ids):
    path = folder / "drop.txt"
    path.write_text("\n".join(ids) + "\n\n")
    return str(path)


def test_dropped_images_are_never_shown(folder, tmp_path):
    config = settings(folder, drop_images=dropping(tmp_path, "image_2", "image_7", "elsewhere"))
    streams = {"s": Stream("train", 4), "two": Stream("train", 4, epoch_of="s")}
    sources = make_sources(streams, SPEC, config)
    found = take(dataset_of(config, streams, sources=sources), 6)
    kept = [i for i in range(COUNT) if i not in (2, 7)]
    for name in streams:
        numbers = np.concatenate([element[name]["index"] for element in found])
        # Three epochs of eight records.
        for epoch in numbers.reshape(3, 8):
            assert sorted(epoch) == kept
    agreed = sampling.step_records("train", 4, sources["s"].epoch, seed=3, step=1)
    np.testing.assert_array_equal(found[1]["s"]["index"], agreed)
    resumed = take(dataset_of(config, streams, sources=sources, start_step=4), 1)[0]
    np.testing.assert_array_equal(resumed["s"]["image"], found[4]["s"]["image"])


def test_dropped_images_are_no_draws_either(tmp_path):
    images, labels = make_images(SIZES)
    named = [[1 + i % 3] for i in range(COUNT)]
    write_split(str(tmp_path), images, labels, split="train", image_labels=named)
    config = settings(tmp_path, drop_images=dropping(tmp_path, "image_2", "image_3"))
    stream = Stream("train", 8, labels="none", image_labels="record", sampling="class_weighted")
    source = make_sources({"s": stream}, SPEC, config)["s"]
    assert source.epoch.length == COUNT - 2
    drawn = [
        sampling.step_records("train", 8, source.epoch, seed=3, step=step) for step in range(20)
    ]
    assert set(np.concatenate(drawn)) == {i for i in range(COUNT) if i not in (2, 3)}


@pytest.mark.parametrize(
    "ids, message",
    [
        (("image_77",), "None of the images"),
        ([f"image_{i}" for i in range(COUNT)], "Every image"),
    ],
)
def test_lists_that_leave_out_nothing_or_all_are_refused(folder, tmp_path, ids, message):
    config = settings(folder, drop_images=dropping(tmp_path, *ids))
    with pytest.raises(UserError, match=message):
        make_sources({"s": Stream("train", 4)}, SPEC, config)


def test_a_list_that_is_none_is_refused(folder, tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match="--drop_images=.*\n.*one id in a line"):
            config = settings(folder, drop_images=str(path))
            make_sources({"s": Stream("train", 4)}, SPEC, config)
