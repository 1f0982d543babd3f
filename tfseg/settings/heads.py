"""The heads that can stand on a backbone, each with its own settings."""

import dataclasses
from typing import ClassVar

from tfseg.settings.option import NEVER, TOLD, Choice, Section, option


@dataclasses.dataclass(frozen=True)
class HeadSettings(Section):
    """A head without settings of its own."""

    GROUP: ClassVar[str] = "network"
    MAY_DIFFER: ClassVar[str] = NEVER


@dataclasses.dataclass(frozen=True)
class ProjectionSettings(HeadSettings):
    """The head of SPNet."""

    projection_dim: int | None = option(
        None,
        "Width of the projection head; None: that of --class_embeddings.",
        limits=(1, None),
    )


@dataclasses.dataclass(frozen=True)
class LowRankSettings(HeadSettings):
    """The head of SLRNet."""

    background_logit: str = option(
        "constant",
        "Background's logit in the low_rank head: constant (1), or learned, which needs masks.",
        choices=("constant", "learned"),
    )
    low_rank_view_scale: float = option(
        0.5,
        "Size of SLRNet's second view relative to the first.",
        limits=(0.05, 1),
        may_differ=TOLD,
    )
    low_rank_iterations: int = option(
        1,
        "Iterations of the low-rank factorisation; evaluation may use more than training.",
        limits=(1, 1000),
        may_differ=TOLD,
    )
    low_rank_temperature: float = option(
        1.0,
        "Temperature of the factorisation's softmax.",
        limits=(1e-3, None),
        group="network in detail",
    )
    low_rank_test_views: int = option(
        1,
        "Views that evaluation factorises together: 1 (the image), or 2 (the image and a reduced "
        "copy, as in training).",
        limits=(1, 2),
        may_differ=TOLD,
    )
    low_rank_wide: bool = option(
        False,
        "SLRNet's variant for many classes: wider projections; set --decoder_filters and "
        "--aspp_convs_filters to 512 with it.",
        group="network in detail",
    )
    low_rank_gate: str = option(
        "published",
        "Value of SLRNet's gate in training, where it keeps a deep feature. published: "
        "(deep - 0.3 shallow) / 0.7; on average the gate then gives the deep feature. mixture: the "
        "deep feature itself; on average the gate then gives the mixture that evaluation uses.",
        choices=("published", "mixture"),
        may_differ=TOLD,
        training=True,
    )
    low_rank_freeze_aspp_statistics: bool = option(
        True,
        "Batch norm in SLRNet's ASPP keeps mean 0 and variance 1, as published; false: it "
        "normalises.",
        group="network in detail",
    )
    class_score_power: float = option(
        3.0,
        "Exponent of the penalty on small masks in SLRNet's class scores.",
        limits=(0, None),
        group="network in detail",
    )
    class_score_offset: float = option(
        0.01,
        "Number that the penalty of --class_score_power adds to a mask's mean before the "
        "logarithm.",
        limits=(1e-6, None),
        group="network in detail",
    )


@dataclasses.dataclass(frozen=True)
class DPTSettings(HeadSettings):
    """The head of DPT on a vision transformer."""

    # Settings of ASPP, DeepLab's decoder and its logits.
    UNHEEDED: ClassVar[tuple[str, ...]] = (
        "add_image_level_feature",
        "aspp_convs_filters",
        "aspp_dropout_rate",
        "aspp_with_batch_norm",
        "aspp_with_concat_projection",
        "aspp_with_separable_conv",
        "atrous_rates",
        "decoder_dropout_rates",
        "decoder_filters",
        "decoder_output_is_logits",
        "decoder_output_stride",
        "decoder_projection_kernel_size",
        "decoder_use_separable_conv",
        "decoder_use_sum_merge",
        "head_initializer",
        "image_pooling_crop_size",
        "image_pooling_stride",
        "logits_kernel_size",
    )

    dpt_features: int | None = option(
        None,
        "Channels of DPT's fusion; None: as published for the encoder, 64 (small), 128 (base) or "
        "256 (large).",
        limits=(1, None),
    )
    dpt_channels: tuple[int, ...] | None = option(
        None,
        "Channels of the four feature maps that DPT merges, shallow to deep; None: as published "
        "for the encoder, such as 48,96,192,384 (small).",
        group="network in detail",
        limits=(1, None),
    )


HEADS = {
    "deeplab": Choice(HeadSettings, "tfseg.models.heads.deeplab:DeepLab"),
    "dpt": Choice(DPTSettings, "tfseg.models.heads.dpt:DPT"),
    "low_rank": Choice(LowRankSettings, "tfseg.models.heads.low_rank:LowRankNet"),
    "projection": Choice(ProjectionSettings, "tfseg.models.heads.projection:ProjectionNet"),
}
