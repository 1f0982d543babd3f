"""A backbone, a network and a method small enough to train in milliseconds, for tests."""

import numpy as np
import tensorflow as tf

from tfseg.data.reading import deterministic_options
from tfseg.data.stream import Stream
from tfseg.methods.base import Method, ParamGroup
from tfseg.models.backbones.base import CENTRED, Backbone
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.units import ConvBatchNorm

CLASSES = 3


class ToyNetwork(tf.keras.Model):
    """One 3x3 convolution and a bias, with the model's interface."""

    mean_pixel = (127.5, 127.5, 127.5)

    def __init__(self, seed=0):
        super().__init__(name="toy")
        kernel = np.random.default_rng(seed).normal(0, 0.1, [3, 3, 3, CLASSES]).astype("float32")
        self.kernel = tf.Variable(kernel, name="toy/weights")
        self.bias = tf.Variable(tf.zeros(CLASSES), name="toy/biases")

    def call(self, image, training=False, dropout_seed=None):
        x = image / 127.5 - 1.0
        if training and dropout_seed is not None:
            keep = tf.random.stateless_uniform(tf.shape(x), dropout_seed) > 0.1
            x = tf.where(keep, x, 0.0)
        return {"logits": tf.nn.conv2d(x, self.kernel, 1, "SAME") + self.bias}


class ToyMethod(Method):
    """Cross entropy of the toy network; `poison_step` makes the loss NaN at that step."""

    poison_step = -1

    def build(self, build_model):
        return build_model()

    @classmethod
    def streams(cls, data, train, settings=None):
        return {"labelled": Stream(split="train", batch_size=train.train_batch_size)}

    def losses(self, batch, step, seed, monitors):
        logits = self.model(batch["image"], training=True, dropout_seed=seed)["logits"]
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=batch["label"], logits=logits)
        )
        poison = tf.where(tf.equal(step, self.poison_step), np.nan, 1.0)
        return {"segmentation": loss * tf.cast(poison, tf.float32)}

    def param_groups(self):
        return [
            ParamGroup("kernels", [self.model.kernel], weight_decay=self.config.weight_decay),
            ParamGroup("biases", [self.model.bias], gradient_multiplier=2.0),
        ]


def batches(batch_size, size=8):
    """Endless batches; batch i depends on i alone."""

    def make(i):
        image = tf.random.stateless_uniform([batch_size, size, size, 3], [1, i]) * 255.0
        label = tf.cast(tf.argmax(image, -1), tf.int32)
        return {"image": image, "label": label}

    return lambda start: (
        tf.data.Dataset.range(start, 1 << 30)
        .map(lambda i: make(tf.cast(i, tf.int32)))
        .with_options(deterministic_options())
    )


class ToyBackbone(Backbone):
    """Four strided convolutions with batch norm: strides 2, 4, 8, 16."""

    facts = CENTRED
    scope = "toy"
    last = "stage4"

    def __init__(self, settings, config):
        super().__init__("toy")
        self.stages, channels = [], 3
        for i, filters in enumerate((6, 8, 10, 12), start=1):
            convolution = Conv2D(settings, f"toy/stage{i}", channels, filters, 3, stride=2)
            self.stages.append(ConvBatchNorm(convolution, settings, activation=tf.nn.relu))
            channels = self.channels[f"stage{i}"] = filters
        self.low_level = {4: "stage2", 8: "stage3"}
        self.hypercolumn = {16: "stage4", 15: "stage3", 8: "stage2"}

    def call(self, x, training=False):
        ends = {}
        for i, stage in enumerate(self.stages, start=1):
            x = ends[f"stage{i}"] = stage(x, training=training)
        return ends
