"""SLRNet's network: ASPP and skip decoder, low-rank features, global cue, two predictions.

Features at a low-level stride are factorised (`low_rank`), mixed with the shallow features of that
stride, and classified. An auxiliary prediction before the factorisation gives its initial bases.
The published network is this on wide_resnet38 with output stride 8, and plain convolutions; any
backbone will do.

Source: Pan et al., IJCV 2022; specification 3, 4.1, 4.2.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.models.heads.factorisation import (
    GlobalCueInjection,
    LowRank,
    StochasticGate,
    initial_bases,
)
from tfseg.models.heads.parts import ASPP, LOW_LEVEL_FILTERS, DecoderStage, conv_unit, head_settings
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.dropout import Dropout, fold_seed
from tfseg.models.layers.initial_values import he_normal, he_normal_depthwise, uniform_fan_in
from tfseg.models.layers.settings import Layer, Settings
from tfseg.models.network import Network
from tfseg.ops.class_scores import class_scores
from tfseg.ops.two_views import second_view, to_first_view
from tfseg.settings.network import ModelConfig

# Dropout rates of the last convolutions, each before the next one; (standard, wide).
_LAST_DROPOUT = {False: (0.5, 0.1), True: (0.3,)}
_AUXILIARY_DROPOUT = (0.5,)
# Each view, and the auxiliary head, draws its own dropout.
_FIRST, _SECOND, _AUXILIARY = range(3)


@dataclasses.dataclass(frozen=True)
class Features:
    """What the head takes of one view.

    Attributes:
      deep: of the skip decoder, [N, h, w, D].
      shallow: the backbone's low-level end point, [N, h, w, D'].
    """

    deep: tf.Tensor
    shallow: tf.Tensor


@dataclasses.dataclass(frozen=True)
class HeadOutput:
    """What the head says of one or two views.

    Attributes:
      logits: of each view, float32 [N, h, w, C].
      codes: of each view, float32 [N, h, w, C], sum 1.
      auxiliary: logits of the first view before the factorisation, float32 [N, h, w, C].
      bases: float32 [N, C, D].
    """

    logits: tuple[tf.Tensor, ...]
    codes: tuple[tf.Tensor, ...]
    auxiliary: tf.Tensor
    bases: tf.Tensor


def with_background(foreground: tf.Tensor, kind: str) -> tf.Tensor:
    """Puts the background's logit before those of the other classes.

    Args:
      foreground: float [N, h, w, C - 1]; with 'learned' all C logits.
      kind: 'constant': 1; 'complement': 1 - the largest of the others; 'learned': nothing to do.

    Returns:
      float [N, h, w, C].

    Source: specification 3.
    """
    if kind == "learned":
        return foreground
    if kind == "constant":
        background = tf.ones_like(foreground[..., :1])
    else:
        background = 1.0 - tf.reduce_max(foreground, -1, keepdims=True)
    return tf.concat([background, foreground], -1)


class Convolutions(Layer):
    """3x3 convolutions with batch norm and dropout, then a 1x1 convolution to logits in float32.

    Args:
      settings: `head_settings`.
      name: scope of the 3x3 convolutions.
      logits_name: scope of the last one.
      channels: of the input and of every 3x3 convolution.
      filters: number of logits.
      dropout_rates: after each 3x3 convolution; their number is that of the convolutions.
      separable: 3x3 convolutions are.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        logits_name: str,
        channels: int,
        filters: int,
        *,
        dropout_rates: tuple[float, ...],
        separable: bool,
    ):
        super().__init__(f"{name}_convolutions")
        self.units, self.dropouts = [], []
        for i, rate in enumerate(dropout_rates):
            self.units.append(
                conv_unit(settings, f"{name}/conv{i}", channels, channels, 3, separable=separable)
            )
            self.dropouts.append(Dropout(f"{name}/dropout{i}", rate))
        self.logits = Conv2D(
            settings,
            logits_name,
            channels,
            filters,
            use_bias=True,
            bias_init=uniform_fan_in(channels),
            compute_dtype="float32",
        )

    def call(
        self, x: tf.Tensor, training: bool = False, dropout_seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Maps [N, h, w, channels] to float32 [N, h, w, filters]."""
        for unit, dropout in zip(self.units, self.dropouts):
            x = unit(x, training=training)
            x = dropout(x, training=training, dropout_seed=dropout_seed)
        return self.logits(x)


class LowRankHead(Layer):
    """From the features of one or two views to their logits.

    Args:
      settings: `head_settings`.
      config: the `low_rank_*`, `background_logit` and `decoder_use_separable_conv` fields.
      channels: of the deep features.
      shallow_channels: of the shallow ones.
      num_classes: C, background included.
    """

    def __init__(
        self,
        settings: Settings,
        config: ModelConfig,
        channels: int,
        shallow_channels: int,
        num_classes: int,
    ):
        super().__init__("low_rank_head")
        self._background = config.head_settings.background_logit
        filters = num_classes - (config.head_settings.background_logit != "learned")
        separable = config.decoder_use_separable_conv
        self.auxiliary = Convolutions(
            settings,
            "auxiliary",
            "auxiliary/logits",
            channels,
            filters,
            dropout_rates=_AUXILIARY_DROPOUT,
            separable=separable,
        )
        self.low_rank = LowRank(
            settings,
            channels,
            iterations=config.head_settings.low_rank_iterations,
            temperature=config.head_settings.low_rank_temperature,
        )
        # The wide variant brings the shallow features to the width of the deep ones first.
        self.shallow_unit = None
        if config.head_settings.low_rank_wide:
            self.shallow_unit = conv_unit(
                settings, "decoder/feature_projection1", shallow_channels, channels
            )
            shallow_channels = channels
        self.global_cue = GlobalCueInjection(settings, shallow_channels, channels)
        self.gate = StochasticGate(kind=config.head_settings.low_rank_gate)
        self.last = Convolutions(
            settings,
            "segmentation",
            "logits/semantic",
            channels,
            filters,
            dropout_rates=_LAST_DROPOUT[config.head_settings.low_rank_wide],
            separable=separable,
        )

    def call(
        self,
        views: tuple[Features, ...],
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
    ) -> HeadOutput:
        """Segments the views.

        Args:
          views: one or two; the first gives the initial bases, to which no gradient flows.
          training: batch norm, dropout and gate are in training mode.
          dropout_seed: int32 [2]; needed in training.
        """
        first = views[0].deep
        auxiliary = self.auxiliary(
            first, training=training, dropout_seed=fold_seed(dropout_seed, _AUXILIARY)
        )
        kind = self._background
        auxiliary = with_background(auxiliary, "complement" if kind == "constant" else kind)
        bases = initial_bases(tf.stop_gradient(auxiliary), tf.stop_gradient(first))
        deep, codes, bases = self.low_rank([view.deep for view in views], bases)
        logits = [
            self._segment(x, view.shallow, training, fold_seed(dropout_seed, number))
            for number, (x, view) in enumerate(zip(deep, views))
        ]
        return HeadOutput(tuple(logits), tuple(codes), auxiliary, bases)

    def _segment(self, deep, shallow, training, dropout_seed) -> tf.Tensor:
        if self.shallow_unit is not None:
            shallow = self.shallow_unit(shallow, training=training)
        cue = self.global_cue(shallow, deep, training=training)
        x = self.gate(deep, cue, training=training, dropout_seed=dropout_seed)
        logits = self.last(x, training=training, dropout_seed=dropout_seed)
        return with_background(logits, self._background)


class LowRankNet(Network):
    """SLRNet. Use `tfseg.models.build_model` with head='low_rank'.

    Batch norm in the backbone always keeps its stored statistics.

    Args: as for `Network`. It gives class scores without a classifier, and needs no word vectors.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        with_classifier: bool = False,
        class_vectors: np.ndarray | None = None,
        **options: Any,
    ):
        super().__init__(config, fine_tune_backbone_norm=False, **options)
        _check(config)
        heads = head_settings(self.settings, config.head_initializer).replace(
            decay=0.95,
            kernel_init=he_normal,
            pointwise_init=he_normal,
            depthwise_init=he_normal_depthwise,
        )
        # Published: these six layers keep mean 0 and variance 1 for ever, and only scale and shift.
        still = config.head_settings.low_rank_freeze_aspp_statistics
        aspp = heads.replace(fine_tune_batch_norm=False) if still else heads
        self.aspp = ASPP(aspp, config, self.backbone.channels[self.backbone.last])
        self._low_level = self.low_level_name(config.decoder_output_stride[0])
        shallow_channels = self.backbone.channels[self._low_level]
        self.decoder = DecoderStage(
            heads,
            config,
            self.aspp.out_channels,
            shallow_channels,
            suffix="",
            num_logits=None,
            projection_filters=LOW_LEVEL_FILTERS * (2 if config.head_settings.low_rank_wide else 1),
            num_convolutions=1,
        )
        self.head = LowRankHead(
            heads, config, self.decoder.out_channels, shallow_channels, self.num_classes
        )

    def features(
        self,
        image: tf.Tensor,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
        input_scale: float = 1.0,
    ) -> Features:
        """Maps an image [N, H, W, 3], RGB 0..255, to what the head takes of it."""
        ends = self.encode(image, training=training, dropout_seed=dropout_seed)
        x, _ = self.aspp(
            ends[self.backbone.last],
            training=training,
            dropout_seed=dropout_seed,
            input_scale=input_scale,
        )
        shallow = ends[self._low_level]
        deep, _ = self.decoder(x, shallow, training=training, dropout_seed=dropout_seed)
        return Features(deep, shallow)

    def two_views(
        self,
        image: tf.Tensor,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
        flip: tf.Tensor | None = None,
        input_scale: float = 1.0,
    ) -> HeadOutput:
        """Segments an image and its reduced copy together.

        Args:
          image: RGB 0..255 [N, H, W, 3].
          training: batch norm, dropout and gate are in training mode; each view is normalised by
            its own statistics.
          dropout_seed: int32 [2]; needed in training.
          flip: bool [N], whose second view is mirrored; None: nobody's.
          input_scale: see `DeepLab.decode`.

        Returns:
          Output for both views; the second stays in its own size, mirrored or not.
        """
        scale = self.config.head_settings.low_rank_view_scale
        small = second_view(tf.cast(image, tf.float32), scale=scale, flip=flip)
        views = tuple(
            self.features(view, training, fold_seed(dropout_seed, number), input_scale * relative)
            for number, view, relative in ((_FIRST, image, 1.0), (_SECOND, small, scale))
        )
        return self.head(views, training=training, dropout_seed=dropout_seed)

    def scores(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns image-level scores of the classes but background, float32 [N, C - 1].

        Args:
          logits: float32 [N, h, w, C].
        """
        return class_scores(
            logits,
            tf.nn.softmax(logits),
            power=self.config.head_settings.class_score_power,
            offset=self.config.head_settings.class_score_offset,
        )

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
          training: batch norm, dropout and gate are in training mode.
          dropout_seed: int32 [2]; needed in training.
          input_scale: see `DeepLab.decode`.

        Returns:
          'logits' float32 [N, h, w, C]; and 'image_logits' float32 [N, C - 1], the class scores
          (not where the background's logit is learned: no loss taught them then). With
          --low_rank_test_views=2 the softmax of the logits is the mean of both views' masks, and
          the scores are the mean of theirs.
        """
        if self.config.head_settings.low_rank_test_views == 1:
            features = self.features(image, training, dropout_seed, input_scale)
            output = self.head((features,), training=training, dropout_seed=dropout_seed)
            logits = merged = output.logits[0]
            scores = [logits]
        else:
            output = self.two_views(
                image, training, dropout_seed=dropout_seed, input_scale=input_scale
            )
            merged = tf.math.log(tf.maximum(self.mean_mask(output.logits), 1e-30))
            scores = output.logits
        result = {"logits": merged}
        if self.config.head_settings.background_logit != "learned":
            result["image_logits"] = tf.add_n([self.scores(x) for x in scores]) / len(scores)
        return result

    def mean_mask(
        self, logits: tuple[tf.Tensor, tf.Tensor], flip: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the mean of both views' softmax at the first one's size, float32 [N, h, w, C]."""
        first, second = (tf.nn.softmax(x) for x in logits)
        size = tf.shape(first)[1:3] if None in first.shape[1:3] else first.shape[1:3]
        return (first + to_first_view(second, size, flip=flip)) / 2.0


def _check(config: ModelConfig) -> None:
    """Refuses settings that the head cannot have.

    Raises:
      UserError: names the flag.
    """
    needed = (
        ("aspp_with_batch_norm", bool(config.aspp_with_batch_norm), "true"),
        ("aspp_with_concat_projection", bool(config.aspp_with_concat_projection), "true"),
        ("decoder_output_stride", len(config.decoder_output_stride or ()) == 1, "one stride: 4"),
        ("decoder_output_is_logits", not config.decoder_output_is_logits, "false"),
        ("decoder_use_sum_merge", not config.decoder_use_sum_merge, "false"),
        ("image_pyramid", tuple(config.image_pyramid or (1.0,)) == (1.0,), "1.0"),
    )
    for flag, met, accepted in needed:
        if not met:
            raise UserError(
                f"SLRNet's network cannot be built with this --{flag}.",
                where=f"--{flag}",
                received=getattr(config, flag),
                accepted=accepted,
            )
