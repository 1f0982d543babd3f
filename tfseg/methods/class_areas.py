"""The area that classes take, in masks and in predictions, over the last steps of a run."""

import tensorflow as tf

from tfseg.methods import running
from tfseg.ops import distribution_alignment

# Share of the running means that a step keeps: they cover some 100 steps.
_KEPT = 0.99


class ClassAreas(tf.Module):
    """Aligns predictions to the masks (`ops.distribution_alignment`).

    Args:
      num_classes: C.
      ignore_label: of pixels of masks that do not count.
      parts: batches that make a step together (`--gradient_accumulation_steps`).
    """

    def __init__(self, num_classes: int, *, ignore_label: int, parts: int):
        super().__init__(name="class_areas")
        self._ignore_label = ignore_label
        self._kept = running.kept_by_part(_KEPT, parts)
        self.means = running.variable(tf.zeros([2, 2, num_classes]), name="class_areas")

    def align(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns aligned logits, float32 [N, H, W, C]."""
        of_masks, of_predictions = tf.unstack(tf.convert_to_tensor(self.means))
        return distribution_alignment.align(
            logits, distribution_alignment.factors(of_masks, of_predictions)
        )

    def follow(
        self,
        label: tf.Tensor,
        area: tf.Tensor,
        *,
        in_masks: tf.Tensor | None,
        in_predictions: tf.Tensor | None,
    ) -> None:
        """Moves the running means towards those of a batch.

        Args:
          label: int32 [N, H, W], masks.
          area: float32 [M, C], areas that were predicted, before alignment.
          in_masks, in_predictions: float32 [N, C] and [M, C], classes that the images behind
            `label` and `area` show, by their image-level labels; None: every class counts in every
            image. Both are of whole images, of which the batch may hold crops: a class that one
            crop lacks is rarer in both means.
        """
        known = tf.cast(tf.not_equal(label, self._ignore_label), tf.float32)
        of_masks = distribution_alignment.areas(tf.one_hot(label, area.shape[-1]), known)
        if in_masks is None or in_predictions is None:
            in_masks, in_predictions = tf.ones_like(of_masks), tf.ones_like(area)
        found = tf.stack(
            [
                distribution_alignment.area_means(of_masks, in_masks),
                distribution_alignment.area_means(area, in_predictions),
            ]
        )
        found = running.over_replicas(found, tf.distribute.ReduceOp.MEAN)
        before = tf.convert_to_tensor(self.means)
        self.means.assign(self._kept * before + (1.0 - self._kept) * found)
