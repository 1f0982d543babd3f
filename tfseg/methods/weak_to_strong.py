"""What FixMatch, UniMatch and their second versions share.

A network predicts the weak view of an image without a mask. Where it is sure, its prediction is the
pseudo label of strong views of the same crop. A rectangle of another image, the donor, is pasted
into each strong view (CutMix), and its pseudo label too. The network also learns from the masks of
the labelled images. A method decides which network makes the pseudo labels, which image is the
donor, and which passes the network makes.

Five things are ours and have flags. With --weakly, classes that an image is known not to show
cannot be its pseudo label; the foreground classes that it shows get their probability. With
--strong_loss=class_aware they take no part in the loss of its strong views either; a pasted
rectangle has the classes of the donor. With --class_thresholds=balanced a class needs less
confidence if the network is less sure of it. With --distribution_alignment a class takes as much
of the pseudo labels as of the masks, on average. The losses of images without masks can have
another weight, which may rise (--unlabeled_weight).

Source: Yang et al., "Revisiting weak-to-strong consistency in semi-supervised semantic
segmentation", CVPR 2023, and "UniMatch V2", TPAMI 2025; UniMatch specification 2 to 4. Ours: a
batch without a pixel that counts has a loss of 0, theirs is not a number; batches run on over the
end of an epoch, theirs dropped the rest.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfseg.data.stream import Stream, strong_keys
from tfseg.errors import UserError
from tfseg.methods import running
from tfseg.methods.base import Batch, Method, ParamGroup, new_layers_groups
from tfseg.methods.class_areas import ClassAreas
from tfseg.monitors import Monitors
from tfseg.ops import class_aware, cutmix, distribution_alignment, hard_examples
from tfseg.ops import losses as loss_ops
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.weak_to_strong import WeakToStrongConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig


@dataclasses.dataclass(frozen=True)
class Guess:
    """A network's prediction for a batch of weak views, without gradient.

    Attributes:
      label: int32 [N, H, W], the likeliest class.
      confidence: float32 [N, H, W], its probability.
      valid: float32 [N, H, W], 0 in padding.
      present: float32 [N, C], the classes that each image may show; None: all.
      area: float32 [N, C], the share that each class takes of the image, before alignment; None
        without --distribution_alignment.
    """

    label: tf.Tensor
    confidence: tf.Tensor
    valid: tf.Tensor
    present: tf.Tensor | None
    area: tf.Tensor | None = None

    def reversed(self) -> "Guess":
        """Returns the same with the images in reverse order."""
        return Guess(
            *(None if x is None else tf.reverse(x, [0]) for x in vars(self).values()),
        )


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A strong view after CutMix, and what it should show.

    Attributes:
      image: RGB 0..255 [N, H, W, 3].
      own, donor: guesses of the two images.
      inside: bool [N, H, W], pixels of the donor.
    """

    image: tf.Tensor
    own: Guess
    donor: Guess
    inside: tf.Tensor

    def _of(self, name: str) -> tf.Tensor:
        return cutmix.paste(getattr(self.own, name), getattr(self.donor, name), self.inside)

    @property
    def label(self) -> tf.Tensor:
        """Pseudo label, int32 [N, H, W]."""
        return self._of("label")

    @property
    def confidence(self) -> tf.Tensor:
        """Of the pseudo label, float32 [N, H, W]."""
        return self._of("confidence")

    @property
    def valid(self) -> tf.Tensor:
        """0 in padding, float32 [N, H, W]."""
        return self._of("valid")


class WeakToStrong(Method):
    """Base of the methods that learn strong views from weak ones."""

    Config = WeakToStrongConfig
    heads = ("deeplab", "dpt")
    strong_views = 2

    def __init__(self, **options):
        super().__init__(**options)
        self.class_confidence = None
        if self.settings.class_thresholds == "balanced":
            self.class_confidence = running.variable(
                tf.ones([self.spec.num_classes]), name="class_confidence"
            )
        self.class_areas = None
        if self.settings.distribution_alignment:
            self.class_areas = ClassAreas(
                self.spec.num_classes,
                ignore_label=self.spec.ignore_label,
                parts=self.config.gradient_accumulation_steps,
            )
        self._check()

    def _check(self) -> None:
        settings = self.settings
        if settings.strong_loss == "class_aware" and not self.config.weakly:
            raise UserError(
                "Without image-level labels no class is known to be absent.",
                where="--strong_loss",
                received=settings.strong_loss,
                accepted="plain, or class_aware with --weakly",
            )
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        counted = {
            "--class_thresholds=balanced": self.class_confidence,
            "--distribution_alignment": self.class_areas,
        }
        for flag, kept in counted.items():
            if self.config.jit_compile and replicas > 1 and kept is not None:
                raise UserError(
                    f"{flag} cannot be compiled on several replicas.",
                    where="--jit_compile",
                    received=f"{replicas} replicas",
                    fix="leave it out, or use one replica",
                )

    @classmethod
    def network_config(cls, config: ModelConfig, settings: Any) -> ModelConfig:
        """See the base.

        Raises:
          UserError: the network sees images at several scales, or has another head.
        """
        if tuple(config.image_pyramid or (1.0,)) != (1.0,):
            raise UserError(
                "This method works with images at one scale.",
                where="--image_pyramid",
                received=", ".join(map(str, config.image_pyramid)),
                accepted="1.0",
                fix="leave it out",
            )
        return super().network_config(config, settings)

    @classmethod
    def streams(cls, data: DataConfig, train: TrainConfig, settings=None) -> dict[str, Stream]:
        image_labels = data.image_label_source if train.weakly else "none"
        aligned = settings is not None and settings.distribution_alignment
        return {
            # Image j of the second split always comes with image j modulo n of the first.
            "labelled": Stream(
                split=data.train_split,
                batch_size=train.train_batch_size,
                labels="required",
                # Alignment compares the images of both streams that show a class.
                image_labels=image_labels if aligned else "none",
                order_of="unlabelled",
            ),
            "unlabelled": Stream(
                split=data.train_split_cls,
                batch_size=train.train_batch_size,
                strong_views=cls.strong_views,
                boxes=True,
                labels="hidden",
                image_labels=image_labels,
                dataset_dir=data.dataset_dir_cls,
            ),
        }

    # Pseudo labels -------------------------------------------------------------------------------

    def logits_of(self, logits: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """Returns float32 logits at the size of the image."""
        return resize_bilinear(tf.cast(logits, tf.float32), image.shape[1:3])

    def guess(self, logits: tf.Tensor, stream: dict[str, tf.Tensor]) -> Guess:
        """Returns the prediction that logits make for a stream's weak view.

        Args:
          logits: float32 [N, H, W, C].
          stream: its batch.
        """
        logits, present = self._among_present(tf.stop_gradient(logits), stream)
        area = None
        if self.class_areas is not None:
            area = distribution_alignment.areas(tf.nn.softmax(logits), stream["valid"])
        logits = self._aligned(logits)
        return Guess(
            tf.argmax(logits, -1, output_type=tf.int32),
            tf.reduce_max(tf.nn.softmax(logits), -1),
            stream["valid"],
            present,
            area,
        )

    def _among_present(
        self, logits: tf.Tensor, stream: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns logits without the classes that an image is known not to show, and the others."""
        present = self._present(stream)
        if present is None:
            return logits, None
        moved = class_aware.move_absent_to_present(
            logits, present, has_background=self.spec.has_background
        )
        return moved, present

    def _present(self, stream: dict[str, tf.Tensor]) -> tf.Tensor | None:
        """Returns the classes that a stream's images may show, float32 [N, C]; None: not known."""
        if not self.config.weakly:
            return None
        return class_aware.present_classes(
            stream["image_label"], has_background=self.spec.has_background
        )

    def _aligned(self, logits: tf.Tensor) -> tf.Tensor:
        return logits if self.class_areas is None else self.class_areas.align(logits)

    def mixed_views(
        self,
        own: dict[str, tf.Tensor],
        donor: dict[str, tf.Tensor],
        guess: Guess,
        donor_guess: Guess,
    ) -> list[Mixed]:
        """Returns the strong views with the donor's rectangles in them.

        Args:
          own: batch of the images; its boxes say where the donor is pasted.
          donor: batch of as many others.
          guess, donor_guess: of the two.
        """
        size = tuple(own["image"].shape[1:3])
        views = []
        for i, key in enumerate(strong_keys(self.strong_views)):
            inside = cutmix.inside(own["boxes"][:, i], size)
            image = cutmix.paste(own[key], donor[key], inside)
            views.append(Mixed(image, guess, donor_guess, inside))
        return views

    def thresholds(self, label: tf.Tensor) -> tf.Tensor:
        """Returns the confidence that each pixel's pseudo label needs: a scalar, or [N, H, W]."""
        threshold = tf.constant(self.settings.confidence_threshold, tf.float32)
        if self.class_confidence is None:
            return threshold
        confidence = tf.convert_to_tensor(self.class_confidence)
        return threshold * tf.gather(confidence / tf.reduce_max(confidence), label)

    def follow(self, guess: Guess, labelled: dict[str, tf.Tensor]) -> None:
        """Moves what is remembered of the classes towards a batch.

        Args:
          guess: of the weak views.
          labelled: batch of the labelled images.
        """
        if self.class_confidence is not None:
            self._follow_confidence(guess)
        if self.class_areas is not None:
            self.class_areas.follow(
                labelled["label"],
                guess.area,
                in_masks=self._present(labelled),
                in_predictions=guess.present,
            )

    def _follow_confidence(self, guess: Guess) -> None:
        members = tf.one_hot(guess.label, self.spec.num_classes) * guess.valid[..., None]
        found = tf.stack(
            [
                tf.reduce_sum(members * guess.confidence[..., None], [0, 1, 2]),
                tf.reduce_sum(members, [0, 1, 2]),
            ]
        )
        found = running.over_replicas(found, tf.distribute.ReduceOp.SUM)
        kept = running.kept_by_part(
            self.settings.class_threshold_momentum, self.config.gradient_accumulation_steps
        )
        total, count = tf.unstack(found)
        before = tf.convert_to_tensor(self.class_confidence)
        after = kept * before + (1.0 - kept) * tf.math.divide_no_nan(total, count)
        self.class_confidence.assign(tf.where(count > 0, after, before))

    # Losses --------------------------------------------------------------------------------------

    def unlabelled_weight(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the factor on the losses of images without masks, float32 scalar."""
        weight = tf.constant(self.settings.unlabeled_weight, tf.float32)
        ramp = self.settings.unlabeled_ramp_up_steps
        return weight * tf.minimum(1.0, tf.cast(step, tf.float32) / ramp) if ramp else weight

    def labelled_loss(self, logits: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Returns the loss of images with masks, float32 scalar.

        Args:
          logits: float32 [N, H, W, C].
          label: int32 [N, H, W].
        """
        if self.settings.labelled_loss == "hard_examples":
            return hard_examples.hard_pixel_loss(
                logits,
                label,
                ignore_label=self.spec.ignore_label,
                threshold=self.settings.hard_example_threshold,
                min_kept=self.settings.hard_example_pixels,
                class_weights=self.config.label_weights,
                over_replicas=self.over_replicas,
            )
        return loss_ops.segmentation_loss(
            logits,
            label,
            ignore_label=self.spec.ignore_label,
            class_weights=self.config.label_weights,
            over_replicas=self.over_replicas,
        )

    def guess_loss(self, logits: tf.Tensor, guess: Guess | Mixed) -> tf.Tensor:
        """Returns the mean loss against a pseudo label, over all pixels but padding.

        Pixels that are not sure have a loss of 0.

        Args:
          logits: float32 [N, H, W, C].
          guess: the pseudo label.
        """
        confident = tf.cast(guess.confidence >= self.thresholds(guess.label), tf.float32)
        if self.settings.strong_loss == "plain":
            return loss_ops.consistency_loss(
                guess.label, logits, guess.valid, confident, over_replicas=self.over_replicas
            )
        loss = self._class_aware(logits, guess)
        return loss_ops.mean_over(
            loss * guess.valid * confident, guess.valid, over_replicas=self.over_replicas
        )

    def _class_aware(self, logits: tf.Tensor, guess: Guess | Mixed) -> tf.Tensor:
        """Returns the cross entropy among the classes that a pixel's image shows, [N, H, W]."""

        def among(present: tf.Tensor) -> tf.Tensor:
            return class_aware.class_aware_cross_entropy(
                logits, guess.label, present, ignore_label=self.spec.ignore_label
            )[0]

        if isinstance(guess, Guess):
            return among(guess.present)
        return tf.where(guess.inside, among(guess.donor.present), among(guess.own.present))

    def param_groups(self) -> list[ParamGroup]:
        """Returns two groups, backbone and the rest; everything decays, norms and biases too."""
        return new_layers_groups(
            self.model,
            self.config,
            multiplier=self.settings.new_layers_learning_rate_multiplier,
            biases_alike=True,
        )

    # What a user watches -------------------------------------------------------------------------

    def monitor(
        self, monitors: Monitors, guess: Guess, unlabelled, student: tf.Tensor, views: Sequence
    ) -> None:
        """Measures pseudo labels, and the student's first strong view, against hidden masks.

        Args:
          monitors: takes the figures.
          guess: of the weak views.
          unlabelled: batch of their stream.
          student: float32 [N, H, W, C], logits of the first strong view.
          views: of `mixed_views`; pixels of the donor in the first view are not counted.
        """
        confident = tf.cast(guess.confidence >= self.thresholds(guess.label), tf.float32)
        confident *= guess.valid
        monitors.share("mask_ratio", tf.reduce_sum(confident), tf.reduce_sum(guess.valid))
        truth = unlabelled["hidden_label"]
        known = guess.valid * tf.cast(tf.not_equal(truth, self.spec.ignore_label), tf.float32)
        right = tf.cast(tf.equal(truth, guess.label), tf.float32)
        sure = tf.reduce_sum(confident * known)
        monitors.share("pseudo_label_precision", tf.reduce_sum(confident * known * right), sure)
        monitors.share("pseudo_label_coverage", sure, tf.reduce_sum(known))
        own = known * tf.cast(~views[0].inside, tf.float32)
        seen = tf.argmax(student, -1, output_type=tf.int32)
        for name, prediction, weight in (("teacher", guess.label, known), ("student", seen, own)):
            monitors.confusion(
                name, truth, prediction, num_classes=self.spec.num_classes, weight=weight
            )

    def teaching_network(self):
        """Returns the network that makes the pseudo labels."""
        return self.model

    def _teaching_logits(self, image: tf.Tensor) -> tf.Tensor:
        return self.logits_of(self.teaching_network()(image, training=False)["logits"], image)

    def pseudo_labels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns what the teaching network says of the weak views."""
        unlabelled = batch["unlabelled"]
        logits, _ = self._among_present(self._teaching_logits(unlabelled["image"]), unlabelled)
        return {"teacher": tf.nn.softmax(self._aligned(logits))}

    def panels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns an image of the second split, a strong view, its pseudo label, and the truth."""
        unlabelled = batch["unlabelled"]
        image = unlabelled["image"]
        guess = self.guess(self._teaching_logits(image), unlabelled)
        return {
            "image": image,
            "strong": unlabelled["image_strong"],
            "pseudo_label": guess.label,
            "confidence": guess.confidence,
            "truth": unlabelled["hidden_label"],
        }
