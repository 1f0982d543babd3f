"""Backbones by the name that --model_variant takes.

What is known of a backbone stands here and in its file: its name, how it is made, and which of the
settings that not every backbone has it heeds.
"""

from collections.abc import Callable, Sequence

from tfseg.errors import UserError
from tfseg.models.backbones import efficientnet_lite, resnet_s, resnet_torch, wide_resnet
from tfseg.models.backbones.base import Backbone
from tfseg.models.backbones.efficientnet_lite import EfficientNetLite
from tfseg.models.backbones.mobilenet_v2 import MobileNetV2
from tfseg.models.backbones.model_garden import ModelGarden
from tfseg.models.backbones.resnet import ResNet
from tfseg.models.backbones.resnet_s import ResNetS
from tfseg.models.backbones.resnet_torch import ResNetTorch
from tfseg.models.backbones.vit import PATCH, SHAPES, Shape, VisionTransformer
from tfseg.models.backbones.wide_resnet import WideResNet
from tfseg.models.backbones.xception import Xception
from tfseg.models.layers.settings import Settings
from tfseg.settings.network import ModelConfig

Maker = Callable[[Settings, ModelConfig], Backbone]

# Settings that some backbones heed, and the values that ask for nothing.
_SPECIAL = {
    "multi_grid": None,
    "depth_multiplier": 1.0,
    "divisible_by": None,
    "xception_form": "deeplab",
}


def _heeding(*names: str) -> Callable[[Maker], Maker]:
    """Makes a backbone refuse the settings of `_SPECIAL` that are not among `names`."""

    def wrap(make: Maker) -> Maker:
        def checked(settings: Settings, config: ModelConfig) -> Backbone:
            for name, default in _SPECIAL.items():
                value = getattr(config, name)
                if value != default and name not in names:
                    raise UserError(
                        f"--{name} means nothing to {config.model_variant}.",
                        where=f"--{name}",
                        received=value,
                        accepted=default,
                        fix="leave the flag out, or choose a --model_variant that heeds it",
                    )
            return make(settings, config)

        return checked

    return wrap


def _xception(variant: str) -> Maker:
    return _heeding("multi_grid", "xception_form")(
        lambda settings, config: Xception(
            settings,
            variant,
            output_stride=config.output_stride,
            multi_grid=_multi_grid(config),
            bounded=config.use_bounded_activation,
            form=config.xception_form,
        )
    )


def _resnet(variant: str, make: Callable[..., Backbone] = ResNet) -> Maker:
    return _heeding("multi_grid")(
        lambda settings, config: make(
            settings,
            variant,
            output_stride=config.output_stride,
            multi_grid=_multi_grid(config),
            bounded=config.use_bounded_activation,
        )
    )


@_heeding("depth_multiplier", "divisible_by")
def _mobilenet_v2(settings: Settings, config: ModelConfig) -> Backbone:
    return MobileNetV2(
        settings,
        output_stride=config.output_stride,
        depth_multiplier=config.depth_multiplier,
        divisible_by=config.divisible_by,
    )


def _efficientnet_lite(variant: str) -> Maker:
    return _heeding()(
        lambda settings, config: EfficientNetLite(
            settings, variant, output_stride=config.output_stride
        )
    )


def _wide_resnet(variant: str) -> Maker:
    return _heeding()(
        lambda settings, config: WideResNet(settings, variant, output_stride=config.output_stride)
    )


def _mobilenet_v3(variant: str) -> Maker:
    return _heeding("depth_multiplier", "divisible_by")(
        lambda settings, config: ModelGarden(
            settings,
            variant,
            output_stride=config.output_stride,
            filter_size_scale=config.depth_multiplier,
            divisible_by=config.divisible_by or 8,
        )
    )


def _model_garden_resnet(variant: str) -> Maker:
    return _heeding("multi_grid")(
        lambda settings, config: ModelGarden(
            settings,
            variant,
            output_stride=config.output_stride,
            multigrid=_multi_grid(config),
            activation="relu6" if config.use_bounded_activation else "relu",
        )
    )


def vision_transformer(variant: str, shape: Shape) -> Maker:
    """Returns the maker of a vision transformer.

    Args:
      variant: its name, and the scope of its variables.
      shape: width, heads, blocks, registers.
    """

    @_heeding()
    def make(settings: Settings, config: ModelConfig) -> Backbone:
        if config.output_stride != ModelConfig.output_stride:
            raise UserError(
                f"--output_stride means nothing to {variant}: the features of a vision "
                f"transformer have the stride of its patches, {PATCH}.",
                where="--output_stride",
                received=config.output_stride,
                fix="leave the flag out, or choose a convolutional --model_variant",
            )
        return VisionTransformer(settings, variant, shape)

    return make


def _multi_grid(config: ModelConfig) -> Sequence[int] | None:
    if config.multi_grid is not None and (
        len(config.multi_grid) != 3 or min(config.multi_grid) < 1
    ):
        raise UserError(
            "--multi_grid needs three positive rates, one for each part of the last block.",
            where="--multi_grid",
            received=config.multi_grid,
            accepted="1,1,1 or 1,2,4 (given as --multi_grid=1 --multi_grid=2 --multi_grid=4)",
            fix="repeated flags accumulate: give each rate once, in one place",
        )
    return config.multi_grid


BACKBONES: dict[str, Maker] = {
    "xception_41": _xception("xception_41"),
    "xception_65": _xception("xception_65"),
    "xception_71": _xception("xception_71"),
    "resnet_v1_50": _resnet("resnet_v1_50"),
    "resnet_v1_101": _resnet("resnet_v1_101"),
    "resnet_v1_50_beta": _resnet("resnet_v1_50_beta"),
    "resnet_v1_101_beta": _resnet("resnet_v1_101_beta"),
    "resnet50s": _resnet("resnet50s", ResNetS),
    "resnet101s": _resnet("resnet101s", ResNetS),
    "resnet101": _resnet("resnet101", ResNetTorch),
    "resnet101_msra": _resnet("resnet101_msra", ResNetTorch),
    "wide_resnet38": _wide_resnet("wide_resnet38"),
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3_large": _mobilenet_v3("mobilenet_v3_large"),
    "mobilenet_v3_small": _mobilenet_v3("mobilenet_v3_small"),
    "dilated_resnet50": _model_garden_resnet("dilated_resnet50"),
    "dilated_resnet101": _model_garden_resnet("dilated_resnet101"),
    "resnet_rs50": _model_garden_resnet("resnet_rs50"),
    "efficientnet_lite0": _efficientnet_lite("efficientnet_lite0"),
    **{variant: vision_transformer(variant, shape) for variant, shape in SHAPES.items()},
}
# What tells PyTorch files apart. A file is of the first backbone here whose tensors it has.
TORCH_PROBES: dict[str, Sequence[str]] = {
    **resnet_s.TORCH_PROBES,
    **resnet_torch.TORCH_PROBES,
    **wide_resnet.TORCH_PROBES,
    **efficientnet_lite.TORCH_PROBES,
}
