"""Data as other tools write them: read right, refused in one message, or told with a warning."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.test_check import problems_of
from tests.test_converters import picture, pixels, save
from tfrecords_tools import (
    build_coco,
    build_folder,
    build_voc2012,
    check,
    class_files,
    images,
    masks,
    program,
)
from tfrecords_tools.checks.report import describe
from tfrecords_tools.class_files import read_class_names
from tfrecords_tools.coco.instances import Region, read_instances
from tfrecords_tools.coco.painting import MaskReader, decode_region
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.file_finder import FileFinder
from tfrecords_tools.id_lists import read_splits
from tfrecords_tools.image_label_files import ImageLabels, read_image_labels
from tfseg.data import writing
from tfseg.data.specs import DATASETS, DatasetSpec
from tfseg.errors import UserError
from tfseg.inference.decoding import decode_file

SPEC = DatasetSpec("folder", ("background", "cat", "dog"))


def make_lists(folder, text, split="train"):
    (folder / "lists").mkdir(exist_ok=True)
    (folder / "lists" / f"{split}.txt").write_text(text)


def chunk(kind, data):
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(path, pixels):
    """Writes [H, W, 3] as a PNG with 16 bits per channel, which Pillow cannot write."""
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    path.write_bytes(png + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def sources(folder, masks="masks", **options):
    return build_folder.make_sources(
        read_splits(str(folder / "lists")),
        FileFinder(str(folder / "images")),
        FileFinder(str(folder / masks)),
        options.pop("labels", None),
        **options,
    )


# Class files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,r,g,b\nbackground,0,0,0\ncat,128,0,0\n", "table .CSV. of 4 columns with commas"),
        ("Pixel Value, Class\n1, background\n2, cat\n", "table .CSV. of 2 columns"),
        ("Pixel Value, Class\n0, background\n2, cat\n", "table .CSV. of 2 columns"),
        ("name,note\nbackground\ncat\n", "table .CSV."),
        ("background;0\ncat;1\n", "semicolons"),
        ("1\tbackground\n2\tcat\n", "tabs"),
        ("0,background,x\n1,cat,x\n", "table .CSV. of 3 columns"),
        ('["background", "cat"]', "JSON"),
        ('{"0": "background",\n"1": "cat"}', "JSON"),
        ('"background"\n"cat"\n', "quoted list"),
        ("names:\n  0: background\n  1: cat\n", "YAML"),
        ("- background\n- cat\n", "YAML"),
        ("* background\n* cat\n", "mark before each name"),
        ("item {\n  id: 1\n  name: 'cat'\n}\n", "label map of TensorFlow"),
        ("item { id: 1 name: 'cat' }\nitem { id: 2 name: 'dog' }\n", "label map of TensorFlow"),
        ("background 0\ncat 1\n", "number behind each name"),
        ("road: 1\nparking lot: 2\n", "number behind each name"),
        ("1 background\n2 cat\n3 dog\n", "number before each name"),
        ("7: road\n8: sidewalk\n", "number before each name"),
        ("1. cat\n2. dog\n", "number before each name"),
        ("class\nbackground\ncat\n", "header"),
        ("label\ncat\ndog\n", "header"),
        ("__ignore__\n_background_\ncat\n", "reserved name of labelme"),
        ("void\nbackground\ncat\n", "'background' has id 1"),
        ("cat\ndog\nbackground\n", "'background' has id 2"),
        ("background\n\ncat\n", "line 2"),
        ("# classes\nbackground\ncat\n", "line 1"),
        ("background\ncat\ncat\n", "twice"),
        ("\n\n", "holds no names"),
    ],
)
def test_class_files_of_another_structure_are_refused(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_class_names(str(path), has_background=True)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "Pixel Value, Class\n0, background\n1, traffic light\n",
        "0\tbackground\n1\ttraffic light\n",
        "0 background\n1 traffic light\n\n",
        "0: background\n1: traffic light",
        "id;name\n0;background\n1;traffic light\n",
    ],
)
def test_names_behind_their_ids(text):
    names = class_files.parse(text, where="x", has_background=True)
    assert names == ("background", "traffic light")


@pytest.mark.parametrize(
    "names, has_background",
    [
        (("background", "cat", "traffic light"), True),
        (("_background_", "wall", "building, edifice", "sky"), True),
        (("Hintergrund", "5 cent", "10 cent"), True),
        (("1 cent", "2 cent", "5 cent"), False),
        (("label", "bottle"), False),
        (("background", "car 1", "car 2"), True),
        (("class 0", "class 1", "class 2"), False),
        (("background", *map(str, range(10))), True),
    ],
)
def test_unusual_names_are_names(names, has_background):
    text = "\n".join(names) + "\n\n"
    assert class_files.parse(text, where="x", has_background=has_background) == names


def test_no_known_data_set_is_warned_of():
    for spec in DATASETS.values():
        everywhere = np.ones(spec.num_classes + 1, int)
        assert class_files.warnings(spec, {"train": everywhere}, np.zeros(spec.num_classes)) == []


def test_a_class_in_the_place_of_the_background_is_told():
    """The list of a user's classes often has no line for the background."""
    spec = DatasetSpec("folder", ("aeroplane", "cat"))
    (line,) = class_files.warnings(spec, {"train": np.array([6, 3, 1])}, np.zeros(2))
    assert "class 0, with 60.0% of the pixels, is called 'aeroplane'" in line
    assert (
        "must be 'background'" in line
        and "id 1 is 'cat'" in line
        and "--has_background=false" in line
    )
    (line,) = class_files.warnings(spec, {}, np.ones(2))
    assert "class 0 is called 'aeroplane'" in line
    without = DatasetSpec("folder", ("aeroplane", "cat"), has_background=False)
    assert class_files.warnings(without, {"train": np.array([6, 3, 1])}, np.zeros(2)) == []


def test_more_names_than_a_mask_can_hold():
    names = [f"c{k}" for k in range(256)]
    class_files.check_ignore_label(names[:255], 255, where="classes.txt")
    class_files.check_ignore_label(names, 0, where="classes.txt")
    with pytest.raises(UserError, match="at most 255"):
        class_files.check_ignore_label(names, 255, where="classes.txt")
    with pytest.raises(UserError, match="at most 256"):
        class_files.check_ignore_label([*names, "more"], 0, where="classes.txt")


@pytest.mark.parametrize(
    "mask, labels, cause",
    [
        # 255 is the object, not the ignore label.
        (np.eye(8) * 255, None, '"255": 1'),
        (np.zeros((8, 8)), None, "all masks are 'background'"),
        (np.zeros((8, 8)), (1,), "image-level labels alone name class 'cat'"),
        (np.eye(8), None, "ids end at 1"),
    ],
)
def test_a_class_without_a_pixel_is_a_warning_everywhere(tmp_path, capsys, mask, labels, cause):
    save(tmp_path / "a.png", picture(0, 8, 8))
    save(tmp_path / "m.png", mask)
    source = ImageSource("a", str(tmp_path / "a.png"), str(tmp_path / "m.png"), labels)
    out = str(tmp_path / "out")
    reports = writing.write_splits(
        out, SPEC, {"train": [source]}, Encoder(SPEC), num_shards=1, num_workers=1
    )
    program.finish(reports, SPEC, out, 0.0)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning: ")]
    assert "'dog'" in line and cause in line and "split train" in line
    assert problems_of(out) == {}
    results, _, _ = check.check(out)
    assert line in describe(results, [], [], SPEC, max_listed=1)


def test_every_class_shown_is_no_warning():
    some, none = np.array([5, 1, 1, 9]), np.zeros(4, int)
    assert class_files.warnings(SPEC, {"train": some, "more": none}, np.zeros(3)) == []
    assert class_files.warnings(SPEC, {}, np.ones(3)) == []


@pytest.mark.parametrize("pixels, words", [(9, "counted as any other"), (0, "one name too many")])
def test_void_that_is_a_class_is_told(pixels, words):
    spec = DatasetSpec("folder", ("background", "cat", "Void"))
    counts = {"train": np.array([50, 5, pixels, 20])}
    (line,) = class_files.warnings(spec, counts, np.zeros(3))
    assert "'Void'" in line and words in line and '{"0": 0' not in line


def test_a_class_that_only_another_split_shows_is_told():
    pixels = {"train": np.array([5, 0, 1, 9]), "val": np.array([5, 1, 1, 0])}
    (warning,) = class_files.warnings(SPEC, pixels, np.zeros(3))
    assert "the masks of split train have no pixel of class 'cat'; those of other" in warning


def test_records_of_classes_that_are_other_lines_or_ignored_are_warned_of():
    spec = DatasetSpec("x", ("name,r,g,b", "background,0,0,0", "cat,128,0,0"))
    (warning,) = class_files.warnings(spec, {"train": np.ones(4, int)}, np.zeros(3))
    assert "table (CSV)" in warning
    spec = DatasetSpec("x", ("background", *(f"thing {k}" for k in range(1, 256))))
    (warning,) = class_files.warnings(spec, {"train": np.ones(257, int)}, np.zeros(256))
    assert "'thing 255'" in warning and "ignore label" in warning
    spec = DatasetSpec("x", ("background", *(f"thing {k}" for k in range(300))))
    counts = writing.count_pixels(np.zeros((2, 2), np.uint8), spec)
    assert any("256" in w for w in class_files.warnings(spec, {"train": counts}, np.zeros(301)))


# Images ------------------------------------------------------------------------------------------


def read_image(path):
    data, _, notes = images.read_image(str(path), max_megapixels=1)
    return pixels(data), notes


def test_float_images_within_0_and_1_are_scaled(tmp_path):
    values = np.linspace(0, 1, 80, dtype=np.float32).reshape(8, 10)
    Image.fromarray(values).save(tmp_path / "a.tif")
    rgb, notes = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(rgb, np.rint(values * 255)[..., None].repeat(3, -1))
    assert "mode F" in notes[0]


@pytest.mark.parametrize("high", [1.5, 255.0, -1.0, np.nan, np.inf])
def test_float_images_of_another_range_are_refused(tmp_path, high):
    Image.fromarray(np.full((4, 4), high, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="mode F") as error:
        read_image(tmp_path / "a.tif")
    assert "a.tif" in str(error.value) and "0 and 1" in str(error.value)


def test_a_named_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="a.jpg"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "values",
    [
        np.arange(16, dtype=np.uint16).reshape(4, 4),
        np.full((4, 4), 70000, np.int32),
        np.full((4, 4), -5, np.int32),
    ],
)
def test_integers_of_another_range_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="another range than 16 bits"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "pixels, dark",
    [
        (np.full((4, 4), 2**12 - 1, np.uint16), True),
        (np.full((4, 4), 2**14 - 1, np.uint16), True),
        (np.full((4, 4), 2**16 - 1, np.uint16), False),
        (np.ones((4, 4, 3), np.uint8), True),
    ],
    ids=["12 bits", "14 bits", "16 bits", "0 to 1"],
)
def test_dark_pictures_are_told(tmp_path, pixels, dark):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert any("dark image" in note for note in read_image(tmp_path / "a.png")[1]) == dark


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_the_picture_that_it_shows(tmp_path, mode):
    image = Image.fromarray(picture(3).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "a.tif")
    rgb, notes = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(rgb, np.asarray(image.convert("RGB")))
    assert mode in notes[0] and "dropped" not in notes[0]


@pytest.mark.parametrize(
    "kind, head", [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"), (b"iCCP", b"profile\0\0")]
)
def test_pngs_of_drawing_programs_with_long_texts_are_read(tmp_path, kind, head):
    """Pillow's own limit for a text or a colour profile is 1 MiB."""
    text = chunk(kind, head + zlib.compress(bytes(3 << 20)))
    for name, content in (("a", picture(3)), ("m", np.ones((2, 2)))):
        save(tmp_path / f"{name}.png", content)
        png = (tmp_path / f"{name}.png").read_bytes()
        (tmp_path / f"{name}.png").write_bytes(png[:33] + text + png[33:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], picture(3))
    assert read_mask(tmp_path / "m.png")[0].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
@pytest.mark.parametrize("block", [b"garbage!", b"II*\0"])
def test_a_sound_picture_with_a_damaged_exif_block_is_read(tmp_path, name, block):
    image = Image.fromarray(np.full((8, 10, 3), 90, np.uint8))
    image.save(tmp_path / name, exif=b"Exif\0\0" + block, lossless=True)
    data, image, _ = images.read_image(str(tmp_path / name), max_megapixels=1)
    assert images.orient(data, image, None, "apply") == (data, image, [])
    assert images.size_as_stored(image, "apply") == (8, 10)
    assert decode_file(str(tmp_path / name), max_megapixels=1).shape == (8, 10, 3)
    Image.new("L", (2, 2), 1).save(tmp_path / "m.png", exif=b"Exif\0\0" + block)
    assert read_mask(tmp_path / "m.png")[1] == []


def test_a_tiff_whose_further_pages_are_damaged_is_named(tmp_path):
    """Its first page can be decoded; to count the pages, Pillow reads the others."""
    Image.new("RGB", (10, 8)).save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    # The directory of tags begins with their number and ends with the place of the next one.
    start = int.from_bytes(data[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    data[end : end + 4] = len(data).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(data + bytes(8))
    with pytest.raises(UserError, match="(?s)cannot be decoded.*a.tif"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_png_without_its_last_bytes_is_refused(tmp_path, mode):
    """Pillow decodes it and TensorFlow does not."""
    Image.fromarray(picture(3).astype(np.uint8)).convert(mode).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-12])
    with pytest.raises(UserError, match="(?s)cannot be decoded.*a.png.*cut short.*replace"):
        read_image(tmp_path / "a.png")


def test_dropped_transparency_and_further_pages_are_told(tmp_path):
    image = Image.fromarray(picture(3).astype(np.uint8))
    image.putalpha(100)
    image.save(tmp_path / "a.png")
    assert "transparency dropped" in read_image(tmp_path / "a.png")[1][0]
    image = image.convert("RGB")
    image.save(tmp_path / "b.png", transparency=image.getpixel((0, 0)))
    assert "transparency dropped" in read_image(tmp_path / "b.png")[1][0]
    image.save(tmp_path / "a.tif", save_all=True, append_images=[image])
    assert any("several pages" in note for note in read_image(tmp_path / "a.tif")[1])


# Masks -------------------------------------------------------------------------------------------

IDS = np.array([[0, 1], [2, 255]])


def read_mask(path):
    return masks.read_mask(str(path), max_megapixels=1)


def test_a_gif_that_numbers_its_colours_anew_is_refused(tmp_path):
    ids = np.array([[0, 1, 7]], np.uint8)
    Image.fromarray(ids).save(tmp_path / "m.gif")
    with pytest.raises(UserError, match="(?s)m.gif.*indices.*save the class ids as PNG"):
        read_mask(tmp_path / "m.gif")
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "n.gif")
    assert read_mask(tmp_path / "n.gif") == (pytest.approx(np.array([[0, 1, 2]])), [])


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_a_mask_with_an_orientation_tag_is_told(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / name, exif=exif)
    ids, (note,) = read_mask(tmp_path / name)
    assert ids.tolist() == [[0, 1, 2]] and "EXIF orientation tag" in note


def test_a_palette_of_greys_that_are_not_its_indices_is_told(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 0, 0, 1, 1, 1, 7, 7, 7])
    image.save(tmp_path / "m.png")
    ids, notes = read_mask(tmp_path / "m.png")
    assert ids.tolist() == [[0, 1, 2]] and "greys are not its indices" in notes[0]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(IDS.astype(np.uint8)),
        Image.fromarray(IDS.astype(np.uint16)),
        Image.fromarray(IDS.astype(np.int32)),
        Image.fromarray(IDS.astype(np.float32)),
        Image.fromarray(IDS.astype(np.uint8)).convert("RGB"),
        Image.fromarray(IDS.astype(np.uint8)).convert("RGBA"),
        Image.fromarray(IDS.astype(np.uint8)).convert("LA"),
    ],
)
def test_ids_of_any_mode_are_the_same(tmp_path, image):
    image.save(tmp_path / "m.tif")
    ids, _ = read_mask(tmp_path / "m.tif")
    assert ids.dtype.kind in "iu" and ids.tolist() == IDS.tolist()


def test_one_bit_is_0_and_1(tmp_path):
    Image.fromarray(np.eye(3) > 0).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png")[0].tolist() == np.eye(3).tolist()


def transparent(image):
    image.putalpha(9)
    return image


@pytest.mark.parametrize(
    "image, name, options, message",
    [
        (Image.fromarray(IDS.astype(np.float32) / 255), "m.tif", {}, "no whole numbers"),
        (transparent(Image.new("L", (4, 4))), "m.png", {}, "transparent pixels"),
        (Image.fromarray(picture(0).astype(np.uint8)), "m.png", {}, "has colours"),
        (Image.new("RGB", (4, 4)), "m.webp", {}, "compression changes"),
        (Image.new("L", (16, 16)), "m.tif", {"compression": "jpeg"}, "compression changes"),
        (
            Image.new("L", (4, 4)),
            "m.tif",
            {"save_all": True, "append_images": [Image.new("L", (4, 4))]},
            "2 pages",
        ),
        (Image.new("L", (4, 4)), "m.tif", {"tiffinfo": {262: 0}}, "inverted grey"),
    ],
)
def test_masks_whose_values_are_not_the_ids_are_refused(tmp_path, image, name, options, message):
    image.save(tmp_path / name, **options)
    with pytest.raises(UserError, match=message) as error:
        read_mask(tmp_path / name)
    assert name in str(error.value)


def test_scaled_grey_is_refused(tmp_path):
    (tmp_path / "m.ppm").write_bytes(b"P5 2 1 2\n\x00\x02")
    with pytest.raises(UserError, match="maximum of 2"):
        read_mask(tmp_path / "m.ppm")


def test_sixteen_bit_colours_are_not_cut_to_ids(tmp_path):
    png16(tmp_path / "m.png", np.full((1, 1, 3), 256))
    with pytest.raises(UserError, match="has colours"):
        read_mask(tmp_path / "m.png")
    (tmp_path / "m.ppm").write_bytes(b"P6 1 1 65535\n" + b"\0\1" * 3)
    with pytest.raises(UserError, match="maximum of 65535"):
        read_mask(tmp_path / "m.ppm")


def test_sbd_masks_are_not_wrapped(tmp_path):
    from scipy.io import savemat

    path = str(tmp_path / "x.mat")
    savemat(path, {"GTcls": {"Segmentation": np.full((2, 2), 257.0)}})
    assert build_voc2012.read_sbd_mask(path).tolist() == [[257, 257]] * 2
    savemat(path, {"GTcls": {"Segmentation": np.full((2, 2), 0.5)}})
    with pytest.raises(UserError, match="no whole numbers"):
        build_voc2012.read_sbd_mask(path)


# Pairs and lists ---------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """Images and, in a folder of their own, masks of the same names."""
    for k, name in enumerate(("a", "b")):
        save(tmp_path / "images" / f"{name}.jpg", picture(k))
        save(tmp_path / "masks" / f"{name}.png", np.full((8, 10), k))
    make_lists(tmp_path, "a\nb\n")
    return tmp_path


@pytest.mark.parametrize(
    "text, message",
    [
        ("images/a.jpg other/a.png\nimages/b.jpg other/b.png\n", "one id, not 2 columns"),
        ("a,a_mask\nb,b_mask\n", "one id, not 2 columns"),
        ("a.jpg a.png\na.jpg b.png\n", "image more than once"),
        ("a\na.jpg\n", "image more than once"),
        ("image, mask\na.jpg, a.png\n", "one id, not 2 columns|header"),
        ("a -1\nb 1\n", "one id, not 2 columns"),
        ("filename\na\nb\n", "column's header"),
        ("other/a\n", "'a': write ids as paths below it"),
        ("/images/a\n", "below the image folder"),
        ("../a.jpg ../a.png\n", "below the image folder"),
        ("C:\\data\\a\n", "below the image folder"),
    ],
)
def test_lists_of_other_tools(pairs, text, message):
    make_lists(pairs, text)
    with pytest.raises(UserError, match=message):
        sources(pairs)


def test_masks_that_lie_in_other_folders_than_their_images(pairs):
    os.makedirs(pairs / "images" / "x")
    os.rename(pairs / "images" / "a.jpg", pairs / "images" / "x" / "a.jpg")
    make_lists(pairs, "x/a\n")
    with pytest.raises(UserError, match="the same folder.*Give as --images_dir the folder 'x'"):
        sources(pairs)


def test_names_with_blanks_are_one_id(pairs):
    save(pairs / "images" / "my photo 1.jpg", picture(0))
    save(pairs / "masks" / "my photo 1.png", np.zeros((8, 10)))
    make_lists(pairs, "my photo 1\n")
    for text in ("my photo 1\n", "my photo 1.jpg\n", "my photo 1.jpg my photo 1.png\n"):
        make_lists(pairs, text)
        (source,) = sources(pairs)["train"]
        assert source.id == "my photo 1" and source.mask.endswith("masks/my photo 1.png")


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg\nb.jpg\n",
        "a.JPG\nb.png\n",
        "images/a\nimages/b\n",
        "images\\a\nimages\\b.jpg\n",
        "images/a.jpg masks/a.png\nimages/b.jpg masks/b.png\n",
        "/images/a.jpg /masks/a.png\n/images/b.jpg /masks/b.png\n",
        "a.jpg\ta.png\nb.jpg\tb.png\n",
        "a,a\nb; b\n",
    ],
)
def test_lists_with_extensions_folders_and_masks(pairs, text):
    make_lists(pairs, text)
    found = [(s.id, s.image, s.mask) for s in sources(pairs)["train"]]
    assert found == [
        (i, str(pairs / "images" / f"{i}.jpg"), str(pairs / "masks" / f"{i}.png")) for i in "ab"
    ]


def test_a_list_names_masks_that_have_other_names(pairs):
    make_lists(pairs, "a.jpg b.png\nb.jpg a.png\n")
    first, second = sources(pairs)["train"]
    assert first.mask.endswith("b.png") and second.mask.endswith("a.png")
    (source,) = sources(pairs, unlabelled_splits=["train"])["train"][:1]
    assert source.mask is None


def test_extensions_say_which_of_two_files(pairs):
    save(pairs / "images" / "a.png", picture(5))
    make_lists(pairs, "a.png\n")
    assert sources(pairs)["train"][0].image.endswith("a.png")
    make_lists(pairs, "a\n")
    with pytest.raises(UserError, match="Several files fit"):
        sources(pairs)


@pytest.mark.parametrize("ending", ["{}_mask.png", "{}-seg.png", "gt_{}.png"])
def test_masks_of_another_name_are_named(pairs, ending):
    for name in "ab":
        (pairs / "masks" / f"{name}.png").rename(pairs / "masks" / ending.format(name))
    with pytest.raises(UserError, match="a mask has the name of its image") as error:
        sources(pairs)
    assert ending.format("a") in str(error.value)
    with pytest.raises(UserError, match="Not one of the 2 ids") as error:
        sources(pairs, allow_missing_masks=True)
    assert ending.format("a") in str(error.value)


def test_lines_of_image_labels_for_no_image_are_told(pairs, capsys):
    sources(pairs, labels=ImageLabels({"a": (1,), "b": (), "typo": (1,)}, {}))
    assert "1 of 3 lines" in (told := capsys.readouterr().out) and "converted: typo" in told
    # All images have masks, which tell their labels.
    sources(pairs, labels=ImageLabels({"typo": (1,)}, {}))
    assert "1 of 1 lines" in capsys.readouterr().out
    with pytest.raises(UserError, match="a line for none of the images"):
        sources(pairs, labels=ImageLabels({"typo": (1,)}, {}), unlabelled_splits=["train"])


def test_image_labels_that_contradict_a_mask_are_told(pairs):
    for labels, told in (((), True), ((1,), False), ((1, 2), False)):
        paths = [str(pairs / folder) for folder in ("images/b.jpg", "masks/b.png")]
        notes = Encoder(SPEC)(ImageSource("b", *paths, image_labels=labels)).notes
        assert any("image-level labels lack" in note for note in notes) == told


def test_image_labels_of_double_extensions():
    labels = ImageLabels({"a.JPG": (1,), "b": (2,)}, {})
    assert labels.of("a.JPG") == (1,) and labels.of("b") == labels.of("b.jpg") == (2,)


def test_unknown_names_of_image_labels_are_told_with_their_image(tmp_path):
    (tmp_path / "l.csv").write_text("id,names\na.jpg,cat\nb.jpg,cat kat\nc.jpg,kat\n")
    with pytest.raises(UserError, match=r"kat \(2 x, first of b\)"):
        read_image_labels(str(tmp_path / "l.csv"), SPEC)
    (tmp_path / "l.csv").write_text("id,names\na.jpg,background cat\n")
    with pytest.raises(UserError, match="leave it out"):
        read_image_labels(str(tmp_path / "l.csv"), SPEC)


def test_a_label_map_in_place_of_its_file_is_told():
    with pytest.raises(UserError, match="write this into a file"):
        build_folder.read_label_map('{"0": 0, "255": 1}', SPEC)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_image_and_mask_side_by_side(pairs, extension):
    for name in "ab":
        Image.open(pairs / "images" / f"{name}.jpg").save(pairs / "images" / f"{name}.{extension}")
        (pairs / "masks" / f"{name}.png").rename(pairs / "images" / f"{name}_mask.png")
    if extension != "jpg":
        for name in "ab":
            (pairs / "images" / f"{name}.jpg").unlink()
    (source, _) = sources(pairs, masks="images")["train"]
    with pytest.raises(UserError, match="is the image itself") as error:
        Encoder(SPEC)(source)
    assert "a_mask.png" in str(error.value) and "--masks_dir" in str(error.value)


def test_image_and_mask_of_one_stem_in_one_folder(pairs):
    for name in "ab":
        (pairs / "masks" / f"{name}.png").rename(pairs / "images" / f"{name}.png")
    with pytest.raises(UserError, match="put the masks into a folder of their own"):
        sources(pairs, masks="images")


def test_decomposed_names_are_found(pairs):
    composed, decomposed = "\u00e9t\u00e9/caf\u00e9", "e\u0301te\u0301/cafe\u0301"
    save(pairs / "images" / f"{decomposed}.jpg", picture(0))
    save(pairs / "masks" / f"{composed}.png", np.zeros((8, 10)))
    for listed in (composed, decomposed):
        make_lists(pairs, listed)
        (source,) = sources(pairs)["train"]
        assert Encoder(SPEC)(source).row.id == listed
    (pairs / "labels.csv").write_text(f"{composed},cat\n")
    labels = read_image_labels(str(pairs / "labels.csv"), SPEC)
    assert sources(pairs, labels=labels)["train"][0].image_labels == (1,)


def test_hidden_files_are_no_lists(pairs):
    (pairs / "lists" / "._train.txt").write_bytes(b"\0\xff")
    assert list(read_splits(str(pairs / "lists"))) == ["train"]


@pytest.mark.parametrize(
    "text, column, message",
    [
        ("a,1,0\nb,0,1\n", None, "0 and 1 for each class"),
        ("id,katze,hund\na,1,0\n", None, "(?s)0 and 1 for each class.*katze"),
        ("id,cat,dog\na,1,0.5\n", None, "'dog' is not made of 0 and 1"),
        ("id,cat,dog\na,1,-1\nb,0,1\n", None, "0 and -1 beside each other"),
        ("a,41\nb,2 17\n", None, "(?s)numbers in place of names.*2, 17, 41"),
        ("a,1\nb,0;2\n", None, "(?s)numbers in place of names.*from 1 .'cat'. to 2 .'dog'."),
        ("id,cat,dog\na,1,0\nb,0,1\n", "cat", "0 and 1 for each class"),
        ("a,cat,dog\nb,dog,cat\n", None, "put ';' between the names"),
        ("a cat dog\nb dog\n", None, "put a comma"),
        ("id,what\na,katze\nb,hund\n", None, "unknown classes only"),
    ],
)
@pytest.mark.parametrize("ignore_unknown", [False, True])
def test_label_files_of_other_tools(tmp_path, text, column, message, ignore_unknown):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_image_labels(
            str(tmp_path / "l.csv"), SPEC, column=column, ignore_unknown=ignore_unknown
        )
    assert "l.csv" in str(error.value) and "give --ignore_unknown" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "filename,cat,dog\na.jpg,1,0\nx/b.png,1,1\nc.jpg,0,0\n",
        "filename, cat, dog\na, 1, 0\nx/b, 1.0, True\nc,,\n",
        "id,width,dog,cat\na.jpg,640,-1,1\nx\\b.jpg,1,1,1\nc,2,-1,-1\n",
        "id,background,cat,dog\na,1,1,0\nx/b,1,1,1\nc,1,0,0\n",
        "id,what\na.jpg,1\nx/b,1 2\nc,\n",
        "a,cat\nx/b,cat;dog\nc,\n",
    ],
)
def test_image_level_labels_of_several_forms(tmp_path, text):
    (tmp_path / "l.csv").write_text(text)
    labels = read_image_labels(str(tmp_path / "l.csv"), SPEC)
    assert labels.ids == {"a": (1,), "x/b": (1, 2), "c": ()} and not labels.unknown
    assert labels.of("a.jpg") == (1,) and labels.of("d") is None


def test_columns_that_are_no_class_or_are_missing_are_told(tmp_path):
    (tmp_path / "l.csv").write_text("id,cat,zebra\na,1,1\nb,0,0\n")
    with pytest.raises(UserError, match="(?s)unknown classes.*zebra .1 x"):
        read_image_labels(str(tmp_path / "l.csv"), SPEC)
    labels = read_image_labels(str(tmp_path / "l.csv"), SPEC, ignore_unknown=True)
    assert labels.ids == {"a": (1,), "b": ()} and "no column of dog" in labels.notes[0]


def test_classes_called_0_and_1_are_names(tmp_path):
    (tmp_path / "l.csv").write_text("id,digits\na,0 1\nb,1\n")
    spec = DatasetSpec("digits", ("background", "0", "1"))
    labels = read_image_labels(str(tmp_path / "l.csv"), spec)
    assert labels.ids == {"a": (1, 2), "b": (2,)}


# COCO --------------------------------------------------------------------------------------------

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]


def coco_file(folder, name="i.json", **changes):
    """Writes an instances file of image 7, with one square of category 3."""
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 8, "width": 10}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "segmentation": [SQUARE]}],
    }
    for key, value in changes.items():
        if isinstance(value, dict) and key != "content":
            content[key][0].update(value)
        else:
            content[key] = value
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


def coco_source(folder, path, ids="a\n", images=("a",), **options):
    for k, name in enumerate(images):
        save(folder / "images" / f"{name}.jpg", picture(k))
    make_lists(folder, ids)
    return build_coco.make_sources(
        str(folder / "images"),
        read_splits(str(folder / "lists")),
        read_instances([path]),
        **options,
    )["train"]


def paint(source):
    spec = DatasetSpec("c", ("background", "cat", "dog"))
    encoder = Encoder(spec, mask_reader=MaskReader(255, False))
    encoded = encoder(source)
    return encoded.pixels, encoded.notes


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        SQUARE,
        [[1, 1], [5, 1], [5, 5], [1, 5]],
        [[[1, 1], [5, 1], [5, 5], [1, 5]]],
        [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0], []],
        {"size": [8, 10], "counts": [9, 4, 4, 4, 4, 4, 4, 4, 43]},
        [{"size": [8, 10], "counts": [9, 4, 4, 4, 4, 4, 4, 4, 43]}],
        {"size": [8, 10], "counts": "94400000S1"},
    ],
)
def test_outlines_of_many_forms(tmp_path, segmentation):
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        square = np.zeros((8, 10), np.uint8, order="F")
        square[1:5, 1:5] = 1
        segmentation["counts"] = coco_mask.encode(square)["counts"].decode()
    path = coco_file(tmp_path, annotations={"segmentation": segmentation})
    counts, notes = paint(coco_source(tmp_path, path)[0])
    assert counts.tolist() == [64, 16, 0, 0] and notes == ()


@pytest.mark.parametrize(
    "polygon",
    [[0, 0, 1, 1], [2, 2, 2, 2, 2, 2], [20, 1, 25, 1, 25, 5], [[1, 1], [2, 2]]],
    ids=["two points", "one place", "outside", "pairs"],
)
def test_a_polygon_without_a_pixel_beside_others_is_told(tmp_path, polygon):
    pairs = [[1, 1], [5, 1], [5, 5], [1, 5]]
    outline = [pairs if isinstance(polygon[0], list) else SQUARE, polygon]
    path = coco_file(tmp_path, annotations={"segmentation": outline})
    counts, (note,) = paint(coco_source(tmp_path, path)[0])
    assert counts.tolist() == [64, 16, 0, 0]
    assert "a polygon that covers no pixel" in note


def test_compressed_run_lengths_are_unpacked_as_pycocotools_packs_them():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = np.asfortranarray(rng.random((120, 90)) < share, np.uint8)
        runs = coco_mask.encode(mask)
        region = Region("1", 1, {**runs, "counts": runs["counts"].decode()}, False)
        inside, _ = decode_region(region, 120, 90, where="x")
        np.testing.assert_array_equal(inside, mask.astype(bool))


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [8, 10], "counts": [3]},
        {"size": [10, 8], "counts": [80]},
        {"counts": [80]},
        {"size": [8, 10], "counts": "zzzz"},
        {"size": [8, 10], "counts": ""},
        {"size": [8, 10], "counts": "\u00e9"},
        {"size": [8, 10], "counts": [-1, 81]},
        {"size": [8, 10], "counts": None},
        {"all_points_x": [1, 2, 3], "all_points_y": [1, 2, 3]},
        [{"x": 1, "y": 2}, {"x": 3, "y": 2}, {"x": 3, "y": 5}],
        [["1", "1", "5", "1", "5", "5"]],
        [[1, 1, 5, 1, 5, 5, 1]],
        [[1, 1, 5, 1, 5, None]],
        [[1, 1, 5, 1, 5, float("nan")]],
        [[1, 1, 5, 1, 5, 1e300]],
        [[1, 1, 5, 1, 5, 10**30]],
        [[1, 1, 5, 1, 5, -(2**63)]],
        [[[1, 1, 1], [5, 1, 1], [5, 5, 1], [0, 0, 1], [1, 1, 1], [2, 2, 1]]],
        [SQUARE, {"size": [8, 10], "counts": [80]}],
        "1,1,5,1,5,5",
        7,
        True,
    ],
)
def test_malformed_outlines_name_file_annotation_and_image(tmp_path, segmentation):
    path = coco_file(tmp_path, annotations={"segmentation": segmentation})
    with pytest.raises(UserError, match="malformed") as error:
        paint(coco_source(tmp_path, path)[0])
    text = str(error.value)
    for part in (path, "annotation 1", "a.jpg", "received", "accepted"):
        assert part in text


@pytest.mark.parametrize("segmentation", [[], [[]], None, {}, "", [[1, 1, 5, 5]], [1, 1, 5, 5]])
def test_boxes_without_outlines(tmp_path, segmentation):
    box = {"id": 2, "image_id": 7, "category_id": 9, "segmentation": segmentation, "bbox": [1] * 4}
    path = coco_file(tmp_path, annotations=[box])
    with pytest.raises(UserError, match="None of the 1 annotations has an outline") as error:
        coco_source(tmp_path, path)
    assert path in str(error.value) and "--unlabelled_splits" in str(error.value)
    (source,) = coco_source(tmp_path, path, unlabelled_splits=["train"])
    assert source.mask is None and source.image_labels == (2,)
    square = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [SQUARE]}
    path = coco_file(tmp_path, annotations=[square, box, box])
    counts, notes = paint(coco_source(tmp_path, path)[0])
    assert counts.tolist() == [64, 16, 0, 0]
    assert len(notes) == 2 and all("without an outline" in note for note in notes)


@pytest.mark.parametrize(
    "share",
    [
        [[0.1, 0.1, 0.3, 0.1, 0.3, 0.3]],
        [[0.1, 0.1, 1, 0.1, 1, 1]],
        [0.1, 0.1, 0.3, 0.1, 0.3, 0.3],
        [[[0.1, 0.1], [0.3, 0.1], [0.3, 0.3]]],
        [[0.1, 0.1], [0.3, 0.1], [0.3, 0.3]],
    ],
)
def test_outlines_in_shares_of_the_image_are_refused(tmp_path, share):
    path = coco_file(tmp_path, annotations={"segmentation": share})
    with pytest.raises(UserError, match="lie within 0 and 1") as error:
        paint(coco_source(tmp_path, path)[0])
    assert "pixels" in error.value.accepted


@pytest.mark.parametrize(
    "changes, parts",
    [
        (
            {"annotations": {"category_id": 4}},
            ("annotation 1", "a.jpg", "category_id 4", "3 (cat)"),
        ),
        ({"annotations": {"category_id": None}}, ("annotation 1", "a.jpg", "category_id")),
        ({"annotations": {"category_id": [3]}}, ("annotation 1", "a.jpg", "[3]")),
        ({"annotations": {"image_id": None}}, ("annotation 1", "image_id")),
        ({"annotations": {"image_id": True}}, ("annotation 1", "True")),
        ({"annotations": {"image_id": 1.5}}, ("annotation 1", "1.5")),
        ({"annotations": {"image_id": 99}}, ("No annotation belongs", "99", "7")),
        ({"annotations": {"iscrowd": "maybe"}}, ("annotation 1", "a.jpg", "maybe")),
        ({"annotations": [7]}, ("annotations[0]", "received: 7")),
        ({"annotations": {"id": None, "category_id": 4}}, ("annotation None",)),
        ({"annotations": None}, ("NoneType at 'annotations'",)),
        ({"annotations": [{"image_id": 7, "caption": "x"}]}, ("COCO captions",)),
        ({"annotations": [{"image_id": 7, "segments_info": []}]}, ("COCO panoptic",)),
        ({"images": {"file_name": None}}, ("images[0], image 7", "file_name")),
        ({"images": {"file_name": "\ud800"}}, ("images[0], image 7", "file_name")),
        ({"images": {"id": None}}, ("images[0]", "'id'")),
        ({"images": {"height": "tall"}}, ("images[0], image 7", "tall")),
        ({"images": {"height": -8}}, ("images[0], image 7", "-8")),
        ({"images": {"width": [10]}}, ("images[0], image 7", "[10]")),
        ({"images": {"width": float("nan")}}, ("images[0], image 7", "nan")),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]},
            ("one id",),
        ),
        (
            {"images": [{"id": 7, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]},
            ("twice",),
        ),
        ({"categories": {"name": None}}, ("categories[0], category 3", "name")),
        ({"categories": {"name": "dog"}}, ("one name", "3 (dog), 9 (dog)")),
        ({"categories": {"id": 9}}, ("one id", "category 9")),
        ({"categories": []}, ("no categories",)),
        ({"categories": "cat"}, ("str at 'categories'",)),
    ],
)
def test_malformed_entries_name_the_place(tmp_path, changes, parts):
    path = coco_file(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        read_instances([path])
    for part in (path, *parts):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"shapes": [], "imagePath": "a.jpg"}', "labelme"),
        ('[{"image_id": 7, "category_id": 3, "score": 0.5}]', "COCO results"),
        ('[{"id": 1, "annotations": [], "data": {}}]', "Label Studio"),
        ("[" * 100_000, "nested too deep"),
        ("7", "a int"),
    ],
)
def test_other_files_are_recognised(tmp_path, text, message):
    (tmp_path / "i.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_instances([str(tmp_path / "i.json")])
    assert "accepted: COCO's instances json" in str(error.value)


@pytest.mark.parametrize("number", [254, 255, 299])
def test_more_categories_than_a_mask_can_hold(tmp_path, number):
    path = coco_file(
        tmp_path, categories=[{"id": k, "name": f"c{k}"} for k in range(1, number + 1)]
    )
    if number == 254:
        assert read_instances([path]).spec.num_classes == 255
        return
    with pytest.raises(UserError, match="at most 254 categories"):
        read_instances([path])


@pytest.mark.parametrize("image, annotation", [("7", 7), (7, "7"), (7.0, 7), ("x_1", "x_1")])
def test_ids_may_be_text(tmp_path, image, annotation):
    path = coco_file(
        tmp_path,
        images={"id": image},
        annotations={"image_id": annotation, "category_id": "3", "id": "first"},
    )
    assert paint(coco_source(tmp_path, path)[0])[0].tolist() == [64, 16, 0, 0]


def test_text_ids_of_categories_keep_the_order_of_the_file(tmp_path):
    categories = [
        {"id": "z", "name": "cat"},
        {"id": "1_2", "name": "dog"},
        {"id": "12", "name": "x"},
    ]
    path = coco_file(tmp_path, categories=categories, annotations={"category_id": "z"})
    instances = read_instances([path])
    assert instances.spec.class_names == ("background", "x", "cat", "dog")
    assert instances.images["a"].regions[0].class_id == 2


@pytest.mark.parametrize("crowd", [0, 1, True, "0", "1", 0.0, None])
def test_crowd_flags_of_any_kind(tmp_path, crowd):
    path = coco_file(tmp_path, annotations={"iscrowd": crowd})
    region = read_instances([path]).images["a"].regions[0]
    assert region.is_crowd == (crowd in (1, True, "1"))


@pytest.mark.parametrize("size", [{"height": None, "width": None}, {"height": 0}, {"width": "10"}])
def test_missing_sizes_are_those_of_the_image(tmp_path, size):
    path = coco_file(tmp_path, images=size)
    assert paint(coco_source(tmp_path, path)[0])[0].tolist() == [64, 16, 0, 0]


def test_missing_sizes_are_those_of_the_turned_image(tmp_path):
    path = coco_file(tmp_path, images={"height": None})
    (source,) = coco_source(tmp_path, path)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "images" / "a.jpg", picture(0), exif=exif)
    encoder = Encoder(
        DatasetSpec("c", ("background", "cat", "dog")),
        exif_orientation="apply",
        mask_reader=MaskReader(255, False),
    )
    row = encoder(source).row
    assert (row.height, row.width) == (10, 8)


@pytest.mark.parametrize("size", [{"height": 9}, {"height": 60_000, "width": 60_000}])
def test_images_of_another_size_than_annotated(tmp_path, size):
    path = coco_file(tmp_path, images=size)
    with pytest.raises(UserError, match="another size") as error:
        paint(coco_source(tmp_path, path)[0])
    assert path in str(error.value) and "a.jpg" in str(error.value)


def test_annotations_of_removed_images_are_counted(tmp_path):
    one = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [SQUARE]}
    path = coco_file(tmp_path, annotations=[one, {**one, "image_id": 8}, {**one, "image_id": "x"}])
    instances = read_instances([path])
    assert len(instances.images["a"].regions) == 1
    assert "2 annotations of images that the file does not list" in instances.notes[0]


@pytest.mark.parametrize("name", ["_background_", "background", "Background"])
def test_a_category_of_background_is_class_0(tmp_path, name):
    path = coco_file(tmp_path, categories=[{"id": 0, "name": name}, {"id": 3, "name": "cat"}])
    instances = read_instances([path])
    assert instances.spec.class_names == ("background", "cat")
    assert instances.images["a"].regions[0].class_id == 1 and name in instances.notes[0]


def entries(*names):
    return [{"id": k, "file_name": name, "height": 8, "width": 10} for k, name in enumerate(names)]


def test_one_name_in_two_folders_is_two_images(tmp_path):
    annotations = [{"id": 1, "image_id": 1, "category_id": 9, "segmentation": [SQUARE]}]
    for names in (
        ("x/a.jpg", "y/a.jpg"),
        ("x\\a.jpg", "y\\a.jpg"),
        ("C:\\d\\x\\a.jpg", "/d/y/a.jpg"),
    ):
        path = coco_file(tmp_path, images=entries(*names), annotations=annotations)
        first, second = coco_source(tmp_path, path, ids="x/a\ny/a\n", images=("x/a", "y/a"))
        assert first.image_labels == () and second.image_labels == (2,)


@pytest.mark.parametrize(
    "names, ids, message",
    [
        (("x/a.jpg",), "y/a\n", "in no instances file"),
        (("a.jpg",), "x/a\ny/a\n", "fits two image files"),
        (("p/x/a.jpg", "q/x/a.jpg"), "x/a\n", "Several images of the instances files fit"),
    ],
)
def test_folders_that_do_not_fit(tmp_path, names, ids, message):
    path = coco_file(tmp_path, images=entries(*names), annotations=[])
    with pytest.raises(UserError, match=message) as error:
        coco_source(tmp_path, path, ids=ids, images=("x/a", "y/a"))
    assert path in str(error.value)


def test_longest_path_decides(tmp_path):
    path = coco_file(tmp_path, images=entries("a.jpg", "x/a.jpg"), annotations=[])
    first, second = coco_source(tmp_path, path, ids="x/a\na\n", images=("x/a", "a"))
    assert (first.mask.name, second.mask.name) == ("x/a.jpg", "a.jpg")
