"""FixMatch for segmentation, as UniMatch's authors have it.

1. The network, in evaluation mode, predicts a second crop of the same image, which is the donor.
2. Labelled images and weak views pass the network together, in training mode. The predictions of
   the weak views are the pseudo labels.
3. The strong view, with the donor's rectangle in it, learns the pseudo labels.

Source: Sohn et al., "FixMatch", NeurIPS 2020; UniMatch specification 3.
"""

import tensorflow as tf

from tfseg.data.stream import Stream
from tfseg.methods.base import Batch
from tfseg.methods.weak_to_strong import Mixed, WeakToStrong
from tfseg.models.layers.dropout import fold_seed
from tfseg.monitors import Monitors
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.weak_to_strong import FixMatchConfig
from tfseg.settings.run import TrainConfig

# Each pass draws its own dropout.
WEAK, STRONG, FEATURES = range(3)


class FixMatch(WeakToStrong):
    """One strong view; the network is its own teacher."""

    Config = FixMatchConfig
    strong_views = 1

    @classmethod
    def streams(cls, data: DataConfig, train: TrainConfig, settings=None) -> dict[str, Stream]:
        streams = super().streams(data, train, settings)
        of_crop = train.weakly and data.image_label_source == "crop"
        # The same images in the same order, augmented anew.
        streams["donor"] = Stream(
            split=data.train_split_cls,
            batch_size=train.train_batch_size,
            strong_views=cls.strong_views,
            labels="hidden" if of_crop else "none",
            image_labels=data.image_label_source if train.weakly else "none",
            dataset_dir=data.dataset_dir_cls,
            order_of="unlabelled",
        )
        return streams

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        labelled, own = batch["labelled"], batch["unlabelled"]
        views, labelled_logits, strong_logits, guess = self.passes(batch, seed)
        self.monitor(monitors, guess, own, strong_logits[0], views)
        weight = self.unlabelled_weight(step)
        strong = tf.add_n(
            [self.guess_loss(logits, view) for logits, view in zip(strong_logits, views)]
        )
        self.follow(guess, labelled)
        return {
            "segmentation": 0.5 * self.labelled_loss(labelled_logits, labelled["label"]),
            "strong": 0.5 * weight * strong,
        }

    def passes(self, batch: Batch, seed: tf.Tensor):
        """Runs the network; returns strong views, logits of masks and views, and the guess."""
        labelled, own, donor = batch["labelled"], batch["unlabelled"], batch["donor"]
        donor_guess = self.guess_of_donor(donor)
        image = tf.concat([labelled["image"], own["image"]], 0)
        logits = self.model(image, training=True, dropout_seed=fold_seed(seed, WEAK))["logits"]
        logits = self.logits_of(logits, image)
        size = labelled["image"].shape[0]
        guess = self.guess(logits[size:], own)
        views = self.mixed_views(own, donor, guess, donor_guess)
        return views, logits[:size], self.strong_logits(views, seed), guess

    def guess_of_donor(self, donor):
        """Returns the prediction for the donor's weak view; the network is in evaluation mode."""
        logits = self.model(donor["image"], training=False)["logits"]
        return self.guess(self.logits_of(logits, donor["image"]), donor)

    def strong_logits(self, views: list[Mixed], seed: tf.Tensor) -> list[tf.Tensor]:
        """Returns float32 logits of each strong view; all pass the network together."""
        image = tf.concat([view.image for view in views], 0)
        logits = self.model(image, training=True, dropout_seed=fold_seed(seed, STRONG))["logits"]
        return tf.split(self.logits_of(logits, image), len(views))
