"""Settings of the network."""

import dataclasses
from typing import Any, ClassVar

from tfseg.settings.heads import HEADS
from tfseg.settings.option import FREELY, NEVER, TOLD, Section, option, owned

OUTPUT_STRIDES = (8, 16, 32)
NAS = "NAS networks are not part of tfseg; choose one of the backbones of --model_variant"


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The network: what `build_model` needs, shared by training, evaluation and pictures."""

    GROUP: ClassVar[str] = "network"
    MAY_DIFFER: ClassVar[str] = NEVER

    model_variant: str = option("mobilenet_v2", "Backbone; PseudoSeg's commands use xception_65.")
    output_stride: int = option(
        16,
        "Ratio of input to backbone output resolution: 8, 16 or 32.",
        may_differ=TOLD,
        limits=(1, None),
    )
    atrous_rates: tuple[int, ...] | None = option(
        None,
        "Atrous rates of the ASPP branches, strictly increasing; repeat the flag "
        "(6, 12, 18 at output stride 16). None: no atrous branches.",
        multi=True,
        may_differ=TOLD,
        limits=(1, None),
    )
    decoder_output_stride: tuple[int, ...] | None = option(
        None,
        "Strides at which the decoder merges low-level features, descending; PseudoSeg: 4.",
        limits=(1, None),
    )
    multi_grid: tuple[int, ...] | None = option(
        None,
        "Unit rates of the last backbone block; 1, 2, 4 for the *_beta ResNet checkpoints.",
        multi=True,
        group="network in detail",
        limits=(1, None),
    )
    logits_kernel_size: int = option(
        1,
        "Kernel size of the logits convolution; must be 1 with --aspp_with_batch_norm.",
        limits=(1, None),
        group="network in detail",
    )
    image_pyramid: tuple[float, ...] | None = option(
        None,
        "Input scales merged inside the network; None means 1.0 only.",
        multi=True,
        may_differ=TOLD,
        group="network in detail",
    )
    merge_method: str = option(
        "max",
        "How logits of --image_pyramid are merged.",
        choices=("max", "avg"),
        may_differ=TOLD,
        group="network in detail",
    )
    add_image_level_feature: bool = option(
        True, "Image-pooling branch of the ASPP.", group="network in detail"
    )
    image_pooling_crop_size: tuple[int, ...] | None = option(
        None,
        "Pooling window of the image-pooling branch in input pixels; None: the crop size.",
        may_differ=TOLD,
        group="network in detail",
        limits=(1, None),
    )
    image_pooling_stride: tuple[int, ...] = option(
        (1, 1),
        "Stride of the image pooling, in feature cells.",
        group="network in detail",
        limits=(1, None),
    )
    aspp_with_batch_norm: bool = option(
        True, "ASPP module; false: sum of atrous logits instead.", group="network in detail"
    )
    aspp_with_separable_conv: bool = option(
        True, "Separable 3x3 convolutions in the ASPP.", group="network in detail"
    )
    aspp_with_concat_projection: bool = option(
        True, "1x1 projection after the ASPP's concatenation.", group="network in detail"
    )
    aspp_convs_filters: int = option(256, "Channels of each ASPP branch.", limits=(1, None))
    aspp_with_squeeze_and_excitation: bool = option(
        False,
        "Squeeze-and-excitation in the ASPP.",
        unsupported="it belongs to the light head of MobileNetV3, which tfseg does not have",
    )
    image_se_uses_qsigmoid: bool = option(
        False,
        "Quantised sigmoid in that squeeze-and-excitation.",
        unsupported="it belongs to the light head of MobileNetV3, which tfseg does not have",
    )
    decoder_use_separable_conv: bool = option(
        True, "Separable 3x3 convolutions in the decoder.", group="network in detail"
    )
    decoder_use_sum_merge: bool = option(
        False, "Merge decoder features by sum, not concatenation.", group="network in detail"
    )
    decoder_filters: int = option(256, "Channels of the decoder.", limits=(1, None))
    decoder_output_is_logits: bool = option(
        False, "The decoder's last convolution gives the logits.", group="network in detail"
    )
    decoder_dropout_rates: tuple[float, ...] | None = option(
        None,
        "Dropout after each convolution of the decoder; published for ZS3Net: 0.5,0.1.",
        may_differ=TOLD,
        group="network in detail",
        training=True,
        limits=(0, 0.99),
    )
    decoder_projection_kernel_size: int = option(
        1,
        "Kernel of the decoder's projection of low-level features: 1 as in DeepLabv3+, 3 as in "
        "Learning Pseudo Labels.",
        group="network in detail",
        limits=(1, None),
    )
    head_initializer: str = option(
        "xavier_uniform",
        "Initial values of ASPP, decoder and logits. xavier_uniform: DeepLab's (with "
        "--head=low_rank SLRNet's, He normal). uniform_fan_in: those of PyTorch's convolutions, "
        "uniform within 1/sqrt(fan-in), biases too.",
        choices=("xavier_uniform", "uniform_fan_in"),
        group="network in detail",
        training=True,
    )
    head: str = option(
        "deeplab",
        "Layers on top of the backbone. deeplab: DeepLabv3+. dpt: merges four depths of a vision "
        "transformer (dinov2_*). low_rank: SLRNet's; --method=slrnet chooses it by itself. "
        "projection: SPNet's, the default of --method=spnet and strict; DeepLab's head makes "
        "features as wide as the word vectors of the classes, and the logits are the products of "
        "features and word vectors.",
        choices=tuple(HEADS),
    )
    use_bounded_activation: bool = option(
        False,
        "relu6 in place of relu, for quantisation-friendly networks.",
        group="network in detail",
    )
    xception_form: str = option(
        "deeplab",
        "Xception's units. deeplab: as in the model zoo. unimatch: as UniMatch's authors have "
        "them; a skip connection without a convolution carries the input after its ReLU, and batch "
        "norm has an epsilon of 1e-5 (model zoo: 1e-3).",
        choices=("deeplab", "unimatch"),
        group="network in detail",
    )
    depth_multiplier: float = option(
        1.0, "Channel multiplier (MobileNets only).", limits=(0.01, None)
    )
    divisible_by: int | None = option(
        None,
        "Round channel counts to multiples of this (MobileNets only); None: 8.",
        limits=(1, None),
        group="network in detail",
    )
    dense_prediction_cell_json: str = option(
        "",
        "JSON file of a searched ASPP replacement.",
        unsupported="tfseg has no dense prediction cells; the ASPP flags describe the head",
    )
    nas_stem_output_num_conv_filters: int = option(20, "NAS stem filters.", unsupported=NAS)
    nas_use_classification_head: bool = option(False, "NAS classification head.", unsupported=NAS)
    nas_remove_os32_stride: bool = option(False, "NAS stride removal.", unsupported=NAS)
    prediction_with_upsampled_logits: bool = option(
        True,
        "Upsample logits and then take the arg max (true), or the reverse (eval and vis).",
        may_differ=TOLD,
        group="network in detail",
    )
    batch_norm_decay: float = option(
        0.9997,
        "Was dead in the published code; --batch_norm_momentum is the flag that works.",
        dead=True,
    )
    batch_norm_momentum: float | None = option(
        None,
        "Decay of the moving batch statistics everywhere; None: the published values (0.9997 in "
        "Xception, ASPP and decoder, which need tens of thousands of steps; 0.95 in SLRNet's "
        "head). Short runs: 0.99.",
        may_differ=TOLD,
        training=True,
        limits=(0, 1),
    )
    head_batch_norm_momentum: float | None = option(
        None,
        "Decay of the moving batch statistics in ASPP and decoder alone; None: "
        "--batch_norm_momentum. Published for UniMatch on Xception: 0.9, with 0.9997 in the "
        "backbone.",
        may_differ=TOLD,
        group="network in detail",
        training=True,
        limits=(0, 1),
    )
    freeze_backbone: bool = option(
        False,
        "Train only the layers on top of the backbone, for a few dozen masks. The backbone's "
        "weights and batch norm statistics stay as they were initialised, and a step takes less "
        "time.",
        training=True,
    )
    fine_tune_batch_norm: bool = option(
        True,
        "Batch norm uses batch statistics in training; false: the stored ones, the default of "
        "--method=strict.",
        may_differ=TOLD,
        training=True,
    )
    sync_batch_norm: bool = option(
        False,
        "Take every batch statistic and loss denominator over the global batch; false: over each "
        "replica's part, as published.",
        may_differ=TOLD,
        group="precision and devices",
        training=True,
    )
    aspp_dropout_rate: float = option(
        0.1,
        "Dropout after the ASPP projection, in training; 0: off.",
        may_differ=TOLD,
        training=True,
        limits=(0, 0.99),
    )
    classifier_dropout_rate: float | None = option(
        None,
        "Dropout before the image-level classifier, in training; None: the backbone's own "
        "(0.5 for Xception, 0 for ResNet).",
        may_differ=TOLD,
        training=True,
        limits=(0, 0.99),
    )
    mixed_precision: str = option(
        "float32",
        "Arithmetic of the convolutions; weights, batch-norm statistics and losses stay float32.",
        choices=("float32", "bfloat16", "float16"),
        may_differ=TOLD,
        group="precision and devices",
    )
    recompute: str = option(
        "none",
        "backbone: of every unit of the backbone only the input is kept for the backward pass, "
        "and the unit is computed again there: less memory, more time, the same result.",
        choices=("none", "backbone"),
        needs="freeze_backbone=false",
        may_differ=FREELY,
        group="precision and devices",
        training=True,
    )
    head_settings: Any = owned("head", HEADS)
