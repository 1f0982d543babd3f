"""DPT: four depths of a vision transformer, brought to four strides, merged from deep to shallow.

Without batch norm and dropout. The logits are finer than the patches: a patch of 14 pixels has 8
cells along each side.

Source: Ranftl et al., "Vision transformers for dense prediction", ICCV 2021, as UniMatch V2 has it;
UniMatch specification 6.
"""

from typing import Any

import tensorflow as tf

from tfseg.errors import UserError
from tfseg.models.backbones.base import EndPoints
from tfseg.models.heads.encoder_decoder import EncoderDecoder
from tfseg.models.heads.parts import head_settings
from tfseg.models.layers.convolutions import Conv2D, Conv2DTranspose
from tfseg.models.layers.settings import Layer, Settings
from tfseg.ops.resize import resize_bilinear
from tfseg.ops.shapes import sides
from tfseg.settings.network import ModelConfig

# By width of the encoder: channels of the fusion, and of the four maps before it.
_PUBLISHED = {
    384: (64, (48, 96, 192, 384)),
    768: (128, (96, 192, 384, 768)),
    1024: (256, (256, 512, 1024, 1024)),
}
# Cells of the logits along each side of a patch.
_CELLS = 8


def _convolution(
    settings: Settings, name: str, in_channels: int, filters: int, size: int, **how: Any
) -> Conv2D:
    return Conv2D(
        settings,
        name,
        in_channels,
        filters,
        size,
        kernel_name="kernel",
        bias_name="bias",
        **{"use_bias": True, **how},
    )


def _size(x: tf.Tensor, factor: int = 1) -> list[int | tf.Tensor]:
    """Returns height and width of a map, times a factor; ints where they are known."""
    return [factor * side for side in sides(x)]


class Residual(Layer):
    """x + convolution(ReLU(convolution(ReLU(x)))), 3x3.

    Args:
      settings: types and initial values.
      name: scope.
      channels: of input, middle and output.
    """

    def __init__(self, settings: Settings, name: str, channels: int):
        super().__init__(name)
        self.conv1 = _convolution(settings, f"{name}/conv1", channels, channels, 3)
        self.conv2 = _convolution(settings, f"{name}/conv2", channels, channels, 3)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, h, w, channels] to the same shape."""
        return x + self.conv2(tf.nn.relu(self.conv1(tf.nn.relu(x))))


class Fusion(Layer):
    """Merges a deeper map with one of its own depth, and resizes the result.

    Args:
      settings: types and initial values.
      name: scope.
      channels: of all maps.
      deepest: there is no deeper map to merge with. The first residual unit has no use then; it is
        there, and never trained, because published files hold it.
    """

    def __init__(self, settings: Settings, name: str, channels: int, *, deepest: bool):
        super().__init__(name)
        self.first = Residual(settings, f"{name}/res1", channels)
        self.first.trainable = not deepest
        self.second = Residual(settings, f"{name}/res2", channels)
        self.out = _convolution(settings, f"{name}/out", channels, channels, 1)

    def call(self, top: tf.Tensor, skip: tf.Tensor | None, size: list[int | tf.Tensor]):
        """Returns [N, *size, channels].

        Args:
          top: [N, h, w, channels].
          skip: of the same shape; None for the deepest.
          size: (height, width) of the result.
        """
        if skip is not None:
            top += self.first(skip)
        # The published code resizes before the convolution.
        return self.out(resize_bilinear(self.second(top), size))


class DPT(EncoderDecoder):
    """DPT on a vision transformer. Use `tfseg.models.build_model` with head='dpt'.

    Args: as for `EncoderDecoder`; it needs no word vectors.

    Raises:
      UserError: the backbone is no vision transformer, or not every number of channels is known.
    """

    def make_decoder(self) -> None:
        config = self.config
        self._maps = self.backbone.token_maps
        if not self._maps:
            raise UserError(
                "--head=dpt merges four depths of a vision transformer.",
                where="--head",
                received=f"--model_variant={config.model_variant}",
                accepted="--model_variant=dinov2_vits14, dinov2_vitb14 or dinov2_vitl14",
                fix="choose one of them, or --head=deeplab",
            )
        width = self.backbone.channels[self.backbone.last]
        features, channels = _channels(config, width)
        settings = head_settings(self.settings, "uniform_fan_in")
        self.projections, self.scalings, self.layers_before = [], [], []
        for i, filters in enumerate(channels):
            name = f"decoder/project{i + 1}"
            self.projections.append(_convolution(settings, name, width, filters, 1))
            self.scalings.append(_scaling(settings, f"decoder/resize{i + 1}", filters, i))
            name = f"decoder/layer{i + 1}"
            self.layers_before.append(
                _convolution(settings, name, filters, features, 3, use_bias=False)
            )
        deepest = len(channels)
        self.fusions = [
            Fusion(settings, f"decoder/fusion{i}", features, deepest=i == deepest)
            for i in range(1, deepest + 1)
        ]
        self.output_layer = _convolution(settings, "decoder/output", features, features, 3)
        self.logits_layer = _convolution(
            settings, "logits/semantic", features, self.num_classes, 1, compute_dtype="float32"
        )

    @property
    def logits_stride(self) -> float:
        """Pixels of the image from one cell of the logits to the next."""
        return self.feature_stride / _CELLS

    @property
    def decoder_inputs(self) -> tuple[str, ...]:
        """Names of the end points that the head reads: what a method may change in between."""
        return self._maps

    def decode(
        self,
        end_points: EndPoints,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
        input_scale: float = 1.0,
    ) -> EndPoints:
        """Maps end points to logits; nothing in it depends on the other arguments.

        Args:
          end_points: of `encode`, possibly changed in between.

        Returns:
          'logits' float32 [N, 8 h, 8 w, num_classes] of h x w patches, 'features' [N, 8 h, 8 w, D]
          (the input of the logits convolution), and the merged maps 'fusion4' to 'fusion1'.
        """
        maps = []
        for name, project, scale, before in zip(
            self._maps, self.projections, self.scalings, self.layers_before
        ):
            x = project(end_points[name])
            maps.append(before(x if scale is None else scale(x)))
        sizes = [_size(maps[0], 2), *(_size(x) for x in maps[:-1])]
        ends, top = {}, maps[-1]
        for i in range(len(maps) - 1, -1, -1):
            skip = maps[i] if i < len(maps) - 1 else None
            top = ends[f"fusion{i + 1}"] = self.fusions[i](top, skip, sizes[i])
        features = tf.nn.relu(self.output_layer(top))
        return {**ends, "logits": self.logits_layer(features), "features": features}


def _channels(config: ModelConfig, width: int) -> tuple[int, tuple[int, ...]]:
    """Returns the channels of the fusion and of the four maps before it."""
    settings = config.head_settings
    features, channels = _PUBLISHED.get(width, (None, None))
    features, channels = settings.dpt_features or features, settings.dpt_channels or channels
    if features is None or channels is None or len(channels) != 4 or min(channels) < 1:
        raise UserError(
            "--head=dpt needs --dpt_features and four --dpt_channels for this encoder.",
            where="--dpt_features, --dpt_channels",
            received=f"{settings.dpt_features}, {settings.dpt_channels} for an encoder of width "
            f"{width}",
            accepted="for example 64 and 48,96,192,384",
        )
    return features, tuple(channels)


def _scaling(settings: Settings, name: str, channels: int, depth: int) -> Layer | None:
    """Returns what brings the map of a depth to its stride: 4, 2, 1 and 1/2 times the patches."""
    if depth < 2:
        return Conv2DTranspose(settings, name, channels, channels, (4, 2)[depth])
    return None if depth == 2 else _convolution(settings, name, channels, channels, 3, stride=2)
