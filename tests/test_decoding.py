"""From a file to pixels: the decoders, the EXIF tag, what cannot be read."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tfrecords_tools.images import read_image
from tfseg.data.image_files import upright
from tfseg.errors import UserError
from tfseg.inference.decoding import decode_file

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 37, 3), np.uint8)


def decoded(path, max_megapixels=1.0):
    return decode_file(str(path), max_megapixels=max_megapixels)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png"])
def test_jpeg_and_png_are_decoded_as_in_training(tmp_path, name):
    Image.fromarray(PIXELS).save(tmp_path / name)
    expected = tf.io.decode_image((tmp_path / name).read_bytes(), 3, expand_animations=False)
    np.testing.assert_array_equal(decoded(tmp_path / name), expected)


@pytest.mark.parametrize(
    "name, mode",
    [
        ("a.bmp", "RGB"),
        ("a.tif", "RGB"),
        ("a.tif", "F"),
        ("a.gif", "P"),
        ("a.webp", "RGB"),
        ("a.ppm", "RGB"),
        ("a.png", "RGBA"),
        ("a.png", "P"),
        ("a.png", "I;16"),
        ("a.jpg", "L"),
        ("a.jpg", "CMYK"),
    ],
)
def test_other_files_are_read_as_the_converters_read_them(tmp_path, name, mode):
    if mode == "F":
        image = Image.fromarray(PIXELS[..., 0].astype(np.float32) / 255)
    elif mode == "I;16":
        image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / name)
    data, *_ = read_image(str(tmp_path / name), max_megapixels=1)
    expected = tf.io.decode_image(data, 3, expand_animations=False)
    np.testing.assert_array_equal(decoded(tmp_path / name), expected)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_the_exif_tag_turns_the_pixels_after_decoding(tmp_path, tag, extension):
    image = Image.fromarray(PIXELS)
    plain, turned = tmp_path / f"plain.{extension}", tmp_path / f"turned.{extension}"
    image.save(plain)
    exif = Image.Exif()
    exif[0x0112] = tag
    image.save(turned, exif=exif)
    pixels = decoded(plain)
    with_tag = Image.fromarray(pixels)
    with_tag.getexif()[0x0112] = tag
    expected = np.asarray(ImageOps.exif_transpose(with_tag))
    np.testing.assert_array_equal(decoded(turned), expected)
    np.testing.assert_array_equal(upright(pixels, tag), expected)


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "cannot be decoded"),
        (b"no image", "cannot be decoded"),
        (jpeg()[:200], "cannot be decoded"),
        (jpeg()[: len(jpeg()) // 2], "cannot be decoded"),
    ],
    ids=["empty", "text", "header alone", "half"],
)
def test_a_damaged_image_is_named(tmp_path, content, words):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){words}.*photo.jpg"):
        decoded(path)


def test_an_image_that_is_too_large_is_refused_by_its_header(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    with pytest.raises(UserError, match="(?s)24x37.*at most 0.0001 megapixels.*--max_image"):
        decoded(tmp_path / "a.jpg", max_megapixels=0.0001)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="(?s)cannot be read.*none.jpg"):
        decoded(tmp_path / "none.jpg")
