"""Files that were changed at random, and what must hold when they are read.

Each entry of `TARGETS` makes the bytes of an intact file, reads such a file through a public
function, and says what the result must be. Whatever happens to the bytes, reading gives a right
result or a `UserError`; it takes little time and memory, and loses nothing in silence.

`tests/test_fuzz.py` does this some thousand times with fixed seeds; `python -m tests.fuzzing`
(`make fuzz`) goes on with Hypothesis, which also reduces what it finds.
"""

import argparse
import base64
import contextlib
import dataclasses
import functools
import gzip
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import types
import unittest.mock
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import numpy as np
import safetensors.numpy
import tensorflow as tf
from PIL import Image

from tests import torch_files
from tfrecords_tools import text_vectors
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.image_label_files import read_image_labels
from tfrecords_tools.labelme.painting import MaskReader, ids_of
from tfrecords_tools.labelme.pairing import read_folder
from tfseg.data import class_embeddings, class_names, class_splits, specs
from tfseg.data import framing, tfexample
from tfseg.data.encoded_image import image_size
from tfseg.data.record_reader import RecordReader
from tfseg.data.shard_scan import Damage, scan
from tfseg.data.shards import shard_name
from tfseg.data.sources import make_sources
from tfseg.data.split_index import load_index
from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.inference.images import manifest as predictions
from tfseg.runs import record
from tfseg.runs.record import NAME
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.strict import StrictConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.weights import torch_file
from tfseg.weights.checkpoint import find, writing
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.checkpoint.stored_networks import deployable_network
from tfseg.weights.pretrained import load_pretrained

# A reading that takes longer than this (of processors, since others may be at work on them too),
# or more memory than that, is a failure.
MAX_SECONDS = 5.0
MAX_BYTES = 1500 << 20
MAX_MEGAPIXELS = 4.0
SPEC = specs.DatasetSpec("toy", ("background", "cat", "dog"))

Below = Callable[[int], int]


# Mutations --------------------------------------------------------------------------------------

_BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
_NUMBERS = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
_DEEP = "@deep"
_VALUES = (
    *(None, True, False, 0, 1, -1, 255, 256, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308),
    *(float("inf"), float("nan"), "", "x", "\ud800", "x" * 70_000, "../x", "/", "1", "1e9"),
    *([], {}, [None], [[]], [-1], {"x": 1}, [0] * 1000, _DEEP),
)


def mutate(data: bytes, below: Below) -> bytes:
    """Returns `data` with a few random changes that fit its kind.

    Args:
      data: of a file.
      below: n -> a random number from 0 to n - 1.
    """
    if data[:2] == b"PK" and below(4):
        return _mutate_archive(data, below)
    if data[:1] in (b"{", b"[") and below(4):
        return _mutate_json(data, below)
    return _mutate_bytes(data, below)


def _mutate_bytes(data: bytes, below: Below) -> bytes:
    content = bytearray(data)
    for _ in range(1 + below(3)):
        start, kind = below(len(content) + 1), below(9)
        end = min(len(content), start + 1 + below(24))
        if kind <= 1 and start < len(content):
            content[start] ^= 1 << below(8)
        elif kind == 2 and start < len(content):
            content[start] = _BYTES[below(len(_BYTES))]
        elif kind == 3:
            width, order = (1, 2, 4, 8)[below(4)], ("little", "big")[below(2)]
            number = _NUMBERS[below(len(_NUMBERS))] % 2 ** (8 * width)
            content[start : start + width] = number.to_bytes(width, order)
        elif kind == 4:
            del content[start:end]
        elif kind == 5:
            content[end:end] = content[start:end] * (1 + below(4) ** 4)
        elif kind == 6:
            content[start:start] = bytes(below(256) for _ in range(1 + below(24)))
        elif kind == 7:
            del content[start:]
        else:
            other = below(len(content) + 1)
            content[start:end] = content[other : other + end - start]
    return bytes(content)


def _mutate_archive(data: bytes, below: Below) -> bytes:
    """Changes members of a zip archive; their checksums are right afterwards."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    k, kind = below(len(members)), below(10)
    name, content = members[k]
    if kind == 0:
        del members[k]
    elif kind == 1:
        members.append((name, members[below(len(members))][1]))
    elif kind == 2:
        members[k] = (name, members[below(len(members))][1])
    else:
        # The first bytes describe the rest.
        head = content[: 160 if below(2) else len(content)]
        members[k] = (name, _mutate_bytes(head, below) + content[len(head) :])
    buffer = io.BytesIO()
    compression = zipfile.ZIP_STORED if below(8) else zipfile.ZIP_DEFLATED
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key or position) of every value inside a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def _mutate_json(data: bytes, below: Below) -> bytes:
    """Replaces, removes or renames values of a JSON file, or of a line of one that has lines."""
    try:
        content = json.loads(data)
    except json.JSONDecodeError:
        lines = data.splitlines(keepends=True)
        k = below(len(lines))
        lines[k] = _mutate_json(lines[k], below) + b"\n"
        return b"".join(lines)
    for _ in range(1 + below(2)):
        places = list(_places(content))
        if not places:
            break
        container, key = places[below(len(places))]
        kind = below(8)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container["x" * below(3)] = container.pop(key)
        elif kind == 2:
            other, place = places[below(len(places))]
            # A copy, since a value inside itself is no JSON.
            container[key] = json.loads(json.dumps(other[place]))
        else:
            container[key] = _VALUES[below(len(_VALUES))]
    text = json.dumps(content)
    return text.replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


# Files ------------------------------------------------------------------------------------------


def _png(array: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def _jpeg(mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((24, 20)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x0128], exif[0x011A] = 6, 2, 72.0
    return exif


def _images() -> list[bytes]:
    grey = np.random.default_rng(0).integers(0, 3, (20, 24)).astype(np.uint8)
    rgb = np.stack([grey * 80] * 3, 2)
    return [
        _png(grey),
        _png(rgb),
        _png(rgb, "P"),
        _png(rgb, "RGBA"),
        _png(grey.astype(np.uint16) * 9000),
        _jpeg(),
        _jpeg("L"),
        _jpeg("CMYK"),
        _jpeg(progressive=True),
        _jpeg(exif=_exif(), comment=b"\xff\xc0" * 9, dpi=(72, 72)),
    ]


@functools.cache
def _examples() -> list[bytes]:
    """Records: PNG and JPEG, with and without mask and image-level labels."""
    mask, images = _images()[0], [_images()[1], _jpeg(), _jpeg(progressive=True)]
    labels: list[Any] = [[1], [], None]
    return [
        tfexample.encode(
            image=image,
            filename=f"folder/image_{k}",
            height=20,
            width=24,
            label=None if k == 2 else mask,
            image_labels=labels[k],
            is_pseudo=k == 1,
        )
        for k, image in enumerate(images)
    ]


def _write(folder: str, name: str, content: bytes) -> str:
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(content)
    return path


def _shard(examples: list[bytes]) -> bytes:
    return b"".join(framing.frame(data) for data in examples)


_SHARDS = [shard_name("train", k, 2) for k in range(2)]


def _split(folder: str) -> None:
    """Writes a split of two shards with its dataset.json and without an index."""
    shards = []
    for name, examples in zip(_SHARDS, (_examples(), _examples()[:1])):
        path = _write(folder, name, _shard(examples))
        size = os.path.getsize(path)
        shards.append({"file": name, "records": len(examples), "bytes": size})
    content = {**SPEC.to_json(), "splits": {"train": {"count": 4, "shards": shards}}}
    content["splits"]["train"]["shards"][0]["sha256"] = framing.sha256(
        os.path.join(folder, _SHARDS[0])
    )
    _write(folder, specs.DATASET_FILE, json.dumps(content).encode())


def _made(write: Callable[[str], None], *names: str) -> list[bytes]:
    """Returns the content of files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        contents = []
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                contents.append(file.read())
        return contents


# Reading ----------------------------------------------------------------------------------------


def _read_image(folder: str, data: bytes) -> None:
    """The size in the header is the one that both decoders make of the bytes."""
    location = framing.Location("image")
    tfexample.check_pixels(data, max_megapixels=MAX_MEGAPIXELS, location=location)
    size = image_size(data)[1:]
    with contextlib.suppress(framing.RecordError):
        assert tfexample.decode_pixels(data, location=location, mode="RGB").shape == (*size, 3)
    with contextlib.suppress(tf.errors.OpError):
        pixels = tf.io.decode_image(data, 3, expand_animations=False)
        assert tuple(pixels.shape) == (*size, 3)


def _read_split(folder: str) -> tuple[dict[tuple[int, int], bytes], list[UserError]]:
    """Returns the data of all records by shard and offset, and what was told of the others."""
    told: list[UserError] = []
    index = load_index(folder, "train", SPEC, on_damage=told.append)
    read = {}
    with RecordReader(index, folder) as reader:
        for i in range(index.size):
            try:
                reader.read(i)
                read[int(index.shard[i]), int(index.offset[i])] = reader.read_bytes(i)
            except UserError as error:
                told.append(error)
    return read, told


def _assert_nothing_lost(folder: str) -> None:
    """What is read is what was written; what is not read is told."""
    read, told = _read_split(folder)
    written = [set(_examples()), set(_examples()[:1])]
    for (shard, _), data in read.items():
        assert data in written[shard], "a record that was never written"
    assert len(read) == 4 or told, f"{4 - len(read)} records lost in silence"
    assert len(read) <= 4, "a record was read twice"


def _read_shard(folder: str, data: bytes) -> None:
    _split(folder)
    path = _write(folder, _SHARDS[0], data)
    covered = sum(
        item.skipped_bytes if isinstance(item, Damage) else item.length + framing.OVERHEAD_BYTES
        for item in scan(path)
    )
    assert covered == len(data), "bytes that are neither a record nor damage"
    _assert_nothing_lost(folder)


def _read_record(folder: str, data: bytes) -> None:
    """Training skips a damaged record by name, and gives the others as they are."""
    good = _examples()[0]
    _write(folder, "train-00000-of-00001.tfrecord", _shard([good, data, good]))
    config = DataConfig(dataset_dir=folder, skip_bad_records=True, max_bad_record_fraction=1.0)
    config = dataclasses.replace(config, max_image_megapixels=MAX_MEGAPIXELS)
    stream = Stream("train", 1, labels="optional")
    source = make_sources({"stream": stream}, SPEC, config)["stream"]
    num_read = 0
    for i in range(source.index.size):
        used = source.good_record(lambda k, i=i: (i + k) % source.index.size)
        image, label, has_label, _, _ = source.fetch(used)
        num_read += used == i
        size = int(source.index.height[used]), int(source.index.width[used])
        assert tuple(tf.io.decode_image(image.item(), 3, expand_animations=False).shape) == (
            *size,
            3,
        )
        assert not has_label or tf.io.decode_image(label.item(), 1).shape[:2] == size
    assert num_read + len(source.bad_records()) == 3, "a record was lost in silence"
    assert num_read >= 2, "intact records were lost"


def _read_index(folder: str, data: bytes) -> None:
    _split(folder)
    _write(folder, "train.index.npz", data)
    _assert_nothing_lost(folder)


def _read_dataset_json(folder: str, data: bytes) -> None:
    _split(folder)
    _write(folder, specs.DATASET_FILE, data)
    spec = specs.load_spec(folder, "none")
    assert len(spec.colors()) == 256 and spec.num_classes > 0
    _assert_nothing_lost(folder)


def _read_vectors(folder: str, data: bytes) -> None:
    path = _write(folder, "vectors.npz", data)
    vectors = class_embeddings.load(path, SPEC.class_names, norm="unit")
    assert vectors.values.shape == (3, vectors.width)
    np.testing.assert_allclose(np.linalg.norm(vectors.values, axis=1), 1, atol=1e-3)


def _labelme() -> list[bytes]:
    """Files of labelme with all kinds of shapes, one with its image inside."""
    mask = base64.b64encode(_png(np.eye(3, 4).astype(np.uint8))).decode()
    shapes = [
        {"label": "cat", "points": [[1, 1], [9, 2], [5, 8.5]], "shape_type": "polygon"},
        {"label": "dog", "points": [[2, 3], [20, 9]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[8, 8], [11, 8]], "shape_type": "circle"},
        {"label": "cat", "points": [[5, 6], [8, 8]], "shape_type": "mask", "mask": mask},
        {"label": "__ignore__", "points": [[1, 2], [3, 4]], "shape_type": "line"},
    ]
    size = {"imageHeight": 20, "imageWidth": 24}
    image = base64.b64encode(_images()[1]).decode()
    contents = [
        {"version": "5.5.0", "shapes": shapes, "imagePath": "x\\a.png", "imageData": None, **size},
        {"shapes": shapes[:2], "imagePath": "gone.jpg", "imageData": image},
    ]
    return [json.dumps(content).encode() for content in contents]


def _read_labelme(folder: str, data: bytes) -> None:
    """Every label is a class or refused, and a mask has the size of its image."""
    if b"gone" not in data:
        _write(folder, "a.png", _images()[1])
    _write(folder, "a.json", data)
    found = read_folder(folder, folder, num_workers=1).values()
    (entry,) = [entry for entry in found if entry.annotation is not None]
    ids = ids_of([entry.annotation], SPEC.class_names, (), 255)
    encoder = Encoder(SPEC, max_megapixels=MAX_MEGAPIXELS, mask_reader=MaskReader(ids))
    encoded = encoder(ImageSource("a", entry.image, entry.annotation))
    assert encoded.pixels.sum() == encoded.row.height * encoded.row.width


_WORD_VECTORS = (
    b"cat 0.5 1 -2\nbig dog 3 4 5\ncow 1 1 1\n",
    b"3 2\ncat 0.5 1\ndog 3 4\ncow 1 1\n",
    b"name,x,y\ncat,1,2\ndog,3,4e-3\n",
    gzip.compress(b"cat 1 2\ndog 3 4\n", mtime=0),
)


def _read_word_vectors(folder: str, data: bytes) -> None:
    table = text_vectors.read(_write(folder, "vectors", data), normalised=class_names.normalised)
    for word in table.key_to_index:
        assert np.isfinite(table.get_vector(word)).all()


_IMAGE_LABELS = (
    b"id,what\na.jpg,cat\nb,cat;dog\nc,\n",
    b"filename,cat,dog\na.jpg,1,0\nx/b.png,1,1\n",
    b"a,1\nb,2 1\n",
)


def _read_image_labels(folder: str, data: bytes) -> None:
    labels = read_image_labels(_write(folder, "labels.csv", data), SPEC)
    assert not labels.unknown and all(set(ids) <= {1, 2} for ids in labels.ids.values())


def _read_class_split(folder: str, data: bytes) -> None:
    split = class_splits.load(_write(folder, "split.json", data), SPEC)
    assert {*split.seen, *split.unseen} <= set(range(3))


def _config(folder: str) -> None:
    """Writes the record of a zero-label run."""
    _vectors(folder)
    split = class_splits.load(_write(folder, "split.json", _CLASS_SPLIT), SPEC)
    vectors = class_embeddings.load(
        os.path.join(folder, "vectors.npz"), SPEC.class_names, norm="unit"
    )
    record.write(
        folder,
        {
            "model": ModelConfig(),
            "data": DataConfig(drop_images="drop.txt"),
            "train": TrainConfig(method="strict"),
            "method": StrictConfig(),
        },
        dataclasses.replace(SPEC, seen_unseen=split, vectors=vectors),
        {"initial_run": {"seen_classes": ["cat"], "drop_images": ["other.txt"]}},
    )


def _read_config(folder: str, data: bytes) -> None:
    _write(folder, NAME, data)
    record.told(record.read(folder))


def _checkpoints(folder: str) -> None:
    """Writes two checkpoints; reading a manifest asks for sizes and checksums alone."""
    for step in (1, 2):
        variable = tf.Variable(float(step), name="logits/weights")
        writing.export(os.path.join(folder, f"model.ckpt-{step}"), {"model": by_name([variable])})


def _predictions(folder: str) -> None:
    """Writes the manifest of predictions of two images."""
    header = {"fingerprint": "same", "checkpoint": "run/model.ckpt-2"}
    with predictions.Writer(folder, None, header) as writer:
        for name in ("a", "folder/b"):
            kinds = ("color", "index")
            writer.add(predictions.Entry(f"{name}.jpg", "x", name, 100, 1, 20, 30, (0, 2), kinds))


def _read_predictions(folder: str, data: bytes) -> None:
    _write(folder, "manifest.jsonl", data)
    for entry in predictions.read_all(
        folder, {"fingerprint": "same", "settings": {}}, num_classes=3
    ).values():
        path = os.path.realpath(os.path.join(folder, entry.name))
        assert path.startswith(os.path.realpath(folder) + os.sep), "a name that leads elsewhere"
        assert set(entry.classes) <= set(range(3))


_CHECKPOINT_FILES: list[str] = []


def _read_manifest(folder: str, data: bytes) -> None:
    if not _CHECKPOINT_FILES:
        _CHECKPOINT_FILES.append(tempfile.mkdtemp())
        _checkpoints(_CHECKPOINT_FILES[0])
    shutil.copytree(_CHECKPOINT_FILES[0], folder, dirs_exist_ok=True)
    _write(folder, "model.ckpt-2.manifest.json", data)
    newest = find.newest(folder)
    assert newest is not None and os.path.basename(newest) in ("model.ckpt-1", "model.ckpt-2")
    deployable_network(os.path.join(folder, "model.ckpt-2"))


_ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "bn.running_mean": np.ones(5, np.float16),
    "steps": np.array(7, np.int64),
}


def _torch(folder: str) -> None:
    torch_files.write_torch(os.path.join(folder, "zip.pth"), _ARRAYS, legacy=False)
    torch_files.write_torch(os.path.join(folder, "legacy.pth"), _ARRAYS, legacy=True)
    torch_files.write_torch(
        os.path.join(folder, "nested.pth"), _ARRAYS, legacy=False, nested="state_dict"
    )


def _read_torch(folder: str, data: bytes, name: str = "weights.pth") -> None:
    arrays = torch_file.read(_write(folder, name, data))
    # A view of stride 0 is no copy.
    total = sum(
        np.prod([n for n, s in zip(a.shape, a.strides) if s]) * a.itemsize for a in arrays.values()
    )
    assert total <= 4 * len(data) + (64 << 20), "arrays that the file cannot hold"


def _read_safetensors(folder: str, data: bytes) -> None:
    _read_torch(folder, data, "weights.safetensors")


def _weights_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{"stem/conv/kernel": np.ones([3, 3], np.float32), "head": np.zeros(4)})
    return buffer.getvalue()


def _read_weights_npz(folder: str, data: bytes) -> None:
    scope = "efficientnet_lite0"
    variable = tf.Variable(tf.zeros([3, 3]), name=f"{scope}/stem/conv/kernel")
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(model_variant=scope),
        backbone=types.SimpleNamespace(scope=scope, variables=[variable]),
        variables=[variable],
    )
    load_pretrained(model, _write(folder, "weights.npz", data))
    assert np.isfinite(variable.numpy()).all()


def _index(folder: str) -> None:
    _split(folder)
    load_index(folder, "train", SPEC)


def _vectors(folder: str) -> None:
    path = os.path.join(folder, "vectors.npz")
    class_embeddings.save(path, SPEC.class_names, np.arange(1, 13).reshape(3, 4))


_CLASS_SPLIT = b'{"seen": ["cat"], "unseen": ["dog"], "validation": [], "background": "background"}'


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
      seeds: makes intact files of this kind.
      read: (empty folder, changed content) -> None; raises UserError, or AssertionError where the
        result is wrong.
      share: how many of a hundred mutations it gets.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[str, bytes], None]
    share: float


TARGETS = {
    "image": Target(_images, _read_image, 16),
    "record": Target(_examples, _read_record, 13),
    "shard": Target(lambda: _made(_split, _SHARDS[0]), _read_shard, 12),
    "index": Target(lambda: _made(_index, "train.index.npz"), _read_index, 12),
    "dataset.json": Target(lambda: _made(_split, "dataset.json"), _read_dataset_json, 10),
    "labelme": Target(_labelme, _read_labelme, 5),
    "word vectors": Target(lambda: list(_WORD_VECTORS), _read_word_vectors, 2),
    "image labels": Target(lambda: list(_IMAGE_LABELS), _read_image_labels, 1),
    "vectors": Target(lambda: _made(_vectors, "vectors.npz"), _read_vectors, 4),
    "class split": Target(lambda: [_CLASS_SPLIT], _read_class_split, 4),
    "config.json": Target(lambda: _made(_config, "config.json"), _read_config, 4),
    "manifest": Target(
        lambda: _made(_checkpoints, "model.ckpt-2.manifest.json"), _read_manifest, 3
    ),
    "predictions": Target(lambda: _made(_predictions, "manifest.jsonl"), _read_predictions, 2),
    "pth": Target(lambda: _made(_torch, "zip.pth", "legacy.pth", "nested.pth"), _read_torch, 6),
    "safetensors": Target(lambda: [safetensors.numpy.save(_ARRAYS)], _read_safetensors, 3),
    "weights.npz": Target(lambda: [_weights_npz()], _read_weights_npz, 3),
}


# Running ----------------------------------------------------------------------------------------


def _memory(key: str) -> int:
    """Returns a number of bytes from Linux's account of this process; 0 elsewhere."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith(key)), 0)
    return 0


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Checks what a reading takes.

    Raises:
      AssertionError: too much time or memory.
    """
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before, started = _memory("VmRSS"), time.process_time()
    yield
    seconds, peak = time.process_time() - started, _memory("VmHWM") - before
    assert seconds < MAX_SECONDS, f"it took {seconds:.0f} s"
    assert peak < MAX_BYTES, f"it took {peak >> 20} MiB"


def _ran_out(error: BaseException | None) -> bool:
    """Says whether memory had run out before an error, whatever it says."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def check(target: Target, data: bytes, *, intact: bool = False) -> None:
    """Reads one file.

    Args:
      target: of `TARGETS`.
      data: its content.
      intact: it was not changed, and must be read.

    Raises:
      AssertionError: the result is wrong, something is lost, or it takes too much.
      Exception: whatever else escapes; it is a defect.
    """
    folder = tempfile.mkdtemp(prefix="fuzz")
    try:
        # Nothing here must survive a power cut.
        with unittest.mock.patch("os.fsync"), limits():
            target.read(folder, data)
    except UserError as error:
        assert not intact, error
        assert not _ran_out(error), f"memory ran out: {error}"
        # A message must reach the terminal, and be readable.
        str(error).encode(errors="backslashreplace")
        assert len(str(error)) < 20_000, f"a message of {len(str(error))} characters"
    finally:
        shutil.rmtree(folder)


def run(name: str, count: int, seed: int = 0) -> list[str]:
    """Changes and reads the files of a target.

    Args:
      name: in `TARGETS`.
      count: of mutations.
      seed: of the random numbers.

    Returns:
      One line for each kind of failure, with the mutation that showed it first.
    """
    target, random_numbers = TARGETS[name], random.Random(f"{name} {seed}")
    seeds = target.seeds()
    for data in seeds:
        check(target, data, intact=True)
    failures: dict[str, str] = {}
    for k in range(count):
        data = mutate(seeds[k % len(seeds)], random_numbers.randrange)
        try:
            check(target, data)
        except Exception as error:
            trace = error.__traceback__
            while trace.tb_next is not None:
                trace = trace.tb_next
            place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
            kind = f"{type(error).__name__} at {place}"
            failures.setdefault(kind, f"{kind}: mutation {k}: {str(error)[:200]}")
    return list(failures.values())


def _search(target: Target, count: int) -> None:
    """Looks for failures with Hypothesis and raises what it finds."""
    import hypothesis
    from hypothesis import strategies

    seeds = target.seeds()

    @hypothesis.settings(
        max_examples=count, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(strategies.data())
    def changed_files(data):
        def below(n):
            return data.draw(strategies.integers(0, n - 1))

        content = mutate(seeds[below(len(seeds))], below)
        hypothesis.note(f"content: {content[:2000]!r}")
        check(target, content)

    changed_files()


def main() -> None:
    """Looks for failures with Hypothesis, target after target."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=50_000, help="mutations of all targets")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    arguments = parser.parse_args()
    failed = []
    for name in arguments.targets:
        count = max(1, round(arguments.examples * TARGETS[name].share / 100))
        started = time.monotonic()
        print(f"{name}: {count} mutations", flush=True)
        try:
            _search(TARGETS[name], count)
        except KeyboardInterrupt:
            raise
        except BaseException:  # Hypothesis groups several failures
            failed.append(name)
            traceback.print_exc()
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
