"""check.py finds each kind of damage, names it, and goes on."""

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tfrecords_tools import check
from tfrecords_tools.checks.leaks import role_of
from tfrecords_tools.encoder import make_record
from tfrecords_tools.id_lists import read_splits
from tfrecords_tools.masks import classes_in
from tfseg.data import framing, tfexample, writing
from tfseg.data.atomic_writing import ShardWriter
from tfseg.data.index_file import save_index
from tfseg.data.record_reader import RecordReader
from tfseg.data.shard_scan import scan
from tfseg.data.specs import DatasetSpec, load_spec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPEC = DatasetSpec("toy", ("background", "cat", "dog"))


def png(array, mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(array, np.uint8))
    if mode == "P":
        # With 256 colours Pillow stores 8 bits a pixel.
        image.putpalette([i for colour in range(256) for i in (colour, 0, 255 - colour)])
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def encode(task):
    """Makes a record of (id, class in the mask)."""
    name, value = task
    seed = int.from_bytes(name.encode()[-4:], "big")
    image = np.random.default_rng(seed).integers(0, 256, (6, 8, 3))
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3] = value
    labels = classes_in(mask, SPEC)
    return make_record(name, png(image), (6, 8), mask, image_labels=labels, spec=SPEC)


@pytest.fixture
def folder(tmp_path):
    """Splits train (6), few (2 of train) and val (4)."""
    train = [(f"t{i}", i % 3) for i in range(6)]
    splits = {"train": train, "few": train[:2], "val": [(f"v{i}", i % 3) for i in range(4)]}
    writing.write_splits(str(tmp_path), SPEC, splits, encode, num_shards=2, num_workers=1)
    return tmp_path


def problems_of(folder, **options):
    _, problems, _ = check.check(str(folder), **options)
    return {(p.split, p.kind): p.text for p in problems}


def shard(folder, split="train", k=0):
    return folder / f"{split}-0000{k}-of-00002.tfrecord"


def rewrite(folder, *, split="train", **changes):
    """Replaces record 1 of a split by one with other fields, as a foreign converter might.

    Index and dataset.json go, so that the record is all there is to complain about.
    """
    index = load_index(str(folder), split, SPEC)
    with RecordReader(index, str(folder)) as reader:
        examples = [reader.read(i) for i in range(index.size)]
    with ShardWriter(str(shard(folder, split))) as writer:
        for i, e in enumerate(examples):
            if index.shard[i] == 0:
                fields = {
                    "image": e.image,
                    "filename": e.filename,
                    "height": e.height,
                    "width": e.width,
                    "label": e.label,
                    "image_labels": e.image_labels,
                }
                writer.write(tfexample.encode(**{**fields, **(changes if i == 1 else {})}))
    for name in os.listdir(folder):
        if name.endswith(".npz"):
            os.remove(folder / name)
    content = SPEC.to_json()
    content["splits"] = {
        name: {
            "count": sum(1 for k in range(2) for _ in scan(str(shard(folder, name, k)))),
            "shards": [
                {
                    "file": shard(folder, name, k).name,
                    "records": sum(1 for _ in scan(str(shard(folder, name, k)))),
                    "bytes": os.path.getsize(shard(folder, name, k)),
                    "sha256": framing.sha256(str(shard(folder, name, k))),
                }
                for k in range(2)
            ],
        }
        for name in ("train", "few", "val")
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def run(folder, *extra):
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "tfrecords_tools" / "check.py"),
            f"--dataset_dir={folder}",
            "--num_workers=1",
            *extra,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_sound_folder(folder):
    results, problems, remarks = check.check(str(folder))
    assert problems == []
    assert {r.split: r.count for r in results} == {"train": 6, "few": 2, "val": 4}
    train = next(r for r in results if r.split == "train")
    # Six images of 48 pixels; two rows of eight belong to cat in two of them, to dog in two.
    assert train.pixels.tolist() == [6 * 48 - 4 * 16, 2 * 16, 2 * 16, 0]
    assert "all of the 2 ids of few are in train" in remarks


def test_command_and_exit_codes(folder):
    process = run(folder)
    assert process.returncode == 0, process.stdout
    assert "no problems in 12 records" in process.stdout
    content = bytearray(shard(folder).read_bytes())
    content[60] ^= 1
    shard(folder).write_bytes(bytes(content))
    process = run(folder)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "PROBLEM: damaged record: 1" in process.stdout
    assert f"{shard(folder)}, record 0, byte 0" in process.stdout
    process = run(folder / "nowhere")
    assert process.returncode == 2 and process.stderr.startswith("error: ")
    assert run(folder, "--splits=nosuch").returncode == 2


def test_lists_the_images_that_show_some_classes(folder, tmp_path):
    results, _, _ = check.check(str(folder), splits=["train"])
    assert check.ids_with(results, ["dog"], SPEC) == ["t2", "t5"]
    listed = tmp_path / "drop.txt"
    process = run(folder, "--splits=train,val", "--ids_with=Dog,cat", f"--ids_file={listed}")
    assert process.returncode == 0, process.stdout + process.stderr
    assert listed.read_text().split() == ["t1", "t2", "t4", "t5", "v1", "v2"]
    assert "6 ids of images with Dog, cat" in process.stdout
    process = run(folder, "--ids_with=horse", f"--ids_file={listed}")
    assert process.returncode == 2 and "'horse' is not among" in process.stderr
    process = run(folder, "--ids_with=cat")
    assert process.returncode == 2 and "--ids_file" in process.stderr
    with pytest.raises(UserError, match="No mask shows"):
        check.ids_with([], ["cat"], SPEC)


def test_flipped_byte(folder):
    content = bytearray(shard(folder).read_bytes())
    content[60] ^= 1
    shard(folder).write_bytes(bytes(content))
    found = problems_of(folder)
    assert "record 0, byte 0" in found["train", "damaged record"]
    assert ("train", "SHA-256 differs from dataset.json") in found
    assert "5 readable records; dataset.json says 6" in str(found.values())
    assert {split for split, _ in found} == {"train"}


def test_truncated_shard(folder):
    shard(folder).write_bytes(shard(folder).read_bytes()[:-5])
    found = problems_of(folder)
    assert "truncated" in found["train", "damaged record"]
    assert str(shard(folder)) in found["train", "truncated shard"]


def test_missing_shard(folder):
    os.remove(shard(folder, k=1))
    found = problems_of(folder)
    assert ("train", "incomplete split") in found and ("train", "missing shard") in found


@pytest.mark.parametrize(
    "changes, kind, text",
    [
        ({"label": png(np.full((6, 8), 200))}, "mask ids out of range", "id t1: 200"),
        ({"label": png(np.zeros((6, 8, 3)))}, "mask that is not one 8-bit channel", "RGB"),
        ({"label": png(np.ones((6, 8)), "P")}, "palette mask", "id t1"),
        ({"label": png(np.full((6, 8), 38))}, "mask ids out of range", "read as a picture"),
        ({"label": png(np.zeros((6, 7)))}, "unusable record", "segmentation/class/encoded"),
        ({"height": 7}, "unusable record", "image/encoded"),
        ({"image": png(np.zeros((6, 8, 3)))[:-30]}, "image cannot be decoded", "id t1"),
        ({"image_labels": [1, 3]}, "image-level label out of range", "3; accepted 1 to 2"),
        ({"image_labels": [2]}, "class in the mask but not in the image-level labels", "cat"),
        ({"filename": "t0"}, "id twice in a split", "t0"),
        ({"filename": "v1"}, "ids in two splits (leakage)", "v1"),
    ],
)
def test_bad_record(folder, changes, kind, text):
    rewrite(folder, **changes)
    found = problems_of(folder)
    assert [k for _, k in found] == [kind]
    assert text in next(iter(found.values()))


def test_image_label_beyond_the_mask_is_normal(folder):
    rewrite(folder, image_labels=[1, 2])
    results, problems, _ = check.check(str(folder))
    assert problems == []
    train = next(r for r in results if r.split == "train")
    assert train.notes["image-level label without a pixel in the mask (not wrong)"] == 1


def test_same_picture_under_another_id(folder):
    index = load_index(str(folder), "val", SPEC)
    image = RecordReader(index, str(folder)).read(2).image
    rewrite(folder, image=image)
    assert [k for _, k in problems_of(folder)] == ["the same picture in two splits (leakage)"]


def test_too_many_pixels(folder):
    found = problems_of(folder, max_megapixels=1e-5, splits=["val"])
    assert ("val", "image too big") in found and ("val", "mask too big") in found


def test_stale_index_and_unfinished_split(folder):
    index = load_index(str(folder), "val", SPEC)
    ids = index.ids.copy()
    ids[0] = "xx"
    import dataclasses

    save_index(str(folder / "val.index.npz"), dataclasses.replace(index, ids=ids))
    content = json.loads((folder / "dataset.json").read_text())
    del content["splits"]["few"]
    (folder / "dataset.json").write_text(json.dumps(content))
    found = problems_of(folder)
    assert "v0" in found["val", "index differs from the shards"]
    assert ("few", "split that dataset.json does not list") in found
    assert len(found) == 2


def test_records_without_description(folder):
    os.remove(folder / "dataset.json")
    results, problems, _ = check.check(str(folder), dataset="pascal_voc_seg", splits=["val"])
    # The index was made for two image-level classes.
    assert [p.kind for p in problems] == ["unusable index"] and results[0].count == 4
    assert load_spec(str(folder), "pascal_voc_seg").num_classes == 21


@pytest.mark.parametrize(
    "name, role",
    [("val", "val"), ("val_small120", "val"), ("val_fine", "val"), ("test", "test")]
    + [
        ("trainval", "both"),
        ("trainval_fine", "both"),
        ("16_clean_3", "train"),
        ("valley", "train"),
    ],
)
def test_role_of_a_split(name, role):
    assert role_of(name) == role


def test_never_stops_at_random_damage(folder):
    """Whatever happens to the bytes, check ends with a report, not an exception."""
    rng = np.random.default_rng(0)
    original = shard(folder).read_bytes()
    for _ in range(40):
        content = bytearray(original)
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] = rng.integers(256)
        content = bytes(content[: rng.integers(1, len(content) + 1)])
        shard(folder).write_bytes(content)
        if content != original:
            assert problems_of(folder, splits=["train"])


def test_lists_that_share_images_are_told_before_they_are_converted(tmp_path, capsys):
    for name, ids in {"train": "a b c", "train_aug": "a b c d", "val": "c e"}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(ids.split()))
    read_splits(str(tmp_path))
    told = capsys.readouterr().out.splitlines()
    assert [line[: line.index(" images")] for line in told] == [
        "warning: train and val share 1",
        "warning: train_aug and val share 1",
    ]


def test_lists_that_spell_an_image_in_two_ways_share_it(tmp_path, capsys):
    (tmp_path / "train.txt").write_text("x/a.jpg\nb.jpg\n")
    (tmp_path / "val.txt").write_text("x\\a\nc\n")
    read_splits(str(tmp_path))
    assert "train and val share 1 images (x/a)" in capsys.readouterr().out
