"""SLRNet: two views of an image factorised together, and pseudo masks of what they agree on.

1. The network segments the image and a reduced copy, with low-rank features that both share.
2. Class scores pooled from the logits learn from image-level labels.
3. The two views' masks, and their codes, are pulled together.
4. The mean of both masks, drawn to the edges of the image and thresholded, is a pseudo mask, from
   which all logits learn once `pretrain_steps` have passed; the true mask stands in its place where
   there is one.

Three regimes (`--supervision`): image-level labels alone; masks for some images and image-level
labels for all; masks for some and nothing for the others.

Source: Pan et al., "Learning self-supervised low-rank network for single-stage weakly and
semi-supervised semantic segmentation", IJCV 2022; specification 2 and 4. Ours: images with masks
and without make up every batch in fixed shares (`--sampling=published` draws them as they come),
means over images with masks are safe where there are none, a crop of a mask without a known pixel
counts as unlabelled, and padding has no pseudo label (though the class scores see it; crops of
`--augmentation=resized_crop` have none).
"""

import dataclasses
from collections.abc import Collection

import tensorflow as tf

from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.methods.base import Batch, Method, ParamGroup, freeze_norms, new_layers_groups
from tfseg.models.heads.low_rank import HeadOutput
from tfseg.monitors import Monitors
from tfseg.ops import losses as loss_ops
from tfseg.ops import pamr, pseudo_masks
from tfseg.ops.balanced_cross_entropy import balanced_cross_entropy
from tfseg.ops.class_aware import present_classes
from tfseg.ops.class_scores import class_loss
from tfseg.ops.resize import resize_bilinear
from tfseg.ops.two_views import largest_only, to_first_view
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.slrnet import SLRNetConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import changed
from tfseg.settings.run import TrainConfig

# Share of the auxiliary logits in the losses on pixels.
_AUXILIARY_SHARE = 0.4
# Exponent on the mean background mask where its logit is learned.
_LEARNED_BACKGROUND_POWER = 3.0
# Layers of wide_resnet38 that stay as they were initialised; no other backbone has such names.
_FROZEN = ("conv1a", "b2", "b2_1", "b2_2")


@dataclasses.dataclass(frozen=True)
class Images:
    """All images of a step, whatever stream they came in.

    Attributes:
      image: RGB 0..255 [N, H, W, 3].
      image_label: float32 [N, C - 1] multi-hot; None without image-level labels.
      label: int32 [N, H, W], the ignore label all over images without a usable mask.
      has_label: bool [N].
      hidden_label: int32 [N, H, W], every mask there is, for monitors only.
      valid: float32 [N, H, W].
    """

    image: tf.Tensor
    image_label: tf.Tensor | None
    label: tf.Tensor
    has_label: tf.Tensor
    hidden_label: tf.Tensor
    valid: tf.Tensor


class SLRNet(Method):
    """Cross-view low-rank network."""

    Config = SLRNetConfig
    heads = ("low_rank",)

    def __init__(self, **options):
        super().__init__(**options)
        self._uses_image_labels = self.settings.supervision != "pixel_labels"
        self._check()

    def build(self, build_model):
        """Makes the network; batch norm of the backbone and its first layers are not trained.

        Source: specification 3.
        """
        model = build_model()
        freeze_norms(model.backbone)
        frozen = {f"{model.backbone.scope}/{name}" for name in _FROZEN}
        for layer in model.backbone.submodules:
            if layer.name in frozen:
                layer.trainable = False
        return model

    def _check(self) -> None:
        settings = self.settings
        if not self.spec.has_background:
            raise UserError(
                "slrnet needs a background class.",
                where="dataset.json",
                received=f"{self.spec.name}, all of whose classes are foreground",
                accepted="classes of which the first is background",
            )
        weights, classes = settings.positive_weights, self.spec.num_image_classes
        if weights is not None and len(weights) not in (1, classes):
            raise UserError(
                "--positive_weights needs one number, or one for each class but background.",
                where="--positive_weights",
                received=f"{len(weights)} numbers",
                accepted=f"1 or {classes} numbers, in the order of {self.spec.name}'s classes",
            )
        if settings.pretrain_steps >= self.config.training_number_of_steps:
            raise UserError(
                "No step would learn from pseudo masks.",
                where="--pretrain_steps",
                received=f"{settings.pretrain_steps}, of "
                f"--training_number_of_steps={self.config.training_number_of_steps}",
                accepted="less than the number of steps; published: a fifth to a quarter of them",
                fix=f"give --pretrain_steps={self.config.training_number_of_steps // 4}, or a "
                "larger --training_number_of_steps",
            )
        accumulates = self.config.gradient_accumulation_steps > 1
        if accumulates and settings.sampling == "published":
            raise UserError(
                "--sampling=published does not go with --gradient_accumulation_steps: the parts of "
                "a batch have different numbers of images with masks.",
                where="--gradient_accumulation_steps",
                received=self.config.gradient_accumulation_steps,
                fix="use --sampling=stratified",
            )

    def check_initial_weights(self, random: Collection[str]) -> None:
        """Warns of new layers without normalisation, whose losses soon become infinite.

        With --fine_tune_batch_norm=false their batch norm keeps mean 0 and variance 1. The outputs
        of `GlobalCueInjection`, products of features, are then far too large. On scenes of digits
        with efficientnet_lite0, logits were up to 607, and the first loss was 134. After two steps
        at a rate of 0.002 features were 4e20, and the next steps overflowed float32. With batch
        statistics a rate of 0.02 is stable there: the fifth loss is 1, logits are below 20.
        """
        if self.model.config.fine_tune_batch_norm or not any("global_cue" in x for x in random):
            return
        print(
            "note: --fine_tune_batch_norm=false leaves SLRNet's new layers without normalisation: "
            "their batch norm keeps mean 0 and variance 1, and losses may be infinite after a few "
            "steps at any usual learning rate. Leave the flag out, or start from the checkpoint of "
            "a trained SLRNet with --initialize_last_layer.",
            flush=True,
        )

    @classmethod
    def network_config(cls, config: ModelConfig, settings: SLRNetConfig) -> ModelConfig:
        """Returns the settings of the network that the regime needs."""
        learned = settings.supervision == "pixel_labels"
        return changed(
            config, head="low_rank", background_logit="learned" if learned else "constant"
        )

    @classmethod
    def streams(
        cls, data: DataConfig, train: TrainConfig, settings: SLRNetConfig
    ) -> dict[str, Stream]:
        image_labels = "none" if settings.supervision == "pixel_labels" else "record"
        if image_labels == "record" and data.image_label_source != "record":
            raise UserError(
                "slrnet takes image-level labels from the records.",
                where="--image_label_source",
                received=data.image_label_source,
                accepted="record",
            )
        weak = Stream(
            split=data.train_split_cls,
            batch_size=train.train_batch_size,
            labels="hidden",
            image_labels=image_labels,
            dataset_dir=data.dataset_dir_cls,
            # Images without a class are never drawn by weight.
            require_foreground=image_labels == "record" and settings.image_sampling == "uniform",
            sampling=settings.image_sampling,
            clutter_penalty=settings.clutter_penalty,
            epoch_length=settings.draws_per_epoch,
        )
        if settings.supervision == "image_labels":
            return {"weak": weak}
        if settings.sampling == "published":
            return {
                "mixed": dataclasses.replace(
                    weak,
                    labels="listed",
                    label_split=data.train_split,
                    oversample=settings.labelled_oversampling,
                )
            }
        labelled = Stream(
            split=data.train_split,
            batch_size=settings.labelled_batch_size or train.train_batch_size,
            labels="required",
            image_labels=image_labels,
        )
        return {"labelled": labelled, "weak": weak}

    # The step ------------------------------------------------------------------------------------

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        images = self._images(batch)
        flip = None
        if self.settings.second_view_flip:
            draw = tf.random.stateless_uniform([images.image.shape[0]], seed, alg="philox")
            flip = draw < 0.5
        output = self.model.two_views(images.image, training=True, dropout_seed=seed, flip=flip)
        label = self.pseudo_mask(images, output, flip)
        self._monitor(monitors, images, label)
        segmentation = self.segmentation_losses(images, output, label, flip)
        return self.weighted_losses(images, output, segmentation, step, flip)

    def _images(self, batch: Batch) -> Images:
        """Joins the streams; the order of images is that of the streams."""
        streams = list(batch.values())
        ignore = self.spec.ignore_label
        labels, flags, hidden = [], [], []
        for name, stream in batch.items():
            known = tf.not_equal(stream.get("label", stream.get("hidden_label")), ignore)
            has_label = (
                stream["has_label"] if name != "weak" else tf.zeros_like(stream["has_label"])
            )
            # A crop without a known pixel is treated as one of an image without a mask.
            has_label &= tf.reduce_any(known, [1, 2])
            label = stream["label"] if name != "weak" else stream["hidden_label"]
            labels.append(tf.where(has_label[:, None, None], label, ignore))
            flags.append(has_label)
            hidden.append(stream.get("hidden_label", label))
        return Images(
            image=tf.concat([stream["image"] for stream in streams], 0),
            image_label=tf.concat([stream["image_label"] for stream in streams], 0)
            if self._uses_image_labels
            else None,
            label=tf.concat(labels, 0),
            has_label=tf.concat(flags, 0),
            hidden_label=tf.concat(hidden, 0),
            valid=tf.concat([stream["valid"] for stream in streams], 0),
        )

    def mean_mask(self, output: HeadOutput, flip: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the mask that both views make together, float32 [N, h, w, C].

        Where the background's logit is learned its mask is cubed. Source: specification 4.5.
        """
        mask = self.model.mean_mask(output.logits, flip)
        if self._uses_image_labels:
            return mask
        background = tf.pow(mask[..., :1], _LEARNED_BACKGROUND_POWER)
        return tf.concat([background, mask[..., 1:]], -1)

    def refined_mask(
        self, images: Images, output: HeadOutput, flip: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the mean mask, refined, at the size of the image, without absent classes.

        It has no gradient.

        Source: specification 4.5.
        """
        mask = pamr.refine(
            images.image / 255.0,
            tf.stop_gradient(self.mean_mask(output, flip)),
            dilations=self.settings.pamr_dilations,
            iterations=self.settings.pamr_iterations,
        )
        mask = resize_bilinear(mask, images.image.shape[1:3])
        if not self._uses_image_labels:
            return mask
        kept = present_classes(images.image_label, has_background=True)
        return mask * kept[:, None, None]

    def pseudo_mask(
        self, images: Images, output: HeadOutput, flip: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns what the segmentation losses learn from, int32 [N, H, W], without gradient."""
        settings = self.settings
        options = {
            "cutoff_top": settings.cutoff_top,
            "cutoff_low": settings.cutoff_low,
            "ignore_label": self.spec.ignore_label,
        }
        mask = self.refined_mask(images, output, flip)
        if settings.pseudo_mask_rule == "foreground":
            pseudo = pseudo_masks.confident_foreground(mask, **options)
        else:
            pseudo = pseudo_masks.confident_classes(
                mask, background_factor=settings.background_factor, **options
            )
        pseudo = tf.where(images.valid > 0, pseudo, self.spec.ignore_label)
        return tf.where(images.has_label[:, None, None], images.label, pseudo)

    def segmentation_losses(
        self,
        images: Images,
        output: HeadOutput,
        label: tf.Tensor,
        flip: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the segmentation loss of each image, float32 [N] (specification 4.6)."""
        check = self._uses_image_labels and self.settings.require_all_classes
        first, second = output.logits
        total = 0.0
        for logits, weight in (
            (first, 1.0),
            (to_first_view(second, _size(first), flip=flip), 1.0),
            (output.auxiliary, _AUXILIARY_SHARE),
        ):
            total += weight * balanced_cross_entropy(
                logits,
                label,
                ignore_label=self.spec.ignore_label,
                image_label=images.image_label if check else None,
            )
        return total

    def weighted_losses(
        self,
        images: Images,
        output: HeadOutput,
        segmentation: tf.Tensor,
        step: tf.Tensor,
        flip: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Returns the weighted losses (specification 4.7)."""
        for_class, for_mask, for_code, for_pixels = self.settings.loss_coefficients
        losses = {
            "classification": for_class
            * tf.reduce_mean(self.class_losses(images, output, segmentation)),
            "mask_consistency": for_mask * self.mask_consistency(images, output, flip),
            "code_consistency": for_code * self.code_consistency(output, flip),
        }
        started = tf.cast(step >= self.settings.pretrain_steps, tf.float32)
        # (A loss of pseudo masks that is off must not be able to make a NaN.)
        everywhere = tf.reduce_mean(segmentation)
        losses["segmentation"] = for_pixels * tf.where(started > 0, everywhere, 0.0)
        if self.settings.supervision != "image_labels":
            losses["labelled_segmentation"] = for_pixels * self.labelled_mean(
                segmentation, images.has_label
            )
        return losses

    def labelled_mean(self, segmentation: tf.Tensor, has_label: tf.Tensor) -> tf.Tensor:
        """Returns the mean over images with masks, 0 if there are none.

        Without --sync_batch_norm each replica takes its own mean, as published. With
        --sampling=published some replicas have no mask, and the mean over replicas counts them as
        0. With a share p of images with masks and n images in a replica, the loss then weighs
        1 - (1 - p)^n times as much as if every replica had a mask (p = 0.1, n = 8: 0.57). With
        --sync_batch_norm the sum is divided by the number of masks of all replicas.
        """
        weight = tf.cast(has_label, tf.float32)
        return loss_ops.mean_over(weight * segmentation, weight, over_replicas=self.over_replicas)

    def class_losses(
        self, images: Images, output: HeadOutput, segmentation: tf.Tensor
    ) -> tf.Tensor:
        """Returns the class loss of each image, float32 [N] (specification 4.3).

        Images with masks have their segmentation loss in its place, as published; images without
        image-level labels have none.
        """
        losses = tf.zeros_like(segmentation)
        if self._uses_image_labels:
            weights = self.settings.positive_weights
            if weights is not None and len(weights) == 1:
                weights = weights * self.spec.num_image_classes
            auxiliary = self.settings.auxiliary_class_weight
            for logits, weight in zip((*output.logits, output.auxiliary), (1.0, 1.0, auxiliary)):
                losses += weight * class_loss(
                    self.model.scores(logits), images.image_label, positive_weights=weights
                )
        return tf.where(images.has_label, segmentation, losses)

    def mask_consistency(
        self, images: Images, output: HeadOutput, flip: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the mean difference of both views' foreground masks (specification 4.4)."""
        first, second = (tf.nn.softmax(logits) for logits in output.logits)
        second = to_first_view(second, _size(first), flip=flip)
        difference = tf.abs(first - second)[..., 1:]
        if self._uses_image_labels:
            difference *= images.image_label[:, None, None]
        return tf.reduce_mean(difference)

    def code_consistency(self, output: HeadOutput, flip: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the mean difference of both views' largest codes (specification 4.4)."""
        first, second = output.codes
        second = to_first_view(second, _size(first), flip=flip)
        return tf.reduce_mean(tf.abs(largest_only(first) - largest_only(second)))

    # The optimiser -------------------------------------------------------------------------------

    def param_groups(self) -> list[ParamGroup]:
        """Returns the four published groups: new layers 10x, biases twice as fast, no decay there.

        Source: specification 5.
        """
        return new_layers_groups(
            self.model,
            self.config,
            multiplier=self.settings.new_layers_learning_rate_multiplier,
            nesterov=self.config.optimizer == "momentum",
        )

    # What a user watches -------------------------------------------------------------------------

    def _monitor(self, monitors: Monitors, images: Images, label: tf.Tensor) -> None:
        """Measures pseudo masks against masks that no loss sees."""
        ignore = self.spec.ignore_label
        weak = tf.cast(~images.has_label, tf.float32)[:, None, None]
        known = weak * tf.cast(tf.not_equal(images.hidden_label, ignore), tf.float32)
        labelled = tf.cast(tf.not_equal(label, ignore), tf.float32)
        monitors.confusion(
            "pseudo_mask",
            images.hidden_label,
            tf.where(label == ignore, 0, label),
            num_classes=self.spec.num_classes,
            weight=known * labelled,
        )
        inside = weak * images.valid
        monitors.share("labelled_pixels", tf.reduce_sum(inside * labelled), tf.reduce_sum(inside))

    def panels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns an image, the prediction for it, its pseudo mask, and the truth."""
        images = self._images(batch)
        # Images without masks come last. A user wants to see these.
        count = next(reversed(batch.values()))["image"].shape[0]
        output = self.model.two_views(images.image, training=False)
        unlabelled = dataclasses.replace(images, has_label=tf.zeros_like(images.has_label))
        prediction = tf.argmax(
            resize_bilinear(output.logits[0], images.image.shape[1:3]), -1, output_type=tf.int32
        )
        return {
            "image": images.image[-count:],
            "prediction": prediction[-count:],
            "pseudo_mask": self.pseudo_mask(unlabelled, output)[-count:],
            "truth": images.hidden_label[-count:],
        }


def _size(x: tf.Tensor) -> tuple[int, int]:
    return tuple(x.shape[1:3])
