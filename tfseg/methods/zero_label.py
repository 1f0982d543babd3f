"""What the zero-label methods share: their stream, losses on some of the classes, monitors.

A class split (`tfseg.data.class_splits`) says which classes have pixel labels. All logits have a
channel for every class of the data set; classes that take no part in a loss are masked, and get no
gradient.
"""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfseg.data.specs import DatasetSpec
from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.methods.base import Method
from tfseg.monitors import Monitors
from tfseg.ops.class_aware import mask_absent_logits
from tfseg.ops.resize import resize_bilinear, resize_nearest
from tfseg.settings.data import DataConfig
from tfseg.settings.run import TrainConfig

STREAM = "train"


def streams(data: DataConfig, train: TrainConfig) -> dict[str, Stream]:
    """Returns the one stream: images whose labels are of seen classes only."""
    return {
        STREAM: Stream(split=data.train_split, batch_size=train.train_batch_size, labels="seen")
    }


def check(method: Method) -> None:
    """Insists on a class split.

    Raises:
      UserError: there is none.
    """
    if method.spec.seen_unseen is None:
        raise UserError(
            f"{method.config.method} needs to know which classes have pixel labels.",
            where="--class_split",
            accepted="the name of a split, or a JSON file with lists 'seen' and 'unseen'",
            fix="add --class_split; docs/methods/zero_label.md shows one",
        )


def members(classes: Sequence[int], num_classes: int) -> tf.Tensor:
    """Returns which class ids are among some, bool [num_classes]."""
    return tf.constant([c in classes for c in range(num_classes)])


def among(label: tf.Tensor, classes: Sequence[int]) -> tf.Tensor:
    """Returns where labels are among some classes, bool like `label`."""
    return tf.reduce_any(tf.equal(label[..., None], tf.constant(classes, label.dtype)), -1)


def only(logits: tf.Tensor, classes: Sequence[int]) -> tf.Tensor:
    """Returns logits in which all other classes are far below, float32 [N, h, w, C]."""
    present = tf.cast(members(classes, logits.shape[-1]), tf.float32)
    return mask_absent_logits(logits, present[None])


def at_one_size(
    logits: tf.Tensor, maps: Mapping[str, tf.Tensor], *, upsample_logits: bool
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Brings logits and label maps to one size.

    Args:
      logits: float [N, h, w, C].
      maps: [N, H, W] each.
      upsample_logits: resize the logits (align corners); False: take the nearest pixels of the
        maps, index floor(i in / out), as published.

    Returns:
      float32 logits, and the maps.

    Source: STRICT specification 4.3.
    """
    logits = tf.cast(logits, tf.float32)
    if upsample_logits:
        size = next(iter(maps.values())).shape[1:3]
        return resize_bilinear(logits, size), dict(maps)
    size = logits.shape[1:3]
    return logits, {name: resize_nearest(x, size) for name, x in maps.items()}


def monitor(
    monitors: Monitors, logits: tf.Tensor, hidden_label: tf.Tensor, *, spec: DatasetSpec
) -> None:
    """Measures predictions among seen and unseen classes against labels that no loss sees.

    Args:
      monitors: takes the confusion matrix 'prediction'.
      logits: float32 [N, h, w, C].
      hidden_label: int32 [N, h, w].
      spec: with its split.
    """
    prediction = tf.argmax(only(logits, spec.seen_unseen.visible), -1, output_type=tf.int32)
    known = tf.cast(tf.not_equal(hidden_label, spec.ignore_label), tf.float32)
    monitors.confusion(
        "prediction", hidden_label, prediction, num_classes=spec.num_classes, weight=known
    )


def prediction_panel(method: Method, image: tf.Tensor) -> tf.Tensor:
    """Returns the network's prediction among seen and unseen classes, int32 [N, H, W]."""
    logits = resize_bilinear(method.model(image, training=False)["logits"], image.shape[1:3])
    visible = only(logits, method.spec.seen_unseen.visible)
    return tf.argmax(visible, -1, output_type=tf.int32)
