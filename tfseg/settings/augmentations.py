"""The augmentations of training images, each with its own settings."""

import dataclasses
from typing import ClassVar

from tfseg.settings.option import Choice, Section, option


@dataclasses.dataclass(frozen=True)
class AugmentationSettings(Section):
    """An augmentation without settings of its own."""

    GROUP: ClassVar[str] = "augmentation"


@dataclasses.dataclass(frozen=True)
class ScalingSettings(AugmentationSettings):
    """Augmentations that scale images at random."""

    min_scale_factor: float = option(0.5, "Smallest random scale.", training=True, limits=(0, None))
    max_scale_factor: float = option(
        2.0, "Largest random scale; STRICT: 1.5.", training=True, limits=(0, None)
    )


@dataclasses.dataclass(frozen=True)
class DeepLabSettings(ScalingSettings):
    """Random scale, crop and flip, as DeepLab has them."""

    scale_factor_step_size: float = option(
        0.25,
        "Distance between the random scales of --augmentation=deeplab; 0: any scale, as with the "
        "other augmentations.",
        training=True,
        limits=(0, None),
    )


@dataclasses.dataclass(frozen=True)
class CompositionSettings(ScalingSettings):
    """A number of random operations."""

    augmentation_ops: int = option(
        2,
        "Operations on an image with --augmentation=composition (0: the crop only) or randaugment "
        "(0: deeplab's geometry only).",
        limits=(0, None),
        training=True,
    )


@dataclasses.dataclass(frozen=True)
class ResizedCropSettings(AugmentationSettings):
    """A crop of random area, as published for SLRNet."""

    crop_area: tuple[float, ...] = option(
        (0.9, 1.0),
        "Smallest,largest share of an image's area in a crop of --augmentation=resized_crop.",
        training=True,
    )


@dataclasses.dataclass(frozen=True)
class PaddedCropSettings(ScalingSettings):
    """Crops of images brought to one size, as published for STRICT and ZS3Net."""

    augmentation_size: int | None = option(
        None,
        "Size of images before the crop, pixels. warped_crop: the side to which images are warped; "
        "published: 513 for crops of 321; None: the same ratio to --train_crop_size. "
        "short_side_crop: the length of the shorter side at scale 1; None: the shorter side of "
        "--train_crop_size, as published.",
        limits=(1, None),
        training=True,
    )
    padding_color: str = option(
        "mean",
        "Colour of the padding of warped_crop, short_side_crop and long_side_crop. mean: the "
        "backbone's mean, as everywhere else. black: as published, the default of long_side_crop.",
        choices=("mean", "black"),
        training=True,
    )


@dataclasses.dataclass(frozen=True)
class LongSideCropSettings(ScalingSettings):
    """Crops of images scaled by their longer side, with strong views, as published for UniMatch."""

    UNHEEDED: ClassVar[tuple[str, ...]] = ("cutout_half_size",)

    padding_color: str = option(
        "black",
        "Colour of the padding of warped_crop, short_side_crop and long_side_crop. mean: the "
        "backbone's mean, as everywhere else. black: as published, the default of long_side_crop.",
        choices=("mean", "black"),
        training=True,
    )


AUGMENTATIONS = {
    "deeplab": Choice(DeepLabSettings, "tfseg.data.augment.deeplab"),
    "composition": Choice(CompositionSettings, "tfseg.data.augment.composition"),
    "randaugment": Choice(CompositionSettings, "tfseg.data.augment.randaugment"),
    "resized_crop": Choice(ResizedCropSettings, "tfseg.data.augment.resized_crop"),
    "warped_crop": Choice(PaddedCropSettings, "tfseg.data.augment.warped_crop"),
    "short_side_crop": Choice(PaddedCropSettings, "tfseg.data.augment.short_side_crop"),
    "long_side_crop": Choice(LongSideCropSettings, "tfseg.data.augment.long_side_crop"),
}
