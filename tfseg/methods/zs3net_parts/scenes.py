"""The layouts of a step: the images' own, or made ones in which unseen classes stand.

Source: ZS3 specification 4.2, 4.3; without `oracle_layout` ours (`ops.layouts`).
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tfseg.methods import zero_label
from tfseg.methods.zs3net_parts.draws import LAYOUT, MADE
from tfseg.models.layers.dropout import fold_seed
from tfseg.ops import layouts
from tfseg.ops.resize import resize_nearest
from tfseg.settings.methods.zs3net import ZS3NetConfig

_LAYOUTS = {"rename": layouts.rename, "balanced": layouts.balanced}


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The images of a step, as the classifier is to see them.

    Attributes:
      features: float32 [N, h, w, D], without gradient.
      label: int32 [N, h, w], what is known of the image, at the size of its features.
      layout: int32 [N, h, w], the same, or what takes its place.
      target: int32 [N, H, W], the layout at the size of the image.
      synthetic: bool [N], whether the layout holds unseen classes: features are generated.
    """

    features: tf.Tensor
    label: tf.Tensor
    layout: tf.Tensor
    target: tf.Tensor
    synthetic: tf.Tensor


def lay_out(
    features: tf.Tensor,
    label: tf.Tensor,
    seed: tf.Tensor,
    settings: ZS3NetConfig,
    *,
    unseen: Sequence[int],
    foreground: Sequence[int],
) -> Scenes:
    """Gives every image its layout.

    Args:
      features: float32 [N, h, w, D], without gradient.
      label: int32 [N, H, W]; with `oracle_layout` unseen classes stand in it.
      seed: int32 [2], of the step.
      settings: of the method.
      unseen: class ids.
      foreground: seen classes that unseen ones may take the place of.
    """
    layout = label
    if not settings.oracle_layout:
        made = _LAYOUTS[settings.layout](
            label, fold_seed(seed, LAYOUT), unseen=unseen, foreground=foreground
        )
        draw = tf.random.stateless_uniform(label.shape[:1], fold_seed(seed, MADE), alg="philox")
        layout = tf.where((draw < settings.synthetic_share)[:, None, None], made, label)
    size = tuple(features.shape[1:3])
    small, small_layout = (resize_nearest(x, size) for x in (label, layout))
    synthetic = tf.reduce_any(zero_label.among(small_layout, unseen), [1, 2])
    if not settings.oracle_layout:
        # A made layout that is gone at this size is taken back.
        layout = tf.where(synthetic[:, None, None], layout, label)
    return Scenes(features, small, small_layout, layout, synthetic)
