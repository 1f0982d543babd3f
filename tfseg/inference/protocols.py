"""The published evaluations of UniMatch and its second version: windows, and whole patches.

Both wrap a network. They are called like a network (by `merge.look`) and return logits at the size
of the image.

Source: UniMatch specification 7.
"""

from typing import Any

import tensorflow as tf

from tfseg.errors import UserError
from tfseg.ops.resize import resize_bilinear
from tfseg.ops.shapes import Side, sides
from tfseg.settings.prediction import PredictionConfig

# So that the logarithm of a probability that float32 cannot hold is finite.
_TINY = 1e-38


class SlidingWindow:
    """A network that sees an image through windows, two thirds of their side apart.

    Args:
      model: network of `build_model`.
      window: side of the windows in pixels.
      border: 'cut': windows end where the image does, as in UniMatch; 'shift': the last one is
        moved back into the image, as in UniMatch V2. A side shorter than the window is one window.
    """

    def __init__(self, model: Any, *, window: int, border: str):
        self._model, self._window, self._border = model, window, border

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _places(self, side: Side) -> tuple[Side, Any]:
        """Returns the number of windows along a side, and from number to (start, end)."""
        window, stride = self._window, self._window * 2 // 3
        if self._border == "cut":
            return -(-side // stride), lambda i: (
                i * stride,
                tf.minimum(i * stride + window, side),
            )
        room = tf.maximum(side - window, 0)

        def place(i):
            start = tf.minimum(i * stride, room)
            return start, tf.minimum(start + window, side)

        return 1 - (-room // stride), place

    def probabilities(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Adds up the network's probabilities in all windows.

        Args:
          image: RGB 0..255 [N, H, W, 3].

        Returns:
          The sum of the probabilities, float32 [N, H, W, C], and the windows that see each pixel,
          float32 [1, H, W, 1].
        """
        height, width = sides(image)
        (rows, row_at), (columns, column_at) = self._places(height), self._places(width)
        classes = self._model.num_classes

        def add(i, total, count):
            top, bottom = row_at(i // columns)
            left, right = column_at(i % columns)
            part = image[:, top:bottom, left:right]
            logits = self._model(part, training=False)["logits"]
            logits = resize_bilinear(tf.cast(logits, tf.float32), sides(part))
            around = [[0, 0], [top, height - bottom], [left, width - right], [0, 0]]
            seen = tf.pad(tf.ones([1, bottom - top, right - left, 1]), around)
            total = tf.ensure_shape(
                total + tf.pad(tf.nn.softmax(logits), around), [None, None, None, classes]
            )
            return i + 1, total, tf.ensure_shape(count + seen, [1, None, None, 1])

        shape = tf.stack([tf.shape(image)[0], height, width, classes])
        unknown = tf.TensorShape([None, None, None, classes])
        _, total, count = tf.while_loop(
            lambda i, *_: i < rows * columns,
            add,
            (tf.constant(0), tf.zeros(shape), tf.zeros([1, height, width, 1])),
            shape_invariants=(tf.TensorShape([]), unknown, tf.TensorShape([1, None, None, 1])),
            parallel_iterations=1,
        )
        of_image = [*image.shape[:3], classes]
        return tf.ensure_shape(total, of_image), tf.ensure_shape(count, [1, *of_image[1:3], 1])

    def __call__(self, image: tf.Tensor, training: bool = False, **options: Any):
        """Returns 'logits': the logarithm of the mean probability over the windows of a pixel."""
        total, count = self.probabilities(image)
        return {"logits": tf.math.log(tf.maximum(total / count, _TINY))}


class WholePatches:
    """A network that sees an image after its sides were brought to multiples of a patch.

    The nearest ones, halves up, bilinear with aligned corners; logits are resized back likewise.

    Args:
      model: network of `build_model`.
      multiple: side of a patch in pixels.
    """

    def __init__(self, model: Any, *, multiple: int):
        self._model, self._multiple = model, multiple

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _rounded(self, side: Side) -> Side:
        number = (2 * side + self._multiple) // (2 * self._multiple)
        return self._multiple * (max(number, 1) if isinstance(side, int) else tf.maximum(number, 1))

    def size(self, image: tf.Tensor) -> tuple[Side, Side]:
        """Returns the height and width at which the network sees an image."""
        height, width = (self._rounded(side) for side in sides(image))
        return height, width

    def __call__(self, image: tf.Tensor, training: bool = False, **options: Any):
        """Returns what the network does, its logits at the size of the image."""
        resized = resize_bilinear(tf.cast(image, tf.float32), self.size(image))
        outputs = self._model(resized, training=training, **options)
        logits = resize_bilinear(tf.cast(outputs["logits"], tf.float32), sides(resized))
        return {**outputs, "logits": resize_bilinear(logits, sides(image))}


def wrapped(model: Any, config: PredictionConfig) -> Any:
    """Returns the network, wrapped as the settings say.

    Raises:
      UserError: see `check`.
    """
    check(config)
    if config.sliding_window is not None:
        return SlidingWindow(model, window=config.sliding_window, border=config.window_border)
    if config.input_multiple is not None:
        return WholePatches(model, multiple=config.input_multiple)
    return model


def is_chosen(config: PredictionConfig) -> bool:
    """Whether images are seen in one of these ways, and so without padding."""
    return config.sliding_window is not None or config.input_multiple is not None


def check(config: PredictionConfig) -> None:
    """Insists on images in their own size.

    Raises:
      UserError: they are padded, or seen in two of these ways, or the image as a whole is needed.
    """
    chosen = {
        f"--{name}": getattr(config, name)
        for name in ("sliding_window", "input_multiple")
        if getattr(config, name) is not None
    }
    if not chosen:
        return
    flag, value = next(iter(chosen.items()))
    if len(chosen) > 1:
        raise UserError(
            "--sliding_window and --input_multiple cannot be used together.",
            where=", ".join(chosen),
            fix="leave out one of them",
        )
    crop = "vis_crop_size" if hasattr(config, "vis_crop_size") else "eval_crop_size"
    size = getattr(config, crop, None)
    if size is not None and tuple(size) != (0, 0):
        raise UserError(
            f"{flag} needs images without padding.",
            where=f"--{crop}",
            received=",".join(map(str, size)),
            accepted="0,0",
            fix=f"leave out --{crop}, or {flag}={value}",
        )
    if config.tile_size is not None:
        raise UserError(
            f"{flag} and --tile_size cannot be used together.",
            where=f"{flag}, --tile_size",
            fix="leave out one of them",
        )
    if config.sliding_window is not None and getattr(config, "weakly", False):
        raise UserError(
            "Image-level scores need the whole image and cannot be used with windows.",
            where="--sliding_window, --weakly",
            fix="leave out one of them",
        )
