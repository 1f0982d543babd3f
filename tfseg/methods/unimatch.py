"""UniMatch: FixMatch with two strong views, and a third pass with dropped features.

1. The network, in evaluation mode, predicts a second crop of the same image, which is the donor.
2. Labelled images and weak views pass the backbone together. The decoder sees their features, and
   the same features again with half of the channels dropped. (So batch norm of the decoder also
   sees the dropped copies. Those of labelled images have no loss.)
3. The two strong views, with the donor's rectangles in them, pass the network together.
4. Strong views and dropped features learn the weak views' pseudo labels.

Source: Yang et al., "Revisiting weak-to-strong consistency in semi-supervised semantic
segmentation", CVPR 2023; UniMatch specification 3.
"""

import tensorflow as tf

from tfseg.methods.base import Batch
from tfseg.methods.fixmatch import FEATURES, WEAK, FixMatch
from tfseg.models.backbones.base import EndPoints
from tfseg.models.layers.dropout import Dropout, fold_seed
from tfseg.monitors import Monitors
from tfseg.settings.methods.weak_to_strong import UniMatchConfig


class UniMatch(FixMatch):
    """Two strong views and feature dropout; the network is its own teacher."""

    Config = UniMatchConfig
    strong_views = 2

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        labelled, own, donor = batch["labelled"], batch["unlabelled"], batch["donor"]
        donor_guess = self.guess_of_donor(donor)
        labelled_logits, weak_logits, dropped_logits = self._weak_pass(
            labelled["image"], own["image"], seed
        )
        guess = self.guess(weak_logits, own)
        views = self.mixed_views(own, donor, guess, donor_guess)
        strong_logits = self.strong_logits(views, seed)
        first, second = (
            self.guess_loss(logits, view) for logits, view in zip(strong_logits, views)
        )
        self.monitor(monitors, guess, own, strong_logits[0], views)
        weight = self.unlabelled_weight(step)
        result = {
            "segmentation": 0.5 * self.labelled_loss(labelled_logits, labelled["label"]),
            "strong": 0.125 * weight * (first + second),
            "dropped_features": 0.25 * weight * self.guess_loss(dropped_logits, guess),
        }
        self.follow(guess, labelled)
        return result

    def _weak_pass(
        self, labelled: tf.Tensor, weak: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns float32 logits of labelled images, weak views, and of those with dropped
        features."""
        image = tf.concat([labelled, weak], 0)
        seed = fold_seed(seed, WEAK)
        ends = self.model.encode(image, training=True, dropout_seed=seed)
        doubled = {
            name: tf.concat([ends[name], dropped], 0)
            for name, dropped in self.dropped_features(ends, fold_seed(seed, FEATURES)).items()
        }
        outputs = self.model.decode({**ends, **doubled}, training=True, dropout_seed=seed)
        logits = self.logits_of(outputs["logits"], image)
        sizes = [labelled.shape[0], weak.shape[0]]
        of_labelled, of_weak, _, of_dropped = tf.split(logits, sizes * 2)
        return of_labelled, of_weak, of_dropped

    def dropped_features(self, ends: EndPoints, seed: tf.Tensor) -> EndPoints:
        """Returns what the decoder reads, each channel of an image as a whole kept or dropped."""
        return {
            name: Dropout(f"unimatch/{name}", self.settings.feature_dropout, whole_channels=True)(
                ends[name], training=True, dropout_seed=seed
            )
            for name in self.model.decoder_inputs
        }
