"""Pipelines: positions, resume, workers and replicas, damaged records, evaluation batches."""

import dataclasses
import io
import os

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.small_split import SPEC, make_images, png, write_split
from tfseg.data import pipeline, sampling, specs, tfexample
from tfseg.data.atomic_writing import ShardWriter
from tfseg.data.evaluation_batches import make_eval_dataset
from tfseg.data.image_input import UNPADDED, ImageInput, padded_size
from tfseg.data.framing import HEADER_BYTES, frame
from tfseg.data.index_file import index_path
from tfseg.data.shards import shard_name
from tfseg.data.sources import make_sources
from tfseg.data.split_index import load_index
from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.ops.resize import resize_pillow
from tfseg.runs.training_data import TrainingData
from tfseg.runs.training_directory import note_new_order
from tfseg.settings.data import DataConfig
from tfseg.settings.reading import make
from tfseg.settings.run import TrainConfig

MEAN = (127.5, 127.5, 127.5)
COUNT = 10
SIZES = [(20 + 3 * i, 40 - 2 * i) for i in range(COUNT)]
STREAM = Stream("train", 4)


def write(folder, *, image_labels=None, images=None, labels=None):
    """Writes two shards of five records; returns their images and labels."""
    made = make_images(SIZES)
    images, labels = images or made[0], labels or made[1]
    if os.path.exists(index_path(folder, "train")):
        os.remove(index_path(folder, "train"))  # of what was written before
    for shard in range(2):
        path = os.path.join(folder, shard_name("train", shard, 2))
        with ShardWriter(path) as writer:
            for i in range(5 * shard, 5 * shard + 5):
                label = labels[i]
                writer.write(
                    tfexample.encode(
                        image=png(images[i]),
                        label=None if label is None else png(label),
                        filename=f"image_{i}",
                        height=images[i].shape[0],
                        width=images[i].shape[1],
                        image_labels=None if image_labels is None else image_labels[i],
                    )
                )
    return images, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("records"))
    write(path, image_labels=[[1 + i % 3] for i in range(COUNT)])
    return path


def settings(folder, **changes):
    return make(
        DataConfig,
        **{"dataset_dir": str(folder), "train_crop_size": (33, 33), "data_threads": 2, **changes},
    )


def dataset_of(config, streams=None, *, sources=None, seed=3, **options):
    streams = streams or {"s": STREAM}
    sources = sources or make_sources(streams, SPEC, config)
    dataset = pipeline.make_train_dataset(
        streams, sources, config, mean_pixel=MEAN, seed=seed, **options
    )
    return dataset.map(tf.autograph.experimental.do_not_convert(pipeline.unpacked))


def take(dataset, count):
    return [tf.nest.map_structure(lambda x: x.numpy(), e) for e in dataset.take(count)]


def assert_same(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


# Order ------------------------------------------------------------------------------------------


def test_every_record_comes_once_per_epoch_and_batches_straddle_epochs(folder):
    found = np.concatenate([e["s"]["index"] for e in take(dataset_of(settings(folder)), 10)])
    epochs = found.reshape(4, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_step_records_names_the_images_of_a_batch(folder):
    for step, element in enumerate(take(dataset_of(settings(folder)), 4)):
        expected = sampling.step_records("train", 4, sampling.uniform(COUNT), seed=3, step=step)
        np.testing.assert_array_equal(element["s"]["index"], expected)


@pytest.mark.parametrize("augmentation, folders", [("deeplab", "one"), ("resized_crop", "two")])
def test_two_streams_on_one_split_have_images_and_crops_of_their_own(
    folder, tmp_path, monkeypatch, augmentation, folders
):
    """Also on splits of one name in two directories."""
    monkeypatch.setitem(specs.DATASETS, "toy", SPEC)
    other = None
    if folders == "two":
        other = str(tmp_path)
        write(other, image_labels=[[1 + i % 3] for i in range(COUNT)])
    config = settings(folder, dataset="toy", augmentation=augmentation)
    first = Stream("train", COUNT)
    streams = {"first": first, "second": dataclasses.replace(first, dataset_dir=other)}
    batch = take(dataset_of(config, streams), 1)[0]
    assert (batch["first"]["index"] != batch["second"]["index"]).any()
    images = [dict(zip(s["index"].tolist(), s["image"])) for s in batch.values()]
    differing = [i for i in range(COUNT) if (images[0][i] != images[1][i]).any()]
    assert len(differing) >= COUNT - 1
    # The first one, and a stream that alone reads its split, are as ever.
    assert_same(batch["first"], take(dataset_of(config, {"s": first}), 1)[0]["s"])


def test_a_stream_in_the_order_of_another_has_the_same_images_and_crops_of_its_own(folder):
    streams = {
        "a": Stream("train", 4, labels="none"),
        "again": Stream("train", 4, labels="none", order_of="a"),
    }
    differing = 0
    for batch in take(dataset_of(settings(folder), streams), 4):
        first, again = batch["a"], batch["again"]
        np.testing.assert_array_equal(again["index"], first["index"])
        differing += sum((x != y).any() for x, y in zip(again["image"], first["image"]))
    # Crops of so small images may happen to be the same.
    assert differing >= 12


def test_images_of_another_split_accompany_always_the_same(tmp_path):
    few, folder = 3, str(tmp_path)
    write(folder)
    images, labels = make_images(SIZES[:few])
    write_split(folder, images, labels, split="few")
    streams = {
        "few": Stream("few", 4, order_of="many"),
        "many": Stream("train", 4, labels="none"),
    }
    seen = {}
    for batch in take(dataset_of(settings(folder), streams), 2 * COUNT):
        assert (batch["few"]["index"] == batch["many"]["index"] % few).all()
        for record, image in zip(batch["few"]["index"].tolist(), batch["few"]["image"]):
            seen.setdefault(record, []).append(image)
    # Each time with a crop of its own.
    assert all(any((y != x[0]).any() for y in x) for x in seen.values())
    # None of a longer split is left out.
    streams = {
        "many": Stream("train", 1, order_of="few"),
        "few": Stream("few", 1, labels="none"),
    }
    found = take(dataset_of(settings(folder), streams), COUNT)
    assert sorted(int(batch["many"]["index"][0]) for batch in found) == list(range(COUNT))


def test_boxes_belong_to_an_image_of_an_epoch_and_lie_in_the_crop(folder):
    streams = {"s": Stream("train", 4, labels="none", strong_views=2, boxes=True)}
    whole = take(dataset_of(settings(folder), streams), 8)
    assert_same(whole[5:], take(dataset_of(settings(folder), streams, start_step=5), 3))
    boxes = np.concatenate([batch["s"]["boxes"] for batch in whole])
    assert boxes.shape[1:] == (2, 4) and boxes.dtype == np.int32
    assert (boxes[..., :2] + boxes[..., 2:] <= 33).all() and (boxes >= 0).all()
    assert 0 < (boxes[..., 2] == 0).sum() < boxes[..., 2].size
    assert (boxes[:, 0] != boxes[:, 1]).any()


def test_streams_are_drawn_by_their_splits_where_these_differ():
    names = {"a": "train", "b": "train_aug", "c": "train", "d": "train", "train/c": "train/c"}
    drawn = pipeline.drawn_by({name: Stream(split, 2) for name, split in names.items()})
    assert [drawn[name] for name in "abc"] == ["train", "train_aug", "train/c"]
    assert len(set(drawn.values())) == len(names)


def test_the_images_of_a_step_are_named_where_two_streams_read_one_split(folder):
    streams = {"first": STREAM, "second": STREAM}
    config = settings(folder, augmentation="resized_crop")
    data = TrainingData(streams, SPEC, config, TrainConfig(seed=3), None)
    batch = take(dataset_of(config, streams), 3)[2]
    named = (
        f"{name}: {', '.join(f'image_{i}' for i in stream['index'])}"
        for name, stream in batch.items()
    )
    assert data.describe_batch(2) == "; ".join(named)


def test_a_saved_run_says_that_a_stream_is_drawn_otherwise_from_now_on(capsys):
    shared = {"labelled": STREAM, "unlabelled": STREAM}
    note_new_order({"seed": 0}, shared)
    told = capsys.readouterr().out
    assert "'train'" in told and "'unlabelled'" in told and "numbers differ" in told
    # Nothing where this version has begun the run, or has told it already.
    note_new_order({"seed": 0, "drawn_by": pipeline.drawn_by(shared)}, shared)
    distinct = {"labelled": STREAM, "unlabelled": Stream("train_aug", 4)}
    note_new_order({"seed": 0}, distinct)
    assert capsys.readouterr().out == ""


# Reproducibility --------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_batches_whatever_the_threads(folder):
    first = take(dataset_of(settings(folder)), 4)
    assert_same(first, take(dataset_of(settings(folder, data_threads=1)), 4))
    other = take(dataset_of(settings(folder), seed=-4), 4)
    assert (first[0]["s"]["index"] != other[0]["s"]["index"]).any()


def test_augmentation_differs_between_epochs(folder):
    found = take(dataset_of(settings(folder), {"s": Stream("train", COUNT)}), 2)
    images = [dict(zip(e["s"]["index"].tolist(), e["s"]["image"])) for e in found]
    differing = [i for i in range(COUNT) if (images[0][i] != images[1][i]).any()]
    assert len(differing) >= COUNT - 1


@pytest.mark.parametrize("start", [1, 7])
def test_resuming_gives_the_following_batches(folder, start):
    streams = {"a": STREAM, "b": Stream("train", 2, strong_views=1)}
    whole = take(dataset_of(settings(folder), streams), start + 3)
    resumed = take(dataset_of(settings(folder), streams, start_step=start), 3)
    assert_same(whole[start:], resumed)


def test_workers_and_replicas_share_the_same_global_batch(folder):
    config = settings(folder)
    whole = take(dataset_of(config), 3)
    workers = [
        take(
            dataset_of(
                config, part=pipeline.Slice(pipeline=i, num_pipelines=2, replicas=2), start_step=0
            ),
            6,
        )
        for i in range(2)
    ]
    for step, expected in enumerate(whole):
        parts = [w[2 * step + replica] for w in workers for replica in range(2)]
        assert parts[0]["s"]["image"].shape == (1, 33, 33, 3)
        joined = tf.nest.map_structure(lambda *x: np.concatenate(x), *parts)
        assert_same(joined, expected)


def test_a_distributed_iterator_gives_each_replica_its_slice(folder, two_replicas):
    config = settings(folder)

    def of_worker(context):
        part = pipeline.Slice(replicas=context.num_replicas_in_sync)
        return dataset_of(config, part=part)

    iterator = iter(two_replicas.distribute_datasets_from_function(of_worker))
    for expected in take(dataset_of(config), 2):
        element = next(iterator)["s"]["index"]
        parts = two_replicas.experimental_local_results(element)
        assert [len(part) for part in parts] == [2, 2]
        np.testing.assert_array_equal(np.concatenate(parts), expected["s"]["index"])


# As many as a method of ours has, and more.
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_strong_views_repeat_and_the_first_is_that_of_one_alone(folder, count):
    config = settings(folder, cutout_half_size=4)
    fewer, more, again = (
        take(dataset_of(config, {"s": Stream("train", 4, strong_views=views)}), 3)
        for views in (count - 1, count, count)
    )
    assert_same(more, again)
    names = ["image_strong", "image_strong_2", "image_strong_3"][:count]
    for first, second in zip(*([element["s"] for element in x] for x in (fewer, more))):
        assert set(second) - set(first) == {names[-1]}
        for name in ("image", "index", *names[:-1]):
            np.testing.assert_array_equal(second[name], first[name])
        # Every view has its own hole, and what any of them lacks is not valid.
        assert (second["valid"] <= first["valid"]).all()
        assert (second["label"][second["valid"] == 0] == 255).all()
        shown, images = second["valid"] == 1, [second[name] for name in names]
        for i, image in enumerate(images):
            for other in images[i + 1 :]:
                assert np.abs(image - other)[shown].mean() > 1.0


# Content ----------------------------------------------------------------------------------------


def test_batches_have_the_vocabulary(folder):
    streams = {
        "labelled": STREAM,
        "second": Stream("train", 2, strong_views=1, labels="optional", image_labels="record"),
        "images": Stream("train", 2, labels="none"),
    }
    spec = dataset_of(settings(folder), streams).element_spec
    image = ((33, 33, 3), tf.float32)
    expected = {
        "image": image,
        "image_strong": image,
        "label": ((33, 33), tf.int32),
        "valid": ((33, 33), tf.float32),
        "image_label": ((3,), tf.float32),
        "has_label": ((), tf.bool),
        "index": ((), tf.int64),
    }
    keys = {
        "labelled": {"image", "label", "valid", "has_label", "index"},
        "second": set(expected),
        "images": {"image", "valid", "has_label", "index"},
    }
    for name, wanted in keys.items():
        assert set(spec[name]) == wanted
        for key in wanted:
            shape, dtype = expected[key]
            assert spec[name][key].shape == (streams[name].batch_size, *shape), key
            assert spec[name][key].dtype == dtype, key


def test_batches_are_narrow_up_to_the_device(folder):
    """Until `unpacked`, what one thread copies is as small as the augmentation allows."""
    streams = {"s": Stream("train", 4, labels="listed", label_split="train")}
    for augmentation, image in (("deeplab", tf.float32), ("long_side_crop", tf.uint8)):
        config = settings(folder, augmentation=augmentation)
        dataset = pipeline.make_train_dataset(
            streams, make_sources(streams, SPEC, config), config, mean_pixel=MEAN, seed=3
        )
        packed = dataset.element_spec["s"]
        assert packed["image"].dtype == image and packed["valid"].dtype == tf.bool
        assert packed["label"].dtype == packed["hidden_label"].dtype == tf.uint8


def test_without_random_scale_a_crop_shows_the_record(tmp_path):
    images, labels = make_images([(33, 33)])
    write_split(str(tmp_path), images, labels, split="train")
    config = settings(tmp_path, min_scale_factor=1.0, max_scale_factor=1.0)
    batch = take(dataset_of(config, {"s": Stream("train", 8)}), 1)[0]["s"]
    flips = 0
    for image, label in zip(batch["image"], batch["label"]):
        flipped = (label[0] != labels[0][0]).any()
        flips += flipped
        step = -1 if flipped else 1
        np.testing.assert_array_equal(image[:, ::step], images[0])
        np.testing.assert_array_equal(label[:, ::step], labels[0])
    assert 0 < flips < 8


def test_resizing_comes_before_augmentation(tmp_path):
    images, labels = make_images([(20, 30)])
    write_split(str(tmp_path), images, labels, split="train")
    config = settings(tmp_path, min_scale_factor=1.0, max_scale_factor=1.0, min_resize_value=24)
    batch = take(dataset_of(config, {"s": Stream("train", 2)}), 1)[0]["s"]
    # 24x36, of which 33 columns fit into the crop.
    np.testing.assert_array_equal(batch["valid"][0].sum(0), [24] * 33)
    assert set(np.unique(batch["label"])) <= set(np.unique(labels[0])) | {255}


def test_image_labels_come_from_the_record_or_from_the_crop(folder):
    for source in ("record", "crop"):
        # Those of the record are no truth about these masks, which a method may not use then.
        labels = "hidden" if source == "record" else "optional"
        stream = Stream("train", 4, strong_views=1, labels=labels, image_labels=source)
        for batch in take(dataset_of(settings(folder), {"s": stream}), 3):
            batch = batch["s"]
            for row in range(4):
                if source == "record":
                    expected = [1 + batch["index"][row] % 3]
                else:
                    expected = set(np.unique(batch["label"][row])) - {0, 255}
                found = np.flatnonzero(batch["image_label"][row]) + 1
                assert set(found) == set(expected)


def test_records_without_a_mask_are_ignored_where_labels_are_optional(tmp_path):
    _, labels = make_images(SIZES)
    write(str(tmp_path), labels=[None if i % 2 else x for i, x in enumerate(labels)])
    stream = Stream("train", COUNT, labels="optional")
    batch = take(dataset_of(settings(tmp_path), {"s": stream}), 1)[0]["s"]
    np.testing.assert_array_equal(batch["has_label"], batch["index"] % 2 == 0)
    assert (batch["label"][~batch["has_label"]] == 255).all()
    assert (batch["label"][batch["has_label"]] != 255).any(axis=(1, 2)).all()


def listed_streams(batch_size=4, **changes):
    """Some images with masks, and all images, of which only the former's masks may be used."""
    weak = {"labels": "listed", "label_split": "few", "image_labels": "record", **changes}
    return {
        "few": Stream("few", batch_size, image_labels="record", epoch_of="all"),
        "all": Stream("train", batch_size, **weak),
    }


@pytest.fixture
def listed_folder(tmp_path):
    """Split train of ten images, split few with images 1, 4 and 7 of it."""
    images, labels = make_images(SIZES)
    named = [sorted(set(np.unique(label)) - {0, 255}) for label in labels]
    write(str(tmp_path), labels=labels, image_labels=named)
    few = [1, 4, 7]
    with ShardWriter(str(tmp_path / shard_name("few", 0, 1))) as writer:
        for i in few:
            writer.write(
                tfexample.encode(
                    image=png(images[i]),
                    label=png(labels[i]),
                    filename=f"image_{i}",
                    height=images[i].shape[0],
                    width=images[i].shape[1],
                    image_labels=named[i],
                )
            )
    return tmp_path, few


def test_only_masks_of_listed_images_are_labels(listed_folder):
    folder, few = listed_folder
    seen = set()
    for batch in take(dataset_of(settings(folder), listed_streams()), 5):
        batch = batch["all"]
        np.testing.assert_array_equal(batch["has_label"], np.isin(batch["index"], few))
        assert (batch["label"][~batch["has_label"]] == 255).all()
        shown = batch["has_label"]
        np.testing.assert_array_equal(batch["label"][shown], batch["hidden_label"][shown])
        assert (batch["hidden_label"] != 255).any(axis=(1, 2)).all()
        seen |= set(batch["index"])
    assert seen == set(range(10))


def test_few_records_come_round_in_an_epoch_as_long_as_that_of_many(listed_folder):
    folder, _ = listed_folder
    config = settings(folder)
    streams = listed_streams(batch_size=10)
    batches = [batch["few"] for batch in take(dataset_of(config, streams), 2)]
    for batch in batches:
        # Ten positions of three records: 0, 1, 2, 0, 1, 2, 0, 1, 2, 0.
        np.testing.assert_array_equal(np.bincount(batch["index"]), [4, 3, 3])
    assert (batches[0]["index"] != batches[1]["index"]).any()
    same = [image for image, i in zip(batches[0]["image"], batches[0]["index"]) if i == 0]
    assert any((image != same[0]).any() for image in same[1:])
    sources = make_sources(streams, SPEC, config)
    numbers = sampling.step_records("few", 10, sources["few"].epoch, seed=3, step=1)
    np.testing.assert_array_equal(numbers, batches[1]["index"])


def test_images_with_usable_masks_stand_several_times_in_an_epoch(listed_folder):
    folder, few = listed_folder
    streams = listed_streams(batch_size=4, oversample=3)
    config = settings(folder)
    found = [batch["all"] for batch in take(dataset_of(config, streams), 8)]
    numbers = np.concatenate([batch["index"] for batch in found])
    counts = np.where(np.isin(np.arange(COUNT), few), 3, 1)
    # Two epochs of ten records and six repetitions each.
    for epoch in (numbers[:16], numbers[16:]):
        np.testing.assert_array_equal(np.bincount(epoch, minlength=COUNT), counts)
    images = np.concatenate([batch["image"] for batch in found])[:16]
    first, second, third = images[numbers[:16] == few[0]]
    assert (first != second).any() and (second != third).any() and (first != third).any()
    source = make_sources(streams, SPEC, config)["all"]
    agreed = sampling.step_records("train", 4, source.epoch, seed=3, step=5)
    np.testing.assert_array_equal(found[5]["index"], agreed)
    # An epoch as long as another's follows that one's repetitions.
    assert make_sources(streams, SPEC, config)["few"].epoch.length == 16
    resumed = take(dataset_of(config, streams, start_step=5), 1)[0]["all"]
    assert_same(resumed, found[5])


def test_a_mask_named_without_being_there_is_no_reason_to_repeat_an_image(tmp_path):
    _, labels = make_images(SIZES)
    write(str(tmp_path), labels=[None] * 5 + labels[5:], image_labels=[[1, 2, 3]] * COUNT)
    stream = Stream(
        "train", 4, labels="listed", label_split="train", image_labels="record", oversample=2
    )
    source = make_sources({"s": stream}, SPEC, settings(tmp_path))["s"]
    np.testing.assert_array_equal(np.bincount(source.epoch.pool), [1] * 5 + [2] * 5)


WEIGHTED = Stream(
    "train", 4, image_labels="record", labels="none", sampling="class_weighted", epoch_length=400
)


def test_class_weighted_batches_prefer_rare_classes(tmp_path):
    write(str(tmp_path), image_labels=[[1]] * 8 + [[2], []])
    config = settings(tmp_path)
    source = make_sources({"s": WEIGHTED}, SPEC, config)["s"]
    assert source.epoch.length == 400
    # Class weights 9/9 and 9/2, both halved; the image without a class is never drawn.
    expected = np.array([1.0] * 8 + [4.5, 0.0]) / 12.5
    np.testing.assert_allclose(source.epoch.probabilities, expected)
    drawn = sampling.step_records("train", 400, source.epoch, seed=3, step=0)
    np.testing.assert_allclose(np.bincount(drawn, minlength=COUNT) / 400, expected, atol=0.06)
    whole = take(dataset_of(config, {"s": WEIGHTED}), 3)
    np.testing.assert_array_equal(np.concatenate([b["s"]["index"] for b in whole]), drawn[:12])
    resumed = take(dataset_of(config, {"s": WEIGHTED}, start_step=2), 1)
    assert_same(resumed, whole[2:])
    second = take(
        dataset_of(config, {"s": WEIGHTED}, part=pipeline.Slice(pipeline=1, num_pipelines=2)), 1
    )
    np.testing.assert_array_equal(second[0]["s"]["index"], drawn[2:4])


def test_what_a_clutter_penalty_leaves_out_is_the_person(tmp_path):
    stream = dataclasses.replace(WEIGHTED, clutter_penalty=2.0, epoch_length=None)
    spec = dataclasses.replace(SPEC, class_names=("background", "cat", "person", "cow"))
    for known, classes, tidy in ((SPEC, 3, 1), (spec, 2, 0)):
        write(str(tmp_path), image_labels=[[1, 2, 3], [2]] + [[1]] * 8)
        source = make_sources({"s": stream}, known, settings(tmp_path))["s"]
        assert source.epoch.length == COUNT
        # 12 labels: 9 of class 1, 2 of class 2, 1 of class 3.
        weights = [12 / 10, 12 / 3, 12 / 2]
        expected = [sum(weights) / (classes**2 + 1), tidy * weights[1] / 2, weights[0] / 2]
        ratio = source.epoch.probabilities[:3] / source.epoch.probabilities[2]
        np.testing.assert_allclose(ratio, np.divide(expected, expected[2]))


def test_images_that_weigh_nothing_cannot_be_drawn(tmp_path):
    write(str(tmp_path), image_labels=[[]] * COUNT)
    with pytest.raises(UserError, match="can be drawn by its classes"):
        make_sources({"s": WEIGHTED}, SPEC, settings(tmp_path))


def test_an_image_without_a_foreground_class_is_named_at_the_start(tmp_path):
    named = [[1]] * COUNT
    stream = Stream("train", 4, image_labels="record", labels="none")
    strict = dataclasses.replace(stream, require_foreground=True)
    write(str(tmp_path), image_labels=named)
    make_sources({"s": strict}, SPEC, settings(tmp_path))
    named[4], named[7] = [], []
    write(str(tmp_path), image_labels=named)
    config = settings(tmp_path, skip_bad_records=True)
    with pytest.raises(UserError) as error:
        make_sources({"s": strict}, SPEC, config)
    assert "2 of 10 images of split 'train', the first of them image_4" in str(error.value)
    assert "received: image_4, image_7\n" in str(error.value)
    assert make_sources({"s": stream}, SPEC, config)["s"].index.size == COUNT


def test_records_without_image_level_labels_are_counted_at_the_start(tmp_path):
    named = [[1]] * 6 + [None] + [[1]] * 3
    stream = {"s": Stream("train", 4, image_labels="record", labels="none")}

    def message():
        with pytest.raises(UserError) as error:
            make_sources(stream, SPEC, settings(tmp_path))
        return str(error.value)

    write(str(tmp_path), image_labels=named)
    assert "Image image_6 of split 'train' has no image-level labels" in message()
    # Or they are replaced as they come.
    config = settings(tmp_path, skip_bad_records=True, max_bad_record_fraction=0.2)
    found = np.concatenate([e["s"]["index"] for e in take(dataset_of(config, stream), 5)])
    assert set(found) == set(range(COUNT)) - {6}
    write(str(tmp_path), image_labels=[None, *named[1:]])
    assert "2 of 10 images of split 'train', the first of them image_0, have no" in message()
    write(str(tmp_path), image_labels=[None] * COUNT)
    assert "No image of split 'train' has image-level labels" in message()


def test_a_mask_of_a_class_that_the_image_level_labels_lack_is_an_error(tmp_path):
    _, labels = make_images(SIZES)
    named = [sorted(set(np.unique(label)) - {0, 255}) for label in labels]
    named[2] = named[2][:-1]
    write(str(tmp_path), labels=labels, image_labels=named)
    config = settings(tmp_path)
    streams = {"s": Stream("train", COUNT, image_labels="record")}
    sources = make_sources(streams, SPEC, config)
    with pytest.raises(tf.errors.OpError):
        take(dataset_of(config, streams, sources=sources), 1)
    with pytest.raises(UserError, match="image_2.*image-level labels lack"):
        sources["s"].explain()
    # Masks that no loss may see are not looked at, and labels may name more than a mask shows.
    hidden = {"s": Stream("train", COUNT, labels="hidden", image_labels="record")}
    take(dataset_of(config, hidden), 1)


def test_hidden_labels_have_another_name(tmp_path):
    _, labels = make_images(SIZES)
    write(str(tmp_path), labels=[None if i % 2 else x for i, x in enumerate(labels)])
    streams = {
        "shown": Stream("train", COUNT, labels="optional"),
        "hidden": Stream("train", COUNT, labels="hidden"),
    }
    config = settings(tmp_path, augmentation="resized_crop")
    shown, hidden = (
        take(dataset_of(config, {"s": stream}), 1)[0]["s"] for stream in streams.values()
    )
    assert "label" not in hidden
    np.testing.assert_array_equal(hidden["hidden_label"], shown["label"])


def test_labels_of_the_crop_need_masks(tmp_path):
    _, labels = make_images(SIZES)
    write(str(tmp_path), labels=[None if i % 2 else x for i, x in enumerate(labels)])
    stream = Stream("train", COUNT, labels="hidden", image_labels="crop")
    with pytest.raises(tf.errors.OpError, match="no mask to take image-level labels from"):
        take(dataset_of(settings(tmp_path), {"s": stream}), 1)
    (tmp_path / "none").mkdir()
    write(str(tmp_path / "none"), labels=[None] * len(labels))
    with pytest.raises(UserError, match="image_label_source"):
        dataset_of(settings(tmp_path / "none"), {"s": stream})


def test_a_stream_can_come_from_another_directory(folder, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    write(str(tmp_path / "other"), labels=[None] * COUNT)
    monkeypatch.setitem(specs.DATASETS, "toy", SPEC)
    stream = Stream("train", 4, labels="hidden", dataset_dir=str(tmp_path / "other"))
    batch = take(dataset_of(settings(folder, dataset="toy"), {"s": stream}), 1)[0]["s"]
    assert not batch["has_label"].any()


# Composition ------------------------------------------------------------------------------------

COMPOSED = {
    "seg": Stream("train", 4),
    "cls": Stream("train", 4, labels="optional", augment="light"),
    "images": Stream("train", 2, labels="none"),
}


def composed(folder, **changes):
    return settings(folder, augmentation="composition", **changes)


def test_composed_batches_have_the_vocabulary_and_labels_of_the_masks(folder):
    dataset = dataset_of(composed(folder), COMPOSED)
    assert dataset.element_spec == dataset_of(settings(folder), COMPOSED).element_spec
    _, labels = make_images(SIZES)
    warped = 0
    for batch in take(dataset, 10):
        for name in ("seg", "cls"):
            rows = batch[name]
            for i, image, label, valid in zip(
                *(rows[k] for k in ("index", "image", "label", "valid"))
            ):
                assert 0 <= image.min() and image.max() <= 255
                assert set(np.unique(label)) <= {*np.unique(labels[i]), 255}
                assert (label[valid == 0] == 255).all()
                if name == "cls":
                    # Padding alone: what is valid is the part of the image that fits in.
                    assert valid.sum() == np.prod(np.minimum(SIZES[i], 33))
                else:
                    rectangle = np.outer(valid.max(1), valid.max(0))
                    warped += (valid != rectangle).any()
    assert warped > 5


def test_a_light_stream_shows_pixels_of_the_record(folder):
    images, labels = make_images(SIZES)
    streams = {"s": dataclasses.replace(COMPOSED["cls"], batch_size=COUNT)}
    batch = take(dataset_of(composed(folder), streams), 1)[0]["s"]
    for i, image, label, valid in zip(*(batch[k] for k in ("index", "image", "label", "valid"))):
        inside = np.ix_(np.flatnonzero(valid.max(1)), np.flatnonzero(valid.max(0)))
        window = image[inside]
        height, width = window.shape[:2]
        room = np.subtract(SIZES[i], (height, width)) + 1
        places = [(y, x) for y in range(room[0]) for x in range(room[1])]
        matching = [
            (images[i][y : y + height, x : x + width] == window).all()
            and (labels[i][y : y + height, x : x + width] == label[inside]).all()
            for y, x in places
        ]
        assert sum(matching) == 1
        assert (image[valid == 0] == MEAN[0]).all()


def test_without_operations_a_full_stream_is_a_light_one(folder):
    config = composed(folder, augmentation_ops=0)
    full = take(dataset_of(config), 2)
    light = take(dataset_of(config, {"s": dataclasses.replace(STREAM, augment="light")}), 2)
    assert_same(full, light)


def test_a_light_stream_of_the_other_augmentation_is_a_full_one(folder):
    light = {"s": dataclasses.replace(STREAM, augment="light")}
    assert_same(take(dataset_of(settings(folder)), 2), take(dataset_of(settings(folder), light), 2))


def test_composition_without_operations_shows_the_record(tmp_path):
    images, labels = make_images([(33, 33)])
    write_split(str(tmp_path), images, labels, split="train")
    batch = take(dataset_of(composed(tmp_path, augmentation_ops=0)), 1)[0]["s"]
    for image, label in zip(batch["image"], batch["label"]):
        np.testing.assert_array_equal(image, images[0])
        np.testing.assert_array_equal(label, labels[0])
    assert batch["valid"].all()


def test_composition_repeats_whatever_the_threads_and_differs_between_epochs(folder):
    first = take(dataset_of(composed(folder), COMPOSED), 4)
    assert_same(first, take(dataset_of(composed(folder, data_threads=1), COMPOSED), 4))
    other = take(dataset_of(composed(folder), COMPOSED, seed=-4), 1)
    assert (first[0]["seg"]["image"] != other[0]["seg"]["image"]).any()
    epochs = take(dataset_of(composed(folder), {"s": Stream("train", COUNT)}), 2)
    images = [dict(zip(e["s"]["index"].tolist(), e["s"]["image"])) for e in epochs]
    assert sum((images[0][i] != images[1][i]).any() for i in range(COUNT)) >= COUNT - 1


@pytest.mark.parametrize("start", [1, 7])
def test_resuming_a_composition_gives_the_following_batches(folder, start):
    whole = take(dataset_of(composed(folder), COMPOSED), start + 3)
    resumed = take(dataset_of(composed(folder), COMPOSED, start_step=start), 3)
    assert_same(whole[start:], resumed)


def test_composition_serves_image_labels_hidden_labels_and_records_without_a_mask(tmp_path):
    _, labels = make_images(SIZES)
    write(
        str(tmp_path),
        labels=[None if i % 2 else x for i, x in enumerate(labels)],
        image_labels=[[1 + i % 3] for i in range(COUNT)],
    )
    streams = {
        "shown": Stream("train", COUNT, labels="optional"),
        "hidden": Stream("train", COUNT, labels="hidden", image_labels="record"),
    }
    # Each alone: together they would have images and crops of their own.
    shown, hidden = (
        take(dataset_of(composed(tmp_path), {"s": stream}), 1)[0]["s"]
        for stream in streams.values()
    )
    assert "label" not in hidden
    np.testing.assert_array_equal(hidden["hidden_label"], shown["label"])
    np.testing.assert_array_equal(shown["has_label"], shown["index"] % 2 == 0)
    assert (shown["label"][~shown["has_label"]] == 255).all()
    np.testing.assert_array_equal(hidden["image_label"].argmax(1), hidden["index"] % 3)


def test_image_labels_of_a_composed_crop_are_those_of_its_label(folder):
    stream = Stream("train", 4, image_labels="crop")
    for batch in take(dataset_of(composed(folder), {"s": stream}), 3):
        for label, found in zip(batch["s"]["label"], batch["s"]["image_label"]):
            assert set(np.flatnonzero(found) + 1) == set(np.unique(label)) - {0, 255}


def test_resizing_comes_before_composition(tmp_path):
    images, labels = make_images([(20, 30)])
    write_split(str(tmp_path), images, labels, split="train")
    config = composed(tmp_path, min_resize_value=24, augmentation_ops=0)
    batch = take(dataset_of(config, {"s": Stream("train", 2)}), 1)[0]["s"]
    # 24x36, of which 33 columns fit into the crop.
    assert (batch["valid"].sum((1, 2)) == 24 * 33).all()
    assert set(np.unique(batch["label"])) <= {*np.unique(labels[0]), 255}
    full = take(dataset_of(composed(tmp_path, min_resize_value=24)), 1)[0]["s"]
    assert full["image"].shape == (4, 33, 33, 3)


def test_opencv_starts_no_threads_beside_those_of_the_pipeline(folder):
    cv2.setNumThreads(2)
    dataset_of(composed(folder))
    assert cv2.getNumThreads() == 1


def test_composition_makes_no_strong_view(folder):
    streams = {"both": Stream("train", 4, strong_views=1)}
    with pytest.raises(UserError, match="stream 'both'.*\n.*--augmentation"):
        dataset_of(composed(folder), streams)


def test_composition_refuses_scales_out_of_order(folder):
    with pytest.raises(UserError, match="--min_scale_factor"):
        dataset_of(composed(folder, min_scale_factor=3.0))


def test_composition_refuses_images_too_long_to_warp(tmp_path):
    images, labels = make_images([(33, 33), (1, 33000)])
    write_split(str(tmp_path), images, labels, split="train", ids=["short", "long"])
    with pytest.raises(UserError, match="Image long of split 'train'") as error:
        dataset_of(composed(tmp_path))
    assert "1x33000" in str(error.value)
    light = {"s": dataclasses.replace(STREAM, augment="light")}
    assert take(dataset_of(composed(tmp_path), light), 1)[0]["s"]["valid"].any()


def test_a_damaged_record_is_named_with_composition_too(tmp_path):
    write(str(tmp_path))
    path = overwrite(tmp_path, 7, flip_a_byte)
    assert f"{path}, record 2" in error_of(composed(tmp_path))


# Resized crops ----------------------------------------------------------------------------------


def resized_crop(folder, **changes):
    return settings(folder, augmentation="resized_crop", **changes)


def test_resized_crops_have_the_vocabulary_and_labels_of_the_masks(folder):
    dataset = dataset_of(resized_crop(folder), COMPOSED)
    assert dataset.element_spec == dataset_of(settings(folder), COMPOSED).element_spec
    _, labels = make_images(SIZES)
    for batch in take(dataset, 5):
        assert "label" not in batch["images"]
        for name in ("seg", "cls"):
            assert batch[name]["valid"].all()
            assert (batch[name]["image"] == np.round(batch[name]["image"])).all()
            for i, label in zip(batch[name]["index"], batch[name]["label"]):
                assert set(np.unique(label)) <= set(np.unique(labels[i]))


def test_resized_crops_repeat_whatever_the_threads_and_go_on(folder):
    whole = take(dataset_of(resized_crop(folder), COMPOSED), 4)
    assert_same(whole, take(dataset_of(resized_crop(folder, data_threads=1), COMPOSED), 4))
    assert_same(whole[2:], take(dataset_of(resized_crop(folder), COMPOSED, start_step=2), 2))
    epochs = take(dataset_of(resized_crop(folder), {"s": Stream("train", COUNT)}), 2)
    images = [dict(zip(e["s"]["index"].tolist(), e["s"]["image"])) for e in epochs]
    assert all((images[0][i] != images[1][i]).any() for i in range(COUNT))


def test_a_resized_crop_of_all_without_flip_and_jitter_shows_the_record(tmp_path):
    images, labels = make_images([(20, 24)])
    write_split(str(tmp_path), images, labels, split="train")
    options = {"crop_area": (1.0, 1.0), "flip_probability": 0.0, "jitter_strength": 0.0}
    # Sides of the crop: none but that of all of the image has its area.
    config = resized_crop(tmp_path, train_crop_size=(20, 24), **options)
    batch = take(dataset_of(config), 1)[0]["s"]
    hue_turned_and_back = np.asarray(Image.fromarray(images[0]).convert("HSV").convert("RGB"))
    full = [(label == labels[0]).all() for label in batch["label"]]
    assert any(full)
    for image in batch["image"][full]:
        np.testing.assert_array_equal(image, hue_turned_and_back)


def test_resizing_comes_before_the_resized_crop(tmp_path):
    images, labels = make_images([(20, 30)])
    write_split(str(tmp_path), images, labels, split="train")
    batch = take(dataset_of(resized_crop(tmp_path, min_resize_value=24)), 1)[0]["s"]
    assert batch["image"].shape == (4, 33, 33, 3) and batch["valid"].all()


def test_a_resized_crop_is_one_view(folder):
    streams = {"both": Stream("train", 4, strong_views=1)}
    with pytest.raises(UserError, match="--augmentation=resized_crop makes one view") as caught:
        dataset_of(resized_crop(folder), streams)
    assert "accepted: deeplab, long_side_crop" in str(caught.value)


@pytest.mark.parametrize("area", [(0.9,), (0.0, 1.0), (0.8, 0.7), (0.5, 1.5)])
def test_wrong_areas_are_refused(folder, area):
    with pytest.raises(UserError, match="--crop_area"):
        dataset_of(resized_crop(folder, crop_area=area))


# Warped and short-side crops --------------------------------------------------------------------

SCALED_CROPS = ("warped_crop", "short_side_crop", "long_side_crop")


@pytest.mark.parametrize("name", SCALED_CROPS)
def test_scaled_crops_have_the_vocabulary_and_labels_of_the_masks(folder, name):
    dataset = dataset_of(settings(folder, augmentation=name), COMPOSED)
    assert dataset.element_spec == dataset_of(settings(folder), COMPOSED).element_spec
    _, labels = make_images(SIZES)
    padded = 0
    for batch in take(dataset, 5):
        assert "label" not in batch["images"]
        for i, label, valid in zip(*(batch["seg"][key] for key in ("index", "label", "valid"))):
            assert set(np.unique(label)) <= {*np.unique(labels[i]), 255}
            assert (label[valid == 0] == 255).all()
            padded += (valid == 0).any()
    assert padded


@pytest.mark.parametrize("name", SCALED_CROPS)
def test_scaled_crops_repeat_whatever_the_threads_and_go_on(folder, name):
    config = settings(folder, augmentation=name)
    whole = take(dataset_of(config, COMPOSED), 4)
    one_thread = settings(folder, augmentation=name, data_threads=1)
    assert_same(whole, take(dataset_of(one_thread, COMPOSED), 4))
    assert_same(whole[2:], take(dataset_of(config, COMPOSED, start_step=2), 2))


@pytest.mark.parametrize("name", SCALED_CROPS)
def test_padding_has_the_mean_colour_or_is_black(folder, name):
    for color, expected in (("mean", MEAN), ("black", (0, 0, 0))):
        config = settings(folder, augmentation=name, padding_color=color)
        batches = [batch["s"] for batch in take(dataset_of(config), 4)]
        padding = np.concatenate([batch["image"][batch["valid"] == 0] for batch in batches])
        assert padding.size
        if name == "warped_crop":
            np.testing.assert_array_equal(padding, [expected] * len(padding))
        else:  # after a blur not all of it
            share = (padding == np.rint(expected)).all(-1).mean()
            assert share > 0.5


def test_long_side_crops_have_strong_views_of_the_same_crop(folder):
    config = settings(folder, augmentation="long_side_crop")
    streams = [{"s": Stream("train", 4, strong_views=count)} for count in (1, 2)]
    one, two = (take(dataset_of(config, s), 3) for s in streams)
    assert_same(two, take(dataset_of(config, streams[1]), 3))
    for first, second in zip(one, two):
        first, second = first["s"], second["s"]
        assert set(second) - set(first) == {"image_strong_2"}
        for name in first:
            np.testing.assert_array_equal(second[name], first[name])
        assert second["image_strong_2"].dtype == np.float32
        assert (second["image_strong"] != second["image_strong_2"]).any()
    still = settings(folder, augmentation="long_side_crop", jitter_strength=0.0)
    for batch in take(dataset_of(still, streams[0]), 6):
        batch = batch["s"]
        # Grey and blurred, but nothing moved.
        grey = np.mean(np.abs(batch["image"].mean(-1) - batch["image_strong"].mean(-1)))
        assert grey < 40


@pytest.mark.parametrize("size, crop", [(20, (33, 33)), (33, (33, 49))])
def test_images_are_not_warped_to_less_than_the_crop(folder, size, crop):
    config = settings(
        folder, augmentation="warped_crop", augmentation_size=size, train_crop_size=crop
    )
    with pytest.raises(UserError, match="--augmentation_size"):
        dataset_of(config)


@pytest.mark.parametrize("name", SCALED_CROPS)
def test_scaled_crops_refuse_scales_out_of_order(folder, name):
    with pytest.raises(UserError, match="--min_scale_factor"):
        dataset_of(settings(folder, augmentation=name, min_scale_factor=3.0))


# Declarations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"strong_views": -1},
        {"labels": "sometimes"},
        {"image_labels": "web"},
        {"augment": "weak"},
        {"image_labels": "crop", "labels": "none"},
        {"batch_size": 0},
        {"sampling": "random", "image_labels": "record"},
        {"sampling": "class_weighted"},
        {"require_foreground": True},
        {"oversample": 2},
        {"oversample": 0},
        {"epoch_length": 10, "image_labels": "record"},
        {"epoch_length": 0, "image_labels": "record", "sampling": "class_weighted"},
        {"epoch_of": "other", "image_labels": "record", "sampling": "class_weighted"},
    ],
)
def test_a_wrong_declaration_is_refused(wrong):
    with pytest.raises(UserError, match="declared wrongly"):
        Stream(**{"split": "train", "batch_size": 4, **wrong})


def test_a_batch_must_be_divisible_among_the_replicas(folder):
    with pytest.raises(UserError, match="a multiple of 3"):
        dataset_of(settings(folder), part=pipeline.Slice(replicas=3))


def test_scales_out_of_order_are_a_users_error(folder):
    with pytest.raises(UserError, match="--min_scale_factor"):
        dataset_of(settings(folder, min_scale_factor=3.0))


@pytest.mark.parametrize(
    "stream, message",
    [
        (Stream("tra1n", 2), "train"),
        (Stream("train", 2), "has a mask"),
        (Stream("train", 2, labels="none", image_labels="record"), "--image_labels"),
    ],
)
def test_a_split_that_cannot_serve_a_stream_is_refused(tmp_path, stream, message):
    write(str(tmp_path), labels=[None] * COUNT)
    with pytest.raises(UserError, match=message):
        make_sources({"s": stream}, SPEC, settings(tmp_path))


# Damage -----------------------------------------------------------------------------------------


def index_of(folder):
    return load_index(str(folder), "train", SPEC)


def overwrite(folder, i, change):
    """Changes the framed bytes of record `i` on disk; the index stays."""
    index = index_of(folder)
    path = os.path.join(folder, index.shards[index.shard[i]])
    start = int(index.offset[i])
    with open(path, "r+b") as file:
        file.seek(start)
        data = file.read(int(index.length[i]) + 16)
        changed = change(data)
        assert len(changed) == len(data) and changed != data
        file.seek(start)
        file.write(changed)
    return path


def flip_a_byte(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def break_pixels(data):
    """Breaks the compressed pixels of the image and mends the checksum of the record."""
    record = data[HEADER_BYTES:-4]
    position = record.index(b"IDAT") + 8
    return frame(record[:position] + bytes(40) + record[position + 40 :])


def error_of(config, stream=STREAM):
    sources = make_sources({"s": stream}, SPEC, config)
    with pytest.raises(tf.errors.OpError):
        for _ in dataset_of(config, {"s": stream}, sources=sources).take(6):
            pass
    with pytest.raises(UserError) as error:
        sources["s"].explain()
    return str(error.value)


def test_a_flipped_byte_names_file_record_and_offset(tmp_path):
    write(str(tmp_path))
    path = overwrite(tmp_path, 7, flip_a_byte)
    message = error_of(settings(tmp_path))
    assert "checksum" in message
    assert f"{path}, record 2, byte {index_of(tmp_path).offset[7]}" in message


def test_an_image_that_cannot_be_decoded_names_file_record_and_key(tmp_path):
    write(str(tmp_path))
    path = overwrite(tmp_path, 4, break_pixels)
    message = error_of(settings(tmp_path))
    assert "The image of image_4 cannot be decoded" in message
    assert f"{path}, record 4" in message and "key image/encoded" in message


def test_a_missing_mask_names_the_image(tmp_path):
    _, labels = make_images(SIZES)
    write(str(tmp_path), labels=[None if i == 3 else x for i, x in enumerate(labels)])
    message = error_of(settings(tmp_path))
    assert "Image image_3 of split 'train' has no mask" in message
    assert f"key {tfexample.LABEL}" in message and "record 3" in message


def test_an_id_beyond_the_classes_names_the_image(tmp_path):
    _, labels = make_images(SIZES)
    labels[6][2, 5] = 200
    write(str(tmp_path), labels=labels)
    message = error_of(settings(tmp_path))
    assert "image_6" in message and "received: 200" in message and "0 to 3, and 255" in message


def replace_label(folder, encoded):
    """Makes a split of one record with that mask."""
    image = np.zeros((12, 16, 3), np.uint8)
    with ShardWriter(os.path.join(folder, shard_name("train", 0, 1))) as writer:
        writer.write(
            tfexample.encode(image=png(image), label=encoded, filename="only", height=12, width=16)
        )


def test_a_palette_mask_is_not_read_as_grey_values(tmp_path):
    mask = Image.fromarray(np.ones((12, 16), np.uint8), "P")
    mask.putpalette([0, 0, 0, 2, 2, 2])
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    replace_label(str(tmp_path), buffer.getvalue())
    assert "palette image" in error_of(settings(tmp_path), Stream("train", 1))


def test_a_mask_of_another_size_names_both_sizes(tmp_path):
    # The scan of a split without index parses every record.
    replace_label(str(tmp_path), png(np.zeros((12, 17), np.uint8)))
    with pytest.raises(UserError, match="12x17") as error:
        make_sources({"s": STREAM}, SPEC, settings(tmp_path))
    assert "12x16" in str(error.value) and tfexample.LABEL in str(error.value)


def test_too_many_pixels_are_not_decoded(tmp_path):
    write(str(tmp_path))
    message = error_of(settings(tmp_path, max_image_megapixels=0.001))
    assert "megapixels" in message and "--max_image_megapixels" in message


def test_a_truncated_shard_stops_the_run_at_its_start(tmp_path):
    write(str(tmp_path))
    index = index_of(tmp_path)  # writes it
    path = os.path.join(tmp_path, index.shards[1])
    os.truncate(path, os.path.getsize(path) - 10)
    with pytest.raises(UserError, match="truncated") as error:
        make_sources({"s": STREAM}, SPEC, settings(tmp_path))
    assert path in str(error.value)


@pytest.mark.parametrize("change, reason", [(flip_a_byte, "checksum"), (break_pixels, "decoded")])
def test_bad_records_are_replaced_and_listed(tmp_path, change, reason):
    write(str(tmp_path))
    config = settings(tmp_path, skip_bad_records=True, max_bad_record_fraction=0.1)
    whole = take(dataset_of(config), 5)
    path = overwrite(tmp_path, 7, change)
    sources = make_sources({"s": STREAM}, SPEC, config)
    found = take(dataset_of(config, sources=sources), 5)
    replaced = 0
    for before, after in zip(whole, found):
        for row, i in enumerate(before["s"]["index"]):
            if i == 7:
                replaced += 1
                assert after["s"]["index"][row] != 7
            else:
                for key in before["s"]:
                    np.testing.assert_array_equal(after["s"][key][row], before["s"][key][row])
    assert replaced == 2
    (line,) = sources["s"].bad_records()
    fields = line.split("\t")
    assert fields[:4] == [path, "2", str(index_of(tmp_path).offset[7]), "image_7"]
    assert reason in fields[4]


def test_the_replacement_is_the_next_good_record_of_the_order(tmp_path):
    write(str(tmp_path))
    order = sampling.step_records("train", 12, sampling.uniform(COUNT), seed=3, step=0)
    for i in order[2:4]:
        overwrite(tmp_path, i, flip_a_byte)
    config = settings(tmp_path, skip_bad_records=True, max_bad_record_fraction=0.3)
    batch = take(dataset_of(config), 1)[0]["s"]
    np.testing.assert_array_equal(batch["index"], [*order[:2], order[4], order[4]])


def test_too_many_bad_records_stop_the_run(tmp_path):
    write(str(tmp_path))
    for i in (2, 5):
        overwrite(tmp_path, i, flip_a_byte)
    message = error_of(settings(tmp_path, skip_bad_records=True, max_bad_record_fraction=0.1))
    assert "2 of 10 records" in message and "--max_bad_record_fraction" in message


def test_the_rest_of_a_truncated_shard_is_replaced(tmp_path):
    write(str(tmp_path))
    index = index_of(tmp_path)
    path = os.path.join(tmp_path, index.shards[1])
    os.truncate(path, int(index.offset[8]) + 20)
    config = settings(tmp_path, skip_bad_records=True, max_bad_record_fraction=0.4)
    sources = make_sources({"s": STREAM}, SPEC, config)
    found = np.concatenate([e["s"]["index"] for e in take(dataset_of(config, sources=sources), 5)])
    assert set(found) == set(range(8))
    ids = [line.split("\t")[3] for line in sources["s"].bad_records()]
    assert ids == ["?", "image_8", "image_9"]


# Evaluation -------------------------------------------------------------------------------------


def any_size(height, width):
    return height, width


def evaluation_of(folder, batch_size, split="train", crop_size=(33, 33), max_side=None, **changes):
    config = settings(folder, **changes)
    image_input = ImageInput(MEAN, any_size, crop_size, config, max_side)
    return make_eval_dataset(split, SPEC, config, image_input, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_evaluation_shows_every_image_once_and_whole(folder, batch_size):
    images, labels = make_images(SIZES)
    seen = []
    for batch in evaluation_of(folder, batch_size):
        assert batch["weight"].shape == (batch_size,)
        for row in np.flatnonzero(batch["weight"]):
            i = int(batch["index"][row])
            seen.append(i)
            height, width = SIZES[i]
            image, label = batch["image"][row].numpy(), batch["label"][row].numpy()
            np.testing.assert_array_equal(image[:height, :width], images[i])
            np.testing.assert_array_equal(label[:height, :width], labels[i])
            outside = np.ones(label.shape, bool)
            outside[:height, :width] = False
            np.testing.assert_array_equal(batch["valid"][row].numpy() == 0, outside)
            assert (label[outside] == 255).all() and (image[outside] == MEAN[0]).all()
            assert label.shape == padded_size((height, width), (33, 33), any_size)
    assert sorted(seen) == list(range(COUNT))


def test_sizes_in_evaluation():
    assert padded_size((20, 33), (33, 33), any_size) == (33, 33)
    assert padded_size((34, 10), (33, 33), any_size) == (65, 33)
    assert padded_size((65, 66), (33, 33), any_size) == (65, 97)


def test_evaluation_without_padding(folder):
    images, _ = make_images(SIZES)
    for batch in evaluation_of(folder, 2, crop_size=UNPADDED):
        assert (batch["valid"].numpy() == 1).all()
        for row in np.flatnonzero(batch["weight"]):
            np.testing.assert_array_equal(batch["image"][row], images[int(batch["index"][row])])


def test_evaluation_halves_large_images(folder):
    seen = {}
    for batch in evaluation_of(folder, 1, crop_size=UNPADDED, max_side=20):
        seen[int(batch["index"][0])] = batch["image"][0].numpy(), batch["label"][0].numpy()
    assert sorted(seen) == list(range(COUNT))
    images, labels = make_images(SIZES)
    for i, (image, label) in seen.items():
        height, width = SIZES[i]
        while max(height, width) > 20:
            height, width = max(1, height // 2), max(1, width // 2)
        assert image.shape == (height, width, 3) and label.shape == (height, width)
        expected = resize_pillow(images[i][None], (height, width))[0]
        np.testing.assert_array_equal(image, expected)
        assert set(np.unique(label)) <= set(np.unique(labels[i]))


def test_evaluation_can_be_repeated(folder):
    dataset = evaluation_of(folder, 4)
    first, second = ([b["index"].numpy().tolist() for b in dataset] for _ in range(2))
    assert first == second and len(first) > 1


def test_evaluation_of_a_damaged_record_stops_even_where_training_would_not(tmp_path):
    write(str(tmp_path))
    path = overwrite(tmp_path, 7, flip_a_byte)
    with pytest.raises(UserError, match="checksum") as error:
        list(evaluation_of(tmp_path, 4, skip_bad_records=True))
    assert f"{path}, record 2" in str(error.value)
