"""Records far away: read and written as on a disk, with the same reports of damage."""

import collections
import os
import re
import signal
import sys
import tempfile
import threading

import numpy as np
import pytest
import tensorflow as tf
from fsspec.implementations.memory import MemoryFileSystem

from tests import programs
from tests.small_split import SPEC, make_images, png
from tfrecords_tools import check
from tfseg import sharing, storage
from tfseg.data import framing, pipeline, split_index, tfexample, writing
from tfseg.data.evaluation_batches import make_eval_dataset
from tfseg.data.framing import RecordError
from tfseg.data.image_input import ImageInput
from tfseg.data.index import Row
from tfseg.data.record_reader import RecordReader
from tfseg.data.sources import make_sources
from tfseg.data.specs import load_spec
from tfseg.data.split_index import load_index
from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import EvalConfig, VisConfig
from tfseg.settings.reading import make
from tfseg.settings.run import TrainConfig

COUNT = 10
MEAN = (127.5, 127.5, 127.5)
FAR = "memory://bucket/records"
IMAGES, LABELS = make_images([(20 + 3 * i, 40 - 2 * i) for i in range(COUNT)])


def encode(i):
    height, width = IMAGES[i].shape[:2]
    data = tfexample.encode(
        image=png(IMAGES[i]),
        label=png(LABELS[i]),
        filename=f"image_{i}",
        height=height,
        width=width,
        image_labels=[1, 2, 3],
    )
    row = Row(f"image_{i}", height, width, (1, 2, 3), True)
    return writing.Encoded(data, row, writing.count_pixels(LABELS[i], SPEC))


def convert(folder, split="train"):
    tasks = {split: range(COUNT)}
    return writing.write_splits(folder, SPEC, tasks, encode, num_shards=2, num_workers=1)


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """An object store without objects, a folder of its own for what lies on the disk, no waits."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(storage, "_WAITS", (0.0, 0.0))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    os.mkdir(tmp_path / "tmp")


@pytest.fixture
def near(tmp_path):
    """The same records on a disk and far away."""
    folder = str(tmp_path / "records")
    convert(folder)
    convert(FAR)
    return folder


def objects(url=FAR):
    prefix = url.removeprefix("memory:/") + "/"
    return {
        name.removeprefix(prefix): file.getvalue()
        for name, file in MemoryFileSystem.store.items()
        if name.startswith(prefix)
    }


def shard(folder, number=0):
    return os.path.join(folder, f"train-0000{number}-of-00002.tfrecord")


def put(path, content):
    """Writes a file on a disk or far away."""
    if storage.is_remote(path):
        storage.write(path, content)
    else:
        with open(path, "wb") as file:
            file.write(content)


def content_of(path):
    with storage.open_whole(path) as file:
        return file.read()


def settings(folder, **changes):
    values = {"dataset_dir": folder, "train_crop_size": (33, 33), "data_threads": 2}
    return make(DataConfig, **{**values, **changes})


def batches(folder, count=4, **changes):
    config = settings(folder, **changes)
    streams = {"s": Stream("train", 4)}
    dataset = pipeline.make_train_dataset(
        streams, make_sources(streams, SPEC, config), config, mean_pixel=MEAN, seed=3
    )
    return [tf.nest.map_structure(lambda x: x.numpy(), e) for e in dataset.take(count)]


# The same as on a disk ----------------------------------------------------------------------------


def test_a_converter_writes_the_same_bytes_and_leaves_nothing_on_the_disk(near, tmp_path):
    there = {}
    for name in os.listdir(near):
        with open(os.path.join(near, name), "rb") as file:
            there[name] = file.read()
    assert objects() == there and "dataset.json" in there
    assert [names for _, _, names in os.walk(tmp_path / "tmp") if names] == []


def test_training_sees_the_same_batches(near):
    tf.nest.map_structure(np.testing.assert_array_equal, batches(near), batches(FAR))


def test_evaluation_sees_the_same_batches(near):
    seen = [
        list(
            make_eval_dataset(
                "train",
                SPEC,
                settings(folder),
                ImageInput(MEAN, lambda h, w: (h, w), (33, 33)),
                batch_size=2,
            )
        )
        for folder in (near, FAR)
    ]
    tf.nest.map_structure(np.testing.assert_array_equal, *seen)


def test_a_record_is_one_request_and_what_describes_it_is_read_once(near, monkeypatch):
    asked = collections.Counter()
    real = MemoryFileSystem.cat_file

    def counting(self, path, start=None, end=None, **kwargs):
        asked[os.path.basename(path), None if start is None else end - start] += 1
        return real(self, path, start, end, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counting)
    load_spec(FAR, "toy")
    index = load_index(FAR, "train", SPEC)
    with RecordReader(load_index(FAR, "train", SPEC), FAR) as reader:
        assert [reader.read(i).filename for i in range(COUNT)] == index.ids.tolist()
    expected = collections.Counter({("dataset.json", None): 1, ("train.index.npz", None): 1})
    for i in range(COUNT):
        name = index.shards[index.shard[i]]
        expected[name, int(index.length[i]) + framing.OVERHEAD_BYTES] += 1
    assert asked == expected


def test_records_are_asked_for_ahead_of_their_use_and_once(near, monkeypatch):
    asked, both = [], threading.Barrier(2)
    real = RecordReader._read_now

    def slow(self, i):
        asked.append(i)
        if len(asked) <= 2:
            both.wait(20)  # ends only if a second one is under way at the same time
        return real(self, i)

    monkeypatch.setattr(RecordReader, "_read_now", slow)
    batches(FAR, 1, data_threads=1)
    assert sorted(asked) == sorted(set(asked)) and len(asked) > 4


def test_a_store_without_an_index_is_scanned_once(near, monkeypatch):
    written = objects()["train.index.npz"]
    storage.remove(os.path.join(FAR, "train.index.npz"))
    monkeypatch.setattr(storage, "_BLOCK_BYTES", 1000)
    assert load_index(FAR, "train", SPEC).size == COUNT
    assert objects()["train.index.npz"] == written

    def refused(*args, **kwargs):
        raise PermissionError("read only")

    storage.remove(os.path.join(FAR, "train.index.npz"))
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refused)
    assert load_index(FAR, "train", SPEC).size == COUNT


def test_check_reads_it(near):
    assert check.check(FAR)[1] == []
    damaged = bytearray(objects()[os.path.basename(shard(FAR))])
    damaged[60] ^= 1
    put(shard(FAR), bytes(damaged))
    assert "checksum" in "".join(problem.text for problem in check.check(FAR)[1])


# Damage -------------------------------------------------------------------------------------------


def flipped(folder):
    content = bytearray(content_of(shard(folder)))
    content[60] ^= 1
    put(shard(folder), bytes(content))


def cut(folder):
    put(shard(folder, 1), content_of(shard(folder, 1))[:-30])


def cut_to_nothing(folder):
    put(shard(folder), b"")


def replaced(folder):
    put(shard(folder), content_of(shard(folder, 1)))


def missing(folder):
    storage.remove(shard(folder, 1))


@pytest.mark.parametrize("damage", [flipped, cut, cut_to_nothing, replaced, missing])
@pytest.mark.parametrize("when", ["before", "after"])
def test_damage_is_reported_as_on_a_disk(near, damage, when):
    """Before and after the index was read; without it, too."""
    told = []
    for folder in (near, FAR):
        index = load_index(folder, "train", SPEC)
        if when == "before":
            damage(folder)
            storage.remove(os.path.join(folder, "dataset.json"))
        found = []
        for with_index in (True, False):
            if when == "before" and not with_index:
                storage.remove(os.path.join(folder, "train.index.npz"))
            try:
                load_index(folder, "train", SPEC)
                found.append("no error")
            except UserError as error:
                found.append(f"{type(error).__name__} {error}")
        if when == "after":
            damage(folder)
        with RecordReader(index, folder) as reader:
            for i in range(COUNT):
                try:
                    found.append(reader.read(i).filename)
                except RecordError as error:
                    text = str(error).split("  next step")[0]
                    if damage is missing:
                        # Opening an object is no request, so a missing one is met on reading.
                        text = re.sub(", record.*", "", text.replace("opened", "read"))
                    found.append(text)
        told.append([text.replace(folder, "FOLDER") for text in found])
    assert told[0] == told[1]
    assert any("FOLDER" in text for text in told[0])


def test_a_conversion_that_did_not_finish_is_recognised(near, monkeypatch, tmp_path):
    real, calls = storage.publish, []

    def interrupted(temporary, path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(temporary, path)

    monkeypatch.setattr(storage, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(FAR)
    assert [names for _, _, names in os.walk(tmp_path / "tmp") if names] == []
    with pytest.raises(UserError, match="conversion did not finish"):
        load_index(FAR, "train", SPEC)
    monkeypatch.setattr(storage, "publish", real)
    convert(FAR)
    assert load_index(FAR, "train", SPEC).size == COUNT


def test_what_a_killed_converter_left_on_the_disk_goes(near):
    left = storage.temporary_path(shard(FAR))
    open(left, "w").close()
    os.utime(left, (1, 1))
    convert(FAR, "more")
    assert not os.path.exists(left)


# A store that fails -------------------------------------------------------------------------------


def failing(monkeypatch, error, times):
    """Makes the next requests fail; returns how often it was asked."""
    asked, real = [], MemoryFileSystem.cat_file

    def fail(self, path, *args, **kwargs):
        asked.append(path)
        if len(asked) <= times:
            raise error
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    return asked


def test_a_request_that_failed_is_made_again(near, monkeypatch):
    index = load_index(FAR, "train", SPEC)
    asked = failing(monkeypatch, OSError("503 Slow Down"), 2)
    assert RecordReader(index, FAR).read(0).filename == "image_0"
    assert len(asked) == 3


def test_a_store_out_of_reach_is_one_error_and_no_damage(near, monkeypatch):
    index = load_index(FAR, "train", SPEC)
    failing(monkeypatch, OSError("503 Slow Down"), 1000)
    with pytest.raises(UserError, match="(?s)cannot be reached.*503 Slow Down.*3 times") as error:
        RecordReader(index, FAR).read(0)
    assert not isinstance(error.value, RecordError)
    # --skip_bad_records leaves out what is damaged, not what did not come.
    config = settings(FAR, skip_bad_records=True, max_bad_record_fraction=1.0)
    sources = make_sources({"s": Stream("train", 4)}, SPEC, config)
    with pytest.raises(UserError, match="cannot be reached"):
        sources["s"].good_record(lambda k: k)
    assert sources["s"].bad == {}


def test_access_that_is_refused_says_so_at_once(near, monkeypatch):
    asked = failing(monkeypatch, PermissionError("Forbidden"), 1000)
    with pytest.raises(UserError, match="(?s)refuses access.*Forbidden.*credentials"):
        load_spec(FAR, "toy")
    assert len(asked) == 1


def test_what_is_not_there(near, monkeypatch):
    with pytest.raises(UserError, match="does not exist"):
        load_spec("memory://bucket/nothing", "toy")
    with pytest.raises(UserError, match="is a file"):
        load_index(shard(FAR), "train", SPEC)
    with pytest.raises(UserError, match="accepted: train"):
        load_index(FAR, "val", SPEC)

    def no_bucket(*args, **kwargs):
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", no_bucket)
    with pytest.raises(UserError, match="(?s)bucket or the folder does not exist.*make the bucket"):
        convert("memory://other/records")


@pytest.mark.parametrize("scheme, package", [("gs", "gcsfs"), ("gs", "fsspec")])
def test_a_package_that_is_missing_is_named(monkeypatch, scheme, package):
    monkeypatch.setitem(sys.modules, package, None)
    storage._file_system.cache_clear()
    with pytest.raises(UserError, match=rf"(?s){package}.*pip install 'tfseg\[remote\]'"):
        load_spec(f"{scheme}://bucket/records", "toy")
    with pytest.raises(UserError, match="does not exist"):
        load_spec("nothing", "toy")


def test_a_scheme_that_nobody_knows(monkeypatch):
    with pytest.raises(UserError, match="(?s)cannot be opened.*nonsense.*s3://, gs://"):
        load_spec("nonsense://bucket/records", "toy")


# What stays on a disk -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section, values",
    [
        (TrainConfig, {"train_logdir": "s3://b/run"}),
        (EvalConfig, {"checkpoint_dir": "gs://b/run", "eval_logdir": "run/eval"}),
        (EvalConfig, {"checkpoint_dir": "run", "eval_logdir": "s3://b/run"}),
        (VisConfig, {"checkpoint_dir": "run", "vis_logdir": "s3://b/run"}),
    ],
)
def test_only_records_may_lie_far_away(section, values):
    with pytest.raises(UserError, match="(?s)must be a path on a disk.*://b/run.*checkpoints"):
        make(section, **values)


def test_a_program_says_so_and_writes_nothing(near):
    before = os.listdir(".")
    result = programs.run(
        "train_sup.py", f"--dataset_dir={near}", "--train_logdir=s3://b/run", check=False
    )
    assert result.returncode == 2 and "--train_logdir must be a path on a disk" in result.stderr
    assert os.listdir(".") == before


# Several processes, no index ----------------------------------------------------------------------


@pytest.fixture(params=["near", "far"])
def unindexed(near, request):
    folder = near if request.param == "near" else FAR
    storage.remove(os.path.join(folder, "train.index.npz"))
    return folder


def test_one_indexes_and_the_others_wait_for_it(unindexed, monkeypatch, capfd):
    scans, real, waiting, both_wait = [], split_index.scan, [], threading.Event()

    def scan(path, **options):
        scans.append(path)
        both_wait.wait(20)
        return real(path, **options)

    def locked(path, lock=sharing.locked, **options):
        if options.get("wait", True):
            waiting.append(path)
            if len(waiting) == 2:
                both_wait.set()
        return lock(path, **options)

    monkeypatch.setattr(split_index, "scan", scan)
    monkeypatch.setattr(sharing, "locked", locked)
    sizes = []
    threads = [
        threading.Thread(target=lambda: sizes.append(load_index(unindexed, "train", SPEC).size))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [COUNT] * 3 and len(scans) == 2 and len(waiting) == 2
    assert capfd.readouterr().err.count("indexing train: waits for ") == 2
    folder = storage.work_folder(unindexed)
    assert not any("indexing" in name for name in os.listdir(folder))


def test_who_waits_takes_over_from_one_that_was_killed(unindexed, capfd):
    path = os.path.join(storage.work_folder(unindexed), ".indexing-train.lock")
    process = programs.start_holder(path, "process 7")
    sizes = []
    thread = threading.Thread(
        target=lambda: sizes.append(load_index(unindexed, "train", SPEC).size)
    )
    thread.start()
    thread.join(0.3)
    assert sizes == [] and "waits for process 7" in capfd.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.wait()
    thread.join(20)
    assert sizes == [COUNT]


def test_nobody_waits_for_a_scan_that_has_met_damage(unindexed):
    """It writes no index."""
    flipped(unindexed)
    storage.remove(os.path.join(unindexed, "dataset.json"))
    free = []

    def told(error):
        path = os.path.join(storage.work_folder(unindexed), ".indexing-train.lock")
        with sharing.locked(path, wait=False):
            free.append(error)

    assert load_index(unindexed, "train", SPEC, on_damage=told).size == COUNT - 1
    assert len(free) == 1
