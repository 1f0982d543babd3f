"""Files that describe data and runs: whatever is in them, there is a value or one error."""

import io
import json
import os
import socket
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from tfrecords_tools import build_pseudo_labels, check
from tfseg import files
from tfseg.data import class_embeddings, class_splits, framing, index_file, specs, tfexample
from tfseg.data.atomic_writing import ShardWriter
from tfseg.data.framing import RecordError
from tfseg.data.index_file import _INDEX_VERSION
from tfseg.data.record_reader import RecordReader
from tfseg.data.shard_scan import scan
from tfseg.data.shards import shard_name
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError
from tfseg.files import ArrayForm
from tfseg.runs import load
from tfseg.runs import record as run_record
from tfseg.settings.data import DataConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import check_saved, make
from tfseg.settings.run import TrainConfig

SPEC = DatasetSpec("toy", ("background", "cat", "dog"))


# JSON: one table of forms for every reader --------------------------------------------------------

# Whatever the file should be, these are none.
NO_JSON = {
    "empty": b"",
    "cut": b'{"name": "to',
    "binary": bytes(range(256)),
    "zeros": bytes(1000),
    "not UTF-8": b'{"name": "\xff"}',
    "UTF-16": '{"name": "toy"}'.encode("utf-16"),
    "deep lists": b"[" * 100_000,
    "deep and whole": b"[" * 900 + b"]" * 900,
    "deep objects": b'{"a":' * 100_000,
    "deep within": b'{"name": ' + b"[" * 80 + b"]" * 80 + b"}",
    "digits": b'{"name": ' + b"9" * 5000 + b"}",
    "half a character": b'{"name": "\\ud800"}',
    "half a character as a key": b'{"\\udc00": 1}',
    "a key twice": b'{"name": "toy", "name": "other"}',
    "two values": b"{} {}",
    "a list": b"[]",
    "a text": b'"toy"',
    "a number": b"1e999",
}


def _pipe(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.getcwd()
        os.chdir(os.path.dirname(path))
        server.bind(os.path.basename(path))
        os.chdir(folder)


NO_FILE = {
    "a folder": os.mkdir,
    "a named pipe": _pipe,
    "a socket": _socket,
    "a device": lambda path: os.symlink("/dev/zero", path),
}


def read_dataset(folder):
    specs.load_spec(str(folder), "coco")


def read_config(folder):
    run_record.read(str(folder), of_run=True)


def read_manifest(folder):
    from tfseg.weights.checkpoint.manifest import read_manifest

    read_manifest(str(folder / "model.ckpt-1"))


def read_split(folder):
    class_splits.load(str(folder / "split.json"), SPEC)


JSON_READERS = {
    "dataset.json": read_dataset,
    "config.json": read_config,
    "model.ckpt-1.manifest.json": read_manifest,
    "split.json": read_split,
}
BY_JSON_READER = pytest.mark.parametrize("name", JSON_READERS)


@BY_JSON_READER
@pytest.mark.parametrize("kind", NO_JSON)
def test_what_is_no_json_is_one_error(tmp_path, name, kind):
    (tmp_path / name).write_bytes(NO_JSON[kind])
    with pytest.raises(UserError) as error:
        JSON_READERS[name](tmp_path)
    assert name in str(error.value) and len(str(error.value)) < 1500
    str(error.value).encode()


@BY_JSON_READER
@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_file_is_not_waited_for(tmp_path, name, kind):
    NO_FILE[kind](tmp_path / name)
    with pytest.raises(UserError, match=f"(?s)is not a file.*{kind}"):
        JSON_READERS[name](tmp_path)


# Values that stand in the place of any other.
WRONG = [None, True, -1, 1.5, 10**30, 1e308, float("nan"), "x", "", [], {}, [[]], [None], {"a": []}]


def places(content, path=()):
    """Yields the place of every value within a value."""
    if not isinstance(content, dict | list):
        return
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(content, place, value):
    """Returns a copy with another value at a place; `...` removes it."""
    content = json.loads(json.dumps(content))
    outer = content
    for key in place[:-1]:
        outer = outer[key]
    if value is ...:
        del outer[place[-1]]
    else:
        outer[place[-1]] = value
    return content


def damaged_forms(content):
    for place in places(content):
        yield changed(content, place, ...)
        for value in WRONG:
            yield changed(content, place, value)


@pytest.fixture
def folder(tmp_path):
    """A split of three records with index and dataset.json."""
    pixels = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (6, 4)).save(pixels, "PNG")
    with ShardWriter(str(tmp_path / shard_name("train", 0, 1))) as writer:
        for i in range(3):
            writer.write(
                tfexample.encode(
                    image=pixels.getvalue(), filename=f"im{i}", height=4, width=6, label=None,
                    image_labels=[1],
                )
            )  # fmt: skip
    shard = {
        "file": os.path.basename(writer.path),
        "records": 3,
        "sha256": writer.sha256,
        "bytes": writer.num_bytes,
    }
    content = {**SPEC.to_json(), "splits": {"train": {"count": 3, "shards": [shard]}}}
    content["palette"], content["eval_ids"] = [[0, 0, 0], [1, 2, 3]], [0, 5, 7]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    load_index(str(tmp_path), "train", SPEC)
    return tmp_path


def loads(folder):
    spec = specs.load_spec(str(folder), "coco")
    return load_index(str(folder), "train", spec)


def test_a_path_of_a_similar_name_is_the_next_step(tmp_path):
    (tmp_path / "photos" / "masks").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("background\n")

    def hint(path):
        return files.did_you_mean(str(tmp_path / path), "look")

    assert hint("class.txt") == f"did you mean {tmp_path / 'classes.txt'}?"
    assert hint("photos/mask/") == f"did you mean {tmp_path / 'photos' / 'masks'}?"
    # The first part that is not there.
    assert hint("foto/masks/a.png") == f"did you mean {tmp_path / 'photos'}?"
    assert hint("elsewhere/x.png") == f"there is no folder {tmp_path / 'elsewhere'}"
    # A file where a folder is needed.
    assert hint("classes.txt") == f"give a folder, such as that of the file: {tmp_path}"
    assert hint("zzz") == "look" == files.did_you_mean("s3://bucket/records", "look")


def test_a_similar_name_is_found_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "records").mkdir()
    monkeypatch.chdir(tmp_path)
    assert files.did_you_mean("recods") == "did you mean records?"
    assert files.did_you_mean("zzz") is None


def test_every_damaged_form_of_dataset_json(folder):
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    for other in damaged_forms(content):
        path.write_text(json.dumps(other))
        try:
            assert loads(folder).size == 3
            spec = specs.load_spec(str(folder), "coco")
            assert spec.colors().shape == (256, 3) and len(spec.eval_ids or "abc") == 3
        except UserError:
            pass
        # The same for the other readers of the file.
        try:
            check._entries(str(folder))
            build_pseudo_labels.check_output(str(folder), str(folder), "train", None)
        except UserError:
            pass


def test_more_classes_than_a_mask_can_hold_are_refused(folder):
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    content["class_names"] = [str(i) for i in range(10**5)]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="100000 names"):
        loads(folder)


def test_a_shard_listed_twice_is_refused(folder):
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["shards"] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="shard twice"):
        loads(folder)


@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_shard_is_named_by_every_reader(folder, kind):
    index = loads(folder)
    (path,) = folder.glob("*.tfrecord")
    path.unlink()
    NO_FILE[kind](path)
    with RecordReader(index, str(folder)) as reader:
        for read in (
            lambda: loads(folder),
            lambda: reader.read(0),
            lambda: framing.read_record(str(path), 0),
            lambda: list(scan(str(path))),
            lambda: framing.sha256(str(path)),
        ):
            with pytest.raises(RecordError, match=f"(?s){path.name}.*{kind}"):
                read()
    (result,), problems, _ = check.check(str(folder))
    assert {p.kind for p in problems} >= {"shard that cannot be read"} and result.count == 0
    # The same for shards that were never indexed.
    for name in ("dataset.json", "train.index.npz"):
        (folder / name).unlink()
    with pytest.raises(RecordError, match=kind):
        load_index(str(folder), "train", SPEC)


# config.json --------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The content of a run's config.json."""
    monkeypatch.setattr(run_record, "_git_revision", lambda: None)
    split = class_splits.ClassSplit("s", (0, 1), (2,), background=0)
    values = np.eye(3, dtype=np.float32)
    vectors = class_embeddings.ClassVectors(values, "v", "0" * 64, "none")
    spec = DatasetSpec("toy", SPEC.class_names, seen_unseen=split, vectors=vectors)
    train = TrainConfig()
    sections = {"model": ModelConfig(), "data": DataConfig(), "train": train}
    sections["method"] = train.method_settings
    seen = {"seen_classes": ["cat"], "oracle_layout": False, "drop_images": []}
    run_record.write(str(tmp_path), sections, spec, {"initial_run": seen})
    return json.loads((tmp_path / "config.json").read_text())


def test_every_damaged_form_of_config_json(tmp_path, config):
    used = {key: config[key] for key in ("model", "data", "dataset", "initial_run")}
    rest = {key: config[key] for key in config if key not in used}
    # A few settings of each kind; the others are read likewise.
    for section, names in (("model", "decoder_filters head"), ("data", "class_split drop_images")):
        used[section] = {name: used[section][name] for name in names.split()}
    refused = 0
    for other in damaged_forms(used):
        (tmp_path / "config.json").write_text(json.dumps({**rest, **other}))
        try:
            record = run_record.read(str(tmp_path), of_run=True)
            run_record.told(record)
            run_record.zero_label_facts(record["dataset"])
            check_saved(ModelConfig, record["model"], where="x")
            check_saved(DataConfig, record["data"], where="x")
            split = record["dataset"].get("split")
            split and class_splits.ClassSplit.from_json(split)
        except UserError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    "name, value",
    [
        ("decoder_filters", 0),
        ("decoder_filters", 10**30),
        ("decoder_filters", True),
        ("decoder_filters", 256.0),
        ("decoder_filters", [256]),
        ("atrous_rates", 6),
        ("atrous_rates", ["6"]),
        ("atrous_rates", list(range(1, 100))),
        ("atrous_rates", [10**6]),
        ("depth_multiplier", float("nan")),
        ("depth_multiplier", float("inf")),
        ("head", "none"),
        ("model_variant", None),
        ("add_image_level_feature", 1),
    ],
)
def test_a_saved_setting_that_no_flag_could_give(name, value):
    check_saved(ModelConfig, {"decoder_filters": 64, "atrous_rates": [6, 12]}, where="x")
    with pytest.raises(UserError, match=f"c.json, {name}"):
        check_saved(ModelConfig, {name: value}, where="c.json")


@pytest.mark.parametrize(
    "settings",
    [
        {"decoder_filters": 10**6},
        {"aspp_convs_filters": 10**6},
        {"head": "projection", "projection_dim": 10**6},
        {"divisible_by": 10**6},
        {"depth_multiplier": 1000.0},
        {"logits_kernel_size": 1001},
    ],
)
def test_a_network_larger_than_its_checkpoint_is_refused_before_it_is_made(monkeypatch, settings):
    from tfseg.weights.checkpoint import find, reading

    class Reader:
        def get_variable_to_shape_map(self):
            return {"a": [3, 3, 256, 2048], "b": [], "c": [2048]}

    monkeypatch.setattr(find, "newest", lambda path: path)
    monkeypatch.setattr(reading, "open_reader", lambda prefix: Reader())
    load._check_widths(ModelConfig(decoder_filters=512, logits_kernel_size=3), "run", "c.json")
    with pytest.raises(UserError, match=f"larger network.*\n.*c.json, model.{list(settings)[-1]}"):
        load._check_widths(make(ModelConfig, **settings), "run", "c.json")


# .npz: one table of forms for every reader --------------------------------------------------------


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_of(descr, shape, data=b""):
    """A .npy with a header of one's own."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


BAD_ARRAYS = {
    "empty": b"",
    "cut": npy(np.zeros(100))[:-3],
    "longer than its shape": npy(np.zeros(4)) + b"x",
    "objects": npy(np.array([{}], object)),
    "records": npy(np.zeros(3, "i4,i4")),
    "dates": npy(np.zeros(3, "M8[s]")),
    "negative side": npy_of("'<i8'", (-1,)),
    "huge side": npy_of("'<i8'", (1 << 62,)),
    "huge item": npy_of("'V999999999999'", (1,)),
    "no bytes": npy_of("'<U0'", (1 << 50,)),
    "no columns": npy_of("'<i8'", (1 << 50, 0)),
    "deep header": npy_of("(" * 400 + ")" * 400, (1,)),
    "broken header": npy_of("'''", (1,)),
    "true": npy_of("'<i8'", (True, "x")),
    "points beyond Unicode": npy_of("'<U1'", (1,), struct.pack("<I", 0x110000)),
    "half a character": npy_of("'<U1'", (1,), struct.pack("<I", 0xD800)),
    "version 2": b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31),
    "version 9": b"\x93NUMPY\x09\x00",
}
BAD_ARCHIVES = {
    "empty": b"",
    "text": b"names",
    "zeros": bytes(100),
    "a lone array": npy(np.zeros(3)),
    "a pickle": b"\x80\x04K\x01.",
    "cut": None,
    "flipped": None,
    "an empty archive": b"PK\x05\x06" + bytes(18),
}


def write_npz(path, arrays, compression=zipfile.ZIP_STORED):
    """Writes arrays, or the bytes of a .npy."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in arrays.items():
            content = array if isinstance(array, bytes) else npy(array)
            archive.writestr(f"{name}.npy", content)


def read_index(path):
    index_file.read_index(str(path), SPEC)


def read_vectors(path):
    class_embeddings.load(str(path), SPEC.class_names, norm="none")


def read_any(path):
    files.read_npz(str(path), what="The file")


INDEX = {
    "version": np.int32(_INDEX_VERSION),
    "shards": np.array(["train-00000-of-00001.tfrecord"]),
    "shard_bytes": np.array([100]),
    "shard": np.zeros(2, np.int32),
    "offset": np.array([0, 50]),
    "length": np.array([34, 34]),
    "ids": np.frombuffer(b"ab", np.uint8),
    "id_ends": np.array([1, 2]),
    "height": np.ones(2, np.int32),
    "width": np.ones(2, np.int32),
    "image_labels": np.zeros((2, 2), np.uint8),
    "has_image_labels": np.zeros(2, bool),
    "has_mask": np.zeros(2, bool),
}
VECTORS = {"names": np.array(SPEC.class_names), "vectors": np.eye(3, dtype=np.float32)}
NPZ_READERS = {"index": (read_index, INDEX), "vectors": (read_vectors, VECTORS)}
NPZ_READERS["weights"] = (read_any, VECTORS)
BY_NPZ_READER = pytest.mark.parametrize("reader", NPZ_READERS)


@BY_NPZ_READER
@pytest.mark.parametrize("kind", BAD_ARRAYS)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_damaged_array_is_one_error(tmp_path, reader, kind, compression):
    read, arrays = NPZ_READERS[reader]
    path = tmp_path / "file.npz"
    write_npz(path, arrays)
    read(path)
    for name in {*list(arrays)[:2], list(arrays)[-1]}:
        write_npz(path, {**arrays, name: BAD_ARRAYS[kind]}, compression)
        with pytest.raises(UserError, match="file.npz"):
            read(path)


@BY_NPZ_READER
@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_every_damaged_archive_is_one_error(tmp_path, reader, kind):
    read, arrays = NPZ_READERS[reader]
    path = tmp_path / "file.npz"
    write_npz(path, arrays, zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    contents = [BAD_ARCHIVES[kind]]
    if kind == "cut":
        contents = [whole[:n] for n in range(1, len(whole), 97)]
    if kind == "flipped":
        contents = [
            whole[:n] + bytes([whole[n] ^ 65]) + whole[n + 1 :] for n in range(0, len(whole), 41)
        ]
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            read(path)
        except UserError as error:
            assert "file.npz" in str(error)
            refused += 1
    # Some bytes of an archive, such as its dates, say nothing; so does an archive without arrays.
    assert refused > 0.5 * len(contents) or (kind, reader) == ("an empty archive", "weights")


@BY_NPZ_READER
@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_npz_file_is_not_waited_for(tmp_path, reader, kind):
    NO_FILE[kind](tmp_path / "file.npz")
    with pytest.raises(UserError, match="file.npz"):
        NPZ_READERS[reader][0](tmp_path / "file.npz")


@pytest.mark.parametrize("name", INDEX)
@pytest.mark.parametrize(
    "value",
    [
        np.float32(1),
        np.array(["x"] * 7),
        np.zeros(7, np.int64),
        np.zeros((2, 2, 2), np.uint8),
        np.full(2, 3.5),
        np.array(["a", "b"]).reshape(2, 1),
    ],
)
def test_every_array_of_an_index_has_its_type_and_shape(tmp_path, name, value):
    path = tmp_path / "file.npz"
    write_npz(path, {**INDEX, name: value})
    with pytest.raises(UserError, match="(do not fit|number of classes|array)"):
        read_index(path)
    write_npz(path, {k: v for k, v in INDEX.items() if k != name})
    with pytest.raises(UserError, match=f"no array '{name}'"):
        read_index(path)


@BY_NPZ_READER
def test_arrays_that_unpack_to_much_more_than_the_file(tmp_path, reader):
    read, arrays = NPZ_READERS[reader]
    path = tmp_path / "file.npz"
    name = list(arrays)[-1]
    # Claimed, not written: the size in the archive's directory is what must not be believed.
    data = npy_of("'<f4'", (3, 1 << 26), bytes(1 << 20))
    write_npz(path, {**arrays, name: data}, zipfile.ZIP_DEFLATED)
    whole, size = path.read_bytes(), len(data) - (1 << 20) + 3 * 4 * (1 << 26)
    path.write_bytes(whole.replace(struct.pack("<I", len(data)), struct.pack("<I", size)))
    tracemalloc.start()
    with pytest.raises(UserError, match="805306368 bytes|as long as|bytes; a file"):
        read(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100e6


def test_a_large_index_is_no_harm(tmp_path):
    n = 30_000
    large = {
        k: np.resize(v, (n, *v.shape[1:]))
        for k, v in INDEX.items()
        if k not in ("version", "shards")
    }
    large |= {"offset": 50 * np.arange(n), "shard_bytes": np.array([50 * n])}
    large |= {"ids": np.full(n, ord("x"), np.uint8), "id_ends": np.arange(1, n + 1)}
    write_npz(tmp_path / "file.npz", {**INDEX, **large})
    assert index_file.read_index(str(tmp_path / "file.npz"), SPEC).size == n


def test_compressed_arrays_are_read(tmp_path):
    np.savez_compressed(tmp_path / "file.npz", **VECTORS, more=np.zeros(1000))
    form = {"vectors": ArrayForm("fiu", (3, "d"))}
    arrays = files.read_npz(str(tmp_path / "file.npz"), form, what="It")
    np.testing.assert_array_equal(arrays["vectors"], VECTORS["vectors"])
    read_vectors(tmp_path / "file.npz")
