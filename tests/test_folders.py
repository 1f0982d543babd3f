"""Looking through folders: links, circles and what is left out."""

import os

from tfseg.data.folders import walk


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
