"""Settings of the network."""

import dataclasses

from tfseg.settings.option import option

OUTPUT_STRIDES = (8, 16, 32)
_NAS = "NAS networks are not part of tfseg; choose one of the backbones of --model_variant"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: what `build_model` needs, shared by training, evaluation and pictures."""

    model_variant: str = option("mobilenet_v2", "Backbone; the README uses xception_65.")
    output_stride: int = option(16, "Ratio of input to backbone output resolution: 8, 16 or 32.")
    atrous_rates: tuple[int, ...] | None = option(
        None,
        "Atrous rates of the ASPP branches, strictly increasing; repeat the flag "
        "(6, 12, 18 at output stride 16). None: no atrous branches.",
        multi=True,
    )
    decoder_output_stride: tuple[int, ...] | None = option(
        None, "Strides at which the decoder merges low-level features, descending; README: 4."
    )
    multi_grid: tuple[int, ...] | None = option(
        None,
        "Unit rates of the last backbone block; 1, 2, 4 for the *_beta ResNet checkpoints.",
        multi=True,
    )
    logits_kernel_size: int = option(
        1, "Kernel of the logits convolution; 1 with ASPP batch norm.", limits=(1, None)
    )
    image_pyramid: tuple[float, ...] | None = option(
        None, "Input scales merged inside the network; None means 1.0 only.", multi=True
    )
    merge_method: str = option(
        "max", "How logits of --image_pyramid are merged.", choices=("max", "avg")
    )
    add_image_level_feature: bool = option(True, "Image-pooling branch of the ASPP.")
    image_pooling_crop_size: tuple[int, ...] | None = option(
        None, "Pooling window of the image-pooling branch in input pixels; None: the crop size."
    )
    image_pooling_stride: tuple[int, ...] = option(
        (1, 1), "Stride of the image pooling, in feature cells."
    )
    aspp_with_batch_norm: bool = option(True, "ASPP module; false: sum of atrous logits instead.")
    aspp_with_separable_conv: bool = option(True, "Separable 3x3 convolutions in the ASPP.")
    aspp_with_concat_projection: bool = option(
        True, "1x1 projection after the ASPP's concatenation."
    )
    aspp_convs_filters: int = option(256, "Channels of each ASPP branch.", limits=(1, None))
    aspp_with_squeeze_and_excitation: bool = option(
        False,
        "Squeeze-and-excitation in the ASPP (MobileNetV3).",
        unsupported="it belongs to the MobileNetV3 variants, which tfseg does not have",
    )
    image_se_uses_qsigmoid: bool = option(
        False,
        "Quantised sigmoid in that squeeze-and-excitation.",
        unsupported="it belongs to the MobileNetV3 variants, which tfseg does not have",
    )
    decoder_use_separable_conv: bool = option(True, "Separable 3x3 convolutions in the decoder.")
    decoder_use_sum_merge: bool = option(False, "Merge decoder features by sum, not concatenation.")
    decoder_filters: int = option(256, "Channels of the decoder.", limits=(1, None))
    decoder_output_is_logits: bool = option(
        False, "The decoder's last convolution gives the logits."
    )
    decoder_dropout_rates: tuple[float, ...] | None = option(
        None,
        "Dropout after each convolution of the decoder; published for ZS3Net: 0.5,0.1.",
    )
    decoder_projection_kernel_size: int = option(
        1,
        "Kernel of the decoder's projection of low-level features: 1 as in DeepLabv3+, 3 as in "
        "Learning Pseudo Labels.",
    )
    head_initializer: str = option(
        "xavier_uniform",
        "Initial values of ASPP, decoder and logits: DeepLab's (with --head=low_rank SLRNet's, "
        "He normal), or uniform within 1/sqrt(fan-in), biases included, as PyTorch's "
        "convolutions have.",
        choices=("xavier_uniform", "uniform_fan_in"),
    )
    head: str = option(
        "deeplab",
        "What is built on the backbone: DeepLabv3+; low_rank, SLRNet's (--method=slrnet asks for "
        "it by itself); or projection, SPNet's (the default of --method=spnet and strict): "
        "DeepLab's head makes features as wide as the word vectors of the classes, logits are "
        "their products with these.",
        choices=("deeplab", "low_rank", "projection"),
    )
    projection_dim: int | None = option(
        None,
        "Width of the projection head; None: that of --class_embeddings.",
        limits=(1, None),
    )
    background_logit: str = option(
        "constant",
        "Background's logit in the low_rank head: the constant 1, or learned, which needs masks.",
        choices=("constant", "learned"),
    )
    low_rank_view_scale: float = option(
        0.5, "Size of SLRNet's second view relative to the first.", limits=(0.05, 1)
    )
    low_rank_iterations: int = option(
        1, "Iterations of the low-rank factorisation; may be more in evaluation.", limits=(1, 1000)
    )
    low_rank_temperature: float = option(
        1.0, "Temperature of the factorisation's softmax.", limits=(1e-3, None)
    )
    low_rank_test_views: int = option(
        1,
        "Views that evaluation factorises together: 1, or 2 (image and reduced copy, as in "
        "training).",
        limits=(1, 2),
    )
    low_rank_wide: bool = option(
        False,
        "SLRNet's variant for many classes: wider projections; set --decoder_filters and "
        "--aspp_convs_filters to 512 with it.",
    )
    low_rank_gate: str = option(
        "published",
        "What SLRNet's gate gives in training where it keeps a deep feature: published, "
        "(deep - 0.3 shallow) / 0.7, so that the gate's mean is deep; or mixture, deep itself, so "
        "that its mean is the mixture that evaluation takes.",
        choices=("published", "mixture"),
    )
    low_rank_freeze_aspp_statistics: bool = option(
        True,
        "Batch norm in SLRNet's ASPP keeps mean 0 and variance 1, as published; false: it "
        "normalises.",
    )
    class_score_power: float = option(
        3.0, "Exponent of the penalty on small masks in SLRNet's class scores.", limits=(0, None)
    )
    class_score_offset: float = option(
        0.01, "What that penalty adds to a mask's mean before the logarithm.", limits=(1e-6, None)
    )
    use_bounded_activation: bool = option(
        False, "relu6 in place of relu, for quantisation-friendly networks."
    )
    depth_multiplier: float = option(
        1.0, "Channel multiplier (MobileNet only).", limits=(0.01, None)
    )
    divisible_by: int | None = option(
        None,
        "Round channel counts to multiples of this (MobileNet only); None: 8.",
        limits=(1, None),
    )
    dense_prediction_cell_json: str = option(
        "",
        "JSON file of a searched ASPP replacement.",
        unsupported="tfseg has no dense prediction cells; the ASPP flags describe the head",
    )
    nas_stem_output_num_conv_filters: int = option(20, "NAS stem filters.", unsupported=_NAS)
    nas_use_classification_head: bool = option(False, "NAS classification head.", unsupported=_NAS)
    nas_remove_os32_stride: bool = option(False, "NAS stride removal.", unsupported=_NAS)
    prediction_with_upsampled_logits: bool = option(
        True, "Upsample logits and then take the arg max (true), or the reverse (eval and vis)."
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
    )
    freeze_backbone: bool = option(
        False,
        "Train only what is built on the backbone: its weights and batch norm statistics stay as "
        "they were initialised, and its backward pass is spared. For a few dozen masks.",
    )
    fine_tune_batch_norm: bool = option(
        True,
        "Batch norm uses batch statistics in training; false keeps the stored ones, which is the "
        "default of --method=strict.",
    )
    sync_batch_norm: bool = option(
        False,
        "Take every batch statistic and loss denominator over the global batch instead of the "
        "replica's (published: false).",
    )
    aspp_dropout_rate: float = option(
        0.1, "Dropout after the ASPP projection, in training; 0: off."
    )
    classifier_dropout_rate: float | None = option(
        None,
        "Dropout before the image-level classifier, in training; None: the backbone's own "
        "(0.5 for Xception, 0 for ResNet).",
    )
    mixed_precision: str = option(
        "float32",
        "Arithmetic of the convolutions; weights, batch-norm statistics and losses stay float32.",
        choices=("float32", "bfloat16", "float16"),
    )
