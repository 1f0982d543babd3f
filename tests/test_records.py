"""Reading shards: framing, damage, indices. No damage may pass in silence or hang."""

import dataclasses
import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfseg.data import framing, shard_scan, split_index, tfexample
from tfseg.data.atomic_writing import ShardWriter
from tfseg.data.framing import RecordError, read_record
from tfseg.data.index_file import read_index, save_index
from tfseg.data.record_reader import RecordReader
from tfseg.data.shard_scan import Damage, Found, _headers_in, scan
from tfseg.data.shards import splits_present
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError

SPEC = DatasetSpec("toy", ("background", "cat", "dog"))


def make_example(name, *, labels=None, label=False):
    image = io.BytesIO()
    Image.new("RGB", (6, 4), (len(name), 0, 0)).save(image, "PNG")
    mask = io.BytesIO()
    Image.new("L", (6, 4)).save(mask, "PNG")
    return tfexample.encode(
        image=image.getvalue(),
        filename=name,
        height=4,
        width=6,
        label=mask.getvalue() if label else None,
        image_labels=labels,
    )


def write_shard(path, examples):
    with ShardWriter(str(path)) as writer:
        for data in examples:
            writer.write(data)
    return writer


@pytest.fixture
def foreign(tmp_path):
    """Two shards of five records each, without index or dataset.json."""
    for k in range(2):
        examples = [
            make_example(f"im{5 * k + i}", labels=[[1], [], None, [1, 2], [2]][i], label=i != 4)
            for i in range(5)
        ]
        write_shard(tmp_path / f"train-0000{k}-of-00002.tfrecord", examples)
    return tmp_path


def shard(folder, k=0):
    return folder / f"train-0000{k}-of-00002.tfrecord"


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(bytes(content))


def test_importing_needs_no_tensorflow():
    modules = "tfseg.data.split_index, tfseg.data.record_reader, tfseg.data.writing"
    code = f"import sys, {modules}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tensorflow_reads_our_shards(tmp_path):
    data = [b"a", b"", b"x" * 100_000]
    write_shard(tmp_path / "s", data)
    assert [bytes(r.numpy()) for r in tf.data.TFRecordDataset(str(tmp_path / "s"))] == data


def test_we_read_tensorflows_shards(tmp_path):
    data = [b"one", b"y" * 70_000, b"three"]
    with tf.io.TFRecordWriter(str(tmp_path / "s")) as writer:
        for item in data:
            writer.write(item)
    assert [d for _, d in scan(str(tmp_path / "s"), with_data=True)] == data
    found = list(scan(str(tmp_path / "s")))
    assert [read_record(str(tmp_path / "s"), f.offset, f.length) for f in found] == data


def test_vectorised_checksum_agrees_with_the_library():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 1000, 200)
    block = b"".join(framing.frame(b"z" * n)[: framing.HEADER_BYTES] for n in lengths)
    found = _headers_in(np.frombuffer(block, np.uint8), 10**6)
    assert set(range(0, len(block), framing.HEADER_BYTES)) <= set(found.tolist())


def test_writer_attributes_match_the_file(tmp_path):
    writer = write_shard(tmp_path / "s", [b"ab", b"cde"])
    assert writer.offsets == [0, 18] and writer.lengths == [2, 3]
    assert writer.num_bytes == os.path.getsize(tmp_path / "s")
    assert writer.sha256 == framing.sha256(str(tmp_path / "s"))


def test_writer_leaves_nothing_when_the_block_raises(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(str(tmp_path / "s")) as writer:
        writer.write(b"data")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_nothing_is_visible_before_the_end(tmp_path):
    with ShardWriter(str(tmp_path / "train-00000-of-00001.tfrecord")) as writer:
        writer.write(make_example("a"))
        assert splits_present(str(tmp_path)) == []
    assert splits_present(str(tmp_path)) == ["train"]


# Damage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["length", "length crc", "data", "data crc"])
def test_flipped_byte_is_found_and_the_rest_is_kept(foreign, part):
    offsets = [f.offset for f in scan(str(shard(foreign)))]
    start, end = offsets[2], offsets[3]
    flip(
        shard(foreign),
        {"length": start, "length crc": start + 9, "data": start + 50}.get(part, end - 2),
    )
    with pytest.raises(RecordError, match=f"byte {start}") as error:
        read_record(str(shard(foreign)), start)
    assert "checksum" in str(error.value)
    items = list(scan(str(shard(foreign))))
    assert [i.offset for i in items if isinstance(i, Found)] == offsets[:2] + offsets[3:]
    (damage,) = [i for i in items if isinstance(i, Damage)]
    assert (damage.offset, damage.skipped_bytes) == (start, end - start)


@pytest.mark.parametrize("cut", [1, 4, 10, 200])
def test_truncated_shard(foreign, cut):
    content = shard(foreign).read_bytes()
    shard(foreign).write_bytes(content[:-cut])
    items = list(scan(str(shard(foreign))))
    assert len([i for i in items if isinstance(i, Found)]) == 4
    assert isinstance(items[-1], Damage) and "truncated" in items[-1].reason
    with pytest.raises(RecordError, match="truncated"):
        load_index(str(foreign), "train", SPEC)


def test_absurd_length_allocates_nothing(tmp_path):
    header = struct.pack("<Q", 2**62)
    crc = struct.pack("<I", framing.masked_crc(header))
    (tmp_path / "s").write_bytes(header + crc + b"12345678")
    with pytest.raises(RecordError, match="truncated"):
        read_record(str(tmp_path / "s"), 0)
    assert [type(i) for i in scan(str(tmp_path / "s"))] == [Damage]


def test_scan_resyncs_over_megabytes(tmp_path):
    rng = np.random.default_rng(3)
    big = rng.integers(0, 256, 5_000_000, dtype=np.uint8).tobytes()
    writer = write_shard(tmp_path / "s", [big, bytes(3_000_000), b"last"])
    flip(tmp_path / "s", 3)
    items = list(scan(str(tmp_path / "s")))
    assert items[0].skipped_bytes == writer.offsets[1]
    assert [i.length for i in items[1:]] == [3_000_000, 4]


def test_random_bytes_are_damage(tmp_path):
    rng = np.random.default_rng(0)
    for n in (0, 1, 11, 12, 16, 17, 1000):
        (tmp_path / "s").write_bytes(rng.bytes(n))
        items = list(scan(str(tmp_path / "s")))
        assert all(isinstance(i, Damage) for i in items)
        assert sum(i.skipped_bytes for i in items) == n


def test_headers_that_were_made_to_be_searched_for(tmp_path):
    """A broken header before each of many short records: every block is searched once."""
    record, broken = framing.frame(b"x"), bytes([1]) * 12
    (tmp_path / "s").write_bytes((record + broken) * 3_000)
    blocks, search = [], _headers_in

    def counted(block, remaining):
        blocks.append(len(block))
        return search(block, remaining)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shard_scan, "_headers_in", counted)
        items = list(scan(str(tmp_path / "s")))
    assert sum(isinstance(i, Found) for i in items) == 3_000
    assert sum(i.skipped_bytes for i in items if isinstance(i, Damage)) == 12 * 3_000
    assert sum(blocks) < 1.1 * os.path.getsize(tmp_path / "s")


def test_records_between_damage_of_any_length_are_found(tmp_path):
    """The search goes on where it left off, across the ends of its blocks."""
    rng, content, whole = np.random.default_rng(5), b"", []
    for k in range(300):
        data = rng.bytes(int(rng.integers(1, 60)))
        if k % 3 == 1:
            content += bytes([1]) * int(rng.integers(12, 9000))
        whole.append(data)
        content += framing.frame(data)
    (tmp_path / "s").write_bytes(content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shard_scan, "BLOCK_BYTES", 4096)
        items = list(scan(str(tmp_path / "s"), with_data=True))
    assert [i[1] for i in items if not isinstance(i, Damage)] == whole


@pytest.mark.parametrize("key", [tfexample.IMAGE, tfexample.LABEL])
@pytest.mark.parametrize("length", [24, 25, 32])
def test_a_cut_image_is_one_bad_record(tmp_path, key, length):
    example = tfexample.ExampleProto.FromString(make_example("b", label=True))
    value = example.features.feature[key].bytes_list.value
    value[0] = value[0][:length]
    bad = example.SerializeToString()
    write_shard(tmp_path / "s-0-of-1", [make_example("a", label=True), bad, make_example("c")])
    reported = []
    index = load_index(str(tmp_path), "s", SPEC, on_damage=reported.append)
    assert index.ids.tolist() == ["a", "c"]
    assert [error.location.record for error in reported] == [1]


@pytest.mark.parametrize("side", [2**32 - 1, 2**31])
def test_a_header_of_billions_of_pixels_names_its_record(tmp_path, side):
    example = tfexample.ExampleProto.FromString(make_example("b"))
    feature = example.features.feature
    image = bytearray(feature[tfexample.IMAGE].bytes_list.value[0])
    image[16:24] = side.to_bytes(4, "big") * 2
    feature[tfexample.IMAGE].bytes_list.value[0] = bytes(image)
    for name in (tfexample.HEIGHT, tfexample.WIDTH):
        feature[name].int64_list.value[0] = side
    write_shard(tmp_path / "s-0-of-1", [make_example("a"), example.SerializeToString()])
    with pytest.raises(RecordError, match="record 1, byte"):
        load_index(str(tmp_path), "s", SPEC)


def test_a_file_name_does_not_say_how_long_to_look(tmp_path):
    for total in (60_000_000, 10**80):
        path = tmp_path / f"s-00001-of-{total}.tfrecord"
        write_shard(path, [make_example("a")])
        with pytest.raises(UserError, match="1 of [0-9]+ shards; missing: 0, 2, 3, 4, 5, 6, 7, 8"):
            load_index(str(tmp_path), "s", SPEC)
        os.remove(path)


# Indices ----------------------------------------------------------------------------------------


def test_foreign_records_are_scanned_once(foreign):
    index = load_index(str(foreign), "train", SPEC)
    assert index.size == 10
    assert index.ids.tolist() == [f"im{i}" for i in range(10)]
    assert index.shard.tolist() == [0] * 5 + [1] * 5
    assert index.image_labels[:5].tolist() == [[1, 0], [0, 0], [0, 0], [1, 1], [0, 1]]
    assert index.has_image_labels[:5].tolist() == [True, True, False, True, True]
    assert index.has_mask[:5].tolist() == [True] * 4 + [False]
    assert set(index.height) == {4} and set(index.width) == {6}
    written = (foreign / "train.index.npz").read_bytes()
    again = load_index(str(foreign), "train", SPEC)
    assert (again.offset == index.offset).all() and again.shards == index.shards
    os.remove(foreign / "train.index.npz")
    load_index(str(foreign), "train", SPEC)
    assert (foreign / "train.index.npz").read_bytes() == written


def test_unwritable_folder_keeps_the_index_in_memory(foreign, monkeypatch):
    def refuse(path, index):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(split_index, "save_index", refuse)
    assert load_index(str(foreign), "train", SPEC).size == 10
    assert not (foreign / "train.index.npz").exists()


def test_damage_stops_with_file_record_and_offset(foreign):
    offsets = [f.offset for f in scan(str(shard(foreign)))]
    flip(shard(foreign), offsets[3] + 60)
    with pytest.raises(RecordError) as error:
        load_index(str(foreign), "train", SPEC)
    for part in (str(shard(foreign)), "record 3", f"byte {offsets[3]}"):
        assert part in str(error.value)
    reported = []
    index = load_index(str(foreign), "train", SPEC, on_damage=reported.append)
    assert index.size == 9 and len(reported) == 1
    assert not (foreign / "train.index.npz").exists()


def test_index_survives_a_damaged_length(foreign):
    """With an index, damage costs one record, not the rest of the shard."""
    index = load_index(str(foreign), "train", SPEC)
    flip(shard(foreign), int(index.offset[1]) + 2)
    with RecordReader(index, str(foreign)) as reader:
        with pytest.raises(RecordError, match="record 1, byte"):
            reader.read(1)
        assert [reader.read(i).filename for i in (0, 2, 9)] == ["im0", "im2", "im9"]
    with pytest.raises(RecordError, match="record 4, byte"):
        flip(shard(foreign, 1), int(index.offset[9]) + 40)
        RecordReader(index, str(foreign)).read(9)


def test_truncation_after_indexing(foreign):
    load_index(str(foreign), "train", SPEC)
    shard(foreign, 1).write_bytes(shard(foreign, 1).read_bytes()[:-30])
    with pytest.raises(UserError, match="truncated"):
        load_index(str(foreign), "train", SPEC)
    reported = []
    index = load_index(str(foreign), "train", SPEC, on_damage=reported.append)
    assert len(reported) == 1 and index.size == 10
    with pytest.raises(RecordError, match="truncated"):
        RecordReader(index, str(foreign)).read(9)


def test_replaced_shard(foreign):
    index = load_index(str(foreign), "train", SPEC)
    write_shard(shard(foreign), [make_example("other")] * 9)
    with pytest.raises(UserError, match="not the one that was written"):
        load_index(str(foreign), "train", SPEC)
    write_shard(shard(foreign), [make_example(f"ab{i}") for i in range(5)])
    with pytest.raises(RecordError):
        RecordReader(index, str(foreign)).read(0)


def test_missing_split_names_those_present(foreign):
    with pytest.raises(UserError, match="accepted: train"):
        load_index(str(foreign), "val", SPEC)
    with pytest.raises(UserError, match="does not exist"):
        load_index(str(foreign / "nowhere"), "val", SPEC)
    with pytest.raises(UserError, match="is a file"):
        load_index(str(shard(foreign)), "val", SPEC)


def test_missing_and_mixed_shards(foreign):
    os.rename(shard(foreign, 1), foreign / "kept")
    with pytest.raises(UserError, match="missing: 1"):
        load_index(str(foreign), "train", SPEC)
    os.rename(foreign / "kept", foreign / "train-00001-of-00003.tfrecord")
    with pytest.raises(UserError, match="different sets"):
        load_index(str(foreign), "train", SPEC)


def test_split_names_that_begin_alike(foreign):
    write_shard(foreign / "train_aug-00000-of-00001.tfrecord", [make_example("x")])
    assert splits_present(str(foreign)) == ["train", "train_aug"]
    assert load_index(str(foreign), "train", SPEC).size == 10
    assert load_index(str(foreign), "train_aug", SPEC).size == 1


def test_empty_split(tmp_path):
    write_shard(tmp_path / "train-00000-of-00001.tfrecord", [])
    with pytest.raises(UserError, match="holds no records"):
        load_index(str(tmp_path), "train", SPEC)


def test_unreadable_index(foreign):
    (foreign / "train.index.npz").write_bytes(b"not an archive")
    with pytest.raises(UserError, match="delete it"):
        load_index(str(foreign), "train", SPEC)


def test_index_of_other_classes(foreign):
    load_index(str(foreign), "train", SPEC)
    with pytest.raises(UserError, match="another number of classes"):
        load_index(str(foreign), "train", DatasetSpec("t", ("background", "cat")))


def rewritten(folder, **changes):
    """Changes arrays of the index file; a function gets the array that is there."""
    path = folder / "train.index.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for name, change in changes.items():
        arrays[name] = change(arrays[name]) if callable(change) else change
    np.savez(path, **arrays)
    return str(folder)


def rows(index):
    """The arrays of an index that have one row for each record, ids as text."""
    names = ["shard", "offset", "length", "ids", "height", "width"]
    return {n: getattr(index, n) for n in [*names, "image_labels", "has_image_labels", "has_mask"]}


def test_an_index_of_version_1_is_read(foreign):
    index = load_index(str(foreign), "train", SPEC)
    os.remove(foreign / "train.index.npz")
    arrays = {**rows(index), "ids": index.ids.astype(np.str_), "version": np.int32(1)}
    arrays |= {"shards": np.array(index.shards), "shard_bytes": index.shard_bytes}
    np.savez(foreign / "train.index.npz", **arrays)
    old = load_index(str(foreign), "train", SPEC)
    for name, array in rows(index).items():
        np.testing.assert_array_equal(getattr(old, name), array)
    with RecordReader(old, str(foreign)) as reader:
        assert [reader.read(i).filename for i in range(10)] == old.ids.tolist()


def test_ids_of_any_length_and_alphabet(tmp_path):
    """One long id costs its own bytes, not those bytes for every record."""
    ids = ["a", "ü/漢字", "x" * 4096, "b"]
    write_shard(tmp_path / "train-0-of-1", [make_example(i) for i in ids])
    load_index(str(tmp_path), "train", SPEC)
    index = read_index(str(tmp_path / "train.index.npz"), SPEC)
    assert index.ids.tolist() == ids and index.ids[index.ids == "b"].tolist() == ["b"]
    assert os.path.getsize(tmp_path / "train.index.npz") < 4096 + 4000


@pytest.mark.parametrize(
    "keep",
    [range(5), [*range(9)], [0] * 10, [*range(9), 0], [1, 0, *range(2, 10)], [*range(10), 9], [9]],
)
def test_an_index_without_every_record_once_is_refused(foreign, keep):
    index = load_index(str(foreign), "train", SPEC)
    cut = {name: array[list(keep)] for name, array in rows(index).items()}
    path = str(foreign / "train.index.npz")
    save_index(path, dataclasses.replace(index, **cut))
    with pytest.raises(UserError, match="contradicts itself") as error:
        load_index(str(foreign), "train", SPEC)
    assert path in str(error.value) and "delete it" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": lambda a: a - 1},
        {"shard": lambda a: np.where(np.arange(10) == 3, -1, a)},
        {"shard": lambda a: a + 2**20},
        {"shard": lambda a: np.zeros_like(a)},
        {"offset": lambda a: a - 1},
        {"offset": lambda a: a + 2**62},
        {"offset": lambda a: np.zeros_like(a)},
        {"length": lambda a: np.full_like(a, 2**63 - 1)},
        {"length": lambda a: -a},
        {"length": lambda a: np.zeros_like(a)},
        {"height": lambda a: -a},
        {"height": lambda a: a * 0},
        {"width": lambda a: a + 2**30},
        {"height": lambda a: a.astype(float)},
        {"height": lambda a: a[:, None]},
        {"image_labels": lambda a: a + 7},
        {"has_mask": lambda a: a.astype(np.int8)},
        {"shards": lambda a: a[[0, 0]]},
        {"shards": lambda a: a[:1]},
        {"shards": lambda a: np.arange(2)},
        {"shard_bytes": lambda a: -a},
        {"shard_bytes": lambda a: a[0]},
        {"ids": lambda a: a[:-1]},
        {"ids": lambda a: np.full_like(a, 0xFF)},
        {"id_ends": lambda a: a[::-1]},
        {"id_ends": lambda a: a - 100},
        {"id_ends": lambda a: a[:-1]},
        {"version": lambda a: np.int32(99)},
    ],
)
def test_an_index_that_contradicts_itself(foreign, changes):
    load_index(str(foreign), "train", SPEC)
    with pytest.raises(UserError, match="An index|shards are not those") as error:
        load_index(rewritten(foreign, **changes), "train", SPEC)
    assert "train.index.npz" in str(error.value)


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"height": lambda a: a + 1}, tfexample.HEIGHT),
        ({"width": lambda a: a * 2}, tfexample.WIDTH),
        ({"ids": lambda a: a[::-1]}, tfexample.FILENAME),
        ({"has_mask": lambda a: ~a}, tfexample.LABEL),
        ({"has_image_labels": lambda a: ~a}, tfexample.IMAGE_LABELS),
        ({"image_labels": lambda a: 1 - a}, tfexample.IMAGE_LABELS),
    ],
)
def test_a_record_that_the_index_describes_wrongly(foreign, changes, key):
    load_index(str(foreign), "train", SPEC)
    index = load_index(rewritten(foreign, **changes), "train", SPEC)
    with RecordReader(index, str(foreign)) as reader:
        with pytest.raises(RecordError, match=f"record 0, byte 0, key {key}"):
            reader.read(0)


def described(folder, *, count=10, per_shard=(5, 5)):
    """Writes a dataset.json; None leaves out a number."""
    shards = []
    for k, number in enumerate(per_shard):
        entry = {"file": shard(folder, k).name, "bytes": os.path.getsize(shard(folder, k))}
        shards.append(entry if number is None else {**entry, "records": number})
    entry = {"shards": shards} if count is None else {"shards": shards, "count": count}
    content = {**SPEC.to_json(), "splits": {"train": entry}}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize(
    "said", [{"count": 11}, {"per_shard": (5, 6)}, {"count": 128, "per_shard": (None, None)}]
)
def test_another_count_than_that_of_dataset_json(foreign, said, with_index):
    if with_index:
        load_index(str(foreign), "train", SPEC)
    described(foreign, **said)
    with pytest.raises(UserError, match="number of records of .* is not the one of dataset.json"):
        load_index(str(foreign), "train", SPEC)


def test_counts_are_not_needed_and_damage_explains_fewer(foreign):
    described(foreign, count=None, per_shard=(None, None))
    for _ in range(2):
        assert load_index(str(foreign), "train", SPEC).size == 10
    os.remove(foreign / "train.index.npz")
    described(foreign)
    assert load_index(str(foreign), "train", SPEC).size == 10
    os.remove(foreign / "train.index.npz")
    flip(shard(foreign), 60)
    reported = []
    index = load_index(str(foreign), "train", SPEC, on_damage=reported.append)
    assert index.size == 9 and len(reported) == 1


def test_image_label_beyond_the_classes(tmp_path):
    write_shard(tmp_path / "train-00000-of-00001.tfrecord", [make_example("x", labels=[3])])
    with pytest.raises(RecordError, match="image/class/label"):
        load_index(str(tmp_path), "train", SPEC)


def test_record_error_survives_pickling():
    import pickle

    error = RecordError("What.", location=framing.Location("f", 1, 2), key="k", received=3)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.location == error.location and again.key == "k"
