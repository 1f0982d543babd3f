"""Prediction on plain images: which are taken, what is written, going on, damaged files."""

import collections
import io
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import tfseg
from tests.conftest import RECORD_SIZE
from tests.extras import needs_crf
from tests.programs import assert_user_error, run
from tests.runs import NETWORK
from tests.toy import ToyBackbone
from tests.small_split import SPEC, StridedToyModel, make_images, numpy_prediction, png
from tfseg.data.prediction_files import safe_path
from tfseg.errors import UserError
from tfseg.inference.coloring import colors_of
from tfseg.inference.files import write
from tfseg.inference.images import manifest, predict
from tfseg.inference.images.ahead import decoded_ahead
from tfseg.inference.images.finding import (
    ImageFile,
    find_images,
    output_names,
    part_of,
    share,
)
from tfseg.inference.images.predict import predict_images
from tfseg.inference.images.trained import Trained
from tfseg.models import BACKBONES
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import ImagesConfig

SIZES = ((20, 31), (33, 33), (7, 40), (50, 45))


@pytest.fixture
def toy_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


def write_images(folder, sizes=SIZES, *, names=None, seed=0):
    """Writes PNGs; returns their pixels by name."""
    images, _ = make_images(sizes, seed=seed)
    names = names or [f"{i}.png" for i in range(len(images))]
    for name, pixels in zip(names, images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return dict(zip(names, images))


@pytest.fixture
def photos(tmp_path):
    """A folder of images, and their pixels by name."""
    return tmp_path / "photos", write_images(tmp_path / "photos")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Stands for a checkpoint; what identifies its weights is its index."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "model.ckpt-7.index").write_bytes(b"weights")
    return str(folder / "model.ckpt-7")


def predicted(prefix, images, output, *, model=None, spec=SPEC, median_sides=None, **settings):
    config = ImagesConfig(
        checkpoint_dir=prefix, images=str(images), output_dir=str(output), **settings
    )
    trained = Trained(model or StridedToyModel(), spec, DataConfig(), median_sides, prefix, step=7)
    return predict_images(trained, config, find_images(config.images, config.output_dir))


def read(*parts):
    with Image.open(os.path.join(*map(str, parts))) as file:
        return np.array(file)


def files_in(folder):
    """Returns the content of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What is written ----------------------------------------------------------------------------------


def test_masks_have_the_size_of_the_images(prefix, photos, tmp_path):
    folder, images = photos
    found = predicted(prefix, folder, tmp_path / "out")
    assert (found["images"], found["predicted"], found["failed"]) == (4, 4, {})
    for name, pixels in images.items():
        expected = numpy_prediction(StridedToyModel(), pixels)
        index = read(tmp_path / "out" / "index" / name)
        assert index.dtype == np.uint8
        np.testing.assert_array_equal(index, expected)
        color = read(tmp_path / "out" / "color" / name)
        np.testing.assert_array_equal(color, colors_of(SPEC)[expected])
        overlay = read(tmp_path / "out" / "overlay" / name.replace("png", "jpg"))
        assert overlay.shape == pixels.shape
    assert not list((tmp_path / "out").rglob(".*"))


def test_probabilities_are_halves_with_class_names(prefix, photos, tmp_path):
    folder, images = photos
    predicted(prefix, folder, tmp_path / "out", save=("probabilities", "index"))
    for name, pixels in images.items():
        with np.load(tmp_path / "out" / "probabilities" / name.replace("png", "npz")) as arrays:
            probs, names = arrays["probabilities"], arrays["class_names"]
        assert probs.dtype == np.float16 and probs.shape == (*pixels.shape[:2], 4)
        assert tuple(names) == SPEC.class_names
        np.testing.assert_allclose(probs.astype(np.float32).sum(-1), 1, atol=2e-3)
        index = read(tmp_path / "out" / "index" / name)
        best = np.take_along_axis(probs, index[..., None].astype(int), -1)[..., 0]
        assert (best == probs.max(-1)).all()
    assert not (tmp_path / "out" / "index.html").exists()  # of pictures


def test_coco_json_is_read_by_cocos_own_code(prefix, photos, tmp_path):
    folder, images = photos
    predicted(prefix, folder, tmp_path / "out", save=("coco",))
    coco = COCO(str(tmp_path / "out" / "coco.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "dog", "cow"]
    for image in coco.loadImgs(coco.getImgIds()):
        expected = numpy_prediction(StridedToyModel(), images[image["file_name"]])
        assert (image["height"], image["width"]) == expected.shape
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert {a["category_id"] for a in annotations} == set(np.unique(expected)) - {0}
        for annotation in annotations:
            region = coco.annToMask(annotation)
            np.testing.assert_array_equal(region, expected == annotation["category_id"])
            assert annotation["area"] == region.sum()
            box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(region)))
            np.testing.assert_array_equal(annotation["bbox"], box)


def test_the_gallery_links_photographs_and_pictures(prefix, photos, tmp_path):
    from tests.test_visualization import Page

    predicted(prefix, photos[0], tmp_path / "out")
    page = Page(tmp_path / "out" / "index.html")
    assert len(page.cards) == 4 and len(page.links) == 2 * 3 * 4
    for link in page.links:
        assert (tmp_path / "out" / link).is_file()
    assert prefix in page.text and "mIoU" not in page.text
    run = os.path.basename(os.path.dirname(prefix))
    assert f"<title>{run}: toy, 4 images</title>" in page.text
    assert "image-orientation: from-image" in page.text


def test_a_photograph_is_turned_by_its_exif_tag(prefix, tmp_path):
    pixels = make_images([(20, 31)])[0][0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    predicted(prefix, tmp_path / "a.png", tmp_path / "out")
    expected = numpy_prediction(StridedToyModel(), np.rot90(pixels, 3))
    np.testing.assert_array_equal(read(tmp_path / "out" / "index" / "a.png"), expected)


def test_settings_of_evaluation_act_here_too(prefix, photos, tmp_path):
    views = {"eval_scales": (0.5, 1.0), "add_flipped_images": True}
    predicted(prefix, photos[0], tmp_path / "one", save=("index",))
    predicted(prefix, photos[0], tmp_path / "views", save=("index",), **views)
    predicted(prefix, photos[0], tmp_path / "tiles", save=("index",), tile_size=17)
    one, views, tiles = (files_in(tmp_path / n / "index") for n in ("one", "views", "tiles"))
    assert one.keys() == views.keys() == tiles.keys() and one != views
    for name in one:
        assert read(tmp_path / "tiles" / "index" / name).shape == photos[1][name].shape[:2]


@needs_crf
def test_the_crf_refines_and_keeps_the_order(prefix, photos, tmp_path):
    settings = {"save": ("index", "probabilities"), "dense_crf": True, "crf_workers": 1}
    predicted(prefix, photos[0], tmp_path / "out", **settings)
    predicted(prefix, photos[0], tmp_path / "plain", save=("index", "probabilities"))
    for name, pixels in photos[1].items():
        assert read(tmp_path / "out" / "index" / name).shape == pixels.shape[:2]
        arrays = [
            np.load(tmp_path / which / "probabilities" / name.replace("png", "npz"))
            for which in ("out", "plain")
        ]
        np.testing.assert_array_equal(*[a["probabilities"] for a in arrays])
    assert files_in(tmp_path / "out" / "index") != files_in(tmp_path / "plain" / "index")


def test_replicas_share_the_images(prefix, photos, tmp_path, two_replicas):
    with two_replicas.scope():
        model = StridedToyModel()
    config = ImagesConfig(
        checkpoint_dir=prefix, images=str(photos[0]), output_dir=str(tmp_path / "two")
    )
    trained = Trained(model, SPEC, DataConfig(), None, prefix, step=7)
    found = find_images(config.images, config.output_dir)
    assert predict_images(trained, config, found, strategy=two_replicas)["predicted"] == 4
    predicted(prefix, photos[0], tmp_path / "one")
    assert files_in(tmp_path / "two" / "index") == files_in(tmp_path / "one" / "index")


# A full disk --------------------------------------------------------------------------------------


def test_a_picture_that_finds_no_space_is_named(tmp_path, full_disk):
    with pytest.raises(OSError) as raised:
        write(str(tmp_path / "index" / "a.png"), bytes(100))
    assert raised.value.filename == str(tmp_path / "index" / "a.png")
    assert os.listdir(tmp_path / "index") == []


def test_a_manifest_that_finds_no_space_is_named(tmp_path, full_disk):
    with pytest.raises(OSError) as raised, manifest.Writer(str(tmp_path), None, {"a": "x" * 99}):
        pass
    assert raised.value.filename == str(tmp_path / "manifest.jsonl")


# Scale --------------------------------------------------------------------------------------------


def test_images_far_from_the_scale_of_training_are_told(prefix, photos, tmp_path, capsys):
    sides = {"median_sides": (8, 10)}
    predicted(prefix, photos[0], tmp_path / "out", **sides)
    text = capsys.readouterr().out
    assert "0.png is seen at 20x31 pixels" in text and "8x10" in text and "--scale=auto" in text
    assert "3 of 4 images" in text
    predicted(prefix, photos[0], tmp_path / "near", median_sides=(20, 30))
    assert "note" not in capsys.readouterr().out


def test_dark_images_are_told(prefix, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for k, bits in enumerate((12, 14, 16)):
        values = np.full((8, 10), 2**bits - 1, np.uint16)
        Image.fromarray(values).save(tmp_path / "photos" / f"{k}.png")
    predicted(prefix, tmp_path / "photos", tmp_path / "out")
    text = capsys.readouterr().out
    assert "0.png is dark" in text and "2 images are dark" in text


def test_images_with_transparent_pixels_are_told(prefix, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    image = Image.fromarray(np.full((8, 10, 3), 90, np.uint8))
    image.save(tmp_path / "photos" / "a.png", transparency=(90, 90, 90))
    for k, name in enumerate(("b.png", "c.webp", "d.png")):
        image.putalpha(255 * (k == 2))
        image.save(tmp_path / "photos" / name)
    predicted(prefix, tmp_path / "photos", tmp_path / "out")
    text = capsys.readouterr().out
    assert "a.png has transparent pixels" in text and "3 images have transparent pixels" in text


def test_images_of_several_frames_are_told(prefix, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    frames = [Image.fromarray(np.full((8, 10, 3), v, np.uint8)) for v in (90, 200)]
    more = {"save_all": True, "append_images": frames[1:]}
    for name in ("a.gif", "b.tif", "c.png"):
        frames[0].save(tmp_path / "photos" / name, **more)
    frames[0].save(tmp_path / "photos" / "d.png")
    frames[0].save(tmp_path / "photos" / "e.jpg", format="MPO", **more)
    predicted(prefix, tmp_path / "photos", tmp_path / "out")
    text = capsys.readouterr().out
    assert "a.gif holds several pages or frames" in text
    assert "3 images hold several pages or frames" in text


def test_scale_auto_shows_images_at_the_scale_of_training(prefix, photos, tmp_path, capsys):
    model = StridedToyModel()
    sides = {"median_sides": (10, 14)}
    predicted(prefix, photos[0], tmp_path / "out", model=model, scale="auto", **sides)
    assert "note" not in capsys.readouterr().out
    for (height, width), _ in model.seen_scales:
        if height and width:
            assert 100 < height * width < 300  # with the padding of up to 3 pixels
    for name, pixels in photos[1].items():
        assert read(tmp_path / "out" / "index" / name).shape == pixels.shape[:2]


# Which images -------------------------------------------------------------------------------------


def keys_of(images, output="out"):
    return [image.key for image in find_images(str(images), str(output)).images]


def test_a_folder_is_looked_through_without_the_output(tmp_path):
    write_images(tmp_path, names=["b.png", "sub/a.png", "sub/deep/c.JPG", "out/index/b.png"])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    found = find_images(str(tmp_path), str(tmp_path / "out"))
    assert [image.key for image in found.images] == ["b.png", "sub/a.png", "sub/deep/c.JPG"]
    assert all(os.path.isfile(image.path) for image in found.images)
    assert found.notes == (
        "files that are no images by their names are left out: 1 .txt (1 in all)",
    )


def test_a_pattern_finds_nothing_that_was_written(tmp_path):
    write_images(tmp_path, names=["b.png", "sub/a.png", "out/index/b.png", "outside/c.png"])
    found = find_images(str(tmp_path / "**" / "*.png"), str(tmp_path / "out"))
    assert [image.key for image in found.images] == ["b.png", "outside/c.png", "sub/a.png"]
    # Photographs in the folder of the output are photographs.
    found = find_images(str(tmp_path / "sub" / "*.png"), str(tmp_path))
    assert [image.key for image in found.images] == ["a.png"]


def test_a_pattern_a_list_and_a_file(tmp_path, monkeypatch):
    write_images(tmp_path / "x", names=["b.png", "sub/a.png", "sub/c.png", "[1] d.png"])
    assert keys_of(tmp_path / "x" / "*" / "*.png") == ["sub/a.png", "sub/c.png"]
    assert keys_of(tmp_path / "x" / "**" / "c.png") == ["sub/c.png"]
    assert keys_of(tmp_path / "x" / "[1] d.png") == ["[1] d.png"]
    write_images(tmp_path / "y [v2]", names=["e.png"])
    assert keys_of(tmp_path / "y [v2]" / "*.png") == ["e.png"]
    (tmp_path / "list.txt").write_text("x/sub/c.png\n\nx/b.png\r\n./x/b.png\n")
    found = find_images(str(tmp_path / "list.txt"), "out")
    assert [image.key for image in found.images] == ["x/b.png", "x/sub/c.png"]
    assert "1 lines" in found.notes[0]
    monkeypatch.chdir(tmp_path)
    assert keys_of("x/*.png") == ["[1] d.png", "b.png"]
    assert keys_of("x/b.png") == ["b.png"]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda d: d / "none", ("no such file or folder",)),
        (lambda d: d / "*.bmp", ("No file fits", "quotes")),
        (lambda d: d / "empty", ("holds no images", "1 other files", ".tif")),
        (lambda d: d / "photo.pdf", ("1 of 1 images have an unknown format", "photo.pdf")),
        (lambda d: d / "pdf.txt", ("1 of 2 images have an unknown format", "photo.pdf")),
        (lambda d: d / "missing.txt", ("1 of 2 images are not there", "none.png")),
        (lambda d: d / "blank.txt", ("list is empty",)),
        (lambda d: d / "utf16.txt", ("not UTF-8", "utf16.txt, in UTF-16", "save it again")),
    ],
    ids=range(8),
)
def test_images_that_are_not_there(tmp_path, make, words):
    write_images(tmp_path, names=["a.png"], sizes=[(3, 3)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.pdf").write_text("x")
    (tmp_path / "photo.pdf").write_text("x")
    (tmp_path / "pdf.txt").write_text("a.png\nphoto.pdf\n")
    (tmp_path / "missing.txt").write_text("a.png\nnone.png\n")
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "utf16.txt").write_text("a.png\n", "utf-16")
    with pytest.raises(UserError) as error:
        find_images(str(make(tmp_path)), str(tmp_path / "out"))
    for word in words:
        assert word in str(error.value)


def test_an_image_without_permission_is_named(tmp_path, monkeypatch):
    write_images(tmp_path, names=["a.png"], sizes=[(3, 3)])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root
    with pytest.raises(UserError, match="(?s)cannot be opened.*a.png"):
        find_images(str(tmp_path), "out")


def test_shares_split_the_images_by_their_names_alone():
    images = [ImageFile(f"folder/{i}.jpg", f"/somewhere/{i}") for i in range(400)]
    shares = [share(images, (k, 4)) for k in (1, 2, 3, 4)]
    assert collections.Counter(i for s in shares for i in s) == collections.Counter(images)
    assert all(60 < len(s) < 140 for s in shares)
    few = [ImageFile(image.key, "elsewhere") for image in images[::3]]
    kept = {image.key for image in share(few, (2, 4))}
    assert kept == {image.key for image in shares[1]} & {image.key for image in few}
    # A hash, so it stays the same for ever.
    expected = ["folder/39.jpg", "folder/171.jpg", "folder/338.jpg"]
    assert [image.key for image in share(images, (1, 97))][:3] == expected


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "a/b", "1/2/3", "-1/2", "1.0/2"])
def test_shares_that_cannot_be_meant(text):
    assert part_of("3/16") == (3, 16)
    with pytest.raises(UserError, match="(?s)--part.*3/16"):
        part_of(text)


# Names --------------------------------------------------------------------------------------------


def test_names_are_short_where_nothing_else_has_them():
    names = output_names(["a.jpg", "sub/a.png", "b.tif"], {})
    assert names == {"a.jpg": "a", "sub/a.png": "sub/a", "b.tif": "b"}


@pytest.mark.parametrize(
    "keys",
    [
        ["a.jpg", "a.png"],
        ["a.jpg", "A.JPG", "a.png"],
        ["a.jpg", "a.png", "a.jpg.png"],
        ["a.png", "a.png/b.jpg", "a.png.png/c.jpg"],
        ["é.jpg", "e\u0301.jpg"],
        ["x/../a.jpg", "x/a.jpg", "../a.jpg", "/a.jpg"],
        ["n" * 250 + "1.png", "n" * 250 + "2.png"],
        ["line\nbreak.png", "line_break.png", "\udcff.png", "\udcfe.png"],
    ],
    ids=range(8),
)
def test_names_never_collide_nor_lead_elsewhere(keys, tmp_path):
    names = output_names(keys, {})
    assert list(names) == keys
    assert len({name.casefold() for name in names.values()}) == len(keys)
    for name in names.values():
        path = tmp_path / (name + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        assert safe_path(name) == name
    for name in names.values():
        assert (tmp_path / (name + ".png")).read_text() == name


def test_names_once_given_stay():
    first = output_names(["a.jpg"], {})
    again = output_names(["a.jpg", "a.png"], first)
    assert again == {"a.jpg": "a", "a.png": "a.png"}
    # Also where the first image is gone.
    assert output_names(["a.png"], first) == {"a.png": "a.png"}


def test_one_name_in_two_folders_and_two_formats(prefix, tmp_path):
    images = write_images(tmp_path / "photos", names=["a.png", "x/a.png", "y/a.png", "x/a.bmp"])
    predicted(prefix, tmp_path / "photos", tmp_path / "out", save=("index",))
    written = files_in(tmp_path / "out" / "index")
    assert set(written) == {"a.png", "y/a.png", "x/a.png.png", "x/a.bmp.png"}
    for key, name in (("a.png", "a"), ("x/a.png", "x/a.png"), ("x/a.bmp", "x/a.bmp")):
        expected = numpy_prediction(StridedToyModel(), images[key])
        np.testing.assert_array_equal(read(tmp_path / "out" / "index", name + ".png"), expected)


# Going on -----------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_to_what_an_uninterrupted_one_writes(
    prefix, photos, tmp_path, monkeypatch
):
    everything = ("index", "color", "overlay", "probabilities", "coco")
    predicted(prefix, photos[0], tmp_path / "whole", save=everything)
    enter, entered = manifest.Writer.add, []

    def add(self, entry):
        entered.append(entry)
        if len(entered) == 3:
            self._file.write(b'{"image": "half')  # as a kill may leave it
            self._file.flush()
            raise Killed
        enter(self, entry)

    monkeypatch.setattr(manifest.Writer, "add", add)
    with pytest.raises(Killed):
        predicted(prefix, photos[0], tmp_path / "out", save=everything)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "coco.json").exists()
    again = predicted(prefix, photos[0], tmp_path / "out", save=everything)
    assert 0 < again["skipped"] < 4 and again["skipped"] + again["predicted"] == 4
    first, second = files_in(tmp_path / "whole"), files_in(tmp_path / "out")
    assert first.keys() == second.keys()
    for name in first:
        if not name.startswith("manifest"):
            assert first[name] == second[name], name


def test_only_what_is_missing_is_predicted_again(prefix, photos, tmp_path, capsys):
    folder, out = photos[0], tmp_path / "out"
    predicted(prefix, folder, out)
    before = files_in(out)
    assert predicted(prefix, folder, out)["skipped"] == 4
    assert "4 of them are predicted already" in capsys.readouterr().out
    assert files_in(out) == before
    os.remove(out / "color" / "1.png")
    write_images(folder, names=["2.png"], sizes=[(9, 9)], seed=5)
    write_images(folder, names=["new.png"], sizes=[(9, 9)])
    found = predicted(prefix, folder, out)
    assert (found["images"], found["predicted"], found["skipped"]) == (5, 3, 2)
    assert read(out / "index" / "2.png").shape == (9, 9)
    # Another kind of file is written of all, and the others stay.
    assert predicted(prefix, folder, out, save=("coco",))["predicted"] == 5
    assert predicted(prefix, folder, out)["predicted"] == 0


def test_shares_work_side_by_side_in_one_folder(prefix, photos, tmp_path):
    out = tmp_path / "out"
    parts = [predicted(prefix, photos[0], out, part=f"{k}/2") for k in (1, 2)]
    assert sum(part["predicted"] for part in parts) == 4
    assert (out / "index-00001-of-00002.html").is_file()
    # Whoever takes all finds all done, and shows all.
    assert predicted(prefix, photos[0], out)["skipped"] == 4
    predicted(prefix, photos[0], tmp_path / "one")
    assert files_in(out / "index") == files_in(tmp_path / "one" / "index")
    assert (out / "index.html").read_text().count("<article") == 4
    assert predicted(prefix, photos[0], tmp_path / "none", part="1/999983")["images"] == 0


def test_another_process_in_the_same_folder_is_noticed(prefix, photos, tmp_path):
    (tmp_path / "out").mkdir()
    header = {"fingerprint": "x", "checkpoint": "y"}
    with (
        manifest.Writer(str(tmp_path / "out"), (1, 2), header),
        pytest.raises(UserError, match="(?s)Another process.*--part"),
        manifest.Writer(str(tmp_path / "out"), (1, 2), header),
    ):
        pass


@pytest.mark.parametrize("name", ["photo1.png", "a.JPG", "index/1.png"])
def test_nothing_is_written_beside_a_users_own_files(prefix, photos, tmp_path, name):
    own = tmp_path / "masks" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(UserError, match="(?s)no manifest lists.*choose another"):
        predicted(prefix, photos[0], tmp_path / "masks")
    assert files_in(tmp_path / "masks") == {name: b"mine"}


def test_a_log_may_lie_in_the_folder(prefix, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").write_text("begun\n")
    assert predicted(prefix, photos[0], tmp_path / "out")["predicted"] == 4


@pytest.mark.parametrize("change", ["settings", "weights", "no manifest", "damaged", "file"])
def test_a_folder_with_other_predictions_is_left_alone(prefix, photos, tmp_path, change):
    out, settings = tmp_path / "out", {}
    predicted(prefix, photos[0], out)
    words = "(?s)another checkpoint, or with other settings.*--output_dir"
    if change == "settings":
        settings["add_flipped_images"] = True
        words = "(?s)other settings.*add_flipped_images False, now True"
    elif change == "weights":
        prefix = str(tmp_path / "model")
        (tmp_path / "model.index").write_bytes(b"other weights")
        words = "(?s)other settings.*its weights are others now"
    elif change == "no manifest":
        os.remove(out / "manifest.jsonl")
        words = "files that no manifest lists"
    elif change == "damaged":
        (out / "manifest.jsonl").write_text("{]\n")
        words = "(?s)is damaged.*line 1.*another --output_dir"
    else:
        out = out / "manifest.jsonl"
        words = "output directory is a file"
    before = files_in(tmp_path / "out")
    with pytest.raises(UserError, match=words):
        predicted(prefix, photos[0], out, **settings)
    assert files_in(tmp_path / "out") == before


# Bad input ----------------------------------------------------------------------------------------


def test_a_damaged_image_is_told_and_listed_after_the_others(prefix, photos, tmp_path, capsys):
    (photos[0] / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    found = predicted(prefix, photos[0], tmp_path / "out")
    assert found["predicted"] == 4 and list(found["failed"]) == ["broken.jpg"]
    listed = (tmp_path / "out" / "failed.txt").read_text()
    assert listed.startswith("broken.jpg\tAn image cannot be decoded.") and "\n" in listed
    output = capsys.readouterr().out
    assert "damaged, left out" in output and "broken.jpg" in output and "failed.txt" in output
    (photos[0] / "broken.jpg").write_bytes(png(make_images([(5, 6)])[0][0]))
    assert predicted(prefix, photos[0], tmp_path / "out")["predicted"] == 1
    assert not (tmp_path / "out" / "failed.txt").exists()


def test_a_photograph_that_is_cut_short_is_told_in_plain_words(prefix, tmp_path):
    whole = io.BytesIO()
    Image.fromarray(make_images([(40, 50)])[0][0]).save(whole, "JPEG")
    (tmp_path / "photo.jpg").write_bytes(whole.getvalue()[:-200])
    with pytest.raises(UserError, match="cannot be decoded") as error:
        predicted(prefix, tmp_path / "photo.jpg", tmp_path / "out")
    assert "JPEG" in error.value.received and "\n" not in error.value.received
    assert not {"{{", "__wrapped__", "[Op:"} & set(error.value.received.split())
    assert "__" not in error.value.received


def test_names_that_are_no_text(prefix, tmp_path, capsys):
    latin = os.fsdecode(b"caf\xe9.png")
    write_images(tmp_path / "photos", names=[latin])
    (tmp_path / "photos" / os.fsdecode(b"bad\xe9.png")).write_bytes(b"no image")
    predicted(prefix, tmp_path / "photos", tmp_path / "out", save=("index", "color"))
    assert "caf%" in (tmp_path / "out" / "index.html").read_text()
    assert "no image" in (tmp_path / "out" / "failed.txt").read_text()


def test_the_only_image_is_damaged(prefix, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="(?s)cannot be decoded.*photo.png"):
        predicted(prefix, tmp_path / "photo.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_of_another_folder_are_not_overwritten(prefix, photos, tmp_path):
    predicted(prefix, photos[0], tmp_path / "out")
    write_images(tmp_path / "other", names=["1.png"], seed=3)
    before = files_in(tmp_path / "out")
    with pytest.raises(UserError, match="(?s)another image of the same name.*other/1.png"):
        predicted(prefix, tmp_path / "other", tmp_path / "out")
    assert files_in(tmp_path / "out") == before
    # Nor those of images that have as many bytes and the same time.
    for name in ("blue", "red"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), name).save(tmp_path / name / "1.bmp")
        os.utime(tmp_path / name / "1.bmp", (1e9, 1e9))
    predicted(prefix, tmp_path / "blue", tmp_path / "of_blue")
    with pytest.raises(UserError, match="another image of the same name"):
        predicted(prefix, tmp_path / "red", tmp_path / "of_blue")
    # A copy of the folder is the same to it.
    shutil.copytree(photos[0], tmp_path / "copy")
    assert predicted(prefix, tmp_path / "copy", tmp_path / "out")["skipped"] == 4


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"save": ("index", "masks")}, ("--save", "probabilities, coco")),
        ({"save": ()}, ("--save", "Nothing")),
        ({"part": "3/2"}, ("--part",)),
        ({"tile_size": 32}, ("--tile_size", "33")),
        ({"tile_size": 33, "tile_overlap": 33}, ("--tile_overlap", "0 to 32")),
        ({"tile_size": 33, "dense_crf": True}, ("--dense_crf",)),
        ({"scale": "auto"}, ("--scale=auto", "config.json")),
        ({"max_probability_megabytes": 0.001, "save": ("probabilities",)}, ("0.png", "MB")),
        ({"colormap_type": "none"}, ("--colormap_type",)),
    ],
    ids=range(9),
)
def test_settings_that_cannot_be_meant_write_nothing(prefix, photos, tmp_path, settings, words):
    with pytest.raises(UserError) as error:
        predicted(prefix, photos[0], tmp_path / "out", **settings)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_image_above_the_limit_is_refused_by_its_header(prefix, photos, tmp_path):
    found = predicted(prefix, photos[0], tmp_path / "out", max_image_megapixels=0.002)
    assert list(found["failed"]) == ["3.png"]
    assert "--max_image_megapixels" in found["failed"]["3.png"]


def test_a_full_memory_names_the_image_and_the_way_out(prefix, photos, tmp_path):
    class Full(StridedToyModel):
        def call(self, image, **options):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    with pytest.raises(UserError, match="(?s)memory.*0.png.*--tile_size"):
        predicted(prefix, photos[0], tmp_path / "out", model=Full())


def test_decoding_ahead_keeps_the_order_and_little_memory(tmp_path, monkeypatch):
    write_images(tmp_path, sizes=[(10, 10)] * 30, names=[f"{i:02d}.png" for i in range(30)])
    images = find_images(str(tmp_path), "out").images
    monkeypatch.setattr("tfseg.inference.images.ahead._MAX_WAITING_PIXELS", 250)
    found = [image.key for image, _ in decoded_ahead(images, max_megapixels=1)]
    assert found == sorted(found) and len(found) == 30
    # Whoever stops early is not waited for.
    taken = decoded_ahead(images, max_megapixels=1)
    next(taken)
    taken.close()


def test_classes_are_counted_in_strips():
    labels = np.zeros((600, 5), np.uint8)
    labels[300, 2], labels[599, 4] = 7, 255
    assert predict.classes_in(labels) == [0, 7, 255]


# The program --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("trained") / "run"
    run(
        "train_sup.py",
        *NETWORK,
        f"--dataset_dir={records}",
        f"--train_logdir={logdir}",
        "--training_number_of_steps=2",
        "--save_summaries_images=false",
    )
    return logdir


@pytest.mark.usefixtures("toy_backbone")
def test_predictions_are_those_of_vis_and_of_python(trained, tmp_path):
    """JPEGs of several sizes, made records of by the converter, and predicted as files."""
    sizes = [(33, 33), (40, 71), (20, 50)]
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i, size in enumerate(sizes):
        small = rng.integers(0, 256, (size[0] // 5, size[1] // 5, 3), np.uint8)
        Image.fromarray(small).resize(size[::-1]).save(tmp_path / "photos" / f"p{i}.jpg")
    names = json.loads((trained / "config.json").read_text())["dataset"]["class_names"]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "val.txt").write_text("p0\np1\np2\n")
    run(
        "tfrecords_tools/build_folder.py",
        f"--images_dir={tmp_path / 'photos'}",
        f"--splits_dir={tmp_path / 'lists'}",
        "--unlabelled_splits=val",
        f"--class_names={tmp_path / 'classes.txt'}",
        f"--output_dir={tmp_path / 'records'}",
        "--num_workers=1",
    )
    checkpoint = f"--checkpoint_dir={trained}"
    run(
        "vis.py",
        checkpoint,
        f"--dataset_dir={tmp_path / 'records'}",
        f"--vis_logdir={tmp_path / 'vis'}",
        "--also_save_raw_predictions",
    )
    result = run(
        "predict.py",
        checkpoint,
        f"--images={tmp_path / 'photos'}",
        f"--output_dir={tmp_path / 'out'}",
        "--save=index,probabilities",
    )
    assert "images: 3" in result.stdout and "images/s" in result.stdout
    loaded = tfseg.load(trained)
    for i, size in enumerate(sizes):
        mask = read(tmp_path / "out" / "index" / f"p{i}.png")
        raw = read(tmp_path / "vis" / "raw_segmentation_results" / f"p{i}.png")
        assert mask.shape == size
        np.testing.assert_array_equal(mask, raw)
        path = tmp_path / "photos" / f"p{i}.jpg"
        np.testing.assert_array_equal(loaded.predict(path), mask)
        with np.load(tmp_path / "out" / "probabilities" / f"p{i}.npz") as arrays:
            expected = loaded.predict_probabilities(path).astype(np.float16)
            np.testing.assert_array_equal(arrays["probabilities"], expected)
    again = tfseg.predict_images(trained, tmp_path / "photos", tmp_path / "out", save=["index"])
    assert again == {"images": 3, "predicted": 0, "skipped": 3, "failed": {}}


@pytest.mark.usefixtures("toy_backbone")
def test_the_runs_resizing_is_kept(trained, records, tmp_path):
    """Training at a shorter side of 49 pixels is evaluated, drawn and predicted so."""
    logdir = tmp_path / "run"
    shutil.copytree(trained, logdir)
    record = json.loads((logdir / "config.json").read_text())
    record["data"] |= {"min_resize_value": 49, "max_resize_value": 97}
    (logdir / "config.json").write_text(json.dumps(record))
    settings = {"dataset_dir": records}
    plain = tfseg.evaluate(trained, **settings, eval_logdir=tmp_path / "a")
    resized = tfseg.evaluate(logdir, **settings, eval_logdir=tmp_path / "b")
    assert plain["prediction"]["resize_value"] is None
    assert resized["prediction"]["resize_value"] == [49, 97, None]
    pixels = [np.sum(found["confusion_matrix"]) for found in (plain, resized)]
    assert pixels == [7 * RECORD_SIZE**2, 7 * 49**2]
    given = tfseg.evaluate(logdir, **settings, eval_logdir=tmp_path / "c", min_resize_value=65)
    assert given["prediction"]["resize_value"] == [65, None, None]
    write_images(tmp_path / "photos", sizes=[(40, 60)])
    tfseg.predict_images(logdir, tmp_path / "photos", tmp_path / "out")
    mask = read(tmp_path / "out" / "index" / "0.png")
    assert mask.shape == (40, 60)
    np.testing.assert_array_equal(mask, tfseg.load(logdir).predict(tmp_path / "photos" / "0.png"))


def test_exit_codes(trained, tmp_path):
    write_images(tmp_path / "photos", sizes=[(9, 9), (8, 8)])
    (tmp_path / "photos" / "x.jpg").write_bytes(b"x")
    words = (
        f"--checkpoint_dir={trained}",
        f"--images={tmp_path / 'photos'}",
        f"--output_dir={tmp_path / 'out'}",
    )
    result = run("predict.py", *words, check=False)
    assert result.returncode == 1 and "x.jpg" in result.stdout and result.stderr == ""
    assert len(list((tmp_path / "out" / "index").iterdir())) == 2
    result = run("predict.py", *words, "--add_flipped_images", check=False)
    assert_user_error(result, "other settings")
    result = run("predict.py", *words, "--use_image_labels", check=False)
    assert_user_error(result, "plain images have no records")
    result = run("predict.py", *words, "--tile_overlap=3", check=False)
    assert_user_error(result, "--tile_overlap needs --tile_size")
    result = run("predict.py", words[1], words[2], "--checkpoint_dir=/none", check=False)
    assert_user_error(result, "/none")
    text = run("predict.py", "--help").stdout
    assert "PLAIN IMAGES" in text and "--save=index,color,overlay" in text
    assert "TRAINING" not in text
