"""DeepLabv3+: a backbone, ASPP, a decoder, logits; optionally an image-level classifier.

Source: Chen et al., "Encoder-decoder with atrous separable convolution", ECCV 2018; PseudoSeg
specification, section 4.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.config import OUTPUT_STRIDES, ModelConfig
from tfseg.errors import UserError, check_choice
from tfseg.models.backbones import BACKBONES
from tfseg.models.backbones.base import EndPoints
from tfseg.models.heads import ASPP, Classifier, DecoderStage, Logits, head_settings, scaled_size
from tfseg.models.layers import Settings
from tfseg.ops.resize import resize_bilinear


def _check(config: ModelConfig) -> None:
    """Refuses settings that cannot be meant.

    Raises:
      UserError: names the flag, what it got and what it takes.
    """
    check_choice(config.model_variant, BACKBONES, flag="model_variant", what="backbone")
    check_choice(config.output_stride, OUTPUT_STRIDES, flag="output_stride", what="output stride")
    rates = config.atrous_rates or ()
    if any(rate < 1 for rate in rates) or any(a >= b for a, b in zip(rates, rates[1:])):
        raise UserError(
            "--atrous_rates must be positive and strictly increasing.",
            where="--atrous_rates",
            received=", ".join(map(str, rates)),
            accepted="for example 6, 12, 18 at output stride 16 (12, 24, 36 at 8)",
            fix="repeated flags accumulate, also over a flagfile and the command line: give the "
            "rates in one place only",
        )
    mobile_only = {"depth_multiplier": 1.0, "divisible_by": None}
    for name, default in mobile_only.items():
        value = getattr(config, name)
        if value != default and config.model_variant != "mobilenet_v2":
            raise UserError(
                f"--{name} is for mobilenet_v2 only.",
                where=f"--{name}",
                received=value,
                accepted=default,
                fix="leave the flag out, or choose --model_variant=mobilenet_v2",
            )
    if config.multi_grid is not None and config.model_variant in (
        "wide_resnet38",
        "mobilenet_v2",
        "efficientnet_lite0",
    ):
        raise UserError(
            f"{config.model_variant} has no multi-grid block.",
            where="--multi_grid",
            received=config.multi_grid,
            fix="leave the flag out",
        )
    if any(scale <= 0 for scale in config.image_pyramid or ()):
        raise UserError(
            "Scales are positive.", where="--image_pyramid", received=config.image_pyramid
        )
    _check_decoder(config)


def _check_decoder(config: ModelConfig) -> None:
    check_choice(
        config.decoder_projection_kernel_size,
        (1, 3),
        flag="decoder_projection_kernel_size",
        what="kernel size",
    )
    strides = config.decoder_output_stride or ()
    if any(a <= b for a, b in zip(strides, strides[1:])):
        raise UserError(
            "--decoder_output_stride must be descending.",
            where="--decoder_output_stride",
            received=strides,
            accepted="for example 4, or 8,4",
        )
    if strides and strides[0] > config.output_stride:
        raise UserError(
            "The decoder cannot be coarser than the backbone.",
            where="--decoder_output_stride",
            received=strides,
            accepted=f"strides up to --output_stride={config.output_stride}",
        )
    if config.decoder_output_is_logits and not strides:
        raise UserError(
            "--decoder_output_is_logits needs a decoder.",
            where="--decoder_output_is_logits",
            fix="add --decoder_output_stride=4",
        )
    for name in ("image_pooling_crop_size", "image_pooling_stride"):
        value = getattr(config, name)
        if value is not None and (len(value) != 2 or min(value) < 1):
            raise UserError(
                f"--{name} is two positive numbers.",
                where=f"--{name}",
                received=value,
                accepted="height,width",
            )


class DeepLab(tf.keras.Model):
    """Semantic segmentation network. Use `tfseg.models.build_model`.

    Attributes:
      config, settings: what it was built from, and what its layers have in common.
      backbone: with `hypercolumn`, `low_level`, `channels` by end point.
      mean_pixel: RGB 0-255 for padding.
      num_classes, num_image_classes: sizes of the outputs.
      crop_size: training crop (height, width), for information; any size is accepted.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_classes: int,
        num_image_classes: int,
        crop_size: Sequence[int],
        name: str,
        seed: int,
        with_classifier: bool,
    ):
        super().__init__(name=name, autocast=False)
        _check(config)
        settings = Settings(
            network=name,
            seed=seed,
            compute_dtype=config.mixed_precision,
            fine_tune_batch_norm=config.fine_tune_batch_norm,
            sync_batch_norm=config.sync_batch_norm,
            momentum=config.batch_norm_momentum,
            activation=tf.nn.relu6 if config.use_bounded_activation else tf.nn.relu,
        )
        self.config = config
        self.settings = settings
        self.num_classes, self.num_image_classes = num_classes, num_image_classes
        self.crop_size = tuple(crop_size)
        frozen = (
            settings.replace(fine_tune_batch_norm=False) if config.freeze_backbone else settings
        )
        self.backbone = BACKBONES[config.model_variant](frozen, config)
        self.backbone.trainable = not config.freeze_backbone
        self.mean_pixel = tuple(self.backbone.facts.mean_pixel)
        self._compute_type = tf.as_dtype(config.mixed_precision)
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
            self.logits_layer = Logits(heads, config, channels, num_classes)
        self.classifier = None
        if with_classifier:
            self.classifier = Classifier(
                settings,
                self.backbone,
                num_image_classes,
                dropout_rate=config.classifier_dropout_rate,
            )

    def _make_decoder(
        self, settings: Settings, channels: int
    ) -> tuple[list[DecoderStage], list[str]]:
        """Returns the stages and the low-level end points that they merge."""
        stages, names = [], []
        strides = self.config.decoder_output_stride or ()
        for i, stride in enumerate(strides):
            if stride not in self.backbone.low_level:
                raise UserError(
                    f"{self.config.model_variant} has no low-level feature at this stride.",
                    where="--decoder_output_stride",
                    received=stride,
                    accepted=", ".join(map(str, sorted(self.backbone.low_level))),
                )
            names.append(self.backbone.low_level[stride])
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

    def encode(
        self,
        image: tf.Tensor,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
    ) -> EndPoints:
        """Runs the backbone.

        Args:
          image: RGB 0..255 [N, H, W, 3], any float or integer type, any size.
          training: batch norm takes and records batch statistics.
          dropout_seed: int32 [2]; for the dropout inside wide_resnet38, which is off without it.

        Returns:
          End points by name; `backbone.last` is the deepest, `backbone.low_level` and
          `backbone.hypercolumn` name others, `backbone.channels` has their channels.
        """
        x = tf.cast(self.backbone.normalise(image), self._compute_type)
        seed = {"dropout_seed": dropout_seed} if self.backbone.takes_dropout_seed else {}
        return self.backbone(x, training=training, **seed)

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
          dropout_seed: int32 [2]; needed in training while --aspp_dropout_rate > 0.
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
            x, more = stage(x, end_points[name], training=training)
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
        finest = min((self.config.output_stride, *(self.config.decoder_output_stride or ())))
        size = _scaled_sides(image, max(1.0, *scales) / finest)
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
