"""What one record holds: the keys, the writer and the reader, in one file so they cannot drift.

| key | type | meaning |
|---|---|---|
| image/encoded | bytes | JPEG or PNG, RGB |
| image/filename | bytes | id |
| image/format | bytes | 'jpeg' or 'png' |
| image/height, image/width, image/channels | int64 | pixels; 3 |
| image/segmentation/class/encoded | bytes | PNG, one channel, class ids; absent without a mask |
| image/segmentation/class/format | bytes | 'png'; absent without a mask |
| image/class/label | int64 list | classes in the image, ids as in the mask; absent if unknown |
| image/pseudo | int64 | 1: the mask is a prediction (pseudo label); absent: it is the truth |

An image that is known to hold no class has `image/class/label` present and empty.

The messages are built from their description with the protobuf library alone, because importing
TensorFlow takes seconds, which converters and their worker processes would pay for nothing. They
are `tf.train.Example` on the wire, which a test checks in both directions.

Source: keys of the published PseudoSeg / DeepLab records (specification 2.3), plus
image/class/label and image/pseudo; a dummy label map on unlabelled images is not needed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from tfseg.data.encoded_image import image_size, open_image
from tfseg.data.framing import Location, RecordError

IMAGE = "image/encoded"
FILENAME = "image/filename"
FORMAT = "image/format"
HEIGHT = "image/height"
WIDTH = "image/width"
CHANNELS = "image/channels"
LABEL = "image/segmentation/class/encoded"
LABEL_FORMAT = "image/segmentation/class/format"
IMAGE_LABELS = "image/class/label"
PSEUDO = "image/pseudo"
# Longer than any path. An index and messages hold the ids of all images.
MAX_ID_BYTES = 4096
_KINDS = ("bytes_list", "float_list", "int64_list")


def _example_class() -> type[message.Message]:
    """Builds the message class of `tf.train.Example`."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tfseg/example.proto", package="tfseg", syntax="proto3"
    )

    def add_field(parent, name, number, kind, *, repeated=False, packed=None, of=None):
        field = parent.field.add(name=name, number=number, type=kind)
        field.label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
        if packed is not None:
            field.options.packed = packed
        if of is not None:
            field.type_name = f".tfseg.{of}"
        return field

    lists = (
        ("BytesList", field_type.TYPE_BYTES, None),
        ("FloatList", field_type.TYPE_FLOAT, True),
        ("Int64List", field_type.TYPE_INT64, True),
    )
    for name, kind, packed in lists:
        values = file.message_type.add(name=name)
        add_field(values, "value", 1, kind, repeated=True, packed=packed)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (field_name, (list_name, _, _)) in enumerate(zip(_KINDS, lists), start=1):
        field = add_field(feature, field_name, number, field_type.TYPE_MESSAGE, of=list_name)
        field.oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add_field(entry, "key", 1, field_type.TYPE_STRING)
    add_field(entry, "value", 2, field_type.TYPE_MESSAGE, of="Feature")
    add_field(
        features, "feature", 1, field_type.TYPE_MESSAGE, repeated=True, of="Features.FeatureEntry"
    )
    example = file.message_type.add(name="Example")
    add_field(example, "features", 1, field_type.TYPE_MESSAGE, of="Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tfseg.Example"))


ExampleProto = _example_class()


@dataclasses.dataclass(frozen=True)
class Example:
    """One record: encoded image, encoded mask or None, id, size in pixels, image-level labels.

    `image_labels` is int64 [n], class ids in ascending order as in the mask; None if unknown.
    `is_pseudo` says that the mask is a prediction.
    """

    image: bytes
    label: bytes | None
    filename: str
    height: int
    width: int
    image_labels: np.ndarray | None
    is_pseudo: bool = False


def encode(
    *,
    image: bytes,
    filename: str,
    height: int,
    width: int,
    label: bytes | None = None,
    image_labels: Sequence[int] | None = None,
    is_pseudo: bool = False,
) -> bytes:
    """Serialises one record; the same arguments always give the same bytes.

    Args:
      image: JPEG or PNG.
      filename: the id.
      height, width: pixels.
      label: PNG of class ids with one channel, or None.
      image_labels: class ids of the classes in the image, or None if they are not known.
      is_pseudo: the mask is a prediction.

    Raises:
      RecordError: `decode` would refuse the id or the image.
    """
    try:
        _check_id(filename.encode(), None)
    except UnicodeEncodeError:
        raise RecordError(
            "An id is not UTF-8.",
            key=FILENAME,
            received=ascii(filename),
            fix="rename the file",
        ) from None
    example = ExampleProto()
    feature = example.features.feature

    def put(key: str, value: Any) -> None:
        if isinstance(value, bytes):
            feature[key].bytes_list.value.append(value)
        else:
            feature[key].int64_list.value.append(value)

    put(IMAGE, image)
    put(FILENAME, filename.encode())
    put(FORMAT, _image_size(image, Location(filename), IMAGE)[0].encode())
    put(HEIGHT, height)
    put(WIDTH, width)
    put(CHANNELS, 3)
    if label is not None:
        put(LABEL, label)
        put(LABEL_FORMAT, b"png")
    if image_labels is not None:
        # SetInParent keeps an empty list apart from an absent one.
        feature[IMAGE_LABELS].int64_list.SetInParent()
        feature[IMAGE_LABELS].int64_list.value.extend(sorted({int(i) for i in image_labels}))
    if is_pseudo:
        put(PSEUDO, 1)
    return example.SerializeToString(deterministic=True)


def _values(example: Any, key: str, kind: str, location: Location) -> Sequence[Any] | None:
    """Returns the values of a feature, None if it is absent."""
    if key not in example.features.feature:
        return None
    feature = example.features.feature[key]
    found = feature.WhichOneof("kind")
    if found not in (kind, None):
        raise RecordError(
            "A feature has the wrong type.",
            location=location,
            key=key,
            received=found,
            accepted=kind,
        )
    return getattr(feature, kind).value


def _one(example: Any, key: str, kind: str, location: Location) -> Any:
    """Returns the single value of a required feature."""
    values = _values(example, key, kind, location)
    if not values or values[0] in (b"", 0):
        raise RecordError(
            "A feature is missing or empty.",
            location=location,
            key=key,
            fix="the record cannot be used without it: make the shard again",
        )
    return values[0]


def decode(serialized: bytes, where: Location | str | None = None) -> Example:
    """Parses one record and checks that its parts agree; decodes no pixels.

    Args:
      serialized: a `tf.train.Example`.
      where: what errors call the record.

    Raises:
      RecordError: not an Example; a feature missing, empty or of the wrong type; an id that is
        too long; image or mask neither JPEG nor PNG, or of another size than the record declares.
    """
    location = where if isinstance(where, Location) else Location(str(where or "record"))
    try:
        example = ExampleProto.FromString(serialized)
    except message.DecodeError as error:
        raise RecordError(
            "A record is not a tf.train.Example.", location=location, received=str(error)[:200]
        ) from None
    image = _one(example, IMAGE, "bytes_list", location)
    filename = _one(example, FILENAME, "bytes_list", location)
    _check_id(filename, location)
    try:
        filename = filename.decode()
    except UnicodeDecodeError:
        raise RecordError(
            "An id is not UTF-8.", location=location, key=FILENAME, received=filename[:80]
        ) from None
    height = _one(example, HEIGHT, "int64_list", location)
    width = _one(example, WIDTH, "int64_list", location)
    label = None
    if LABEL in example.features.feature:
        label = _one(example, LABEL, "bytes_list", location)
    for key, data in ((IMAGE, image), (LABEL, label)):
        if data is not None:
            _check_size(data, height, width, location, key)
    image_labels = _values(example, IMAGE_LABELS, "int64_list", location)
    return Example(
        image=image,
        label=label,
        filename=filename,
        height=height,
        width=width,
        image_labels=None if image_labels is None else np.array(image_labels, np.int64),
        is_pseudo=_flag(example, PSEUDO, location),
    )


def _flag(example: Any, key: str, location: Location) -> bool:
    """Returns a feature that is 0 or 1; absent is 0."""
    values = list(_values(example, key, "int64_list", location) or [0])
    if values not in ([0], [1]):
        raise RecordError(
            "A feature is neither 0 nor 1.",
            location=location,
            key=key,
            received=", ".join(map(str, values[:8])),
        )
    return bool(values[0])


def _check_id(filename: bytes, location: Location | None) -> None:
    if len(filename) > MAX_ID_BYTES:
        raise RecordError(
            "An id is too long.",
            location=location,
            key=FILENAME,
            received=f"{len(filename)} bytes: {filename[:40].decode(errors='replace')}...",
            accepted=f"at most {MAX_ID_BYTES} bytes",
            fix="give the image a shorter name and make the records again",
        )


def _image_size(data: bytes, location: Location, key: str) -> tuple[str, int, int]:
    """Returns what `image_size` does; its errors name the record."""
    try:
        return image_size(data)
    except ValueError as error:
        raise RecordError(
            f"An encoded image cannot be read: {error}.", location=location, key=key
        ) from None


def _check_size(data: bytes, height: int, width: int, location: Location, key: str) -> None:
    _, actual_height, actual_width = _image_size(data, location, key)
    if (actual_height, actual_width) != (height, width):
        raise RecordError(
            "An encoded image has another size than its record declares.",
            location=location,
            key=key,
            received=f"{actual_height}x{actual_width} (height x width)",
            accepted=f"{height}x{width}",
        )


def decode_pixels(
    data: bytes, *, location: Location | None, key: str = IMAGE, mode: str | None = None
) -> np.ndarray:
    """Decodes an image or a mask with Pillow.

    Args:
      data: JPEG or PNG whose size has been checked.
      location: what errors call the record.
      key: the feature that it is from.
      mode: Pillow's mode to convert to, such as 'RGB'; None: as it is stored.

    Returns:
      [H, W] or [H, W, channels].

    Raises:
      RecordError: it cannot be decoded.
    """
    try:
        image = open_image(data)
        return np.asarray(image if mode is None else image.convert(mode))
    except Exception as error:  # Pillow's decoders raise many kinds
        raise RecordError(
            "An encoded image cannot be decoded.",
            location=location,
            key=key,
            received=f"{type(error).__name__}: {error}"[:200],
            fix="repair or remove the image and make the records again",
        ) from None


def check_pixels(
    data: bytes, *, max_megapixels: float, location: Location, key: str = IMAGE
) -> None:
    """Refuses an image that would be too big to decode, going by its header.

    Raises:
      RecordError: more than `max_megapixels` million pixels, or an unreadable header.
    """
    _, height, width = _image_size(data, location, key)
    if height * width > max_megapixels * 1e6:
        raise RecordError(
            "An image declares more pixels than are allowed.",
            location=location,
            key=key,
            received=f"{height}x{width}, {height * width / 1e6:.1f} megapixels",
            accepted=f"at most {max_megapixels:g} megapixels",
            fix="raise --max_image_megapixels if the image is meant to be that big",
        )
