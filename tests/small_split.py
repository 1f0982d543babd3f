"""A split of small images in odd sizes, and a network whose output can be computed by hand."""

import io
import os

import numpy as np
import tensorflow as tf
from PIL import Image

from tfseg.data import tfexample
from tfseg.data.atomic_writing import ShardWriter
from tfseg.data.shards import shard_name
from tfseg.data.specs import DatasetSpec
from tfseg.settings.network import ModelConfig

SPEC = DatasetSpec("toy", ("background", "cat", "dog", "cow"))
# Smaller than, equal to, and larger than the crop of 33 x 33, in one direction or both.
CROP = (33, 33)
SIZES = ((20, 31), (33, 33), (7, 40), (50, 45), (33, 17), (32, 33), (33, 34), (1, 1), (66, 9))
STRIDE = 4


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def make_images(sizes=SIZES, num_classes=4, seed=0):
    """Returns images and masks; the masks hold some void (255)."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    labels = [rng.integers(0, num_classes, size).astype(np.uint8) for size in sizes]
    for label in labels:
        label[rng.random(label.shape) < 0.1] = 255
    return images, labels


def write_split(folder, images, labels, *, split="val", ids=None, image_labels=None):
    """Writes a split of one shard; None for a label or image-level labels: without them."""
    ids = [f"image_{i}" for i in range(len(images))] if ids is None else ids
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, shard_name(split, 0, 1))
    with ShardWriter(path) as writer:
        known = [None] * len(images) if image_labels is None else image_labels
        for name, image, label, classes in zip(ids, images, labels, known):
            writer.write(
                tfexample.encode(
                    image=png(image),
                    label=None if label is None else png(label),
                    filename=name,
                    height=image.shape[0],
                    width=image.shape[1],
                    image_labels=classes,
                )
            )
    return ids


class ToyModel(tf.keras.Model):
    """Every fourth pixel times a matrix: the logits; and their mean over the image, on request."""

    config = ModelConfig()
    mean_pixel = (127.5, 127.5, 127.5)

    def __init__(self, num_classes=4, seed=0, *, with_classifier=False):
        super().__init__(name="toy")
        weights = np.random.default_rng(seed).normal(0, 2, [3, num_classes]).astype("float32")
        self.kernel = tf.Variable(weights, name="toy/weights")
        self.num_classes, self.with_classifier = num_classes, with_classifier
        self.seen_scales = []

    logits_stride = STRIDE

    def valid_size(self, height, width):
        return height, width

    def call(self, image, training=False, dropout_seed=None, input_scale=1.0):
        assert not training
        self.seen_scales.append((image.shape[1:3].as_list(), input_scale))
        x = tf.cast(image, tf.float32)[:, ::STRIDE, ::STRIDE] / 127.5 - 1.0
        logits = tf.linalg.matmul(x, self.kernel)
        result = {"logits": logits, "features": x}
        if self.with_classifier:
            result["image_logits"] = tf.reduce_mean(logits, [1, 2])[:, 1:]
        return result


class StridedToyModel(ToyModel):
    """Takes sides that are a multiple of the stride plus 1, as real networks do."""

    def valid_size(self, height, width):
        return tuple((side + STRIDE - 2) // STRIDE * STRIDE + 1 for side in (height, width))


def numpy_logits(model, image):
    """Computes the toy network's logits of one image, [H, W, C], with NumPy alone.

    The grid of logits lies on every fourth pixel of the padded image, so a pixel's logits depend
    on the four grid points around it, however far the image is padded.
    """
    height, width = image.shape[:2]
    rows, columns = height // STRIDE + 2, width // STRIDE + 2
    padded = np.full((rows * STRIDE + 1, columns * STRIDE + 1, 3), 127.5)
    padded[:height, :width] = image
    grid = (padded[::STRIDE, ::STRIDE] / 127.5 - 1.0) @ model.kernel.numpy().astype(np.float64)
    y, x = np.arange(height) / STRIDE, np.arange(width) / STRIDE
    top, left = y.astype(int), x.astype(int)
    a, b = (y - top)[:, None, None], (x - left)[None, :, None]

    def corner(down, right):
        return grid[top + down][:, left + right]

    logits = (1 - a) * ((1 - b) * corner(0, 0) + b * corner(0, 1))
    logits += a * ((1 - b) * corner(1, 0) + b * corner(1, 1))
    return logits


def numpy_prediction(model, image, classes=None):
    """Computes labels likewise, [H, W]; `classes` are those that may be there, None: all."""
    logits = numpy_logits(model, image)
    if classes is not None:
        logits[..., [c for c in range(logits.shape[-1]) if c not in classes]] = -np.inf
    return logits.argmax(-1)


def numpy_confusion(predictions, labels, num_classes=4, ignore_label=255):
    """Counts pixel by pixel."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for prediction, label in zip(predictions, labels):
        for truth, predicted in zip(label.ravel(), prediction.ravel()):
            if truth != ignore_label:
                matrix[truth, predicted] += 1
    return matrix
