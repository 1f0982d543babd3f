"""Looking through folders: links, circles and what is left out."""

import os

import pytest

from tfseg.data import writing
from tfseg.data.folders import walk
from tfseg.errors import UserError
from tfseg.inference import draw
from tfseg.runs import training_directory
from tfseg.settings.prediction import VisConfig


def found(folder, **options):
    return [
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, names in walk(str(folder), **options)
        for name in sorted(names)
    ]


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    make(tmp_path, "photos/a.jpg", "elsewhere/deep/b.jpg")
    (tmp_path / "photos" / "more").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "photos") == ["a.jpg", "more/deep/b.jpg"]


def test_no_file_comes_twice_and_circles_end(tmp_path):
    make(tmp_path, "photos/sub/a.jpg", "elsewhere/b.jpg", "c.jpg")
    for name, target in (("again", "photos/sub"), ("up", "."), ("one", "elsewhere")):
        (tmp_path / "photos" / name).symlink_to(tmp_path / target)
    (tmp_path / "photos" / "two").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    assert found(tmp_path / "photos") == ["one/b.jpg", "sub/a.jpg"]


def test_hidden_and_unwanted_folders_are_left_out(tmp_path):
    make(tmp_path, "a.jpg", ".git/b.jpg", "out/c.jpg", "outer/d.jpg")
    assert found(tmp_path, without=str(tmp_path / "out")) == ["a.jpg", "outer/d.jpg"]


@pytest.mark.parametrize(
    "flag, prepare",
    [
        ("output_dir", writing.make_output_dir),
        ("train_logdir", training_directory.prepare),
        ("vis_logdir", lambda folder: draw._prepare(VisConfig(vis_logdir=folder))),
    ],
)
def test_no_program_writes_among_photographs(tmp_path, flag, prepare):
    make(tmp_path, "photos/a.JPG", "run/images/b.jpg")
    with pytest.raises(UserError, match=f"(?s)holds images.*--{flag}=.*a.JPG"):
        prepare(str(tmp_path / "photos"))
    assert os.listdir(tmp_path / "photos") == ["a.JPG"]
    # A folder with photographs below it, and one that is not there yet.
    if flag != "vis_logdir":
        prepare(str(tmp_path / "run"))
    prepare(str(tmp_path / "new"))
    # What one of them wrote there before goes on.
    (tmp_path / "photos" / "dataset.json").write_text("{}")
    (tmp_path / "photos" / "config.json").write_text("{}")
    (tmp_path / "photos" / "segmentation_results").mkdir()
    prepare(str(tmp_path / "photos"))
