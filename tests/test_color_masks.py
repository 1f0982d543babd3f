"""Masks in colours: the CSV of classes, reading, what is no class, and the program."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.test_foreign_data import png16
from tests.test_converters import picture, run_tool, save
from tfrecords_tools.color_masks import ColorMaskReader, parse_color, read_class_colors
from tfseg.data.record_reader import RecordReader
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError
from tfseg.inference.pictures import decode_label

COLORS = {"background": (0, 0, 0), "road": (128, 64, 128), "car": (0, 0, 142)}
LINES = [",".join(map(str, (name, *color))) for name, color in COLORS.items()]
VOID = (255, 255, 255)


def ids_of_scene():
    ids = np.zeros((6, 8), np.uint8)
    ids[2:4], ids[4:] = 1, 2
    ids[0, :3] = 255
    return ids


def in_colors(ids):
    table = np.zeros((256, 3), np.uint8)
    table[:3], table[255] = list(COLORS.values()), VOID
    return table[ids]


def reader(**more):
    ids = {color: k for k, color in enumerate(COLORS.values())}
    return ColorMaskReader({**ids, **more.get("void", {VOID: 255})}, max_megapixels=1.0)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(LINES),
        "name,r,g,b\n" + "\n".join(LINES),
        "\n".join(["class, red, green, blue", *LINES, ""]),
        "r,g,b,name\n" + "\n".join(f"{r},{g},{b},{n}" for n, (r, g, b) in COLORS.items()),
    ],
    ids=["no header", "header", "other header", "other order"],
)
def test_the_csv_of_classes(text, tmp_path):
    path = tmp_path / "class_dict.csv"
    path.write_text(text)
    found = read_class_colors(str(path))
    assert found == COLORS and list(found) == list(COLORS)


@pytest.mark.parametrize(
    "lines, message",
    [
        ([*LINES, "road,1,2,3"], "a name twice.*line 4.*road"),
        ([*LINES, "sky,0,0,142"], "a color twice.*line 4"),
        ([*LINES, "sky,0,0,256"], "no name and colour.*line 4.*0 to 255"),
        ([*LINES, "sky,0,0"], "no name and colour.*line 4"),
        ([*LINES, "sky,blue,0,0"], "no name and colour.*line 4"),
        (LINES[:1], "too few"),
        ([], "too few"),
    ],
)
def test_a_csv_that_cannot_be_meant(lines, message, tmp_path):
    path = tmp_path / "class_dict.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"(?s){message}"):
        read_class_colors(str(path))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_ids(mode, tmp_path):
    image = Image.fromarray(in_colors(ids_of_scene()))
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "mask.png")
    ids, notes = reader()(str(tmp_path / "mask.png"), (6, 8))
    np.testing.assert_array_equal(ids, ids_of_scene())
    assert ids.dtype == np.uint8 and notes == []


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_pixels_are_told(mode, tmp_path):
    """An eraser leaves the colour of a class where nothing is seen."""
    image = Image.fromarray(in_colors(ids_of_scene()))
    if mode == "P":
        image.quantize(16).save(tmp_path / "mask.png", transparency=0)
    else:
        image.putalpha(Image.fromarray(np.where(ids_of_scene() == 1, 0, 255).astype(np.uint8)))
        image.save(tmp_path / "mask.png")
    ids, (note,) = reader()(str(tmp_path / "mask.png"), (6, 8))
    np.testing.assert_array_equal(ids, ids_of_scene())
    assert "transparent pixels" in note


def test_an_orientation_tag_is_told(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(in_colors(ids_of_scene())).save(tmp_path / "mask.png", exif=exif)
    ids, (note,) = reader()(str(tmp_path / "mask.png"), (6, 8))
    np.testing.assert_array_equal(ids, ids_of_scene())
    assert "EXIF orientation tag" in note


def test_colours_of_16_bits_are_refused(tmp_path):
    """Of a saved 142 of 65535 the high byte is 0."""
    png16(tmp_path / "mask.png", in_colors(ids_of_scene()))
    with pytest.raises(UserError, match="(?s)more than 8 bits.*mask.png.*16 bits.*save"):
        reader()(str(tmp_path / "mask.png"), (6, 8))


def test_a_colour_that_is_no_class_is_named_with_its_pixels(tmp_path):
    save(tmp_path / "mask.png", in_colors(ids_of_scene()))
    message = "(?s)no class.*255,255,255 [(]3 pixels[)].*--void_color=255,255,255"
    with pytest.raises(UserError, match=message):
        reader(void={})(str(tmp_path / "mask.png"), (6, 8))


def test_a_mask_of_ids_and_a_lossy_one_are_refused(tmp_path):
    save(tmp_path / "ids.png", ids_of_scene())
    save(tmp_path / "mask.jpg", in_colors(ids_of_scene()))
    with pytest.raises(UserError, match="(?s)no colours.*--class_names"):
        reader()(str(tmp_path / "ids.png"), (6, 8))
    with pytest.raises(UserError, match="compression"):
        reader()(str(tmp_path / "mask.jpg"), (6, 8))


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "1,2,256", ""])
def test_a_void_colour_that_is_none(text):
    with pytest.raises(UserError, match="--void_color"):
        parse_color(text)


# The program --------------------------------------------------------------------------------------


def build(folder, *extra):
    return run_tool(
        "build_folder",
        f"--images_dir={folder / 'images'}",
        f"--masks_dir={folder / 'masks'}",
        f"--output_dir={folder / 'out'}",
        "--num_workers=1",
        *extra,
    )


@pytest.fixture
def folder(tmp_path):
    for k in range(5):
        save(tmp_path / "images" / f"p{k}.jpg", picture(k, 6, 8))
        save(tmp_path / "masks" / f"p{k}.png", in_colors(ids_of_scene()))
    (tmp_path / "class_dict.csv").write_text("\n".join(["name,r,g,b", *LINES]))
    return tmp_path


def test_records_of_coloured_masks(folder):
    colors = f"--class_colors={folder / 'class_dict.csv'}"
    result = build(folder, colors, "--void_color=255,255,255")
    assert result.returncode == 0, result.stderr
    content = json.loads((folder / "out" / "dataset.json").read_text())
    assert content["class_names"] == list(COLORS)
    assert content["palette"][:3] == [list(color) for color in COLORS.values()]
    spec = DatasetSpec.from_json(content, where="dataset.json")
    index = load_index(str(folder / "out"), "val", spec)
    with RecordReader(index, str(folder / "out")) as records:
        label = decode_label(records.read(0).label, "p", records.location(0))
    np.testing.assert_array_equal(label, ids_of_scene())


@pytest.mark.parametrize(
    "extra, words",
    [
        ((), ("--class_names", "neither")),
        (("--class_colors=class_dict.csv", "--class_names=x.txt"), ("both",)),
        (("--class_names=x.txt", "--void_color=1,2,3"), ("--void_color needs --class_colors",)),
        (("--class_colors=class_dict.csv",), ("p0.png", "255,255,255", "--void_color")),
        (
            ("--class_colors=class_dict.csv", "--void_color=0,0,0"),
            ("colour of a class", "background"),
        ),
    ],
    ids=lambda x: " ".join(x),
)
def test_wrong_flags(folder, extra, words):
    extra = [word.replace("class_dict.csv", str(folder / "class_dict.csv")) for word in extra]
    result = build(folder, *extra)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
    assert not (folder / "out").exists()
