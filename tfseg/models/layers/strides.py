"""Strides: pooling by 2, and the atrous rates that take the place of strides."""

import tensorflow as tf

from tfseg.ops.shapes import sides


def max_pool(x: tf.Tensor, *, ceil: bool = False) -> tf.Tensor:
    """Takes the maximum of 3x3 windows, stride 2, with a border of one pixel on every side.

    Args:
      x: float [N, h, w, C].
      ceil: sides that are even give h / 2 + 1 values, the last from a window that reaches over the
        border; False: h / 2. Odd sides give (h + 1) / 2.

    Returns:
      [N, h', w', C] in the type of `x`.
    """
    if all(side is not None and side % 2 == 1 for side in x.shape[1:3]):
        return tf.nn.max_pool2d(x, 3, 2, "SAME")
    # SAME would leave out the border above and to the left of even sides, and so sample other
    # positions. The kernel does not take explicit padding on every device.
    after = [1, 1]
    if ceil:
        after = [2 - side % 2 for side in sides(x)]
    lowest = tf.constant(float("-inf"), x.dtype)
    x = tf.pad(x, [[0, 0], *([1, end] for end in after), [0, 0]], constant_values=lowest)
    return tf.nn.max_pool2d(x, 3, 2, "VALID")


class AtrousRate:
    """Turns strides into atrous rates once the wanted output stride is reached.

    Args:
      output_stride: no stride goes beyond it.
      current: stride of what comes before.

    Source: PseudoSeg specification 4.2: a stride that is dropped multiplies the rate of the units
    that follow, not of the unit that had it.
    """

    def __init__(self, output_stride: int, current: int = 1):
        self._output_stride, self.current, self.rate = output_stride, current, 1

    def next(self, stride: int) -> tuple[int, int]:
        """Returns (stride, rate) for a unit that would have `stride`."""
        rate = self.rate
        if stride > 1 and self.current == self._output_stride:
            self.rate *= stride
            return 1, rate
        self.current *= stride
        return stride, rate
