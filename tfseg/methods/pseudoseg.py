"""PseudoSeg: pseudo labels from the decoder and self-attention Grad-CAM, fused and sharpened.

Each step takes labelled images and, from a second split, a weak and a strong view of one crop.

1. The weak view makes the pseudo label: the decoder's logits and those of SGC are brought to one
   scale, averaged as probabilities and sharpened. No gradient flows through it.
2. The strong view learns it: consistency loss.
3. The labelled images train the segmentation, SGC and, without --weakly, the image-level
   classifier on whose activation maps SGC rests. With --weakly the second split's image-level
   labels train the classifier, and tell which maps are real.

The published step runs the backbone five or six times, once for each purpose. Three passes hold
the same information, and are the default: weak, strong, labelled. --separate_passes restores the
others; then pseudo labels come from a weak pass with dropout and batch statistics (logits) and
another with moving statistics (SGC).

Source: Zou et al., "PseudoSeg: Designing Pseudo Labels for Semantic Segmentation", ICLR 2021;
specification 5. Mended by default: gradient axes, crop-level image labels, batch statistics in the
pixel normalisation (`PseudoSegConfig` names each).
"""

import dataclasses

import tensorflow as tf

from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.methods.base import Batch, Method
from tfseg.models.backbones.base import EndPoints
from tfseg.models.layers.dropout import fold_seed
from tfseg.models.self_attention import SelfAttentionCAM
from tfseg.monitors import Monitors
from tfseg.ops import cam as cam_ops
from tfseg.ops import losses as loss_ops
from tfseg.ops import pseudo_labels as label_ops
from tfseg.ops.resize import resize_bilinear, resize_nearest
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.pseudoseg import PseudoSegConfig
from tfseg.settings.run import TrainConfig

# Each use of dropout draws for itself.
_WEAK, _STRONG, _LABELLED, _CLASSIFIER, _LABELLED_CLASSIFIER = range(5)
# What counts as confident in the monitors where no threshold is set.
_CONFIDENT = 0.9


@dataclasses.dataclass(frozen=True)
class PseudoLabel:
    """What the weak view gives, all without gradient.

    Attributes:
      probs: fused and sharpened, float32 [N, h, w, C].
      target: what the strong view learns: `probs`, or int32 [N, h, w].
      confidence: largest probability, which the threshold is compared with, float32 [N, h, w].
      fused: before sharpening, float32 [N, h, w, C].
      decoder: logits of the decoder, float32 [N, h, w, C].
      sgc: logits of SGC at the same size, or None.
      maps: normalised activation maps, float32 [N, h', w', K], or None.
    """

    probs: tf.Tensor
    target: tf.Tensor
    confidence: tf.Tensor
    fused: tf.Tensor
    decoder: tf.Tensor
    sgc: tf.Tensor | None
    maps: tf.Tensor | None


def _refuse(flag: str, received, accepted: str, why: str) -> None:
    raise UserError(why, where=f"--{flag}", received=received, accepted=accepted)


class PseudoSeg(Method):
    """Semi-supervised (`weakly` false) and weakly supervised segmentation."""

    Config = PseudoSegConfig
    heads = ("deeplab", "dpt")

    def __init__(self, **options):
        super().__init__(**options)
        # The SGC head: the method's, not the network's, for only training needs it.
        self.attention = None
        if self.settings.use_attention:
            self._layers = self._attention_layers(self.model)
            self.attention = self._make_attention()

    def build(self, build_model):
        """Makes the network, with a classifier as needed."""
        self._check()
        settings = self.settings
        model = build_model(with_classifier=settings.use_attention or self.config.weakly)
        if (model.config.image_pyramid or (1.0,)) != (1.0,) and not settings.separate_passes:
            _refuse(
                "image_pyramid",
                model.config.image_pyramid,
                "1.0, or any with --separate_passes",
                "Shared passes see images at one scale.",
            )
        return model

    def _make_attention(self) -> SelfAttentionCAM:
        channels = self.model.backbone.channels
        return SelfAttentionCAM(
            self.model.settings,
            in_channels=sum(channels[name] for name in self._layers),
            num_classes=self.spec.num_classes,
            has_background=self.spec.has_background,
            attention_dim=self.settings.attention_dim,
            version=2 if self.settings.att_v2 else 1,
        )

    def auxiliary_heads(self) -> list[tf.Module]:
        return [] if self.attention is None else [self.attention]

    def _check(self) -> None:
        settings = self.settings
        if not 0.0 < settings.temperature <= 1.0:
            _refuse("temperature", settings.temperature, "above 0, up to 1", "Wrong temperature.")
        if not 0.0 <= settings.pseudo_label_threshold < 1.0:
            _refuse(
                "pseudo_label_threshold",
                settings.pseudo_label_threshold,
                "0 (every pixel) to below 1",
                "Wrong threshold.",
            )
        if settings.unlabeled_weight < 0.0:
            _refuse("unlabeled_weight", settings.unlabeled_weight, "0 or more", "Wrong weight.")
        if settings.attention_dim < 1:
            _refuse("attention_dim", settings.attention_dim, "1 or more", "Wrong size.")
        if not settings.use_attention and settings.pseudo_src == "att":
            _refuse(
                "pseudo_src", "att with --use_attention=false", "avg", "There is no SGC to take."
            )
        if settings.mask_absent_classes != "none" and not self.config.weakly:
            _refuse(
                "mask_absent_classes",
                settings.mask_absent_classes,
                "none without --weakly",
                "Without image-level labels no class is known to be absent.",
            )

    def _attention_layers(self, model) -> list[str]:
        """Returns the end points of the hypercolumn, deepest first.

        Raises:
          UserError: the backbone has no such layer, or fewer than two are given.
        """
        available = model.backbone.hypercolumn
        codes = sorted(set(self.settings.att_strides), reverse=True)
        missing = [code for code in codes if code not in available]
        if missing or not codes:
            raise UserError(
                f"{model.config.model_variant} has no layer for SGC with this stride code.",
                where="--att_strides",
                received=",".join(map(str, missing or codes)) or "(none)",
                accepted=", ".join(map(str, sorted(available))) or "none of this backbone's layers",
                fix="choose among them, or another --model_variant, or --use_attention=false",
            )
        return [available[code] for code in codes]

    @classmethod
    def streams(cls, data: DataConfig, train: TrainConfig, settings=None) -> dict[str, Stream]:
        return {
            # Its masks are there, so the classes in a crop are known; the published code does the
            # same here.
            "labelled": Stream(
                split=data.train_split,
                batch_size=train.train_batch_size,
                labels="required",
                image_labels="crop",
            ),
            "unlabelled": Stream(
                split=data.train_split_cls,
                batch_size=train.train_batch_size,
                strong_views=1,
                labels="hidden",
                image_labels=data.image_label_source if train.weakly else "none",
                dataset_dir=data.dataset_dir_cls,
            ),
        }

    # The step ------------------------------------------------------------------------------------

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        unlabelled = batch["unlabelled"]
        result = {}
        # First, so that what uses moving statistics finds them as they were before the step.
        weak_logits, weak_ends = self._weak_pass(unlabelled, seed, result)
        pseudo = self._pseudo_label(weak_logits, weak_ends, unlabelled, training=True)
        strong = self.model(
            unlabelled["image_strong"], training=True, dropout_seed=fold_seed(seed, _STRONG)
        )["logits"]
        result["consistency"] = self._consistency(pseudo, strong, unlabelled["valid"], step)
        self._monitor(monitors, pseudo, strong, unlabelled)
        result |= self._labelled_losses(batch["labelled"], step, seed)
        return result

    def _segment(self, image: tf.Tensor, seed: tf.Tensor, use: int, again: bool):
        """Runs the whole network in training mode; returns (logits, end points).

        Args:
          again: the end points come from a pass of their own (--separate_passes).
        """
        seed = fold_seed(seed, use)
        if self.settings.separate_passes:
            logits = self.model(image, training=True, dropout_seed=seed)["logits"]
            return logits, self.model.encode(image, training=True) if again else {}
        ends = self.model.encode(image, training=True)
        return self.model.decode(ends, training=True, dropout_seed=seed)["logits"], ends

    def _weak_pass(
        self, unlabelled, seed, result: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, EndPoints]:
        """Runs the weak view; returns logits and end points for the pseudo label.

        Under --weakly the classification loss is added to `result`; it alone has a gradient.
        """
        image = unlabelled["image"]
        learns = self.config.weakly and self.settings.cls_with_cls
        if self.settings.separate_passes:
            ends = self.model.encode(image) if self.settings.use_attention else {}
            if learns:
                result["classification"] = self._classification(
                    self.model.encode(image, training=True),
                    unlabelled["image_label"],
                    fold_seed(seed, _CLASSIFIER),
                )
            logits, _ = self._segment(image, seed, _WEAK, again=False)
            return logits, ends
        ends = self.model.encode(image, training=True)
        if learns:
            result["classification"] = self._classification(
                ends, unlabelled["image_label"], fold_seed(seed, _CLASSIFIER)
            )
        logits = self.model.decode(
            tf.nest.map_structure(tf.stop_gradient, ends),
            training=True,
            dropout_seed=fold_seed(seed, _WEAK),
        )["logits"]
        return logits, ends

    def _labelled_losses(self, labelled, step, seed) -> dict[str, tf.Tensor]:
        logits, ends = self._segment(
            labelled["image"], seed, _LABELLED, again=self.settings.use_attention
        )
        result = {"segmentation": self._cross_entropy(logits, labelled["label"], step)}
        if self._classifier_learns_from_labelled():
            if self.config.weakly and self.settings.separate_passes:
                ends_to_classify = self.model.encode(labelled["image"], training=True)
            else:
                ends_to_classify = ends
            result["classification"] = self._classification(
                ends_to_classify, labelled["image_label"], fold_seed(seed, _LABELLED_CLASSIFIER)
            )
        if not self.settings.use_attention:
            return result
        maps = self._activation_maps(
            ends,
            labelled["image_label"],
            # The published pass has dropout, whose masks the fault mixes.
            faulty_seed=fold_seed(seed, _LABELLED_CLASSIFIER)
            if self.settings.grad_cam_mean == "batch_and_rows"
            else None,
        )
        # Valid masks go through the decoder's grid, as published.
        # Where they make pseudo labels, the moving statistics must not wait a thousand steps.
        moving = self.settings.pixel_normalization_statistics == "moving"
        sgc = self._attend(
            maps,
            ends,
            _at(labelled["valid"], logits),
            training=True,
            step=step if moving else None,
        )
        result["sgc"] = self._cross_entropy(sgc["logits"], labelled["label"], step)
        return result

    def _classifier_learns_from_labelled(self) -> bool:
        if self.config.weakly:
            return not self.settings.cls_with_cls
        return self.settings.use_attention

    # Self-attention Grad-CAM ---------------------------------------------------------------------

    def _activation_maps(
        self, ends: EndPoints, image_label: tf.Tensor, *, faulty_seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns normalised maps [N, h, w, K] without gradient.

        Args:
          ends: end points of the images.
          image_label: float32 [N, K], classes that are present.
          faulty_seed: seed of the classifier's dropout; given, the published mean over batch and
            rows is reproduced.
        """
        deepest = self._layers[0]
        classifier = self.model.classifier
        if deepest == self.model.backbone.last:
            multiplier = None
            if faulty_seed is not None:
                multiplier = tf.reduce_mean(
                    classifier.dropout_multiplier(ends, faulty_seed), 0, keepdims=True
                )
                if self.over_replicas:
                    multiplier = loss_ops.replica_mean(multiplier)
            maps = cam_ops.class_activation_maps(
                ends[deepest], classifier.convolution.kernel, multiplier
            )
        else:
            logits = self.model.classify(
                ends, training=faulty_seed is not None, dropout_seed=faulty_seed
            )
            maps = cam_ops.grad_cam(logits, ends[deepest], per_image=faulty_seed is None)
        return tf.stop_gradient(cam_ops.normalise_maps(maps, image_label))

    def _attend(
        self, maps, ends, valid, *, training: bool, step: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        hypercolumn = [tf.stop_gradient(ends[name]) for name in self._layers]
        return self.attention(maps, hypercolumn, valid, training=training, step=step)

    # The pseudo label ----------------------------------------------------------------------------

    def _pseudo_label(
        self, logits: tf.Tensor, ends: EndPoints, unlabelled, *, training: bool
    ) -> PseudoLabel:
        """Fuses the decoder's logits with SGC's and sharpens the result."""
        settings = self.settings
        image_label = unlabelled.get("image_label")
        logits = tf.cast(logits, tf.float32)
        maps = sgc_logits = None
        if settings.use_attention:
            if image_label is None:
                found = tf.sigmoid(self.model.classify(ends, training=False)) >= 0.5
                maps = self._activation_maps(ends, tf.cast(found, tf.float32))
            else:
                maps = self._activation_maps(ends, image_label)
            sgc = self._attend(
                maps,
                ends,
                _at(unlabelled["valid"], logits),
                training=training and settings.pixel_normalization_statistics == "batch",
            )
            sgc_logits = resize_bilinear(sgc["logits"], logits.shape[1:3])
        fused = self._fuse(logits, sgc_logits, image_label)
        probs = (
            label_ops.sharpen(fused, settings.temperature) if settings.soft_pseudo_label else fused
        )
        target = probs
        if not settings.soft_pseudo_label:
            target = tf.argmax(fused, -1, output_type=tf.int32)
        pseudo = PseudoLabel(
            probs=probs,
            target=target,
            confidence=tf.reduce_max(probs, -1),
            fused=fused,
            decoder=logits,
            sgc=sgc_logits,
            maps=maps,
        )
        # The one place where gradients stop: everything made from the weak view.
        stopped = {
            field.name: None if value is None else tf.stop_gradient(value)
            for field in dataclasses.fields(pseudo)
            for value in [getattr(pseudo, field.name)]
        }
        return PseudoLabel(**stopped)

    def _fuse(
        self, decoder: tf.Tensor, sgc: tf.Tensor | None, image_label: tf.Tensor | None
    ) -> tf.Tensor:
        """Returns probabilities [N, h, w, C]: of the decoder, of SGC, or the mean of both."""
        settings = self.settings

        def masked(probs: tf.Tensor, where: str) -> tf.Tensor:
            if settings.mask_absent_classes != where or image_label is None:
                return probs
            return label_ops.mask_absent(
                probs, image_label, has_background=self.spec.has_background
            )

        if sgc is None:
            return masked(masked(tf.nn.softmax(decoder), "decoder"), "fused")
        if settings.pseudo_src == "att":
            return masked(tf.nn.softmax(sgc), "fused")
        if settings.logit_norm:
            decoder, sgc = label_ops.joint_normalisation(
                decoder, sgc, over_replicas=self.over_replicas
            )
        decoder_probs = masked(tf.nn.softmax(decoder), "decoder")
        return masked(0.5 * decoder_probs + 0.5 * tf.nn.softmax(sgc), "fused")

    # Losses --------------------------------------------------------------------------------------

    def _cross_entropy(self, logits: tf.Tensor, label: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        config = self.config
        return loss_ops.segmentation_loss(
            logits,
            label,
            ignore_label=self.spec.ignore_label,
            class_weights=config.label_weights,
            upsample_logits=config.upsample_logits,
            top_k=loss_ops.top_k_fraction(
                step,
                final=config.top_k_percent_pixels,
                ramp_steps=config.hard_example_mining_step,
            ),
            over_replicas=self.over_replicas,
        )

    def _classification(self, ends, image_label: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        logits = self.model.classify(ends, training=True, dropout_seed=seed)
        return loss_ops.multi_label_loss(logits, image_label)

    def _consistency(
        self, pseudo: PseudoLabel, logits: tf.Tensor, valid: tf.Tensor, step: tf.Tensor
    ) -> tf.Tensor:
        settings = self.settings
        confident = None
        if settings.pseudo_label_threshold > 0.0:
            confident = tf.cast(pseudo.confidence >= settings.pseudo_label_threshold, tf.float32)
        weight = settings.unlabeled_weight
        if settings.unlabeled_ramp_up_steps > 0:
            weight *= tf.minimum(1.0, tf.cast(step, tf.float32) / settings.unlabeled_ramp_up_steps)
        return weight * loss_ops.consistency_loss(
            pseudo.target,
            logits,
            _at(valid, logits)[..., 0],
            confident,
            over_replicas=self.over_replicas,
        )

    # What a user watches -------------------------------------------------------------------------

    def _monitor(self, monitors: Monitors, pseudo: PseudoLabel, strong, unlabelled) -> None:
        """Measures the pseudo labels; against hidden masks where there are any."""
        valid = _at(unlabelled["valid"], strong)[..., 0]
        threshold = self.settings.pseudo_label_threshold or _CONFIDENT
        confident = valid * tf.cast(pseudo.confidence >= threshold, tf.float32)
        monitors.share("pseudo_label_coverage", tf.reduce_sum(confident), tf.reduce_sum(valid))
        monitors.histogram("pseudo_label_confidence", pseudo.confidence, valid)
        truth = _at(unlabelled["hidden_label"], strong)[..., 0]
        has_label = tf.cast(unlabelled["has_label"], tf.float32)[:, None, None]
        known = valid * has_label * tf.cast(truth != self.spec.ignore_label, tf.float32)
        predictions = {"decoder": pseudo.decoder, "sgc": pseudo.sgc, "fused": pseudo.fused}
        for name, scores in {**predictions, "strong": strong}.items():
            if scores is not None:
                prediction = tf.argmax(scores, -1, output_type=tf.int32)
                monitors.confusion(
                    name, truth, prediction, num_classes=self.spec.num_classes, weight=known
                )
        right = tf.cast(tf.argmax(pseudo.fused, -1, output_type=tf.int32) == truth, tf.float32)
        monitors.share(
            "confident_accuracy",
            tf.reduce_sum(right * confident * known),
            tf.reduce_sum(confident * known),
        )

    def _pseudo_label_as_evaluated(self, unlabelled) -> PseudoLabel:
        """Returns the pseudo label by the moving statistics, without dropout."""
        ends = self.model.encode(unlabelled["image"], training=False)
        logits = self.model.decode(ends, training=False)["logits"]
        return self._pseudo_label(logits, ends, unlabelled, training=False)

    def pseudo_labels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns the fused label before and after sharpening, and its parts on their own."""
        pseudo = self._pseudo_label_as_evaluated(batch["unlabelled"])
        kinds = {"decoder": tf.nn.softmax(pseudo.decoder), "fused": pseudo.fused}
        if pseudo.sgc is not None:
            kinds["sgc"] = tf.nn.softmax(pseudo.sgc)
        if self.settings.soft_pseudo_label:
            kinds["sharpened"] = pseudo.probs
        return kinds

    def panels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns the weak view and what became of it, by the moving statistics."""
        unlabelled = batch["unlabelled"]
        pseudo = self._pseudo_label_as_evaluated(unlabelled)
        panels = {"image": unlabelled["image"]}
        if pseudo.maps is not None:
            panels["cam"] = tf.reduce_max(pseudo.maps, -1)
            panels["sgc"] = tf.argmax(pseudo.sgc, -1, output_type=tf.int32)
        panels["decoder"] = tf.argmax(pseudo.decoder, -1, output_type=tf.int32)
        panels["fused"] = tf.argmax(pseudo.fused, -1, output_type=tf.int32)
        panels["truth"] = unlabelled["hidden_label"]
        return panels


def _at(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Reduces a map [N, H, W] to the size of logits, nearest: [N, h, w, 1]."""
    return resize_nearest(x[..., None], like.shape[1:3])
