"""Records on the wire: equal to tf.train.Example, strict about what is missing or contradictory."""

import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfseg.data import tfexample
from tfseg.data.encoded_image import image_size
from tfseg.data.framing import Location, RecordError


def encoded(height=4, width=6, mode="RGB", format="PNG", **options):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format, **options)
    return buffer.getvalue()


def published(**changes):
    """A record as TensorFlow's own classes write it."""
    values = {
        "image/encoded": encoded(format="JPEG"),
        "image/filename": b"2007_000033",
        "image/format": b"jpeg",
        "image/height": 4,
        "image/width": 6,
        "image/channels": 3,
        "image/segmentation/class/encoded": encoded(mode="L"),
        "image/segmentation/class/format": b"png",
    }
    values.update(changes)
    feature = {}
    for key, value in values.items():
        if value is None:
            continue
        if isinstance(value, bytes):
            feature[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        else:
            values_list = value if isinstance(value, list) else [value]
            feature[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=values_list))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def test_reads_published_records():
    example = tfexample.decode(published())
    assert example.filename == "2007_000033"
    assert (example.height, example.width) == (4, 6)
    assert example.label == encoded(mode="L")
    assert example.image_labels is None


def test_tensorflow_reads_ours():
    image, label = encoded(), encoded(mode="L")
    data = tfexample.encode(
        image=image, filename="a/ü", height=4, width=6, label=label, image_labels=[7, 2, 2]
    )
    feature = tf.train.Example.FromString(data).features.feature
    assert feature["image/encoded"].bytes_list.value[:] == [image]
    assert feature["image/filename"].bytes_list.value[:] == ["a/ü".encode()]
    assert feature["image/format"].bytes_list.value[:] == [b"png"]
    assert feature["image/height"].int64_list.value[:] == [4]
    assert feature["image/width"].int64_list.value[:] == [6]
    assert feature["image/channels"].int64_list.value[:] == [3]
    assert feature["image/segmentation/class/encoded"].bytes_list.value[:] == [label]
    assert feature["image/segmentation/class/format"].bytes_list.value[:] == [b"png"]
    assert feature["image/class/label"].int64_list.value[:] == [2, 7]
    parsed = tf.io.parse_single_example(
        data,
        {
            "image/height": tf.io.FixedLenFeature([], tf.int64),
            "image/class/label": tf.io.VarLenFeature(tf.int64),
        },
    )
    assert parsed["image/height"] == 4
    assert parsed["image/class/label"].values.numpy().tolist() == [2, 7]


def test_equal_arguments_give_equal_bytes():
    arguments = {"image": encoded(), "filename": "a", "height": 4, "width": 6}
    assert tfexample.encode(**arguments) == tfexample.encode(**arguments)


@pytest.mark.parametrize("labels, expected", [(None, None), ([], []), ([3, 1], [1, 3])])
def test_no_class_differs_from_unknown(labels, expected):
    data = tfexample.encode(image=encoded(), filename="a", height=4, width=6, image_labels=labels)
    decoded = tfexample.decode(data).image_labels
    assert (None if decoded is None else decoded.tolist()) == expected
    # Passing through TensorFlow's own class keeps the difference.
    again = tfexample.decode(tf.train.Example.FromString(data).SerializeToString()).image_labels
    assert (None if again is None else again.tolist()) == expected


def test_an_id_that_is_no_text_is_told():
    with pytest.raises(RecordError, match=r"(?s)not UTF-8.*caf\\udce9.*rename"):
        tfexample.encode(image=encoded(), filename=os.fsdecode(b"caf\xe9"), height=4, width=6)


def test_record_without_mask_has_no_label_keys():
    data = tfexample.encode(image=encoded(), filename="a", height=4, width=6)
    assert tfexample.decode(data).label is None
    keys = tf.train.Example.FromString(data).features.feature
    assert not [key for key in keys if "segmentation" in key]


@pytest.mark.parametrize(
    "key, value",
    [
        ("image/encoded", None),
        ("image/encoded", b""),
        ("image/filename", None),
        ("image/filename", b""),
        ("image/filename", b"\xff\xfe"),
        ("image/height", None),
        ("image/width", 0),
        ("image/segmentation/class/encoded", b""),
        ("image/encoded", b"GIF89a not supported"),
        ("image/encoded", 3),
        ("image/height", b"4"),
        ("image/height", 5),
        ("image/segmentation/class/encoded", encoded(4, 5, "L")),
    ],
)
def test_bad_feature_names_record_and_key(key, value):
    with pytest.raises(RecordError) as error:
        tfexample.decode(published(**{key: value}), Location("dir/train-0", 12, 3456))
    message = str(error.value)
    expected = "image/encoded" if key == "image/height" and value == 5 else key
    assert "dir/train-0" in message and "record 12" in message and "byte 3456" in message
    assert expected in message


def test_not_an_example():
    with pytest.raises(RecordError, match="not a tf.train.Example"):
        tfexample.decode(b"\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "data, expected",
    [
        (encoded(5, 7), ("png", 5, 7)),
        (encoded(5, 7, format="JPEG"), ("jpeg", 5, 7)),
        (encoded(50, 70, format="JPEG", progressive=True), ("jpeg", 50, 70)),
        (encoded(5, 7, mode="L", format="JPEG"), ("jpeg", 5, 7)),
        (encoded(5, 7, format="JPEG", comment=b"\xff\xc0" * 40), ("jpeg", 5, 7)),
    ],
)
def test_size_from_header(data, expected):
    assert image_size(data) == expected


def test_size_of_random_bytes_is_refused_quickly():
    rng = np.random.default_rng(0)
    for prefix in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        for _ in range(200):
            data = prefix + rng.integers(0, 256, rng.integers(0, 60), dtype=np.uint8).tobytes()
            try:
                name, height, width = image_size(data)
            except ValueError:
                continue
            assert name in ("jpeg", "png") and height > 0 and width > 0


def test_cap_on_pixels_uses_the_header_only():
    png = bytearray(encoded())
    png[16:24] = (10_000).to_bytes(4, "big") * 2
    with pytest.raises(RecordError, match="100.0 megapixels"):
        tfexample.check_pixels(bytes(png), max_megapixels=64, location=Location("f", 0, 0))
    tfexample.check_pixels(bytes(png), max_megapixels=101, location=Location("f", 0, 0))


def test_pseudo_labels_say_so():
    arguments = {"image": encoded(), "filename": "a", "height": 4, "width": 6}
    data = tfexample.encode(**arguments, label=encoded(mode="L"), is_pseudo=True)
    assert tf.train.Example.FromString(data).features.feature["image/pseudo"].int64_list.value == [
        1
    ]
    assert tfexample.decode(data).is_pseudo
    data = tfexample.encode(**arguments, label=encoded(mode="L"))
    assert "image/pseudo" not in tf.train.Example.FromString(data).features.feature
    assert not tfexample.decode(data).is_pseudo
    assert not tfexample.decode(published(**{"image/pseudo": 0})).is_pseudo
    for wrong in (2, [1, 1]):
        with pytest.raises(RecordError, match="neither 0 nor 1"):
            tfexample.decode(published(**{"image/pseudo": wrong}))


# Headers that were made to mislead ----------------------------------------------------------------


def segment(marker, content=b""):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def frame(height, width):
    """The header of a frame of one channel, as it might stand in front of the true one."""
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return segment(0xC0, b"\x08" + size + b"\x01\x01\x11\x00")


JPEG = encoded(50, 70, format="JPEG")
# A reader that takes FF 00 for a segment lands in the comment, on a frame of 9 x 9; libjpeg skips
# the two bytes.
HIDDEN_FRAME = b"\xff\x00\x00\x06" + segment(0xFE, frame(9, 9))


@pytest.mark.parametrize(
    "inserted",
    [
        HIDDEN_FRAME,
        b"\xff\x00\x00\x11" + b"\0" * 15,
        b"\x00\x00junk",
        b"\xff\xff\xff\xff",
        b"\xff\xd0\xff\xd7",
        segment(0xE1, b"Exif\0\0" + frame(9, 9)),
        segment(0xFE, frame(9, 9)),
        segment(0xEE, b"\xff\xc0\x00\x11\x08\x00\x09\x00\x09"),
        b"\xff\xe5\x00\x00",
    ],
)
def test_size_of_a_jpeg_is_the_one_that_is_decoded(inserted):
    data = JPEG[:20] + inserted + JPEG[20:]
    decoders = {
        "tensorflow": lambda: tf.io.decode_jpeg(data).shape[:2],
        "pillow": lambda: Image.open(io.BytesIO(data)).convert("RGB").size[::-1],
    }
    size = image_size(data)
    for decode in decoders.values():
        try:
            decoded = tuple(decode())
        except (tf.errors.OpError, OSError):
            continue  # not decoded at all
        assert size == ("jpeg", *decoded)


def test_a_jpeg_does_not_get_round_the_cap():
    big = encoded(900, 1200, format="JPEG")
    data = big[:20] + HIDDEN_FRAME + big[20:]
    with pytest.raises(RecordError, match="900x1200, 1.1 megapixels"):
        tfexample.check_pixels(data, max_megapixels=1, location=Location("f", 0, 0))


@pytest.mark.parametrize("marker, content", [(0xFE, b""), (0xE1, b"Exif\0\0M"), (0xDB, b"")])
def test_a_header_of_many_segments_takes_no_time(marker, content):
    data = JPEG[:2] + segment(marker, content) * 200_000 + JPEG[2:]
    with pytest.raises(ValueError, match="too many segments"):
        image_size(data)


def scan_of(jpeg):
    """The last scan, without the end of the picture."""
    return jpeg[jpeg.rindex(b"\xff\xda") : -2]


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_many_scans_is_refused(progressive):
    jpeg = encoded(40, 40, format="JPEG", progressive=progressive)
    bomb = jpeg[:-2] + scan_of(jpeg) * 100 + jpeg[-2:]
    with pytest.raises(ValueError, match=r"1\d\d scans, and at most 20 are decoded"):
        image_size(bomb)
    with pytest.raises(RecordError, match="scans"):
        tfexample.encode(image=bomb, filename="a", height=40, width=40)
    # Those of thumbnails and of what follows the picture are not decoded.
    thumbnails = segment(0xE1, scan_of(jpeg) * 30)
    for data in (jpeg, jpeg[:2] + thumbnails + jpeg[2:], jpeg + scan_of(jpeg) * 100):
        assert image_size(data) == ("jpeg", 40, 40)


@pytest.mark.parametrize("length", range(8, 33))
def test_a_png_that_ends_in_its_header_is_refused(length):
    with pytest.raises(RecordError, match="PNG header is broken"):
        tfexample.decode(published(**{tfexample.LABEL: encoded(mode="L")[:length]}))


def test_sides_that_no_decoder_takes_are_refused():
    png = bytearray(encoded())
    for side in (2**32 - 1, 2**31, 10**6 + 1):
        png[16:24] = side.to_bytes(4, "big") * 2
        with pytest.raises(RecordError, match="image/encoded"):
            tfexample.decode(published(**{"image/encoded": bytes(png)}), Location("f", 0, 0))


def test_a_second_header_of_a_png_is_refused():
    """Pillow takes the last one before the pixels."""
    png, big = encoded(), encoded(300, 300)
    data = png[:33] + big[8:33] + png[33:]
    assert image_size(data) == ("png", 4, 6)
    with pytest.raises(RecordError, match="second header"):
        tfexample.decode_pixels(data, location=None)


def damaged_pngs():
    """PNGs that Pillow decodes and TensorFlow does not."""
    png = encoded(20, 30)
    wrong = bytearray(png)
    wrong[png.index(b"IEND") - 5] ^= 1
    return [png[:-1], png[:-12], png[:-16], bytes(wrong)]


def test_a_damaged_png_that_training_cannot_decode_is_refused():
    for data in damaged_pngs():
        Image.open(io.BytesIO(data)).load()
        with pytest.raises(tf.errors.InvalidArgumentError):
            tf.io.decode_png(data)
        with pytest.raises(RecordError, match="cut short|wrong checksum of its part 'IDAT'"):
            tfexample.decode_pixels(data, location=None)
    assert tfexample.decode_pixels(encoded() + b"behind", location=None).shape == (4, 6, 3)


def test_pixels_that_cannot_be_decoded_are_a_record_error():
    for data in (JPEG[:200], encoded()[:40], JPEG[:2] + b"\0" * 50):
        with pytest.raises(RecordError, match="cannot be decoded"):
            tfexample.decode_pixels(data, location=Location("f", 3, 7))


@pytest.mark.parametrize("length, accepted", [(4096, True), (4097, False), (4_000_000, False)])
def test_length_of_an_id(length, accepted):
    data = published(**{"image/filename": b"i" * length})
    arguments = {"image": encoded(), "height": 4, "width": 6}
    if accepted:
        assert len(tfexample.decode(data).filename) == length
        tfexample.encode(filename="i" * length, **arguments)
        return
    for attempt in (
        lambda: tfexample.decode(data),
        lambda: tfexample.encode(filename="i" * length, **arguments),
    ):
        with pytest.raises(RecordError, match="at most 4096 bytes") as error:
            attempt()
        assert len(str(error.value)) < 1000
