"""A network that is only evaluated: its batch norms are part of the convolutions before them.

In evaluation batch norm multiplies each channel by a number and adds another one. A convolution's
kernel can do the first, and its bias the second. Where a 1x1 convolution follows a depthwise one at
once, its bias does the second for both. What is left of a batch norm without a convolution before
it is a product and a sum.
"""

from typing import Any

import tensorflow as tf

from tfseg.models.layers.batch_norm import Affine, BatchNorm
from tfseg.models.layers.convolutions import DepthwiseConv2D
from tfseg.models.layers.units import ConvBatchNorm, Folded, SeparableConv


class FoldedNetwork:
    """A network in evaluation, without batch norm.

    It has all of the network's attributes. The network itself stays as it is; what is folded is its
    weights of the last `refresh`.

    Args:
      network: of `build_model`, made under the scope of the strategy that evaluates it.

    Attributes:
      is_folded: true; its graphs are to run in `kernels.fusing`.
    """

    is_folded = True

    def __init__(self, network: Any):
        self._network = network
        self._units = [x for x in network.submodules if isinstance(x, ConvBatchNorm)]
        folded_norms = {id(unit.norm) for unit in self._units}
        self._norms = [
            x for x in network.submodules if isinstance(x, BatchNorm) and id(x) not in folded_norms
        ]
        # Depthwise units by the pointwise ones behind them, which add for both.
        self._before = {
            id(x.pointwise): x.depthwise
            for x in network.submodules
            if isinstance(x, SeparableConv) and x.depthwise.activation is None
        }
        adds_later = {id(unit) for unit in self._before.values()}
        self._folded = [_folded(unit, id(unit) not in adds_later) for unit in self._units]
        self._affine = [_affine(norm) for norm in self._norms]
        self.refresh()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def refresh(self) -> None:
        """Folds the network's present weights."""
        for unit, folded in zip(self._units, self._folded):
            kernel, bias = _kernel_and_bias(unit)
            before = self._before.get(id(unit))
            if before is not None:
                added = _kernel_and_bias(before)[1]
                bias += tf.linalg.matvec(kernel[0, 0], added, transpose_a=True)
            folded.kernel.assign(tf.cast(kernel, folded.kernel.dtype))
            if folded.bias is not None:
                folded.bias.assign(tf.cast(bias, folded.bias.dtype))
        for norm, affine in zip(self._norms, self._affine):
            scale, shift = norm.scale_and_shift()
            affine.scale.assign(scale)
            affine.shift.assign(shift)

    def __call__(self, image: tf.Tensor, training: bool = False, **options: Any) -> Any:
        """Does what the network does with `training=False`."""
        try:
            for unit, folded in zip(self._units, self._folded):
                unit.folded = folded
            for norm, affine in zip(self._norms, self._affine):
                norm.affine = affine
            return self._network(image, training=False, **options)
        finally:
            for unit in self._units:
                unit.folded = None
            for norm in self._norms:
                norm.affine = None


def _folded(unit: ConvBatchNorm, has_bias: bool) -> Folded:
    dtype = unit.convolution.compute_type
    kernel = tf.Variable(tf.zeros(unit.convolution.kernel.shape, dtype), trainable=False)
    bias = tf.Variable(tf.zeros([unit.out_channels], dtype), trainable=False) if has_bias else None
    return Folded(kernel, bias)


def _affine(norm: BatchNorm) -> Affine:
    shape = norm.moving_mean.shape
    return Affine(*(tf.Variable(tf.zeros(shape), trainable=False) for _ in range(2)))


def _kernel_and_bias(unit: ConvBatchNorm) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns kernel and bias that do a unit's convolution and batch norm, float32."""
    scale, shift = unit.norm.scale_and_shift()
    # The channels that a depthwise kernel gives are its third axis.
    by_channel = scale[:, tf.newaxis] if isinstance(unit.convolution, DepthwiseConv2D) else scale
    return unit.convolution.kernel * by_channel, shift
