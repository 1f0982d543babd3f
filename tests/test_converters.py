"""From files to records: round trips, refusals, determinism, interruptions."""

import errno
import fcntl
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from tfrecords_tools import build_digits, build_folder, build_voc2012
from tfrecords_tools.coco.instances import Region, read_instances
from tfrecords_tools.coco.painting import MaskReader, decode_region
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.file_finder import FileFinder
from tfrecords_tools.id_lists import read_ids, read_splits
from tfrecords_tools.image_label_files import read_image_labels
from tfrecords_tools.images import read_image
from tfrecords_tools.masks import read_mask
from tfseg import sharing
from tfseg.data import class_embeddings, framing, specs, tfexample, writing
from tfseg.data.atomic_writing import write_atomically
from tfseg.data.encoded_image import image_size
from tfseg.data.record_reader import RecordReader
from tfseg.data.shards import splits_present
from tfseg.data.specs import DATASETS, DatasetSpec, load_spec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPEC = DatasetSpec("folder", ("background", "cat", "dog"))


def save(path, array, *, palette=False, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if palette:
        image.putpalette([200, 10, 30] * 256)
    image.save(path, **options)


def picture(seed, height=8, width=10):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3))


@pytest.fixture
def folder(tmp_path):
    """Three images in different formats, masks, one list and class names."""
    source = tmp_path / "source"
    save(source / "images" / "a.JPG", picture(0))
    save(source / "images" / "b.png", picture(1))
    save(source / "images" / "c.jpeg", picture(2))
    for k, name in enumerate("abc"):
        mask = np.zeros((8, 10))
        mask[2:4] = k
        mask[7] = 255
        save(source / "masks" / f"{name}.png", mask, palette=name == "b")
    (source / "lists").mkdir()
    (source / "lists" / "train.txt").write_text("a\nb\nc\n\n")
    (source / "classes.txt").write_text("background\ncat\ndog\n")
    return source


def command(folder, output, *extra, tool="build_folder"):
    """Runs a converter as a user does; returns the finished process."""
    words = [
        f"--images_dir={folder / 'images'}",
        f"--masks_dir={folder / 'masks'}",
        f"--splits_dir={folder / 'lists'}",
        f"--class_names={folder / 'classes.txt'}",
        f"--output_dir={output}",
        "--num_workers=1",
    ]
    return run_tool(tool, *words, *extra)


def run_tool(tool, *words):
    return subprocess.run(
        [sys.executable, str(ROOT / "tfrecords_tools" / f"{tool}.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def convert(folder, output, *, encoder=None, labels=None, num_shards=2, **options):
    """Converts in this process."""
    tasks = build_folder.make_sources(
        read_splits(str(folder / "lists")),
        FileFinder(str(folder / "images")),
        FileFinder(str(folder / "masks")),
        labels,
        **options,
    )
    return writing.write_splits(
        str(output),
        SPEC,
        tasks,
        encoder or Encoder(SPEC),
        num_shards=num_shards,
        num_workers=1,
    )


def read(output, split="train"):
    index = load_index(str(output), split, load_spec(str(output), "-"))
    with RecordReader(index, str(output)) as reader:
        return index, [reader.read(i) for i in range(index.size)]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def contents(output):
    return {name: (output / name).read_bytes() for name in sorted(os.listdir(output))}


def assert_refused(process, *parts):
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    for part in parts:
        assert part in process.stderr
    assert process.stderr.startswith("error: ")


# build_folder: what comes out --------------------------------------------------------------------


def test_folder_round_trip(folder, tmp_path):
    out = tmp_path / "out"
    process = command(folder, out, "--num_shards=2")
    assert process.returncode == 0, process.stderr
    index, examples = read(out)
    assert index.ids.tolist() == ["a", "b", "c"] and index.has_mask.all()
    for example, name in zip(examples, ("a.JPG", "b.png", "c.jpeg")):
        assert example.image == (folder / "images" / name).read_bytes()
    for k, example in enumerate(examples):
        mask = pixels(example.label)
        assert mask.dtype == np.uint8 and mask.ndim == 2
        assert set(np.unique(mask)) == {0, k, 255}
        assert example.image_labels.tolist() == ([k] if k else [])
    assert index.image_labels.tolist() == [[0, 0], [1, 0], [0, 1]]
    content = json.loads((out / "dataset.json").read_text())
    assert content["class_names"] == ["background", "cat", "dog"]
    entry = content["splits"]["train"]
    assert entry["count"] == 3 and [s["records"] for s in entry["shards"]] == [1, 2]
    assert entry["pixels"] == {"background": 170, "cat": 20, "dog": 20, "(ignored)": 30}
    for item in entry["shards"]:
        assert framing.sha256(str(out / item["file"])) == item["sha256"]
    assert run_tool("check", f"--dataset_dir={out}", "--num_workers=1").returncode == 0


def test_other_formats_become_rgb_png_and_are_counted(folder, tmp_path):
    rgb = picture(5)
    images = folder / "images"
    os.remove(images / "a.JPG")
    Image.fromarray(rgb.astype(np.uint8)).save(images / "a.bmp")
    grey = Image.fromarray(rgb[..., 0].astype(np.uint8))
    grey.save(images / "b.png")
    Image.fromarray(rgb.astype(np.uint8)).convert("CMYK").save(images / "c.jpeg", "JPEG")
    (report,) = convert(folder, tmp_path / "out")
    _, examples = read(tmp_path / "out")
    assert (pixels(examples[0].image) == rgb).all()
    assert (pixels(examples[1].image) == rgb[..., :1]).all()
    assert pixels(examples[2].image).shape == (8, 10, 3)
    assert sorted(report.notes.values()) == [1, 1, 1]
    assert {image_size(e.image)[0] for e in examples} == {"png"}


def test_sixteen_bit_grey_keeps_the_high_byte(folder):
    values = np.array([[0, 255, 256], [65535, 32768, 511]], np.uint16)
    Image.fromarray(values).save(folder / "images" / "d.png")
    data, _, notes = read_image(str(folder / "images" / "d.png"), max_megapixels=1)
    assert (pixels(data)[..., 0] == values >> 8).all() and len(notes) == 1


def test_label_map_and_csv(folder, tmp_path):
    for name in "abc":
        mask = np.full((8, 10), 8)
        mask[0], mask[1] = 12, 3
        save(folder / "masks" / f"{name}.png", mask)
    (folder / "map.json").write_text('{"8": 0, "12": 2, "3": 255}')
    (folder / "labels.csv").write_text("id,where,what\na,x,cat dog\nb,x,\nc,x,dog zebra\n")
    process = command(
        folder,
        tmp_path / "out",
        f"--label_map={folder / 'map.json'}",
        f"--image_labels={folder / 'labels.csv'}",
        "--image_labels_column=what",
        "--ignore_unknown_labels",
    )
    assert process.returncode == 0, process.stderr
    assert "zebra (1 x)" in process.stdout
    index, examples = read(tmp_path / "out")
    assert index.image_labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert index.has_image_labels.all()
    expected = np.zeros((8, 10))
    expected[0], expected[1] = 2, 255
    assert (pixels(examples[0].label) == expected).all()


@pytest.mark.parametrize(
    "text, column, expected",
    [
        ("a,cat\nb,dog cat\n", None, {"a": (1,), "b": (1, 2)}),
        ("id,classes\na,cat;dog\n", None, {"a": (1, 2)}),
        ("what,x,id\ncat,1,a\n", "what", {"a": (1,)}),
        ("what,name,id\ncat,1,a\n", "what", {"a": (1,)}),
        ("\ufeffimage,classes\na,\n", None, {"a": ()}),
        ("a,big cat\n", None, {"a": (3,)}),
        ("Image Name,labels\na.jpg,cat\n", None, {"a": (1,)}),
        # pandas writes a column of numbers before the others.
        (",filename,cat,dog\n0,b.jpg,1,0\n1,0.jpg,0,1\n", None, {"b": (1,), "0": (2,)}),
        ("cat,dog,file_path\n1,0,x/a.jpg\n1,1,x/b.jpg\n", None, {"x/a": (1,), "x/b": (1, 2)}),
        (",cat,dog\na.jpg,1,0\n", None, {"a": (1,)}),
    ],
)
def test_csv_layouts(tmp_path, text, column, expected):
    (tmp_path / "l.csv").write_text(text, encoding="utf-8")
    spec = DatasetSpec("folder", (*SPEC.class_names, "big cat"))
    labels = read_image_labels(str(tmp_path / "l.csv"), spec, column=column)
    assert labels.ids == expected


@pytest.mark.parametrize(
    "text, column, message",
    [
        ("a,zebra\n", None, "unknown classes"),
        ("a,background\n", None, "unknown classes"),
        ("a,cat\na,dog\n", None, "an id twice"),
        ("id,x,what\na,1,cat\n", None, "--image_labels_column"),
        ("id,x,what\na,1,cat\n", "other", "accepted: id, x, what"),
        ("id,what\na\n", "what", "another number of columns"),
        ("", None, "is empty"),
        ("id,cat,cat\na,1,0\n", None, "heads several columns"),
        ("id,cat,dog\na,x,\nb,x,x\n", None, "(?s)two columns.*next step: write 1 where"),
        ("id,cat,dog\na,0.9,0.1\n", None, "(?s)two columns.*next step: write 1 where"),
        ("a,cat,dog\nb,dog,cat\n", None, "(?s)two columns.*next step: put ';' between"),
    ],
)
def test_csv_refusals(tmp_path, text, column, message):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_image_labels(str(tmp_path / "l.csv"), SPEC, column=column)


def test_unlabelled_split_carries_no_mask(folder, tmp_path):
    os.remove(folder / "masks" / "b.png")
    convert(folder, tmp_path / "out", unlabelled_splits=["train"])
    index, examples = read(tmp_path / "out")
    assert not index.has_mask.any() and not index.has_image_labels.any()
    assert all(e.label is None and e.image_labels is None for e in examples)


def test_masks_of_few_bits_are_read_as_ids(tmp_path):
    """Pillow spreads 4-bit grey over 0..255; class ids must come back as they were."""
    raw = b"".join(b"\0" + bytes([0x01, 0x20]) for _ in range(3))  # ids 0 1 2 0, three rows
    import struct
    import zlib

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 4, 3, 4, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw))
    (tmp_path / "m.png").write_bytes(png + chunk(b"IEND", b""))
    ids, _ = read_mask(str(tmp_path / "m.png"), max_megapixels=1)
    assert ids.tolist() == [[0, 1, 2, 0]] * 3


def test_palette_in_another_order_is_noticed(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([0, 0, 0, 0, 128, 0])
    image.save(tmp_path / "m.png")
    ids, notes = read_mask(str(tmp_path / "m.png"), max_megapixels=1)
    assert ids.tolist() == [[0, 1]] and "other indices" in notes[0]


@pytest.mark.parametrize(
    "mode, mask_shape, turned",
    [("auto", (10, 8), True), ("auto", (8, 10), False), ("auto", None, False)]
    + [("apply", (10, 8), True), ("ignore", (8, 10), False)],
)
def test_orientation_tag(folder, mode, mask_shape, turned):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "images" / "a.JPG", picture(0), exif=exif)
    mask = None
    if mask_shape:
        save(folder / "masks" / "a.png", np.zeros(mask_shape))
        mask = str(folder / "masks" / "a.png")
    encoder = Encoder(SPEC, exif_orientation=mode)
    encoded = encoder(ImageSource("a", str(folder / "images" / "a.JPG"), mask))
    assert (encoded.row.height, encoded.row.width) == ((10, 8) if turned else (8, 10))
    assert any("EXIF" in note for note in encoded.notes)
    image = Image.open(io.BytesIO(tfexample.decode(encoded.data).image))
    assert (0x0112 in image.getexif()) != turned


@pytest.mark.parametrize("mode, turned", [("apply", True), ("ignore", False), ("auto", False)])
def test_orientation_tag_of_a_tiff(tmp_path, mode, turned):
    """Pillow turns such a file by itself; a mask with the tag stays as it is stored."""
    pixels_as_stored, ids = picture(0), np.zeros((8, 10), np.uint8)
    ids[:2, :5] = 1
    for name, array in (("a.tif", pixels_as_stored.astype(np.uint8)), ("m.tif", ids)):
        Image.fromarray(array).save(tmp_path / name, exif={0x0112: 3})
    encoder = Encoder(SPEC, exif_orientation=mode)
    encoded = encoder(ImageSource("a", str(tmp_path / "a.tif"), str(tmp_path / "m.tif")))
    example = tfexample.decode(encoded.data)
    expected = np.rot90(pixels_as_stored, 2) if turned else pixels_as_stored
    np.testing.assert_array_equal(pixels(example.image), expected)
    np.testing.assert_array_equal(pixels(example.label), ids)


# build_folder: what is refused, as the user sees it ----------------------------------------------


def test_mask_with_id_200(folder, tmp_path):
    mask = np.zeros((8, 10))
    mask[0, 0] = 200
    save(folder / "masks" / "b.png", mask)
    process = command(folder, tmp_path / "out")
    assert_refused(process, "masks/b.png", "received: 200", "0 to 2")
    assert not [n for n in os.listdir(tmp_path / "out") if "train" in n]


def test_rgb_mask(folder, tmp_path):
    save(folder / "masks" / "b.png", picture(1))
    assert_refused(command(folder, tmp_path / "out"), "masks/b.png", "palette PNG")


def test_missing_mask(folder, tmp_path):
    os.remove(folder / "masks" / "b.png")
    process = command(folder, tmp_path / "out")
    assert_refused(process, "no mask", "received: b", "--unlabelled_splits")
    process = command(folder, tmp_path / "out", "--allow_missing_masks")
    assert process.returncode == 0 and "1 x image without a mask" in process.stdout
    assert read(tmp_path / "out")[0].has_mask.tolist() == [True, False, True]


def test_hundred_megapixels(folder, tmp_path):
    Image.new("RGB", (10_000, 10_000)).save(folder / "images" / "b.png", compress_level=1)
    process = command(folder, tmp_path / "out")
    assert_refused(process, "images/b.png", "100.0 megapixels", "--max_image_megapixels")


def test_wrong_flag_and_missing_flag(folder, tmp_path):
    assert_refused(command(folder, tmp_path / "out", "--mask_dir=x"), "--masks_dir")
    assert_refused(command(folder, tmp_path / "out", "--num_shards=two"), "num_shards")
    assert_refused(command(folder, tmp_path / "out", "--num_shards=0"), "num_shards")
    assert_refused(run_tool("build_folder"), "--images_dir is required")
    assert not (tmp_path / "out").exists()


def test_help(folder):
    process = run_tool("build_folder", "--help")
    assert process.returncode == 0 and process.stderr == ""
    for flag in ("images_dir", "label_map", "ignore_unknown_labels", "num_shards"):
        assert f"--{flag}" in process.stdout or f"--[no]{flag}" in process.stdout


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: save(f / "masks" / "a.png", np.zeros((8, 9))), "'a' differ in size"),
        (lambda f: save(f / "masks" / "a.png", np.zeros((10, 8))), "height and width are swapped"),
        (lambda f: save(f / "images" / "a.png", picture(0)), "Several files fit id 'a'"),
        (lambda f: (f / "images" / "a.JPG").write_bytes(b"\xff\xd8 no image"), "cannot be decoded"),
        (
            lambda f: (f / "images" / "a.JPG").write_bytes(
                (f / "images" / "a.JPG").read_bytes()[:-200]
            ),
            "cannot be decoded",
        ),
        (lambda f: (f / "masks" / "a.png").write_bytes(b"x"), "mask cannot be decoded"),
        (lambda f: (f / "lists" / "train.txt").write_text("a\nb\na\n"), "more than once"),
        (lambda f: (f / "lists" / "train.txt").write_text("a\nzz\n"), "received: zz"),
        (lambda f: (f / "lists" / "train.txt").write_text("\n"), "is empty"),
        (lambda f: (f / "lists" / "train.txt").write_text("../a\n"), "below the image folder"),
        (lambda f: (f / "lists" / "train.txt").write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
        (
            lambda f: (f / "lists" / "train.txt").write_text("a\n", "utf-16"),
            "(?s)not UTF-8.*train.txt.*received: UTF-16.*accepted: .*next step: save it again",
        ),
        (lambda f: os.remove(f / "lists" / "train.txt"), "(?s)no <split>.txt.*an empty folder"),
        (
            lambda f: (f / "lists" / "train.txt").rename(f / "lists" / "train.TXT"),
            "(?s)no <split>.txt.*received: train.TXT.*next step: rename",
        ),
    ],
)
def test_refusals(folder, tmp_path, change, message):
    change(folder)
    with pytest.raises(UserError, match=message):
        convert(folder, tmp_path / "out")
    out = tmp_path / "out"
    assert not out.exists() or os.listdir(out) == []


def test_jpeg_mask(folder, tmp_path):
    os.remove(folder / "masks" / "a.png")
    save(folder / "masks" / "a.jpg", np.zeros((8, 10)))
    with pytest.raises(UserError, match="compression changes class ids"):
        convert(folder, tmp_path / "out")


def test_id_absent_from_the_label_map(folder, tmp_path):
    encoder = Encoder(SPEC, label_map={0: 0, 1: 1})
    with pytest.raises(UserError, match="label_map lacks") as error:
        convert(folder, tmp_path / "out", encoder=encoder)
    assert "a.png" in str(error.value) and "255" in str(error.value)


@pytest.mark.parametrize("drawn", [False, True])
def test_unknown_ids_of_all_masks_are_told_at_once(folder, tmp_path, drawn):
    for name, value in zip("abc", (7, 9, 9)):
        mask = np.zeros((8, 10))
        mask[5] = value
        save(folder / "masks" / f"{name}.png", mask)
    lists = ["--splits_dir="] if drawn else []
    process = command(folder, tmp_path / "out", *lists)
    assert_refused(process, "a.png", "received: 7. Of all 3 masks: 9 in 2, 7 in 1\n")


def test_unknown_colours_of_all_masks_are_told_at_once(folder, tmp_path):
    (folder / "colors.csv").write_text("background,0,0,0\ncat,9,9,9\n")
    for name, value in zip("abc", (0, 9, 200)):
        save(folder / "masks" / f"{name}.png", np.full((8, 10, 3), (value, 9, 9)))
    colors = ["--class_names=", f"--class_colors={folder / 'colors.csv'}"]
    process = command(folder, tmp_path / "out", *colors)
    assert_refused(process, "a.png", "0,9,9 (80 pixels). Of all 3 masks: ", "200,9,9 in 1")
    assert " 9,9,9 in" not in process.stderr


@pytest.mark.parametrize("text", ["[1]", '{"a": 1}', '{"1": "x"}', '{"1": 3}', "{", '{"1": 1.5}'])
def test_bad_label_map(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match="--label_map"):
        build_folder.read_label_map(str(tmp_path / "m.json"), SPEC)


def test_unknown_split_names_those_present(folder):
    with pytest.raises(UserError, match="accepted: train"):
        read_splits(str(folder / "lists"), ["validation"])


# Writing ----------------------------------------------------------------------------------------


def test_same_input_same_bytes_with_one_process_or_two(folder, tmp_path):
    convert(folder, tmp_path / "one")
    convert(folder, tmp_path / "again")
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    process = command(folder, tmp_path / "two", "--num_workers=2", "--num_shards=2")
    assert process.returncode == 0, process.stderr
    assert set(contents(tmp_path / "two")) == set(contents(tmp_path / "one"))
    for name, content in contents(tmp_path / "two").items():
        assert content == (tmp_path / "one" / name).read_bytes()


def test_running_again_replaces_the_split(folder, tmp_path):
    convert(folder, tmp_path / "out", num_shards=3)
    convert(folder, tmp_path / "out", num_shards=2)
    convert(folder, tmp_path / "fresh", num_shards=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


class FailAfter:
    """An encoder that is interrupted at its third record."""

    def __init__(self):
        self._encoder, self._calls = Encoder(SPEC), 0

    def __call__(self, source):
        self._calls += 1
        if self._calls == 3:
            raise KeyboardInterrupt
        return self._encoder(source)


def test_interrupted_run_leaves_nothing(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out", encoder=FailAfter())
    assert os.listdir(tmp_path / "out") == []


def test_interrupted_second_run_keeps_the_first(folder, tmp_path):
    convert(folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out", encoder=FailAfter())
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("step", range(1, 8))
def test_interruption_while_publishing_never_reads_as_whole(folder, tmp_path, monkeypatch, step):
    """Stops before every single rename of the last phase, old split present and not."""
    out = tmp_path / "out"
    convert(folder, out, num_shards=3)
    calls = {"n": 0}
    replace = os.replace

    def stop_at(*arguments):
        calls["n"] += 1
        if calls["n"] == step:
            raise KeyboardInterrupt
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_at)
        try:
            convert(folder, out, num_shards=2)
            finished = True
        except KeyboardInterrupt:
            finished = False
    # dataset.json, two shards, index, dataset.json: five renames.
    assert finished == (step > 5)
    try:
        index, examples = read(out)
        assert [e.filename for e in examples] == ["a", "b", "c"]
        assert finished or step == 1
    except UserError as error:
        assert not finished and ("did not finish" in str(error) or "no split" in str(error))
    convert(folder, out, num_shards=2)
    convert(folder, tmp_path / "fresh", num_shards=2)
    assert contents(out) == contents(tmp_path / "fresh")


def test_killed_run_leaves_nothing_that_reads(folder, tmp_path):
    out = tmp_path / "out"
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.test_converters import *
class Kill(FailAfter):
    def __call__(self, source):
        self._calls += 1
        if self._calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._encoder(source)
convert(pathlib.Path({str(folder)!r}), {str(out)!r}, encoder=Kill())
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert splits_present(str(out)) == [] and os.listdir(out) != []
    convert(folder, out)
    convert(folder, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_two_runs_at_once_keep_each_others_splits(folder, tmp_path, monkeypatch):
    """The second run comes between the first one's reading of dataset.json and its writing."""
    out, write, second = tmp_path / "out", write_atomically, []
    tasks = {"more": [ImageSource("a", str(folder / "images" / "a.JPG"))]}

    def run_second():
        writing.write_splits(str(out), SPEC, tasks, Encoder(SPEC), num_shards=1, num_workers=1)

    def write_late(path, content):
        if path.endswith("dataset.json") and not second:
            second.append(threading.Thread(target=run_second))
            second[0].start()
            second[0].join(0.3)
        write(path, content)

    monkeypatch.setattr(writing, "write_atomically", write_late)
    convert(folder, out)
    second[0].join()
    assert sorted(specs.read_dataset_json(str(out))["splits"]) == ["more", "train"]
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_files_of_a_run_at_work_elsewhere_stay(folder, tmp_path):
    """Its process may run on another machine, and is not to be found here."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".writing-val.99999999").touch()
    with sharing.locked(str(out / ".converting.lock"), shared=True):
        convert(folder, out)
    assert (out / ".writing-val.99999999").exists()
    convert(folder, out)
    assert not (out / ".writing-val.99999999").exists()


def test_a_disk_without_locks_is_told(folder, tmp_path, monkeypatch, capsys):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    convert(folder, tmp_path / "out")
    assert "without locks (No locks available)" in capsys.readouterr().out
    assert read(tmp_path / "out")[0].size == 3


def test_full_disk(folder, tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError):
        convert(folder, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_splits_of_other_classes_are_not_mixed(folder, tmp_path):
    convert(folder, tmp_path / "out")
    (folder / "lists" / "train.txt").rename(folder / "lists" / "more.txt")
    other = DatasetSpec("folder", ("background", "x", "y"))
    tasks = {"more": [ImageSource("a", str(folder / "images" / "a.JPG"))]}
    with pytest.raises(UserError, match="other classes"):
        writing.write_splits(
            str(tmp_path / "out"), other, tasks, Encoder(other), num_shards=1, num_workers=1
        )
    convert(folder, tmp_path / "out")
    assert splits_present(str(tmp_path / "out")) == ["more", "train"]


# VOC --------------------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path):
    """A VOCdevkit of three images: official mask, Aug PNG, SBD .mat; two with annotations."""
    from scipy.io import savemat

    root = tmp_path / "VOC2012"
    for k, name in enumerate(("2007_000001", "2007_000002", "2007_000003")):
        save(root / "JPEGImages" / f"{name}.jpg", picture(k))
    mask = np.zeros((8, 10))
    mask[3], mask[4] = 15, 255
    save(root / "SegmentationClass" / "2007_000001.png", mask, palette=True)
    save(root / "SegmentationClassAug" / "2007_000001.png", np.full((8, 10), 9))
    save(root / "SegmentationClassAug" / "2007_000002.png", np.full((8, 10), 8))
    (tmp_path / "sbd" / "cls").mkdir(parents=True)
    segmentation = np.full((8, 10), 12, np.uint8)
    savemat(
        tmp_path / "sbd" / "cls" / "2007_000003.mat",
        {"GTcls": {"Segmentation": segmentation, "Boundaries": [1, 2]}},
    )
    (root / "Annotations").mkdir()
    for name, classes in (("2007_000001", ["person", "dog"]), ("2007_000002", ["cat", "cat"])):
        objects = "".join(f"<object><name>{c}</name></object>" for c in classes)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("2007_000001\n")
    (tmp_path / "lists" / "train_aug.txt").write_text("2007_000001\n2007_000002\n2007_000003\n")
    (tmp_path / "lists" / "test.txt").write_text("2008_000001\n")
    return root


def test_voc_round_trip(voc, tmp_path):
    out = tmp_path / "out"
    words = [f"--voc_dir={voc}", f"--splits_dir={tmp_path / 'lists'}", f"--output_dir={out}"]
    process = run_tool("build_voc2012", *words, "--num_workers=1")
    assert_refused(process, "1 of 3 ids", "--sbd_dir")
    process = run_tool("build_voc2012", *words, f"--sbd_dir={tmp_path / 'sbd'}", "--num_workers=1")
    assert process.returncode == 0, process.stderr
    assert splits_present(str(out)) == ["train", "train_aug"]
    assert load_spec(str(out), "-") == DATASETS["pascal_voc_seg"]
    index, examples = read(out, "train_aug")
    assert [sorted(set(pixels(e.label).ravel())) for e in examples] == [[0, 15, 255], [8], [12]]
    assert [e.image_labels.tolist() for e in examples] == [[12, 15], [8], [12]]
    assert all(e.image.startswith(b"\xff\xd8") for e in examples)


def test_voc_bad_files(voc, tmp_path):
    (tmp_path / "x.mat").write_bytes(b"not matlab")
    with pytest.raises(UserError, match="x.mat"):
        build_voc2012.read_sbd_mask(str(tmp_path / "x.mat"))
    (tmp_path / "x.xml").write_text("<annotation>")
    with pytest.raises(UserError, match="not XML"):
        build_voc2012.read_annotation(str(tmp_path / "x.xml"))
    (tmp_path / "x.xml").write_text("<a><object><name>unicorn</name></object></a>")
    with pytest.raises(UserError, match="unicorn"):
        build_voc2012.read_annotation(str(tmp_path / "x.xml"))


# COCO -------------------------------------------------------------------------------------------


def rectangle(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


@pytest.fixture
def coco(tmp_path):
    """One training image with overlaps and a crowd, one empty, one unlabelled, one for val."""
    root = tmp_path / "coco"
    for k, name in enumerate(("train/1", "train/2", "extra/3", "val/4")):
        save(root / f"{name}.jpg", picture(k))
    crowd = np.zeros((8, 10), np.uint8)
    crowd[:, 8:] = 1
    # Uncompressed run lengths go down the columns.
    counts = [8 * 8, 8 * 2]
    annotations = [
        {"segmentation": rectangle(0, 0, 4, 4), "category_id": 5},
        {"segmentation": rectangle(2, 2, 6, 6), "category_id": 90},
        {"segmentation": {"size": [8, 10], "counts": counts}, "category_id": 1, "iscrowd": 1},
        {"segmentation": rectangle(0, 6, 2, 10), "category_id": 90},
    ]
    for k, a in enumerate(annotations):
        a.update(id=k, image_id=1)
    categories = [{"id": i, "name": n} for i, n in ((90, "c"), (1, "a"), (5, "b"))]

    def instances(name, ids, annotations):
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 10} for i in ids]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / name).write_text(json.dumps(content))

    instances("instances_train.json", [1, 2], annotations)
    instances("instances_val.json", [4], [])
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("train/1\ntrain/2\n")
    (lists / "unlabeled.txt").write_text("extra/3\n")
    (lists / "val.txt").write_text("4\n")
    return root


def run_coco(coco, tmp_path, *extra):
    return run_tool(
        "build_coco",
        f"--images_dir={coco}",
        f"--annotations={coco / 'instances_train.json'}",
        f"--annotations={coco / 'instances_val.json'}",
        f"--splits_dir={tmp_path / 'lists'}",
        f"--output_dir={tmp_path / 'out'}",
        "--num_workers=1",
        *extra,
    )


def test_coco_round_trip(coco, tmp_path):
    assert_refused(run_coco(coco, tmp_path), "extra/3", "--unlabelled_splits")
    process = run_coco(coco, tmp_path, "--unlabelled_splits=unlabeled")
    assert process.returncode == 0, process.stderr
    spec = load_spec(str(tmp_path / "out"), "-")
    assert spec.class_names == ("background", "a", "b", "c")
    index, (first, second) = read(tmp_path / "out")
    expected = np.zeros((8, 10), np.uint8)
    expected[0:2, 6:10] = 3
    expected[:, 8:] = 1
    expected[2:6, 2:6] = 3
    expected[0:4, 0:4] = 2
    assert (pixels(first.label) == expected).all()
    assert first.image_labels.tolist() == [1, 2, 3]
    assert not pixels(second.label).any() and second.image_labels.tolist() == []
    assert read(tmp_path / "out", "val")[0].ids.tolist() == ["4"]
    assert not read(tmp_path / "out", "unlabeled")[0].has_mask.any()
    assert "1 x image with crowd regions" in process.stdout


def test_ignored_crowds_take_nothing(coco):
    instances = read_instances([str(coco / "instances_train.json")])
    reader = MaskReader(ignore_label=255, ignore_crowd=True)
    label, _ = reader(instances.images["1"], (8, 10))
    assert (label[2:, 8:] == 255).all() and (label[:2, 6:] == 3).all()


def test_full_coco_categories_are_recognised(tmp_path):
    names = DATASETS["coco"].class_names[1:]
    ids = sorted(np.random.default_rng(0).choice(np.arange(1, 200), 80, replace=False).tolist())
    categories = [{"id": i, "name": n} for i, n in zip(ids, names)]
    (tmp_path / "i.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": categories})
    )
    assert read_instances([str(tmp_path / "i.json")]).spec is DATASETS["coco"]


@pytest.mark.parametrize(
    "segmentation",
    [{"size": [8, 10], "counts": [3]}, {"size": [4, 4], "counts": [16]}, {"x": 1}, [["a"] * 6], 7],
)
def test_malformed_segmentation(segmentation):
    region = Region(17, 1, segmentation, False)
    with pytest.raises(UserError, match="annotation 17"):
        decode_region(region, 8, 10, where="i.json, image a.jpg")


def test_malformed_instances(tmp_path):
    for text in ("[]", "{", '{"images": [], "annotations": []}'):
        (tmp_path / "i.json").write_text(text)
        with pytest.raises(UserError, match="another structure|not valid JSON"):
            read_instances([str(tmp_path / "i.json")])


# Digits -----------------------------------------------------------------------------------------


def test_digits(tmp_path):
    sizes = {"image_size": 49, "num_train": 4, "num_train_aug": 12, "num_val": 6}
    build_digits.build(str(tmp_path / "a"), **sizes)
    build_digits.build(str(tmp_path / "b"), **sizes)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    build_digits.build(str(tmp_path / "c"), **sizes, seed=1)
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
    index, examples = read(tmp_path / "a", "train_aug")
    few, _ = read(tmp_path / "a", "train")
    assert few.ids.tolist() == index.ids.tolist()[:4]
    assert index.has_mask.all() and index.has_image_labels.all()
    for example in examples:
        mask = pixels(example.label)
        assert mask.shape == (49, 49) and mask.max() <= 10
        assert example.image_labels.tolist() == sorted(set(mask.ravel()) - {0})
        assert 1 <= len(example.image_labels) <= 4
    val, _ = read(tmp_path / "a", "val")
    assert not set(val.ids) & set(index.ids)


def test_digits_come_with_attributes(tmp_path):
    build_digits.build(
        str(tmp_path), image_size=33, num_train=1, num_train_aug=1, num_val=1, num_digits=4
    )
    names = ("background", "0", "1", "2", "3")
    path = str(tmp_path / build_digits.CLASS_EMBEDDINGS_FILE)
    found = class_embeddings.load(path, names, norm="none").values
    np.testing.assert_array_equal(found, build_digits.digit_attributes(4))
    everything = build_digits.digit_attributes(10)
    assert everything.shape == (11, 13) and everything.min() == 0 and everything.max() == 1
    # No two classes look alike, whatever their vectors' lengths; the background is like none.
    unit = class_embeddings.normalise(everything, "unit")
    similarity = unit @ unit.T - np.eye(11)
    assert similarity.max() < 0.95 and (similarity[0] == 0).all()
    assert everything[9].tolist()[:8] == [1] * 7 + [1]  # an 8: all segments, two holes


def test_digit_samples_are_not_shared():
    composer = build_digits.make_composer(image_size=49, seed=0)
    train, val = ([s.tobytes() for s in pool] for pool in composer.samples)
    assert len(train) + len(val) == 1797 and len(val) == 449
    assert not set(train) & set(val)
    for targets in composer.targets:
        assert set(targets) == set(range(10))


def test_digits_refuse_sizes():
    with pytest.raises(UserError, match="image_size"):
        build_digits.build("unused", image_size=8)
    with pytest.raises(UserError, match="num_train"):
        build_digits.build("unused", num_train=9, num_train_aug=8)


# Split lists ------------------------------------------------------------------------------------

SPLITS = ROOT / "data_splits"


def ids(name, dataset="pascal_voc_seg"):
    return read_ids(str(SPLITS / dataset / f"{name}.txt"))


@pytest.mark.parametrize(
    "alias, name, count",
    [
        ("92", "16_clean_3", 92),
        ("183", "8_clean", 183),
        ("366", "4_clean", 366),
        ("732", "2_clean", 732),
        ("1464", "train", 1464),
    ],
)
def test_split_aliases(alias, name, count):
    assert ids(alias) == ids(name) and len(ids(name)) == count


def test_voc_lists_nest_and_do_not_leak():
    train, train_aug = set(ids("train")), set(ids("train_aug"))
    assert train < train_aug and len(train_aug) == 10582
    for name in ("2_clean", "4_clean", "8_clean", "16_clean_3", "16_clean_14", "16_clean_20"):
        assert set(ids(name)) < train
    assert len(ids("val")) == 1449 and len(ids("test")) == 1456
    assert not train_aug & (set(ids("val")) | set(ids("test")))


@pytest.mark.parametrize("count", [92, 183, 366, 732])
def test_the_first_masks_of_train(count):
    assert ids(f"train_first_{count}") == ids("train")[:count]


def test_coco_lists():
    counts = {"32_all": 3697, "64_all": 1849, "128_all": 925, "256_all": 463, "512_all": 232}
    for name, count in counts.items():
        listed = ids(name, "coco")
        assert len(listed) == count and all(i.startswith("train2017/") for i in listed)
    assert set(ids("512_all", "coco")) < set(ids("32_all", "coco"))
    assert len(ids("val", "coco")) == 5000
