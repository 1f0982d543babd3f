"""SPNet: training on the seen classes alone.

With --head=projection, the default here, pixels are projected into the space of word vectors, so
that unseen classes have logits although nothing was learned of them. With --head=deeplab it is
ordinary training that leaves unseen classes out: ZS3Net's first step, with --training_rules=zs3 by
its rules.

Source: Xian et al., "Semantic projection network for zero- and few-label semantic segmentation",
CVPR 2019; STRICT specification 1.6, 3 and 4.5; ZS3 specification 4.7 and 5. Ours: one scale (the
published loss is a sum over the image's scales and the maximum of their logits), and logits that
are resized with aligned corners in evaluation (published: half-pixel centres).
"""

import tensorflow as tf

from tfseg.data.stream import Stream
from tfseg.methods import zero_label
from tfseg.methods.base import Batch, Method, ParamGroup, freeze_norms, new_layers_groups
from tfseg.monitors import Monitors
from tfseg.ops.losses import mean_over, pixel_cross_entropy
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.spnet import SPNetConfig
from tfseg.settings.run import TrainConfig


class SPNet(Method):
    """Semantic projection network."""

    Config = SPNetConfig
    heads = ("projection", "deeplab")

    def __init__(self, **options):
        super().__init__(**options)
        zero_label.check(self)

    def build(self, build_model):
        """Makes the network; scale and shift of the backbone's batch norm are not trained.

        Source: STRICT specification 1.4. With --training_rules=zs3 they are (ZS3 specification 5).
        """
        model = build_model()
        if not self._zs3_rules:
            freeze_norms(model.backbone)
        return model

    @property
    def _zs3_rules(self) -> bool:
        return self.settings.training_rules == "zs3"

    def mean_loss(self, pixel_loss: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        """Returns the mean of pixel losses, float32 [N, h, w], by their weights, a scalar.

        Source: STRICT specification 4.4. With --training_rules=zs3 it is divided by the batch once
        more (ZS3 specification 4.7).
        """
        loss = mean_over(pixel_loss * weight, weight, over_replicas=self.over_replicas)
        return loss / self.config.train_batch_size if self._zs3_rules else loss

    @classmethod
    def streams(
        cls, data: DataConfig, train: TrainConfig, settings: SPNetConfig
    ) -> dict[str, Stream]:
        return zero_label.streams(data, train)

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        train = batch[zero_label.STREAM]
        logits = self.model(train["image"], training=True, dropout_seed=seed)["logits"]
        logits, maps = zero_label.at_one_size(
            logits,
            {name: train[name] for name in ("label", "hidden_label")},
            upsample_logits=self.config.upsample_logits,
        )
        zero_label.monitor(monitors, logits, maps["hidden_label"], spec=self.spec)
        pixel_loss, kept = pixel_cross_entropy(
            zero_label.only(logits, self.spec.seen_unseen.seen),
            maps["label"],
            ignore_label=self.spec.ignore_label,
            class_weights=self.config.label_weights,
        )
        return {"segmentation": self.mean_loss(pixel_loss, kept)}

    def param_groups(self) -> list[ParamGroup]:
        """Returns the published groups: new layers 10x, their biases 20x and without decay.

        Source: STRICT specification 5. With --training_rules=zs3 all of the new layers 10x, and all
        decays (ZS3 specification 5).
        """
        return new_layers_groups(
            self.model,
            self.config,
            multiplier=self.settings.new_layers_learning_rate_multiplier,
            biases_alike=self._zs3_rules,
        )

    def panels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns an image, its training label, the prediction, and the truth."""
        train = batch[zero_label.STREAM]
        return {
            "image": train["image"],
            "label": train["label"],
            "prediction": zero_label.prediction_panel(self, train["image"]),
            "truth": train["hidden_label"],
        }
