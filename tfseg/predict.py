"""From an image to labels: one scale or several, mirrored or not.

Shared by evaluation and pictures. The functions are plain graph code; `evaluation` and
`visualization` wrap them in a `tf.function`.

Where it is known which classes an image may hold, the others are left out of every arg max and
softmax.

Source: PseudoSeg specification 7; Learning Pseudo Labels specification 4.3 and 4.4.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfseg.errors import check_choice
from tfseg.models.heads import scaled_size
from tfseg.ops.class_aware import mask_absent_logits
from tfseg.ops.resize import rescale_cubic, resize_bilinear, resize_nearest_align_corners

Side = int | tf.Tensor


@dataclasses.dataclass(frozen=True)
class Views:
    """The views in which the network sees an image, and how what it says of them is merged.

    Attributes:
      scales: the image is seen at each of these sizes.
      flip: each is also seen mirrored.
      merge_scales: what is averaged over the views: 'probs' or 'logits'.
      scale_kernel: how the image is scaled: 'bilinear' with aligned corners, to
        trunc((side - 1) scale + 1) pixels; 'cubic' as OpenCV does, to round(side scale) pixels.

    Raises:
      UserError: an unknown kind of merging, or kernel.

    Source: 'logits' and 'cubic': Learning Pseudo Labels specification 4.3.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge_scales: str = "probs"
    scale_kernel: str = "bilinear"

    def __post_init__(self):
        check_choice(self.merge_scales, ("probs", "logits"), flag="merge_scales", what="merging")
        check_choice(self.scale_kernel, ("bilinear", "cubic"), flag="scale_kernel", what="kernel")


ONE_VIEW = Views()


def predict(
    model: Any,
    image: tf.Tensor,
    views: Views = ONE_VIEW,
    *,
    prediction_with_upsampled_logits: bool = True,
    present: tf.Tensor | None = None,
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the class of every pixel.

    Args:
      model: network of `build_model`.
      image: RGB 0..255 [N, H, W, 3].
      views: what the network sees of it.
      prediction_with_upsampled_logits: upsample the logits and take the arg max; False: the
        reverse. With several views it is always the former.
      present: float [N, C], 1 for the classes that may be in an image and 0 for the others, of
        `ops.class_aware.present_classes`; None: all may.
      weight: [N]; rows of weight 0 at the end only fill the batch up, and their result is
        undefined: no work need be done for them.

    Returns:
      int32 [N, H, W].

    Source: `present`: Learning Pseudo Labels specification 4.3.
    """

    def function(*one: tf.Tensor) -> tf.Tensor:
        return _labels(model, views, prediction_with_upsampled_logits, *one)[0]

    return _one_by_one(function, (image, present), tf.int32, weight)


def predict_with_image_logits(
    model: Any,
    image: tf.Tensor,
    views: Views = ONE_VIEW,
    *,
    prediction_with_upsampled_logits: bool = True,
    present: tf.Tensor | None = None,
    weight: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the class of every pixel and the image-level logits of the unscaled image.

    Args:
      model: network with a classifier.
      image, views, prediction_with_upsampled_logits, present, weight: see `predict`. The
        image-level logits are of all classes.

    Returns:
      int32 [N, H, W] and float32 [N, K].
    """

    def function(*one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        labels, logits = _labels(model, views, prediction_with_upsampled_logits, *one)
        return labels, _image_logits(model, one[0]) if logits is None else logits

    return _one_by_one(function, (image, present), (tf.int32, tf.float32), weight)


def predict_probabilities(
    model: Any,
    image: tf.Tensor,
    views: Views = ONE_VIEW,
    *,
    present: tf.Tensor | None = None,
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the probability of every class at every pixel.

    Args:
      model, image, views, present, weight: see `predict`. With merge_scales='probs' it is the mean
        probability over the views, with 'logits' the softmax of the mean logits.

    Returns:
      float32 [N, H, W, C], sums to 1 over the classes of `present`, 0 elsewhere. (The published
      PseudoSeg programs store its softmax, a softmax of a probability; its arg max is the same.)
    """

    def function(*one: tf.Tensor) -> tf.Tensor:
        return _probabilities(model, views, *one)[0]

    return _one_by_one(function, (image, present), tf.float32, weight)


def predict_probabilities_with_image_logits(
    model: Any,
    image: tf.Tensor,
    views: Views = ONE_VIEW,
    *,
    present: tf.Tensor | None = None,
    weight: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the probability of every class, and the image-level logits of the unscaled image.

    Args:
      model: network with a classifier.
      image, views, present, weight: see `predict_probabilities`.

    Returns:
      float32 [N, H, W, C] and float32 [N, K].
    """

    def function(*one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        probs, logits = _probabilities(model, views, *one)
        return probs, _image_logits(model, one[0]) if logits is None else logits

    return _one_by_one(function, (image, present), (tf.float32, tf.float32), weight)


def _one_by_one(
    function: Callable[..., Any],
    inputs: tuple[tf.Tensor, tf.Tensor | None],
    dtypes: Any,
    weight: tf.Tensor | None,
) -> Any:
    """Applies a function of batches to each image alone where there are only CPUs.

    A CPU kernel may cut its work, and so round, differently with the batch size; one image is
    work enough for it, and so results do not depend on the batch size, bit for bit.
    """
    inputs = [x for x in inputs if x is not None]
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return function(*inputs)
    if inputs[0].shape[0] == 1:
        return function(*inputs)

    def of_one(one: list[tf.Tensor]) -> Any:
        batches = [x[tf.newaxis] for x in one]
        return tf.nest.map_structure(lambda x: tf.squeeze(x, 0), function(*batches))

    size = tf.shape(inputs[0])[0]
    count = size
    if weight is not None:
        # At least one, because the shape of no results is not known.
        count = tf.reduce_max(tf.where(tf.not_equal(weight, 0), tf.range(1, size + 1), 1))
    results = tf.map_fn(
        of_one, [x[:count] for x in inputs], parallel_iterations=1, fn_output_signature=dtypes
    )

    def filled_up(x: tf.Tensor) -> tf.Tensor:
        return tf.pad(x, [[0, size - count], *[[0, 0]] * (x.shape.rank - 1)])

    return tf.nest.map_structure(filled_up, results)


def _labels(
    model: Any,
    views: Views,
    prediction_with_upsampled_logits: bool,
    image: tf.Tensor,
    present: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Returns labels, and image-level logits if the unscaled image was seen by a classifier."""
    if views.scales != (1.0,) or views.flip:
        merged, image_logits = _merged(model, views, image, present)
        return _arg_max(merged), image_logits
    outputs = model(image, training=False)
    logits, size = outputs["logits"], _sides(image)
    if prediction_with_upsampled_logits:
        labels = _arg_max(_restricted(resize_bilinear(logits, size), present))
    else:
        labels = resize_nearest_align_corners(_arg_max(_restricted(logits, present)), size)
    return labels, outputs.get("image_logits")


def _probabilities(
    model: Any, views: Views, image: tf.Tensor, present: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Returns probabilities, and image-level logits as `_labels`."""
    merged, image_logits = _merged(model, views, image, present)
    if views.merge_scales == "logits":
        merged = tf.nn.softmax(merged)
    return merged, image_logits


def _image_logits(model: Any, image: tf.Tensor) -> tf.Tensor:
    return model(image, training=False)["image_logits"]


def _restricted(logits: tf.Tensor, present: tf.Tensor | None) -> tf.Tensor:
    """Returns logits among which only those of present classes can win."""
    return logits if present is None else mask_absent_logits(logits, present)


def _arg_max(x: tf.Tensor) -> tf.Tensor:
    return tf.argmax(x, axis=-1, output_type=tf.int32)


def _merged(
    model: Any, views: Views, image: tf.Tensor, present: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Returns the mean of what `views.merge_scales` names, at the image's size."""
    image = tf.cast(image, tf.float32)
    size, total, image_logits = _sides(image), 0.0, None
    for scale in views.scales:
        if views.scale_kernel == "cubic":
            scaled = rescale_cubic(image, scale)
        else:
            scaled = resize_bilinear(image, _scaled(size, scale))
        if views.merge_scales == "logits":
            # The published network gives logits at the size of its input.
            grid = _sides(scaled)
        elif scale < 1.0:
            # The published graph merges logits at no coarser grid than that of the unscaled
            # image, before it upsamples them; the detour changes the values a little.
            grid = _scaled(size, 1.0 / _logits_stride(model.config))
        else:
            grid = None

        def upsampled(logits: tf.Tensor, grid=grid) -> tf.Tensor:
            if grid is not None:
                logits = resize_bilinear(logits, grid)
            logits = resize_bilinear(logits, size)
            if views.merge_scales == "logits":
                return logits
            return tf.nn.softmax(_restricted(logits, present))

        outputs = model(scaled, training=False, input_scale=scale)
        total += upsampled(outputs["logits"])
        if scale == 1.0:
            image_logits = outputs.get("image_logits")
        if views.flip:
            mirrored = model(tf.reverse(scaled, [2]), training=False, input_scale=scale)
            total += upsampled(tf.reverse(mirrored["logits"], [2]))
    mean = total / (len(views.scales) * (2.0 if views.flip else 1.0))
    if views.merge_scales == "logits":
        mean = _restricted(mean, present)
    return mean, image_logits


def _logits_stride(config: Any) -> int:
    """Returns the ratio of image to logits resolution."""
    return min((config.output_stride, *(config.decoder_output_stride or ())))


def _sides(image: tf.Tensor) -> tuple[Side, Side]:
    """Returns height and width: ints where they are known while a graph is built."""
    dynamic = tf.shape(image)
    return tuple(
        dynamic[axis] if image.shape[axis] is None else image.shape[axis] for axis in (1, 2)
    )


def _scaled(size: Sequence[Side], scale: float) -> tuple[Side, Side]:
    """Returns trunc((side - 1) scale + 1) of both sides."""
    return tuple(_scaled_side(side, scale) for side in size)


def _scaled_side(side: Side, scale: float) -> Side:
    if isinstance(side, int):
        return scaled_size(side, scale)
    # The same arithmetic where the side is a tensor.
    return tf.cast(tf.cast(side - 1, tf.float64) * scale + 1.0 + 1e-9, tf.int32)
