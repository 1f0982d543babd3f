"""FixMatch with an averaged teacher, as the authors of UniMatch V2 have it.

1. The teacher, a moving average of the network, predicts the weak views.
2. The donor of an image is the image at the mirrored place of the batch. A rectangle of it is
   pasted into each strong view.
3. Labelled images and strong views pass the network together.

The average starts as a copy of the network. After the first step nothing of this copy is left. It
is deployed with --network=ema.

Source: UniMatch specification 4.
"""

import tensorflow as tf

from tfseg.methods import teacher
from tfseg.methods.base import Batch
from tfseg.methods.weak_to_strong import Mixed, WeakToStrong
from tfseg.models.layers.dropout import fold_seed
from tfseg.monitors import Monitors
from tfseg.settings.methods.weak_to_strong import FixMatchV2Config

LABELLED, STRONG, MASKS = range(3)


class FixMatchV2(WeakToStrong):
    """One strong view; the teacher is a moving average of the network."""

    Config = FixMatchV2Config
    strong_views = 1

    def __init__(self, *, build_model, **options):
        super().__init__(build_model=build_model, **options)
        self.teacher = build_model(name="ema")
        self.teacher.trainable = False

    def networks(self):
        return {"model": self.model, "ema": self.teacher}

    def teaching_network(self):
        return self.teacher

    def begin(self) -> None:
        """Makes the teacher a copy of the network."""
        teacher.copy(self.model, to=self.teacher)

    def after_update(self, step: tf.Tensor) -> None:
        """Moves the teacher towards the network."""
        teacher.follow(
            self.teacher,
            self.model,
            decay=teacher.running_mean_up_to(self.settings.teacher_decay),
            step=step,
        )

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        labelled, own = batch["labelled"], batch["unlabelled"]
        logits = self.teacher(own["image"], training=False)["logits"]
        guess = self.guess(self.logits_of(logits, own["image"]), own)
        donor = {name: tf.reverse(own[name], [0]) for name in own if name.startswith("image")}
        views = self.mixed_views(own, donor, guess, guess.reversed())
        labelled_logits, strong_logits = self.passes(labelled["image"], views, seed)
        self.monitor(monitors, guess, own, strong_logits[0], views)
        losses = [self.guess_loss(logits, view) for logits, view in zip(strong_logits, views)]
        weight = self.unlabelled_weight(step)
        self.follow(guess, labelled)
        return {
            "segmentation": 0.5 * self.labelled_loss(labelled_logits, labelled["label"]),
            "strong": 0.5 * weight * tf.add_n(losses) / len(losses),
        }

    def passes(
        self, labelled: tf.Tensor, views: list[Mixed], seed: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns float32 logits of labelled images and of each strong view."""
        image = tf.concat([labelled, *(view.image for view in views)], 0)
        logits = self.model(image, training=True, dropout_seed=fold_seed(seed, STRONG))["logits"]
        of_labelled, *of_views = tf.split(
            self.logits_of(logits, image),
            [labelled.shape[0], *(view.image.shape[0] for view in views)],
        )
        return of_labelled, of_views
