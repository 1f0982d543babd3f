"""From an image to labels: one scale or several, mirrored or not.

Shared by evaluation and pictures. The functions are plain graph code; `evaluation` and
`visualization` wrap them in a `tf.function`.

Source: PseudoSeg specification 7.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfseg.models.heads import scaled_size
from tfseg.ops.resize import resize_bilinear, resize_nearest_align_corners

Side = int | tf.Tensor


def predict(
    model: Any,
    image: tf.Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    prediction_with_upsampled_logits: bool = True,
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the class of every pixel.

    Args:
      model: network of `build_model`.
      image: RGB 0..255 [N, H, W, 3].
      scales: the image is seen at each of these sizes.
      flip: each is also seen mirrored.
      prediction_with_upsampled_logits: upsample the logits and take the arg max; False: the
        reverse. With several scales or `flip` it is always the former.
      weight: [N]; rows of weight 0 at the end only fill the batch up, and their result is
        undefined: no work need be done for them.

    Returns:
      int32 [N, H, W].
    """
    options = {
        "scales": scales,
        "flip": flip,
        "prediction_with_upsampled_logits": prediction_with_upsampled_logits,
    }
    return _one_by_one(lambda one: _labels(model, one, **options)[0], image, tf.int32, weight)


def predict_with_image_logits(
    model: Any,
    image: tf.Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    prediction_with_upsampled_logits: bool = True,
    weight: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the class of every pixel and the image-level logits of the unscaled image.

    Args:
      model: network with a classifier.
      image, scales, flip, prediction_with_upsampled_logits, weight: see `predict`.

    Returns:
      int32 [N, H, W] and float32 [N, K].
    """

    def function(one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        labels, image_logits = _labels(
            model,
            one,
            scales=scales,
            flip=flip,
            prediction_with_upsampled_logits=prediction_with_upsampled_logits,
        )
        if image_logits is None:
            image_logits = model(one, training=False)["image_logits"]
        return labels, image_logits

    return _one_by_one(function, image, (tf.int32, tf.float32), weight)


def predict_probabilities(
    model: Any, image: tf.Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False
) -> tf.Tensor:
    """Returns the mean class probability of every pixel over scales and mirror images.

    Args:
      model, image, scales, flip: see `predict`.

    Returns:
      float32 [N, H, W, C], sums to 1. (The published programs store its softmax, a softmax of
      a probability; its arg max is the same.)
    """
    return _one_by_one(
        lambda one: _mean_probability(model, one, scales, flip)[0], image, tf.float32, None
    )


def _one_by_one(
    function: Callable[[tf.Tensor], Any], image: tf.Tensor, dtypes: Any, weight: tf.Tensor | None
) -> Any:
    """Applies a function of batches to each image alone where there are only CPUs.

    A CPU kernel may cut its work, and so round, differently with the batch size; one image is
    work enough for it, and so results do not depend on the batch size, bit for bit.
    """
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return function(image)
    if image.shape[0] == 1:
        return function(image)

    def of_one(one: tf.Tensor) -> Any:
        return tf.nest.map_structure(lambda x: tf.squeeze(x, 0), function(one[tf.newaxis]))

    size = tf.shape(image)[0]
    count = size
    if weight is not None:
        # At least one, because the shape of no results is not known.
        count = tf.reduce_max(tf.where(tf.not_equal(weight, 0), tf.range(1, size + 1), 1))
    results = tf.map_fn(of_one, image[:count], parallel_iterations=1, fn_output_signature=dtypes)

    def filled_up(x: tf.Tensor) -> tf.Tensor:
        return tf.pad(x, [[0, size - count], *[[0, 0]] * (x.shape.rank - 1)])

    return tf.nest.map_structure(filled_up, results)


def _labels(
    model: Any,
    image: tf.Tensor,
    *,
    scales: Sequence[float],
    flip: bool,
    prediction_with_upsampled_logits: bool,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Returns labels, and image-level logits if the unscaled image was seen by a classifier."""
    if tuple(scales) != (1.0,) or flip:
        mean, image_logits = _mean_probability(model, image, scales, flip)
        return _arg_max(mean), image_logits
    outputs = model(image, training=False)
    logits, size = outputs["logits"], _sides(image)
    if prediction_with_upsampled_logits:
        labels = _arg_max(resize_bilinear(logits, size))
    else:
        labels = resize_nearest_align_corners(_arg_max(logits), size)
    return labels, outputs.get("image_logits")


def _arg_max(x: tf.Tensor) -> tf.Tensor:
    return tf.argmax(x, axis=-1, output_type=tf.int32)


def _mean_probability(
    model: Any, image: tf.Tensor, scales: Sequence[float], flip: bool
) -> tuple[tf.Tensor, tf.Tensor | None]:
    image = tf.cast(image, tf.float32)
    size, total, image_logits = _sides(image), 0.0, None
    for scale in scales:
        scaled = resize_bilinear(image, _scaled(size, scale))
        grid = None
        if scale < 1.0:
            # The published graph merges logits at no coarser grid than that of the unscaled
            # image, before it upsamples them; the detour changes the values a little.
            grid = _scaled(size, 1.0 / _logits_stride(model.config))
        outputs = model(scaled, training=False, input_scale=scale)
        total += _upsampled_probability(outputs["logits"], grid, size)
        if scale == 1.0:
            image_logits = outputs.get("image_logits")
        if flip:
            mirrored = model(tf.reverse(scaled, [2]), training=False, input_scale=scale)
            logits = tf.reverse(mirrored["logits"], [2])
            total += _upsampled_probability(logits, grid, size)
    return total / (len(scales) * (2.0 if flip else 1.0)), image_logits


def _upsampled_probability(
    logits: tf.Tensor, grid: Sequence[Side] | None, size: Sequence[Side]
) -> tf.Tensor:
    if grid is not None:
        logits = resize_bilinear(logits, grid)
    return tf.nn.softmax(resize_bilinear(logits, size))


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
