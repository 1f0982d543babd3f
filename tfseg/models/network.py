"""What all networks are built on: settings, a backbone, and how an image enters it."""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.errors import UserError, check_choice
from tfseg.models.backbones import BACKBONES
from tfseg.models.backbones.base import EndPoints
from tfseg.models.layers.settings import Settings
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.network import OUTPUT_STRIDES, ModelConfig


class Network(tf.keras.Model):
    """A backbone; subclasses put a head on it.

    Args:
      config: architecture and arithmetic.
      num_classes, num_image_classes: sizes of the outputs.
      crop_size: training crop (height, width), for information; any size is accepted.
      name: of the network; networks of different names start with different values.
      seed: of the initial values.
      fine_tune_backbone_norm: whether batch norm in the backbone may use batch statistics;
        --freeze_backbone and --fine_tune_batch_norm=false forbid it anyway.

    Attributes:
      config, settings: what it was built from, and what its layers have in common.
      backbone: with `hypercolumn`, `low_level`, `channels` by end point.
      mean_pixel: RGB 0-255 for padding.

    Raises:
      UserError: a setting is unknown or contradicts another.
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
        fine_tune_backbone_norm: bool = True,
    ):
        super().__init__(name=name, autocast=False)
        _check(config)
        self.config = config
        self.settings = Settings(
            network=name,
            seed=seed,
            compute_dtype=config.mixed_precision,
            fine_tune_batch_norm=config.fine_tune_batch_norm,
            sync_batch_norm=config.sync_batch_norm,
            momentum=config.batch_norm_momentum,
            head_momentum=config.head_batch_norm_momentum,
            activation=tf.nn.relu6 if config.use_bounded_activation else tf.nn.relu,
        )
        self.num_classes, self.num_image_classes = num_classes, num_image_classes
        self.crop_size = tuple(crop_size)
        settings = self.settings
        if config.freeze_backbone or not fine_tune_backbone_norm:
            settings = settings.replace(fine_tune_batch_norm=False)
        self.backbone = BACKBONES[config.model_variant](settings, config)
        self.backbone.trainable = not config.freeze_backbone
        if config.recompute == "backbone":
            self.backbone.recompute_units()
        self.mean_pixel = tuple(self.backbone.facts.mean_pixel)
        self._compute_type = tf.as_dtype(config.mixed_precision)

    def valid_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the smallest size (height, width) in pixels, at least this large, for crops.

        Here: a multiple of the output stride plus 1 on both sides. Only then do the corners of the
        feature map fall on the corners of the image, on which the align-corners resizing of the
        decoder relies. Where the backbone cuts images into patches: a multiple of their side. A
        head with another geometry overrides it. Sides may be int32 tensors.
        """
        patch = self.backbone.patch_size
        if patch is not None:
            return tuple((side + patch - 1) // patch * patch for side in (height, width))
        stride = self.config.output_stride
        # No negative number is divided: exported graphs round those towards zero.
        return tuple((side + stride - 2) // stride * stride + 1 for side in (height, width))

    @property
    def logits_stride(self) -> float:
        """Pixels of the image from one cell of the logits to the next.

        Here: the finest stride of the decoder, or the output stride. A head with another geometry
        overrides it.
        """
        return min((self.feature_stride, *(self.config.decoder_output_stride or ())))

    @property
    def feature_stride(self) -> int:
        """Pixels of the image from one cell of the deepest features to the next."""
        return self.backbone.patch_size or self.config.output_stride

    @property
    def decoder_inputs(self) -> tuple[str, ...]:
        """Names of the end points that the head reads: what a method may change in between.

        Here: the deepest. A head that reads others overrides it.
        """
        return (self.backbone.last,)

    def low_level_name(self, stride: int) -> str:
        """Returns the backbone's end point for a decoder at a stride.

        Raises:
          UserError: it has none.
        """
        if self.backbone.patch_size is not None:
            raise UserError(
                f"{self.config.model_variant} has no low-level features: all that a vision "
                f"transformer gives has the stride of its patches, {self.backbone.patch_size}.",
                where="--decoder_output_stride",
                received=stride,
                accepted="no decoder; --head=dpt makes finer features of several depths; "
                "--method=slrnet needs a decoder, and so a convolutional backbone",
                fix="leave out --decoder_output_stride, or choose another --model_variant",
            )
        if stride not in self.backbone.low_level:
            raise UserError(
                f"{self.config.model_variant} has no low-level feature at this stride.",
                where="--decoder_output_stride",
                received=stride,
                accepted=", ".join(map(str, sorted(self.backbone.low_level))),
            )
        return self.backbone.low_level[stride]

    def encode(
        self,
        image: tf.Tensor,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
    ) -> EndPoints:
        """Runs the backbone.

        Args:
          image: RGB 0..255 [N, H, W, 3], any float or integer type, any size. Where the backbone
            takes multiples of its patches alone, an image of another size is resized to the
            nearest one, with aligned corners.
          training: batch norm takes and records batch statistics.
          dropout_seed: int32 [2]; for the dropout inside wide_resnet38, which is off without it.

        Returns:
          End points by name; `backbone.last` is the deepest, `backbone.low_level` and
          `backbone.hypercolumn` name others, `backbone.channels` has their channels.

        Source: UniMatch specification 7 for the resizing.
        """
        x = self._in_patches(self.backbone.normalise(image))
        x = tf.cast(x, self._compute_type)
        seed = {"dropout_seed": dropout_seed} if self.backbone.takes_dropout_seed else {}
        return self.backbone(x, training=training, **seed)

    def _in_patches(self, x: tf.Tensor) -> tf.Tensor:
        """Resizes a network input to whole patches: halves up, at least one."""
        patch = self.backbone.patch_size
        if patch is None:
            return x
        dynamic, size = tf.shape(x), []
        for axis in (1, 2):
            if x.shape[axis] is None:
                size.append(tf.maximum((dynamic[axis] + patch // 2) // patch, 1) * patch)
            else:
                size.append(max((x.shape[axis] + patch // 2) // patch, 1) * patch)
        return resize_bilinear(x, size)


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
    if any(scale <= 0 for scale in config.image_pyramid or ()):
        raise UserError(
            "Scales must be above 0.", where="--image_pyramid", received=config.image_pyramid
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
    for name in ("decoder_output_is_logits", "decoder_dropout_rates"):
        if getattr(config, name) and not strides:
            raise UserError(
                f"--{name} needs a decoder.",
                where=f"--{name}",
                fix="add --decoder_output_stride=4",
            )
    for name in ("image_pooling_crop_size", "image_pooling_stride"):
        value = getattr(config, name)
        if value is not None and (len(value) != 2 or min(value) < 1):
            raise UserError(
                f"--{name} needs two positive numbers.",
                where=f"--{name}",
                received=value,
                accepted="height,width",
            )
