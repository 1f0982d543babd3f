"""What sits on a backbone: ASPP, decoder, segmentation logits, image-level classifier.

Source: Chen et al., "Rethinking atrous convolution" (ASPP, 2017) and "Encoder-decoder with atrous
separable convolution" (decoder, ECCV 2018); PseudoSeg specification 4.4 and 4.5. Variables have no
scope of their own (`aspp0/weights`), as in the published checkpoints.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.models.backbones.base import Backbone, EndPoints
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.dropout import Dropout
from tfseg.models.layers.initial_values import truncated_normal, uniform_fan_in, xavier_uniform
from tfseg.models.layers.settings import Layer, Settings
from tfseg.models.layers.units import ConvBatchNorm, SeparableConv
from tfseg.ops.resize import resize_bilinear, separable_linear
from tfseg.ops.shapes import sides
from tfseg.settings.network import ModelConfig

# Channels of a low-level feature that is concatenated, after its projection.
LOW_LEVEL_FILTERS = 48


def head_settings(settings: Settings, initializer: str = "xavier_uniform") -> Settings:
    """Returns the settings of ASPP, decoder and logits: they differ from the backbone's in epsilon.

    Args:
      settings: the network's.
      initializer: 'xavier_uniform': the published values of DeepLab, which differ by kind of layer;
        'uniform_fan_in': PyTorch's, for every kernel and bias (specification LPL 3).
    """
    return settings.replace(
        decay=0.9997,
        epsilon=1e-5,
        momentum=settings.momentum if settings.head_momentum is None else settings.head_momentum,
        kernel_init=xavier_uniform,
        depthwise_init=truncated_normal(0.33),
        init_by_fan_in=uniform_fan_in if initializer == "uniform_fan_in" else None,
    )


def conv_unit(
    settings: Settings,
    name: str,
    in_channels: int,
    filters: int,
    kernel_size: int = 1,
    *,
    rate: int = 1,
    separable: bool = False,
) -> Layer:
    """Returns a convolution with batch norm and ReLU, plain or separable.

    Args:
      settings: types, batch norm, initial values.
      name: scope.
      in_channels, filters: channels of input and output.
      kernel_size: side of the kernel; a separable one has 3.
      rate: atrous rate.
      separable: a depthwise and a pointwise convolution, each with batch norm.
    """
    if separable:
        settings = settings.replace(kernel_init=settings.pointwise_init)
        return SeparableConv(
            settings, name, in_channels, filters, rate=rate, activation=settings.activation
        )
    convolution = Conv2D(settings, name, in_channels, filters, kernel_size, rate=rate)
    return ConvBatchNorm(convolution, settings, activation=settings.activation)


def scaled_size(size: int, scale: float | tf.Tensor) -> int | tf.Tensor:
    """Returns trunc((size - 1) scale + 1), the size at which corner pixels stay aligned."""
    # The addition guards against 0.75 * 512 = 383.99...
    scaled = (size - 1) * scale + 1.0 + 1e-9
    return tf.cast(scaled, tf.int32) if tf.is_tensor(scaled) else int(scaled)


def _window_matrix(
    size: int | tf.Tensor, window: int | tf.Tensor, stride: int
) -> tuple[np.ndarray | tf.Tensor, int | tf.Tensor]:
    """Returns the matrix [n, size] that averages n windows, VALID, and n."""
    if isinstance(size, int) and isinstance(window, int):
        xp, window = np, min(window, size)
    else:
        xp, window = tf, tf.minimum(window, size)
    count = (size - window) // stride + 1
    arange = np.arange if xp is np else tf.range
    start, j = arange(count)[:, None] * stride, arange(size)[None, :]
    inside = (j >= start) & (j < start + window)
    if xp is np:
        return (inside / window).astype(np.float32), count
    return tf.cast(inside, tf.float32) / tf.cast(window, tf.float32), count


class ImagePooling(Layer):
    """Average pooling over a large window, a 1x1 convolution, and resizing back.

    Without a crop size the window is the whole feature map, whatever its size: that is what the
    published programs do too, because their crop size is always the size of the input.

    Args:
      settings: of the convolution.
      in_channels: channels of the features.
      filters: channels of the result.
      crop_size: window in input pixels (height, width), or None.
      stride: (vertical, horizontal) stride in feature cells; used with a crop size.
      output_stride: of the features.
    """

    def __init__(
        self,
        settings: Settings,
        in_channels: int,
        filters: int,
        *,
        crop_size: Sequence[int] | None,
        stride: Sequence[int],
        output_stride: int,
    ):
        super().__init__("image_pooling_branch")
        self.unit = conv_unit(settings, "image_pooling", in_channels, filters)
        self._crop_size = None if crop_size is None else tuple(crop_size)
        self._stride, self._output_stride = tuple(stride), output_stride

    def _pool(self, x: tf.Tensor, input_scale: float | tf.Tensor) -> tf.Tensor:
        # The mean is taken in float32: a bfloat16 sum of a thousand terms has few digits left.
        wide = tf.cast(x, tf.float32)
        if self._crop_size is None:
            return tf.reduce_mean(wide, [1, 2], keepdims=True)
        matrices = []
        for axis in (0, 1):
            side = x.shape[axis + 1]
            side = tf.shape(x)[axis + 1] if side is None else side
            scale = input_scale / self._output_stride
            window = scaled_size(self._crop_size[axis], scale)
            matrices.append(_window_matrix(side, window, self._stride[axis])[0])
        return separable_linear(wide, *matrices)

    def call(
        self, x: tf.Tensor, training: bool = False, input_scale: float | tf.Tensor = 1.0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns ([N, h, w, filters], the same before it is resized to h x w)."""
        pooled = self.unit(tf.cast(self._pool(x, input_scale), x.dtype), training=training)
        shape = tf.shape(x)
        size = [shape[i] if x.shape[i] is None else x.shape[i] for i in (1, 2)]
        return resize_bilinear(pooled, size), pooled


class ASPP(Layer):
    """Atrous spatial pyramid pooling with batch norm.

    Args:
      settings: `head_settings`.
      config: the `aspp_*`, `atrous_rates`, `image_pooling_*`, `add_image_level_feature` fields.
      in_channels: channels of the backbone's output.
      stride: of the backbone's output; None: the output stride.
    """

    def __init__(
        self,
        settings: Settings,
        config: ModelConfig,
        in_channels: int,
        *,
        stride: int | None = None,
    ):
        super().__init__("aspp_module")
        filters = config.aspp_convs_filters
        self.image_pooling = None
        if config.add_image_level_feature:
            self.image_pooling = ImagePooling(
                settings,
                in_channels,
                filters,
                crop_size=config.image_pooling_crop_size,
                stride=config.image_pooling_stride,
                output_stride=stride or config.output_stride,
            )
        self.branches = [conv_unit(settings, "aspp0", in_channels, filters)]
        for i, rate in enumerate(config.atrous_rates or (), start=1):
            self.branches.append(
                conv_unit(
                    settings,
                    f"aspp{i}",
                    in_channels,
                    filters,
                    3,
                    rate=rate,
                    separable=config.aspp_with_separable_conv,
                )
            )
        concatenated = filters * (len(self.branches) + bool(config.add_image_level_feature))
        self.projection = self.dropout = None
        self.out_channels = concatenated
        if config.aspp_with_concat_projection:
            self.projection = conv_unit(settings, "concat_projection", concatenated, filters)
            self.dropout = Dropout("concat_projection_dropout", config.aspp_dropout_rate)
            self.out_channels = filters

    def call(
        self,
        x: tf.Tensor,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
        input_scale: float = 1.0,
    ) -> tuple[tf.Tensor, EndPoints]:
        """Returns ([N, h, w, out_channels], end points by scope)."""
        ends, parts = {}, []
        if self.image_pooling is not None:
            part, ends["image_pooling"] = self.image_pooling(
                x, training=training, input_scale=input_scale
            )
            parts.append(part)
        for i, branch in enumerate(self.branches):
            parts.append(branch(x, training=training))
            ends[f"aspp{i}"] = parts[-1]
        x = tf.concat(parts, axis=-1) if len(parts) > 1 else parts[0]
        if self.projection is not None:
            x = ends["concat_projection"] = self.projection(x, training=training)
            x = self.dropout(x, training=training, dropout_seed=dropout_seed)
        return x, ends


def _decoder_dropouts(config: ModelConfig, suffix: str, count: int) -> list[Dropout]:
    """Returns the dropout after each convolution of a decoder stage, or nothing.

    Raises:
      UserError: the decoder has no features to drop, or the rates are not one for each convolution.
    """
    rates = config.decoder_dropout_rates or ()
    if rates and (config.decoder_output_is_logits or config.decoder_use_sum_merge):
        raise UserError(
            "--decoder_dropout_rates cannot be used with --decoder_output_is_logits or "
            "--decoder_use_sum_merge.",
            where="--decoder_dropout_rates",
            received=", ".join(map(str, rates)),
            fix="leave it out, or --decoder_output_is_logits and --decoder_use_sum_merge",
        )
    if len(rates) not in (0, count):
        raise UserError(
            "--decoder_dropout_rates needs one rate for each of the decoder's convolutions.",
            where="--decoder_dropout_rates",
            received=", ".join(map(str, rates)),
            accepted=f"{count} in [0, 1); published for ZS3Net: 0.5,0.1",
        )
    return [Dropout(f"decoder/dropout{i}{suffix}", rate) for i, rate in enumerate(rates)]


class DecoderStage(Layer):
    """Merges the features with one low-level end point, at that end point's size.

    Args:
      settings: `head_settings`.
      config: the `decoder_*` fields; the projection is never separable.
      in_channels: channels of the features.
      low_level_channels: channels of the low-level end point.
      suffix: of the scopes; '' for the first stage.
      num_logits: None, or the number of classes when this stage gives the logits.
      projection_filters: channels of a low-level feature that is concatenated.
      num_convolutions: 2, or 1, after the concatenation.
    """

    def __init__(
        self,
        settings: Settings,
        config: ModelConfig,
        in_channels: int,
        low_level_channels: int,
        *,
        suffix: str,
        num_logits: int | None,
        projection_filters: int = LOW_LEVEL_FILTERS,
        num_convolutions: int = 2,
    ):
        super().__init__(f"decoder_stage{suffix}")
        projection_size = config.decoder_projection_kernel_size
        self._sum = config.decoder_use_sum_merge
        separable, filters = config.decoder_use_separable_conv, config.decoder_filters
        self.out_channels = num_logits or filters
        self.dropouts = _decoder_dropouts(config, suffix, num_convolutions)

        def last(name: str, channels: int, kernel_size: int, *, separable: bool) -> Layer:
            """The layer that ends a branch: linear with a bias where it gives the logits."""
            if num_logits is None:
                return conv_unit(
                    settings,
                    name,
                    channels,
                    filters,
                    kernel_size,
                    separable=separable,
                )
            return Conv2D(
                settings,
                name,
                channels,
                num_logits,
                kernel_size,
                use_bias=True,
                init=truncated_normal(0.01),
                compute_dtype="float32",
            )

        projection = f"decoder/feature_projection0{suffix}"
        if self._sum:
            self.projection = last(projection, low_level_channels, projection_size, separable=False)
            self.convolutions = [
                last(f"decoder/decoder_conv0{suffix}", in_channels, 3, separable=separable)
            ]
            return
        self.projection = conv_unit(
            settings, projection, low_level_channels, projection_filters, projection_size
        )
        channels = in_channels + projection_filters
        self.convolutions = []
        for i in range(num_convolutions - 1):
            name = f"decoder/decoder_conv{i}{suffix}"
            self.convolutions.append(
                conv_unit(settings, name, channels, filters, 3, separable=separable)
            )
            channels = filters
        name = f"decoder/decoder_conv{num_convolutions - 1}{suffix}"
        self.convolutions.append(last(name, channels, 3, separable=separable))

    def call(
        self,
        x: tf.Tensor,
        low_level: tf.Tensor,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, EndPoints]:
        """Returns ([N, H, W, out_channels], end points by scope).

        Args:
          x: [N, h, w, in_channels].
          low_level: [N, H, W, low_level_channels].
          training: batch norm and dropout are in training mode.
          dropout_seed: int32 [2]; needed in training with --decoder_dropout_rates.
        """
        projected = self.projection(low_level, training=training)
        ends = {self.projection.name.removesuffix("_unit"): projected}
        x = resize_bilinear(x, sides(low_level))
        if not self._sum:
            x = tf.concat([x, projected], axis=-1)
        for i, layer in enumerate(self.convolutions):
            x = layer(x) if isinstance(layer, Conv2D) else layer(x, training=training)
            ends[layer.name.removesuffix("_unit")] = x
            if self.dropouts:
                x = self.dropouts[i](x, training=training, dropout_seed=dropout_seed)
        return (x + projected if self._sum else x), ends


class Logits(Layer):
    """Segmentation logits in float32: one convolution, or the sum of several atrous ones.

    Args:
      settings: types and seeds.
      config: `logits_kernel_size`, `aspp_with_batch_norm`, `atrous_rates`.
      in_channels: channels of the features.
      num_classes: number of classes.
    """

    def __init__(self, settings: Settings, config: ModelConfig, in_channels: int, num_classes: int):
        super().__init__("logits_sum")
        summed = not config.aspp_with_batch_norm and config.atrous_rates is not None
        if not summed and config.logits_kernel_size != 1:
            raise UserError(
                "The logits convolution must be 1x1.",
                where="--logits_kernel_size",
                received=config.logits_kernel_size,
                accepted="1; or 3 with --aspp_with_batch_norm=false and --atrous_rates",
            )
        rates = config.atrous_rates if summed else (1,)
        self.convolutions = [
            Conv2D(
                settings,
                "logits/semantic" + (f"_{i}" if i else ""),
                in_channels,
                num_classes,
                config.logits_kernel_size,
                rate=rate,
                use_bias=True,
                init=truncated_normal(0.01),
                compute_dtype="float32",
            )
            for i, rate in enumerate(rates)
        ]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, h, w, in_channels] to float32 [N, h, w, num_classes]."""
        total = self.convolutions[0](x)
        for convolution in self.convolutions[1:]:
            total += convolution(x)
        return total


class Classifier(Layer):
    """Image-level logits: mean over the image, dropout, and a 1x1 convolution in float32.

    Args:
      settings: the backbone's; training-mode dropout needs batch norm to be fine-tuned too, as
        published (specification 4.2).
      backbone: gives the scope, the end point and the default dropout rate.
      num_image_classes: number of outputs.
      dropout_rate: None: the backbone's.
    """

    def __init__(
        self,
        settings: Settings,
        backbone: Backbone,
        num_image_classes: int,
        *,
        dropout_rate: float | None,
    ):
        super().__init__("image_classifier")
        facts = backbone.facts
        self._end_point = backbone.last
        self._drops = settings.fine_tune_batch_norm
        rate = facts.classifier_dropout_rate if dropout_rate is None else dropout_rate
        self.dropout = Dropout(f"{backbone.scope}/logits/dropout", rate)
        self.convolution = Conv2D(
            settings,
            f"{backbone.scope}/logits",
            backbone.channels[backbone.last],
            num_image_classes,
            use_bias=True,
            init=truncated_normal(0.09),
            compute_dtype="float32",
            kernel_name=facts.kernel_name,
            bias_name=facts.bias_name,
        )

    def pool(self, end_points: EndPoints) -> tf.Tensor:
        """Returns the float32 mean features [N, 1, 1, D]."""
        features = tf.cast(end_points[self._end_point], tf.float32)
        return tf.reduce_mean(features, [1, 2], keepdims=True)

    def dropout_multiplier(self, end_points: EndPoints, dropout_seed: tf.Tensor) -> tf.Tensor:
        """Returns what `call` in training multiplies the pooled features by, [N, 1, 1, D]."""
        ones = tf.ones_like(self.pool(end_points))
        return self.dropout(ones, training=self._drops, dropout_seed=dropout_seed)

    def call(
        self,
        end_points: EndPoints,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Maps end points to float32 logits [N, num_image_classes]."""
        pooled = self.dropout(
            self.pool(end_points), training=training and self._drops, dropout_seed=dropout_seed
        )
        return tf.squeeze(self.convolution(pooled), [1, 2])
