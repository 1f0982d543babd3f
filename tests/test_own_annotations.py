"""Own images and masks as people have them: names of masks, lists, and what is left out."""

import json

import numpy as np
import pytest

from tests.programs import convert
from tests.test_converters import picture, save
from tfrecords_tools import build_folder, check, mask_names
from tfrecords_tools.file_finder import FileFinder
from tfseg.data.shards import shards_of
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError


def mask(k):
    ids = np.zeros((8, 10))
    ids[2:5] = 1 + k % 2
    return ids


def make(folder, mask_name, count=6, images="photos", masks="photos", extension="jpg"):
    """Makes images `p0.jpg` and so on, masks of a name such as 'p{}_mask.png', and class names."""
    for k in range(count):
        save(folder / images / f"p{k}.{extension}", picture(k))
        save(folder / masks / mask_name.format(k), mask(k))
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    return folder


def build(folder, *extra, images="photos", masks="photos"):
    words = [
        f"--images_dir={folder / images}",
        f"--class_names={folder / 'classes.txt'}",
        f"--output_dir={folder / 'out'}",
        *extra,
    ]
    if masks is not None:
        words.append(f"--masks_dir={folder / masks}")
    convert(build_folder, *words)
    return {
        name: (entry["count"], entry.get("pixels"))
        for name, entry in json.loads((folder / "out" / "dataset.json").read_text())[
            "splits"
        ].items()
    }


def ids_of(folder, split):
    content = json.loads((folder / "out" / "dataset.json").read_text())
    spec = DatasetSpec.from_json(content, where="dataset.json")
    return load_index(str(folder / "out"), split, spec).ids.tolist()


@pytest.mark.parametrize(
    "mask_name, suffix", [("p{}_mask.png", "_mask"), ("p{}.seg.tif", ".seg"), ("p{}.png", None)]
)
@pytest.mark.parametrize("lists", [False, True])
def test_masks_beside_their_images(tmp_path, capsys, mask_name, suffix, lists):
    make(tmp_path, mask_name)
    save(tmp_path / "photos" / "p6.jpg", picture(6))  # without a mask
    extra = []
    if lists:
        (tmp_path / "lists").mkdir()
        for name, ids in (("train", "p0\np1\np2.jpg\np4\n"), ("val", "p3\np5\n")):
            (tmp_path / "lists" / f"{name}.txt").write_text(ids)
        extra = [f"--splits_dir={tmp_path / 'lists'}"]
    found = build(tmp_path, *extra)
    assert "unlabelled" not in found if lists else ids_of(tmp_path, "unlabelled") == ["p6"]
    pixels = [found[name][1] for name in ("train", "val")]
    assert sum(p["cat"] for p in pixels) == sum(p["dog"] for p in pixels) == 90
    output = capsys.readouterr().out
    assert (f"--mask_suffix={suffix}" if suffix else "lossless files") in output


def test_a_suffix_that_is_given(tmp_path, capsys):
    make(tmp_path, "p{}_mask.png")
    for k in range(6):
        save(tmp_path / "photos" / f"p{k}_color.png", picture(k))
    with pytest.raises(
        UserError, match="(?s)'_color' .6 images., '_mask'|'_mask' .6 images.*--mask_suffix"
    ):
        build(tmp_path)
    assert not (tmp_path / "out").exists()
    found = build(tmp_path, "--mask_suffix=_mask", masks=None)
    # The other files are images without masks.
    assert sum(count for count, _ in found.values()) == 12
    assert "fits" not in capsys.readouterr().out


def test_a_suffix_that_fits_several_files(tmp_path):
    make(tmp_path, "p{}_mask.png")
    save(tmp_path / "photos" / "p0_mask.bmp", mask(0))
    with pytest.raises(UserError, match="(?s)Several files fit.*_mask.*p0_mask.bmp, p0_mask.png"):
        build(tmp_path)


def test_masks_with_a_suffix_in_a_folder_of_their_own(tmp_path, capsys):
    make(tmp_path, "p{}-gt.png", masks="masks")
    save(tmp_path / "masks" / "p77-gt.png", mask(0))
    found = build(tmp_path, masks="masks")
    assert {name: count for name, (count, _) in found.items()} == {"train": 5, "val": 1}
    output = capsys.readouterr().out
    assert (
        "--mask_suffix=-gt" in output and "1 masks have no image" in output and "p77-gt" in output
    )


@pytest.mark.parametrize("masks", ("photos", "masks"))
def test_a_further_mask_of_an_image_is_no_photograph(tmp_path, masks):
    make(tmp_path, "p{}_mask.png", masks=masks)
    save(tmp_path / masks / "p3_mask_1.png", mask(0))
    with pytest.raises(UserError, match="further masks of an image.*") as error:
        build(tmp_path, masks=masks)
    assert error.value.received == "p3_mask_1"
    # With a mask of its own it is a photograph.
    (tmp_path / masks / "p3_mask_1.png").unlink()
    save(tmp_path / "photos" / "p3_mask_1.jpg", picture(9))
    save(tmp_path / masks / "p3_mask_1_mask.png", mask(9))
    assert sum(count for count, _ in build(tmp_path, masks=masks).values()) == 7


def test_a_whole_name_in_a_list_means_that_file(tmp_path):
    make(tmp_path, "p{}.jpg.png")
    finder = FileFinder(str(tmp_path / "photos"))
    assert finder.named("p0.jpg") == ("p0", str(tmp_path / "photos" / "p0.jpg"))
    assert finder.named("p0.jpg.png") == ("p0.jpg", str(tmp_path / "photos" / "p0.jpg.png"))


def test_masks_of_one_class_with_255_alone_are_counted(tmp_path, capsys):
    for k in range(6):
        save(tmp_path / "photos" / f"p{k}.jpg", picture(k))
        save(tmp_path / "masks" / f"p{k}.png", np.eye(8, 10) * (255 if k % 2 else 1))
    (tmp_path / "classes.txt").write_text("background\nobject\n")
    build(tmp_path, masks="masks")
    assert "mask of 0 and 255 alone" in capsys.readouterr().out


def test_images_alone_are_no_masks(tmp_path):
    make(tmp_path, "p{}_1.png", extension="png")
    with pytest.raises(
        UserError, match="(?s)No file beside the images can be a mask.*--mask_suffix"
    ):
        build(tmp_path)


def test_names_that_begin_other_names_do_not_mislead(tmp_path):
    names = ("cat", "cat_big", "cat_big_2", "x/cat")
    for name in names:
        save(tmp_path / f"{name}_mask.png", mask(0))
        save(tmp_path / f"{name}.jpg", picture(0))
    folder = str(tmp_path)
    assert mask_names.by_ending(folder, folder, names) == ("_mask", 4)
    everything = [*names, *(f"{name}_mask" for name in names)]
    assert mask_names.by_ending(folder, folder, everything)[0] == "_mask"


@pytest.mark.parametrize("lists", [False, True])
def test_masks_of_the_whole_names_of_images_of_several_kinds(tmp_path, capsys, lists):
    """`p0.jpg.png` and `p1.JPG.png`: no one ending fits them."""
    for k in range(6):
        extension = ("jpg", "JPG", "png")[k % 3]
        save(tmp_path / "photos" / f"p{k}.{extension}", picture(k))
        save(tmp_path / "masks" / f"p{k}.{extension}.png", mask(k))
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("p0.jpg\np1\np2\np3\np4\np5.png\n")
    extra = [f"--splits_dir={tmp_path / 'lists'}"] if lists else []
    found = build(tmp_path, *extra, masks="masks")
    assert sum(pixels["cat"] for _, pixels in found.values()) == 90
    output = capsys.readouterr().out
    assert "whole name of their image" in output and "left out" not in output


def test_published_lists_of_images_and_masks(tmp_path):
    make(tmp_path, "m{}.png", images="VOC/JPEGImages", masks="VOC/Segmentation")
    (tmp_path / "lists").mkdir()
    lines = [f"JPEGImages/p{k}.jpg Segmentation/m{k}.png\n" for k in range(6)]
    (tmp_path / "lists" / "train.txt").write_text("".join(lines))
    lists = f"--splits_dir={tmp_path / 'lists'}"
    build(tmp_path, lists, images="VOC/JPEGImages", masks="VOC/Segmentation")
    assert ids_of(tmp_path, "train") == [f"p{k}" for k in range(6)]
    found = build(tmp_path, lists, images="VOC", masks=None)
    assert found["train"][1]["cat"] == 90
    assert ids_of(tmp_path, "train") == [f"JPEGImages/p{k}" for k in range(6)]


# Images in place of records ---------------------------------------------------------------------


def test_a_folder_of_images_is_told_from_records(tmp_path):
    make(tmp_path, "p{}_mask.png", images="a/photos")
    for read in (lambda: shards_of(str(tmp_path), "train"), lambda: check.check(str(tmp_path))):
        with pytest.raises(UserError, match="(?s)holds images, not records.*build_folder.py"):
            read()
    (tmp_path / "a" / "photos" / "p0.json").write_text("{}")
    with pytest.raises(UserError, match="build_labelme.py"):
        shards_of(str(tmp_path), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match="(?s)no split 'train'.*holds no records.*give its command again"
    ):
        shards_of(str(tmp_path / "empty"), "train")
