"""One image at a time, so that results on CPUs do not depend on the batch size, bit for bit.

A CPU kernel may divide its work differently for each batch size, and then rounds differently. One
image is work enough for it. A GPU needs the whole batch and gets it. Evaluation and pictures
predict this way; a `Predictor` by itself does not, and so can be exported.
"""

from collections.abc import Callable

import tensorflow as tf

from tfseg.inference.predictor import Prediction, Predictor

BatchPredictor = Callable[[tf.Tensor, tf.Tensor | None, tf.Tensor], Prediction]


def batch_predictor(predictor: Predictor) -> BatchPredictor:
    """Returns how the devices of this host should predict a batch.

    Args:
      predictor: what is predicted.

    Returns:
      A function of images [N, H, W, 3], the classes that may be in each, float [N, C] or None, and
      weights [N]. Rows of weight 0 at the end only fill the batch; their result is undefined.
    """
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return lambda image, present, weight: predictor(image, present)
    return lambda image, present, weight: one_by_one(predictor, image, present, weight)


def one_by_one(
    predictor: Predictor, image: tf.Tensor, present: tf.Tensor | None, weight: tf.Tensor
) -> Prediction:
    """Predicts each image of a batch alone, one after the other; see `batch_predictor`."""
    inputs = [image] if present is None else [image, present]
    if image.shape[0] == 1:
        return predictor(*inputs)
    dtypes = predictor.dtypes

    @tf.autograph.experimental.do_not_convert
    def of_one(one: list[tf.Tensor]) -> list[tf.Tensor]:
        prediction = predictor(*(x[tf.newaxis] for x in one))
        return [tf.squeeze(x, 0) for x in tf.nest.flatten(prediction) if x is not None]

    size = tf.shape(image)[0]
    # At least one, because the shape of no results is not known.
    count = tf.reduce_max(tf.where(tf.not_equal(weight, 0), tf.range(1, size + 1), 1))
    results = tf.map_fn(
        of_one,
        [x[:count] for x in inputs],
        parallel_iterations=1,
        fn_output_signature=[dtype for dtype in tf.nest.flatten(dtypes) if dtype is not None],
    )

    def filled_up(x: tf.Tensor) -> tf.Tensor:
        return tf.pad(x, [[0, size - count], *[[0, 0]] * (x.shape.rank - 1)])

    found = iter([filled_up(x) for x in results])
    return tf.nest.map_structure(lambda dtype: None if dtype is None else next(found), dtypes)
