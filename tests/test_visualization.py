"""Pictures: names, colours, raw ids at the original size, the gallery."""

import dataclasses
import glob
import html.parser
import os
import re
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from tests.extras import needs_crf
from tests.small_split import (
    CROP,
    SIZES,
    SPEC,
    ToyModel,
    make_images,
    numpy_confusion,
    numpy_logits,
    numpy_prediction,
    write_split,
)
from tfseg import metrics
from tfseg.data import colormap
from tfseg.data.prediction_files import output_names, raw_ids
from tfseg.data.specs import DATASETS, DatasetSpec
from tfseg.errors import UserError
from tfseg.inference import draw as drawing
from tfseg.inference import gallery
from tfseg.inference.coloring import colors_of, overlay, panel
from tfseg.inference.files import png, write
from tfseg.inference.pictures import original_labels
from tfseg.ops import dense_crf
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import VisConfig


def draw(folder, output, *, spec=SPEC, data=None, model=None, **changes):
    config = VisConfig(vis_logdir=str(output), vis_crop_size=CROP, **changes)
    data_config = DataConfig(dataset_dir=str(folder), **(data or {}))
    model = model or ToyModel()
    return drawing.draw(model, spec, data_config, config, prefix="/r/model.ckpt-7", step=7)


def read(*parts):
    with Image.open(os.path.join(*map(str, parts))) as file:
        return np.array(file)


class Page(html.parser.HTMLParser):
    """Collects what a browser would load, and the cards in order."""

    def __init__(self, path):
        super().__init__()
        self.links, self.cards = [], []
        self.text = open(path, encoding="utf-8").read()
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[k] for k in ("src", "href") if k in attributes]
        if tag == "article":
            self.cards.append(attributes)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of pictures of the small split, and what they should show."""
    folder = tmp_path_factory.mktemp("vis")
    images, labels = make_images()
    write_split(str(folder / "records"), images, labels)
    summary = draw(
        folder / "records", folder / "out", vis_batch_size=3, also_save_raw_predictions=True
    )
    predictions = [numpy_prediction(ToyModel(), image) for image in images]
    return folder / "out", images, labels, predictions, summary


def test_raw_predictions_are_class_ids_at_the_original_size(drawn):
    folder, _, _, predictions, _ = drawn
    assert len(os.listdir(folder / "raw_segmentation_results")) == len(SIZES)
    for i, prediction in enumerate(predictions):
        raw = read(folder, "raw_segmentation_results", f"image_{i}.png")
        assert raw.dtype == np.uint8
        np.testing.assert_array_equal(raw, prediction)


def test_coloured_predictions_and_masks_follow_the_palette(drawn):
    folder, _, labels, predictions, _ = drawn
    colors = colormap.distinct(4, first_is_black=True)
    for i, (prediction, label) in enumerate(zip(predictions, labels)):
        shown = read(folder, "segmentation_results", f"image_{i}.png")
        np.testing.assert_array_equal(shown, colors[prediction])
        truth = read(folder, "truth", f"image_{i}.png")
        np.testing.assert_array_equal(truth[label != 255], colors[label[label != 255]])
        assert (truth[label == 255] == colormap.VOID).all()


def test_images_are_the_very_bytes_of_the_record(drawn):
    folder, images, *_ = drawn
    for i, image in enumerate(images):
        np.testing.assert_array_equal(read(folder, "images", f"image_{i}.png"), image)


def test_the_summary_is_that_of_all_counted_pixels(drawn):
    _, _, labels, predictions, summary = drawn
    matrix = numpy_confusion(predictions, labels)
    assert summary["miou"] == pytest.approx(metrics.mean_iou(matrix))
    assert summary["pixel_accuracy"] == pytest.approx(metrics.pixel_accuracy(matrix))


def test_the_gallery_is_sorted_worst_first_by_the_iou_of_each_image(drawn):
    folder, _, labels, predictions, summary = drawn
    page = Page(folder / "index.html")
    expected = {
        f"image_{i}": metrics.mean_iou(numpy_confusion([p], [t]))
        for i, (p, t) in enumerate(zip(predictions, labels))
    }
    shown = {card["data-name"]: float(card["data-iou"]) for card in page.cards}
    assert shown == pytest.approx(expected, abs=1e-6)
    assert list(shown.values()) == sorted(shown.values())
    assert f"{100 * summary['miou']:.2f} %" in page.text
    assert "/r/model.ckpt-7" in page.text


def test_the_gallery_needs_nothing_from_outside(drawn):
    folder, *_ = drawn
    page = Page(folder / "index.html")
    assert len(page.links) == 2 * 4 * len(SIZES)  # a link and a picture each
    for link in page.links:
        assert os.path.isfile(folder / urllib.parse.unquote(link))
    assert "http" not in page.text and "@import" not in page.text and "url(" not in page.text


def test_a_click_enlarges_a_picture_and_the_title_names_the_run(drawn):
    text = Page(drawn[0] / "index.html").text
    assert "<title>r: toy, val</title>" in text and "<h1>r: toy, val</h1>" in text
    assert text.count('<dialog id="large">') == 1 and "large.showModal()" in text
    # Where there is no JavaScript, a click leads to the file.
    assert text.count('<figure><a href="') == text.count("<img loading")


@pytest.mark.parametrize(
    "prefix, name",
    [("/a/run 1/model.ckpt-7", "run 1"), ("/a/run/reestimated/model.ckpt-7", "run/reestimated")],
)
def test_a_run_is_called_as_its_folder(prefix, name):
    assert gallery.run_name(prefix) == name


def test_nothing_temporary_stays(drawn):
    assert not glob.glob(str(drawn[0] / "**" / ".*"), recursive=True)


def test_drawing_again_gives_the_same_pictures(drawn, tmp_path):
    folder, *_ = drawn
    draw(folder.parent / "records", tmp_path, also_save_raw_predictions=True)
    first = {p: os.path.getmtime(p) for p in glob.glob(str(tmp_path / "*" / "*"))}
    draw(folder.parent / "records", tmp_path, also_save_raw_predictions=True)
    for path in first:
        same = os.path.join(folder, os.path.relpath(path, tmp_path))
        assert open(path, "rb").read() == open(same, "rb").read()
    assert len(first) == 5 * len(SIZES)
    assert Page(tmp_path / "index.html").text == Page(folder / "index.html").text


def test_pictures_of_an_earlier_run_are_told(drawn, tmp_path, capsys):
    images, labels = make_images(SIZES[:2])
    write_split(str(tmp_path / "records"), images, labels)
    draw(drawn[0].parent / "records", tmp_path / "out", also_save_raw_predictions=True)
    assert "earlier run" not in capsys.readouterr().out
    draw(tmp_path / "records", tmp_path / "out")
    told = [line for line in capsys.readouterr().out.splitlines() if "earlier run" in line]
    # Of the colours what was not drawn again, of the raw files all.
    counts = [int(re.search(r"holds (\d+) files", line)[1]) for line in told]
    assert counts == [len(SIZES) - 2, len(SIZES)]


def test_a_page_of_an_earlier_run_does_not_stay_while_another_draws(drawn, tmp_path):
    draw(drawn[0].parent / "records", tmp_path)
    # Nine classes in place of four: the colours do not reach.
    with pytest.raises(IndexError):
        draw(drawn[0].parent / "records", tmp_path, model=ToyModel(num_classes=300))
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize("name", ["index.html", "images/a.jpg"])
def test_files_of_a_user_are_not_drawn_over(drawn, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="(?s)not of vis.py.*--vis_logdir"):
        draw(drawn[0].parent / "records", tmp_path)
    assert (tmp_path / name).read_text() == "mine" and len(os.listdir(tmp_path)) == 1


def test_raw_predictions_only_on_request(drawn, tmp_path):
    draw(drawn[0].parent / "records", tmp_path)
    assert not os.path.exists(tmp_path / "raw_segmentation_results")


def test_an_unlabelled_split_has_pictures_without_iou(tmp_path):
    images, _ = make_images(SIZES[:3])
    write_split(str(tmp_path / "records"), images, [None] * 3, split="unlabeled", ids=list("cab"))
    summary = draw(tmp_path / "records", tmp_path / "out", vis_split="unlabeled")
    assert summary is None
    page = Page(tmp_path / "out" / "index.html")
    assert [card["data-name"] for card in page.cards] == ["a", "b", "c"]
    assert {card["data-iou"] for card in page.cards} == {""}
    assert 'value="worst"' not in page.text and "mIoU" not in page.text
    assert os.listdir(tmp_path / "out" / "truth") == []
    assert len(os.listdir(tmp_path / "out" / "segmentation_results")) == 3


def test_images_without_iou_come_last(tmp_path):
    images, labels = make_images(SIZES[:3])
    void = np.full_like(labels[1], 255)
    write_split(str(tmp_path / "records"), images, [None, void, labels[2]], ids=list("abc"))
    draw(tmp_path / "records", tmp_path / "out")
    cards = Page(tmp_path / "out" / "index.html").cards
    assert [card["data-name"] for card in cards] == ["c", "a", "b"]


def test_resized_images_get_predictions_of_the_original_size(tmp_path):
    images, labels = make_images([(20, 30), (41, 23)])
    write_split(str(tmp_path / "records"), images, labels)
    draw(
        tmp_path / "records",
        tmp_path / "out",
        data={"min_resize_value": 33, "max_resize_value": 65},
        also_save_raw_predictions=True,
    )
    for i, image in enumerate(images):
        raw = read(tmp_path, "out", "raw_segmentation_results", f"image_{i}.png")
        assert raw.shape == image.shape[:2]
        assert len(np.unique(raw)) > 1


def test_a_resized_prediction_is_cut_and_brought_back_to_the_original_size():
    prediction = np.array([[1, 2, 3, 9], [4, 5, 6, 9], [9, 9, 9, 9]])
    valid = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    result = original_labels(prediction, valid, 3, 5)
    # Align-corners: the corners stay where they are; ties go to the later pixel.
    np.testing.assert_array_equal(result, [[1, 2, 2, 3, 3], [4, 5, 5, 6, 6], [4, 5, 5, 6, 6]])


def test_a_wrong_label_names_the_image(tmp_path):
    images, labels = make_images(SIZES[:3])
    labels[1][0, 0] = 77
    write_split(str(tmp_path / "records"), images, labels)
    with pytest.raises(UserError) as error:
        draw(tmp_path / "records", tmp_path / "out")
    assert "image_1" in str(error.value) and "77" in str(error.value)
    assert not os.path.exists(tmp_path / "out" / "index.html")


def test_an_output_directory_that_is_a_file_is_an_error(drawn, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        draw(drawn[0].parent / "records", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_names_are_the_last_component_as_published():
    ids = ["2007_000033", "train2017/000000177254", "/abs/x.jpg", "a b/ü&<1>"]
    names = ["2007_000033", "000000177254", "x.jpg", "ü&<1>"]
    assert output_names(ids) == names


def test_names_that_collide_keep_their_folders():
    assert output_names(["a/1", "b/1", "2"]) == ["a/1", "b/1", "2"]
    assert output_names(["A", "x/a"]) == ["A", "x/a"]


@pytest.mark.parametrize("image_id", ["../../etc/passwd", "..", "/", "a/../../b", "..\\c", "x\0y"])
def test_names_never_leave_the_output_directory(image_id):
    for ids in ([image_id], [image_id, "z/" + image_id.split("/")[-1]]):
        for name in output_names(ids):
            path = os.path.normpath(os.path.join("/out", name + ".png"))
            assert path.startswith("/out/") and "\0" not in path


def test_two_images_of_one_id_are_an_error():
    with pytest.raises(UserError, match="one name"):
        output_names(["x/1", "x/1"])


def test_ids_are_escaped_in_the_gallery(tmp_path):
    images, labels = make_images(SIZES[:1])
    write_split(str(tmp_path / "records"), images, labels, ids=['50% "<b>#1?</b>'])
    draw(tmp_path / "records", tmp_path / "out")
    page = Page(tmp_path / "out" / "index.html")
    assert page.cards[0]["data-name"] == '50% "<b>#1?</b>'
    assert "<b>#1" not in page.text
    for link in page.links:
        assert os.path.isfile(tmp_path / "out" / urllib.parse.unquote(link))


def test_cityscapes_predictions_become_evaluation_ids():
    ids = raw_ids(np.array([[0, 1, 18]]), DATASETS["cityscapes"])
    np.testing.assert_array_equal(ids, [[7, 8, 33]])
    assert ids.dtype == np.uint8


def test_many_classes_need_sixteen_bits(tmp_path):
    spec = DatasetSpec("many", tuple(f"c{i}" for i in range(300)))
    ids = raw_ids(np.array([[0, 299]]), spec)
    write(str(tmp_path / "x.png"), png(ids))
    assert ids.dtype == np.uint16
    np.testing.assert_array_equal(read(tmp_path, "x.png"), [[0, 299]])
    assert colors_of(spec).shape == (300, 3)


def test_the_palette_of_the_data_set_wins_unless_a_colour_map_is_asked_for():
    spec = dataclasses.replace(SPEC, palette=((1, 2, 3), (4, 5, 6), (7, 8, 9), (9, 9, 9)))
    np.testing.assert_array_equal(colors_of(spec)[:2], [[1, 2, 3], [4, 5, 6]])
    cityscapes = colors_of(spec, "cityscapes")
    np.testing.assert_array_equal(cityscapes[:19], colormap.cityscapes())
    np.testing.assert_array_equal(colors_of(spec, "distinct"), colors_of(SPEC))
    with pytest.raises(UserError, match="pascal, cityscapes, ade20k, distinct"):
        colors_of(spec, "rainbow")


def test_an_overlay_leaves_background_clear():
    image = np.full((1, 2, 3), 100, np.uint8)
    colors = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)
    result = overlay(image, np.array([[0, 1]]), SPEC, colors)
    assert result[0, 0].tolist() == [100, 100, 100]
    assert result[0, 1, 0] > 100 > result[0, 1, 1]


def test_an_overlay_tints_a_first_class_that_is_no_background():
    spec = dataclasses.replace(SPEC, class_names=("sky", "cat"))
    image = np.full((1, 1, 3), 100, np.uint8)
    shown = overlay(image, np.zeros((1, 1), int), spec, colors_of(spec))
    assert np.abs(shown[0, 0].astype(int) - 100).max() > 20


def test_a_panel_shows_image_truth_and_prediction():
    image = np.array([[[300.0, -5.0, 99.6]]], np.float32)
    heat = np.array([[0.5]], np.float32)
    shown = panel([image, np.array([[255]]), np.array([[1]]), heat], SPEC)
    assert shown.dtype == np.uint8
    expected = [[[255, 0, 100], [224, 224, 192], colors_of(SPEC)[1], [128, 128, 128]]]
    np.testing.assert_array_equal(shown, expected)


def test_a_panel_brings_pictures_to_one_size():
    image, ids = np.zeros((4, 2, 3), np.float32), np.array([[1], [255]])
    shown = panel([image, ids], SPEC)
    assert shown.shape == (4, 4, 3)
    np.testing.assert_array_equal(
        shown[:, 2:].reshape(4, 6)[:, :3], [colors_of(SPEC)[1]] * 2 + [[224, 224, 192]] * 2
    )


# Image-level labels and the dense CRF ------------------------------------------------------------

ALLOWED = [(1,), (2, 3), ()]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three images with image-level labels, not those of their masks."""
    folder = tmp_path_factory.mktemp("labelled")
    images, labels = make_images(SIZES[:3])
    write_split(str(folder), images, labels, image_labels=ALLOWED)
    return folder, images


def raw(output, i):
    return read(output, "raw_segmentation_results", f"image_{i}.png")


def test_predictions_keep_to_the_image_level_labels(labelled, tmp_path):
    folder, images = labelled
    draw(folder, tmp_path, use_image_labels=True, also_save_raw_predictions=True)
    for i, (image, classes) in enumerate(zip(images, ALLOWED)):
        expected = numpy_prediction(ToyModel(), image, {0, *classes})
        np.testing.assert_array_equal(raw(tmp_path, i), expected)
    assert "those of the image-level labels" in Page(tmp_path / "index.html").text


def test_records_without_image_level_labels_are_refused_before_any_work(drawn, tmp_path):
    with pytest.raises(UserError, match="image/class/label"):
        draw(drawn[0].parent / "records", tmp_path / "out", use_image_labels=True)
    assert not (tmp_path / "out").exists()


@needs_crf
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_crf_refines_what_is_drawn(labelled, tmp_path, batch_size):
    folder, images = labelled
    draw(
        folder,
        tmp_path,
        use_image_labels=True,
        dense_crf=True,
        crf_workers=1,
        vis_batch_size=batch_size,
        also_save_raw_predictions=True,
    )
    changed = 0
    for i, (image, classes) in enumerate(zip(images, ALLOWED)):
        logits = numpy_logits(ToyModel(), image)
        present = np.isin(np.arange(4), [0, *classes])
        exp = np.exp(logits - logits.max(-1, keepdims=True)) * present
        task = (i, exp / exp.sum(-1, keepdims=True), image, present)
        _, expected = dense_crf.refined_labels(task, **dense_crf.LEARNING_PSEUDO_LABELS)
        np.testing.assert_array_equal(raw(tmp_path, i), expected)
        changed += (expected != numpy_prediction(ToyModel(), image, {0, *classes})).sum()
    assert changed
    assert "iterations 1, gaussian_sxy 3" in Page(tmp_path / "index.html").text


@needs_crf
def test_resized_images_are_refined_at_their_original_size(tmp_path):
    images, labels = make_images([(20, 30), (41, 23)])
    write_split(str(tmp_path / "records"), images, labels)
    draw(
        tmp_path / "records",
        tmp_path / "out",
        data={"min_resize_value": 33, "max_resize_value": 65},
        dense_crf=True,
        crf_workers=1,
        also_save_raw_predictions=True,
    )
    for i, image in enumerate(images):
        assert raw(tmp_path / "out", i).shape == image.shape[:2]


# Class filtering, sizes ---------------------------------------------------------------------------


def test_what_filters_classes_is_on_the_page_and_in_the_pictures(labelled, tmp_path):
    folder, images = labelled
    model = ToyModel(with_classifier=True)
    settings = {"merge_scales": "masks", "topk_classes": 1, "bg_pow": 20.0}
    settings |= {"model": model, "also_save_raw_predictions": True}
    draw(folder, tmp_path, **settings)
    for i in range(len(images)):
        assert len(set(np.unique(raw(tmp_path, i))) - {0}) <= 1
    assert "topk_classes 1, bg_pow 20.0" in Page(tmp_path / "index.html").text


def test_image_level_labels_restrict_merged_masks(labelled, tmp_path):
    folder, images = labelled
    draw(
        folder,
        tmp_path,
        use_image_labels=True,
        merge_scales="masks",
        bg_pow=20.0,
        also_save_raw_predictions=True,
    )
    for i, classes in enumerate(ALLOWED):
        assert set(np.unique(raw(tmp_path, i))) <= {0, *classes}
    assert raw(tmp_path, 0).any()


def test_halved_images_get_predictions_of_the_original_size(tmp_path):
    images, labels = make_images([(41, 30), (20, 17)])
    write_split(str(tmp_path / "records"), images, labels)
    draw(
        tmp_path / "records",
        tmp_path / "out",
        max_side=20,
        also_save_raw_predictions=True,
    )
    for i, image in enumerate(images):
        assert raw(tmp_path / "out", i).shape == image.shape[:2]
