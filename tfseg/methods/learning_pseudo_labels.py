"""Learning Pseudo Labels, stage 1: two networks that label each other's images.

Every image has image-level labels, a few have masks. The first half of a batch are images with
masks. The second half are images of the second split, with or without a usable mask.

1. HybridNet, which is deployed, learns from the masks, from the image-level labels and from
   PseudoNet's predictions on the second half.
2. PseudoNet learns only from HybridNet's predictions on the second half. So its IoU on the first
   half tells how good its labels are. Its labels for an image count by the IoU of the image's worst
   class, to a high power.

All cross entropies are class-aware: a softmax among the classes that the image-level labels name.
Stage 2 is `train_sup.py` on HybridNet's labels (experiments/learning_pseudo_labels.sh).

Source: Wang et al., "Learning pseudo labels for semi-and-weakly supervised semantic segmentation",
Pattern Recognition 2022; specification 4 and 5. Published faults stay the default, and
`LearningPseudoLabelsConfig` names the better choice beside each. Ours: batches run on over the end
of an epoch (theirs dropped the rest), background is always among the present classes (theirs only
where the mask has a pixel of it or of void), the running counts are in the checkpoint and are those
of all replicas.
"""

import tensorflow as tf

from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.methods import running
from tfseg.methods.base import Batch, Method, ParamGroup
from tfseg.models.layers.dropout import fold_seed
from tfseg.monitors import Monitors
from tfseg.ops import class_aware, cross_training
from tfseg.ops import losses as loss_ops
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.learning_pseudo_labels import LearningPseudoLabelsConfig
from tfseg.settings.run import TrainConfig

# Each network draws its own dropout.
_HYBRID, _PSEUDO = range(2)


class LearningPseudoLabels(Method):
    """Class-aware cross entropy and progressive cross training."""

    Config = LearningPseudoLabelsConfig
    heads = ("deeplab", "dpt")

    def __init__(self, *, build_model, **options):
        super().__init__(build_model=build_model, **options)
        self.pseudo_net = build_model(name="pseudo")
        # Pixels of each true and predicted class and their agreement.
        start = tf.concat(
            [tf.ones([1, self.spec.num_classes]), tf.zeros([2, self.spec.num_classes])], 0
        )
        self.counts = running.variable(start, name="pseudo_net_counts")
        self._check()

    def build(self, build_model):
        """Makes HybridNet."""
        return build_model(name="hybrid")

    def _check(self) -> None:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if self.config.jit_compile and replicas > 1:
            raise UserError(
                "--jit_compile cannot be used with this method on several replicas.",
                where="--jit_compile",
                received=f"{replicas} replicas",
                fix="leave it out, or use one replica",
            )

    def networks(self):
        return {"hybrid": self.model, "pseudo": self.pseudo_net}

    @classmethod
    def streams(cls, data: DataConfig, train: TrainConfig, settings=None) -> dict[str, Stream]:
        if data.image_label_source != "record":
            raise UserError(
                "learning_pseudo_labels takes image-level labels from the records: classes that a "
                "crop leaves out are still present in the image.",
                where="--image_label_source",
                received=data.image_label_source,
                accepted="record",
            )
        return {
            # An epoch is as long as the second split's; the images with masks come round in it.
            "labelled": Stream(
                split=data.train_split,
                batch_size=train.train_batch_size,
                labels="required",
                image_labels="record",
                epoch_of="weak",
            ),
            # The second split may hold the images of the first, and masks of others that only
            # monitors may see.
            "weak": Stream(
                split=data.train_split_cls,
                batch_size=train.train_batch_size,
                labels="listed",
                label_split=data.train_split,
                image_labels="record",
                dataset_dir=data.dataset_dir_cls,
                augment="light",
            ),
        }

    # The step ------------------------------------------------------------------------------------

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        labelled, weak = batch["labelled"], batch["weak"]
        size = labelled["image"].shape[0]
        image = tf.concat([labelled["image"], weak["image"]], 0)
        image_label = tf.concat([labelled["image_label"], weak["image_label"]], 0)
        present = class_aware.present_classes(image_label, has_background=self.spec.has_background)
        hybrid = self._logits(self.model, image, seed, _HYBRID)
        pseudo = self._logits(self.pseudo_net, image, seed, _PSEUDO)

        # A labelled crop without a known pixel is treated as weakly labelled.
        known = tf.not_equal(weak["label"], self.spec.ignore_label)
        has_label = weak["has_label"] & tf.reduce_any(known, [1, 2])
        from_hybrid, from_pseudo = (
            cross_training.cross_label(logits[size:], present[size:], weak["label"], has_label)
            for logits in (hybrid, pseudo)
        )
        weight = self._image_weights(pseudo[:size], labelled["label"], present, size)
        self._monitor(monitors, from_hybrid, from_pseudo, weak, weight)
        weak_loss, _ = self._cross_entropy(hybrid[size:], from_pseudo, present[size:])
        return {
            "hybrid_segmentation": self._mean_cross_entropy(
                hybrid[:size],
                labelled["label"],
                present[:size],
                class_weights=self.config.label_weights,
            ),
            "pseudo_segmentation": self._mean_cross_entropy(
                pseudo[size:], from_hybrid, present[size:]
            ),
            "classification": loss_ops.multi_label_loss(
                tf.reduce_max(hybrid, [1, 2])[:, self.spec.first_image_class :], image_label
            ),
            # The loss of void is 0, and the mean includes it, as published.
            "cross_training": tf.reduce_mean(weight[:, None, None] * weak_loss),
        }

    def _logits(self, network, image: tf.Tensor, seed: tf.Tensor, use: int) -> tf.Tensor:
        """Returns float32 logits at the size of the image."""
        logits = network(image, training=True, dropout_seed=fold_seed(seed, use))["logits"]
        return resize_bilinear(tf.cast(logits, tf.float32), image.shape[1:3])

    def _cross_entropy(self, logits, label, present) -> tuple[tf.Tensor, tf.Tensor]:
        return class_aware.class_aware_cross_entropy(
            logits,
            label,
            present,
            ignore_label=self.spec.ignore_label,
            temperature=self.settings.cce_temperature,
        )

    def _mean_cross_entropy(self, logits, label, present, *, class_weights=None) -> tf.Tensor:
        loss, kept = self._cross_entropy(logits, label, present)
        loss *= loss_ops.weights_of(label, class_weights)
        return loss_ops.mean_over(loss, kept, over_replicas=self.over_replicas)

    def _image_weights(self, logits, label, present, size: int) -> tf.Tensor:
        """Evaluates PseudoNet on the images with masks and weighs the others, float32 [M]."""
        settings = self.settings
        prediction = tf.argmax(
            class_aware.mask_absent_logits(logits, present[:size]), -1, output_type=tf.int32
        )
        found = cross_training.class_counts(
            label,
            prediction,
            self.spec.num_classes,
            ignore_label=self.spec.ignore_label,
            count_ignored=settings.score_counts_void,
        )
        found = running.over_replicas(found, tf.distribute.ReduceOp.SUM)
        kept = running.kept_by_part(
            settings.score_momentum, self.config.gradient_accumulation_steps
        )
        counts = kept * self.counts + found
        self.counts.assign(counts)
        return cross_training.image_weights(
            cross_training.iou_of_counts(counts),
            present[size:],
            power=settings.score_power,
            zero_counts_as=1.0 if settings.zero_iou_counts_as == "one" else 0.0,
        )

    # The optimiser -------------------------------------------------------------------------------

    def param_groups(self) -> list[ParamGroup]:
        """Returns two groups for each network; everything decays, biases and batch norm too."""
        constant = self.settings.pseudo_net_schedule == "constant"
        # Adam's rate is constant anyway.
        rate = self.config.base_learning_rate if constant else None
        schedules = {"hybrid": None, "pseudo": None if self.config.optimizer == "adam" else rate}
        groups = []
        for name, network in self.networks().items():
            last = network.logits_layer.trainable_variables if network.logits_layer else []
            ids = {id(v) for v in last}
            rest = [v for v in network.trainable_variables if id(v) not in ids]
            multiplier = self.settings.logits_learning_rate_multiplier
            for part, variables, factor in (("", rest, 1.0), ("_logits", last, multiplier)):
                if variables:
                    groups.append(
                        ParamGroup(
                            name=name + part,
                            variables=variables,
                            lr_multiplier=factor,
                            weight_decay=self.config.weight_decay,
                            schedule=schedules[name],
                        )
                    )
        return groups

    # What a user watches -------------------------------------------------------------------------

    def _monitor(self, monitors: Monitors, from_hybrid, from_pseudo, weak, weight) -> None:
        """Measures both networks' labels against masks that no loss sees."""
        truth = weak["hidden_label"]
        hidden = tf.cast(~weak["has_label"], tf.float32)[:, None, None]
        counted = hidden * tf.cast(tf.not_equal(truth, self.spec.ignore_label), tf.float32)
        for name, prediction in (("hybrid", from_hybrid), ("pseudo", from_pseudo)):
            monitors.confusion(
                name,
                truth,
                # (Images with masks are not counted, and their ignored pixels have no class.)
                tf.where(weak["has_label"][:, None, None], 0, prediction),
                num_classes=self.spec.num_classes,
                weight=tf.broadcast_to(counted, tf.shape(truth)),
            )
        monitors.share("image_weight", tf.reduce_sum(weight), tf.cast(tf.size(weight), tf.float32))
        monitors.histogram("image_weight", weight, tf.ones_like(weight))

    def pseudo_labels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns what each network says of the second split, among the classes of the image."""
        weak = batch["weak"]
        present = class_aware.present_classes(
            weak["image_label"], has_background=self.spec.has_background
        )
        kinds = {}
        for name, network in self.networks().items():
            logits = network(weak["image"], training=False)["logits"]
            logits = resize_bilinear(tf.cast(logits, tf.float32), weak["image"].shape[1:3])
            kinds[name] = tf.nn.softmax(class_aware.mask_absent_logits(logits, present))
        return kinds

    def panels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns an image of the second split, what each network makes of it, and the truth."""
        weak = batch["weak"]
        panels = {"image": weak["image"]}
        for name, probs in self.pseudo_labels(batch).items():
            panels[name] = tf.argmax(probs, -1, output_type=tf.int32)
        panels["truth"] = weak["hidden_label"]
        return panels
