"""Palette masks whose indices cannot be class ids."""

import numpy as np
import pytest
from PIL import Image

from tests.test_converters import picture, run_tool, save
from tfrecords_tools import palettes
from tfseg.data import colormap
from tfseg.errors import UserError

RED, GREEN, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 0)


def write(path, indices, colors):
    image = Image.fromarray(np.array(indices, np.uint8)[None], "P")
    image.putpalette([value for color in colors for value in color])
    image.save(path)
    return str(path)


def check(*paths):
    palettes.check(paths, max_megapixels=1, num_workers=1)


def test_colours_in_another_order_are_no_class_ids(tmp_path):
    first = write(tmp_path / "a.png", [0, 1, 1], [BLACK, RED])
    second = write(tmp_path / "b.png", [0, 1, 0], [RED, BLACK])
    with pytest.raises(UserError, match="no class ids") as error:
        check(first, second)
    assert error.value.where == second and "index 0 is the colour 200,0,0" in error.value.received
    assert "--class_colors" in error.value.fix


@pytest.mark.parametrize(
    "second",
    [
        # The same palette; one of all other colours, as of another tool; a colour in a place that
        # no pixel has; one colour for all.
        ([0, 2, 2], [BLACK, RED, GREEN]),
        ([1, 2, 2], [BLACK, (1, 1, 1), (2, 2, 2)]),
        ([0, 1, 1], [BLACK, RED, BLACK, RED]),
        ([0, 1, 2], [GREEN, GREEN, GREEN]),
    ],
)
def test_indices_that_may_be_class_ids_pass(tmp_path, second):
    check(write(tmp_path / "a.png", [0, 1, 1], [BLACK, RED]), write(tmp_path / "b.png", *second))


def test_palettes_of_voc_and_of_grey_values_mix(tmp_path):
    voc = [tuple(color) for color in colormap.pascal().tolist()]
    grey = [(i, i, i) for i in range(256)]
    names = [str(tmp_path / f"{k}.png") for k in range(3)]
    write(names[0], list(range(21)) + [255], voc)
    write(names[1], list(range(21)) + [255], grey)
    Image.fromarray(np.arange(21, dtype=np.uint8)[None], "L").save(names[2])
    check(*names)


def test_masks_of_a_drawing_program_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    rng = np.random.default_rng(0)
    for k in range(6):
        save(tmp_path / "images" / f"{k}.jpg", picture(k))
        # Two of three colours each.
        colors = np.array([BLACK, RED, GREEN], np.uint8)
        ids = rng.choice(3, (8, 10), p=np.roll([0.5, 0.5, 0.0], k))
        mask = Image.fromarray(colors[ids]).quantize(256)
        assert mask.mode == "P"
        mask.save(tmp_path / "masks" / f"{k}.png")
    words = ["--images_dir", tmp_path / "images", "--masks_dir", tmp_path / "masks"]
    words += ["--class_names", tmp_path / "classes.txt", "--output_dir", tmp_path / "out"]
    result = run_tool("build_folder", *map(str, words))
    assert result.returncode == 2 and "no class ids" in result.stderr
    assert not (tmp_path / "out").exists()
