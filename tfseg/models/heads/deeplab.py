"""DeepLabv3+: a backbone, ASPP, a decoder, logits; optionally an image-level classifier.

Source: Chen et al., "Encoder-decoder with atrous separable convolution", ECCV 2018; PseudoSeg
specification, section 4.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.models.backbones.base import EndPoints
from tfseg.models.heads.parts import (
    ASPP,
    Classifier,
    DecoderStage,
    Logits,
    head_settings,
    scaled_size,
)
from tfseg.models.layers.settings import Settings
from tfseg.models.network import Network
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.network import ModelConfig


class DeepLab(Network):
    """Semantic segmentation network. Use `tfseg.models.build_model`.

    Args: as for `Network`, and `with_classifier`: add the image-level classifier. It needs no word
    vectors.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        with_classifier: bool = False,
        class_vectors: np.ndarray | None = None,
        **options: Any,
    ):
        super().__init__(config, **options)
        settings = self.settings
        heads = head_settings(settings, config.head_initializer)
        channels = self.backbone.channels[self.backbone.last]
        self.aspp = None
        if config.aspp_with_batch_norm:
            self.aspp = ASPP(heads, config, channels)
            channels = self.aspp.out_channels
        self.decoder, self._low_level = self._make_decoder(heads, channels)
        self.logits_layer = None
        if self.decoder:
            channels = self.decoder[-1].out_channels
        if not config.decoder_output_is_logits:
            self.logits_layer = Logits(heads, config, channels, self.num_classes)
        self.classifier = None
        if with_classifier:
            self.classifier = Classifier(
                settings,
                self.backbone,
                self.num_image_classes,
                dropout_rate=config.classifier_dropout_rate,
            )

    def _make_decoder(
        self, settings: Settings, channels: int
    ) -> tuple[list[DecoderStage], list[str]]:
        """Returns the stages and the low-level end points that they merge."""
        stages, names = [], []
        strides = self.config.decoder_output_stride or ()
        for i, stride in enumerate(strides):
            names.append(self.low_level_name(stride))
            is_last = i == len(strides) - 1
            stages.append(
                DecoderStage(
                    settings,
                    self.config,
                    channels,
                    self.backbone.channels[names[-1]],
                    suffix=f"_{i}" if i else "",
                    num_logits=self.num_classes
                    if is_last and self.config.decoder_output_is_logits
                    else None,
                )
            )
            channels = stages[-1].out_channels
        return stages, names

    @property
    def decoder_inputs(self) -> tuple[str, ...]:
        """See `Network.decoder_inputs`: low-level features first."""
        return (*reversed(self._low_level), self.backbone.last)

    def decode(
        self,
        end_points: EndPoints,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
        input_scale: float = 1.0,
    ) -> EndPoints:
        """Maps end points to logits.

        Args:
          end_points: of `encode`, possibly changed in between.
          training: batch norm and dropout are in training mode.
          dropout_seed: int32 [2]; needed in training while a dropout rate is > 0.
          input_scale: size of the image relative to the crops it was trained on, where the image
            was resized; scales the window of --image_pooling_crop_size.

        Returns:
          'logits' float32 [N, h, w, num_classes], 'features' [N, h, w, D] (the input of the logits
          convolution), and every named stage between: 'image_pooling', 'aspp0', ...,
          'concat_projection', 'decoder/feature_projection0', 'decoder/decoder_conv0', ...
          Sizes are those of the finest decoder stride, or of the output stride.
        """
        x = end_points[self.backbone.last]
        ends: EndPoints = {}
        if self.aspp is not None:
            x, ends = self.aspp(
                x, training=training, dropout_seed=dropout_seed, input_scale=input_scale
            )
        features = x
        for stage, name in zip(self.decoder, self._low_level):
            features = x
            x, more = stage(x, end_points[name], training=training, dropout_seed=dropout_seed)
            ends.update(more)
        if self.logits_layer is not None:
            features = x
            x = self.logits_layer(x)
        return {**ends, "logits": x, "features": features}

    def classify(
        self,
        end_points: EndPoints,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Maps end points to image-level logits, float32 [N, num_image_classes].

        Args:
          end_points: of `encode`.
          training: dropout is on (where batch norm is fine-tuned).
          dropout_seed: int32 [2]; needed in training while the dropout rate is > 0.

        Raises:
          ValueError: the model was built without classifier.
        """
        if self.classifier is None:
            raise ValueError(f"{self.name} was built without classifier (with_classifier=True)")
        return self.classifier(end_points, training=training, dropout_seed=dropout_seed)

    def call(
        self,
        image: tf.Tensor,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
        input_scale: float = 1.0,
    ) -> dict[str, tf.Tensor]:
        """Segments images.

        Args:
          image: RGB 0..255 [N, H, W, 3], any size.
          training: batch norm and dropout are in training mode.
          dropout_seed: int32 [2]; needed in training while a dropout rate is > 0.
          input_scale: see `decode`.

        Returns:
          'logits' float32 [N, h, w, num_classes]; 'features' [N, h, w, D]; and, if the model has a
          classifier, 'image_logits' float32 [N, num_image_classes]. With --image_pyramid the
          logits of all scales are merged, and the others are those of its last scale.
        """
        scales = self.config.image_pyramid or (1.0,)
        if tuple(scales) == (1.0,):
            return self._single_scale(image, training, dropout_seed, input_scale)
        return self._pyramid(image, scales, training, dropout_seed, input_scale)

    def _single_scale(self, image, training, dropout_seed, input_scale) -> dict[str, tf.Tensor]:
        ends = self.encode(image, training=training, dropout_seed=dropout_seed)
        outputs = self.decode(
            ends, training=training, dropout_seed=dropout_seed, input_scale=input_scale
        )
        result = {"logits": outputs["logits"], "features": outputs["features"]}
        if self.classifier is not None:
            result["image_logits"] = self.classify(
                ends, training=training, dropout_seed=dropout_seed
            )
        return result

    def _pyramid(self, image, scales, training, dropout_seed, input_scale):
        """Resizes the image to every scale and merges the logits at the largest one."""
        image = tf.cast(image, tf.float32)
        size = _scaled_sides(image, max(1.0, *scales) / self.logits_stride)
        logits = []
        for scale in scales:
            part = resize_bilinear(image, _scaled_sides(image, scale))
            result = self._single_scale(part, training, dropout_seed, input_scale * scale)
            logits.append(resize_bilinear(result["logits"], size))
        stacked = tf.stack(logits)
        merge = tf.reduce_max if self.config.merge_method == "max" else tf.reduce_mean
        return {**result, "logits": merge(stacked, axis=0)}


def _scaled_sides(image: tf.Tensor, scale: float) -> list[int | tf.Tensor]:
    """Returns trunc((side - 1) scale + 1) of height and width."""
    sides = []
    for axis in (1, 2):
        side = image.shape[axis]
        if side is not None:
            sides.append(scaled_size(side, scale))
        else:
            dynamic = tf.cast(tf.shape(image)[axis] - 1, tf.float64)
            sides.append(tf.cast(dynamic * scale + 1.0 + 1e-9, tf.int32))
    return sides
