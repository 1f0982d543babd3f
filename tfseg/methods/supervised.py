"""Supervised segmentation: cross entropy on the labelled stream.

With `--weakly` an image-level classifier is trained beside it on the second stream, as in the
published baseline (PseudoSeg specification 1.3).
"""

import tensorflow as tf

from tfseg.data.stream import Stream
from tfseg.methods.base import Batch, Method
from tfseg.models.layers.dropout import fold_seed
from tfseg.monitors import Monitors
from tfseg.ops import losses as loss_ops
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.data import DataConfig
from tfseg.settings.run import TrainConfig


class Supervised(Method):
    """A network on pixel labels."""

    heads = ("deeplab", "dpt")

    def build(self, build_model):
        return build_model(with_classifier=self.config.weakly)

    @classmethod
    def streams(cls, data: DataConfig, train: TrainConfig, settings=None) -> dict[str, Stream]:
        streams = {
            "labelled": Stream(
                split=data.train_split, batch_size=train.train_batch_size, labels="required"
            )
        }
        if train.weakly:
            streams["weak"] = Stream(
                split=data.train_split_cls,
                batch_size=train.train_batch_size,
                labels="none" if data.image_label_source == "record" else "required",
                image_labels=data.image_label_source,
                dataset_dir=data.dataset_dir_cls,
            )
        return streams

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        labelled = batch["labelled"]
        outputs = self.model(labelled["image"], training=True, dropout_seed=seed)
        result = {
            "segmentation": loss_ops.segmentation_loss(
                outputs["logits"],
                labelled["label"],
                ignore_label=self.spec.ignore_label,
                class_weights=self.config.label_weights,
                upsample_logits=self.config.upsample_logits,
                top_k=loss_ops.top_k_fraction(
                    step,
                    final=self.config.top_k_percent_pixels,
                    ramp_steps=self.config.hard_example_mining_step,
                ),
                over_replicas=self.over_replicas,
            )
        }
        if self.config.weakly:
            weak = batch["weak"]
            ends = self.model.encode(weak["image"], training=True)
            image_logits = self.model.classify(ends, training=True, dropout_seed=fold_seed(seed, 1))
            result["classification"] = loss_ops.multi_label_loss(image_logits, weak["image_label"])
        return result

    def panels(self, batch: Batch) -> dict[str, tf.Tensor]:
        labelled = batch["labelled"]
        logits = self.model(labelled["image"], training=False)["logits"]
        size = tf.shape(labelled["image"])[1:3]
        prediction = tf.argmax(resize_bilinear(logits, size), axis=-1, output_type=tf.int32)
        return {
            "image": labelled["image"],
            "label": labelled["label"],
            "prediction": prediction,
        }
