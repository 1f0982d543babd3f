"""DeepLabv3+: a backbone, ASPP, a decoder, logits; optionally an image-level classifier.

Source: Chen et al., "Encoder-decoder with atrous separable convolution", ECCV 2018; PseudoSeg
specification, section 4.
"""

import tensorflow as tf

from tfseg.models.backbones.base import EndPoints
from tfseg.models.heads.encoder_decoder import EncoderDecoder
from tfseg.models.heads.parts import ASPP, DecoderStage, Logits, head_settings
from tfseg.models.layers.settings import Settings


class DeepLab(EncoderDecoder):
    """Semantic segmentation network. Use `tfseg.models.build_model`.

    Args: as for `EncoderDecoder`; it needs no word vectors.
    """

    def make_decoder(self) -> None:
        config = self.config
        heads = head_settings(self.settings, config.head_initializer)
        channels = self.backbone.channels[self.backbone.last]
        self.aspp = None
        if config.aspp_with_batch_norm:
            self.aspp = ASPP(heads, config, channels, stride=self.feature_stride)
            channels = self.aspp.out_channels
        self.decoder, self._low_level = self._make_stages(heads, channels)
        self.logits_layer = None
        if self.decoder:
            channels = self.decoder[-1].out_channels
        if not config.decoder_output_is_logits:
            self.logits_layer = Logits(heads, config, channels, self.num_classes)

    def _make_stages(
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
