"""Every setting of the programs: frozen dataclasses, one field = one flag with its help.

`flags.define(cls)` makes the absl flags, `flags.read(cls)` builds the object. Nothing here
imports TensorFlow, so that `--help` is instant.

Fields marked `dead=True` are flags of the published PseudoSeg programs that had no effect
there either; they are accepted, so that old command lines keep working, and warn once.
Fields with `unsupported=...` are published flags whose network tfseg does not have; their
default is accepted and any other value is an error that says so.

Source: the flag names and defaults are those of PseudoSeg's programs (specification 1.1-1.5).
"""

import dataclasses
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    multi: bool = False,
    required: bool = False,
    dead: bool = False,
    unsupported: str | None = None,
    limits: tuple[float | None, float | None] = (None, None),
) -> Any:
    """A dataclass field that is also a flag.

    Args:
      default: the value when the flag is absent.
      help: the flag's help, one or two sentences, with units.
      choices: accepted values of a string flag.
      multi: a tuple given by repeating the flag (`--atrous_rates=6 --atrous_rates=12`);
        tuples are otherwise one comma-separated value (`--train_crop_size=513,513`).
      required: the program cannot run without it.
      dead: accepted for old command lines, without effect.
      unsupported: why any value other than the default is refused.
      limits: smallest and largest accepted value of a number; None: no limit.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "multi": multi,
            "required": required,
            "dead": dead,
            "unsupported": unsupported,
            "limits": limits,
        },
    )


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


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the records are, how they are augmented, and what happens to damaged ones."""

    dataset_dir: str | None = option(
        None, "Directory with <split>-*.tfrecord shards.", required=True
    )
    dataset_dir_cls: str | None = option(
        None,
        "Directory of --train_split_cls, where that is not --dataset_dir; its classes must be the "
        "same.",
    )
    dataset: str = option(
        "pascal_voc_seg",
        "Description of the classes for records that carry no dataset.json: pascal_voc_seg, "
        "coco, cityscapes, ade20k. Records with a dataset.json describe themselves.",
    )
    train_split: str = option("train", "Split with pixel labels.")
    train_split_cls: str = option("train_aug", "Second split: unlabelled or image-level labels.")
    image_label_source: str = option(
        "record",
        "Image-level labels: those of the record (image/class/label), or as published the classes "
        "found in the augmented crop of the mask.",
        choices=("record", "crop"),
    )
    train_crop_size: tuple[int, ...] = option((513, 513), "Crop height,width in pixels.")
    min_resize_value: int | None = option(
        None, "Resize the shorter side to this many pixels before augmentation; None: off."
    )
    max_resize_value: int | None = option(None, "Cap of the longer side in that resize, in pixels.")
    resize_factor: int | None = option(
        None, "Make resized sides a multiple of this, plus one; None: off."
    )
    keep_aspect_ratio: bool = option(
        True, "The published preprocessing always keeps the aspect ratio.", dead=True
    )
    class_split: str | None = option(
        None,
        "Seen and unseen classes of a zero-label run: spnet_voc12, spnet_cocostuff, "
        "zs3_voc_{2,4,6,8,10}, zs3_context_{2,4,6,8,10}, or a JSON file with lists of names "
        "'seen', 'unseen', 'validation', and 'background', a name or null.",
    )
    seen_background: bool = option(
        False,
        "Background is a seen class, also with a --class_split in which it takes no part.",
    )
    exclude_validation_classes: bool = option(
        False,
        "For choosing settings: the split's validation classes are the unseen ones, and the true "
        "unseen ones take no part.",
    )
    class_embeddings: str | None = option(
        None,
        "Word vectors of the classes: FILE.npz[:ARRAY][+FILE.npz[:ARRAY]...] with arrays 'names' "
        "and 'vectors' (or ARRAY); several are put side by side.",
    )
    embedding_norm: str = option(
        "unit",
        "Normalisation of the word vectors, after they were put side by side: unit length, "
        "division by the longest, or none.",
        choices=("unit", "max_norm", "none"),
    )
    drop_images: str | None = option(
        None,
        "File with ids of training images to leave out, one in a line; for example those that show "
        "unseen classes, as in ZS3Net's first step; tfrecords_tools/check.py --ids_with lists "
        "them. It tells where unseen classes are not.",
    )
    augmentation: str = option(
        "deeplab",
        "Augmentation of training images: deeplab (random scale, crop and flip); composition "
        "(--augmentation_ops random operations, some on colours, the others geometric, and a "
        "random crop; as published for Learning Pseudo Labels); resized_crop (a crop of random "
        "--crop_area and shape resized to --train_crop_size, flip, colour jitter; as published for "
        "SLRNet); warped_crop (the image warped to a square of --augmentation_size, random scale, "
        "crop and flip; as published for STRICT); or short_side_crop (the shorter side scaled to a "
        "random length, crop, flip and blur; as published for ZS3Net).",
        choices=("deeplab", "composition", "resized_crop", "warped_crop", "short_side_crop"),
    )
    augmentation_size: int | None = option(
        None,
        "Pixels. With --augmentation=warped_crop the side to which images are warped (published: "
        "513 for crops of 321; None: in this ratio to --train_crop_size); with short_side_crop "
        "what the random scales multiply (None: the shorter side of --train_crop_size, as "
        "published).",
        limits=(1, None),
    )
    padding_color: str = option(
        "mean",
        "Colour of what --augmentation=warped_crop and short_side_crop pad: the backbone's mean, "
        "as everywhere else, or black, as published.",
        choices=("mean", "black"),
    )
    crop_area: tuple[float, ...] = option(
        (0.9, 1.0),
        "Smallest,largest share of an image's area in a crop of --augmentation=resized_crop.",
    )
    augmentation_ops: int = option(
        2,
        "Operations on an image with --augmentation=composition; 0: the crop only.",
        limits=(0, None),
    )
    min_scale_factor: float = option(0.5, "Smallest random scale.")
    max_scale_factor: float = option(2.0, "Largest random scale; STRICT: 1.5.")
    scale_factor_step_size: float = option(
        0.25,
        "Distance between the random scales of --augmentation=deeplab; 0: continuous, as they "
        "always are with the other augmentations.",
    )
    flip_probability: float = option(
        0.5,
        "Probability of mirroring left and right; 0 where left and right matter; STRICT: 0.9.",
        limits=(0, 1),
    )
    jitter_strength: float = option(
        1.0,
        "Factor on the ranges of the colour jitter, 0 to 1. 1: as published, of the strong view "
        "(brightness and contrast 0.5, saturation 0.5, hue 0.25) or of resized_crop (0.3, 0.3, 0.3 "
        "and 0.1).",
        limits=(0, 1),
    )
    cutout_half_size: int = option(
        50,
        "Half the side, in pixels, of the square cut out of strong views; made for crops of 513, "
        "take less for smaller ones; 0: none.",
        limits=(0, None),
    )
    skip_bad_records: bool = option(
        False,
        "Replace damaged records by the next good one, list them in "
        "<train_logdir>/bad_records.txt and go on; false: stop with a message.",
    )
    max_bad_record_fraction: float = option(
        0.01, "With --skip_bad_records: stop when more than this share of a split is damaged."
    )
    max_image_megapixels: float = option(
        64.0, "Refuse to decode images whose header declares more than this many megapixels."
    )
    data_threads: int = option(
        0, "Parallel calls of the input pipeline; 0: as many as there are cores."
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop, the optimiser, the devices. Defaults are those of `train_wss.py`."""

    method: str = option("pseudoseg", "Training method.")
    train_logdir: str | None = option(
        None, "Directory for checkpoints, logs and config.json.", required=True
    )
    training_number_of_steps: int = option(30000, "Optimiser steps in all.")
    train_batch_size: int = option(64, "Images per stream and step, over all replicas.")
    gradient_accumulation_steps: int = option(
        1, "Split each replica's batch into this many parts, to save memory."
    )
    seed: int = option(0, "Seed of initial weights, data order, augmentation and dropout.")
    deterministic: bool = option(
        False, "Deterministic kernels (tf.config op determinism); on CPU runs repeat without it."
    )

    strategy: str = option(
        "auto",
        "Distribution: auto takes every GPU, else one CPU device.",
        choices=("auto", "one_device", "mirrored", "multi_worker", "tpu"),
    )
    num_clones: int = option(
        16, "Replicas; where fewer devices exist those are used and the global batch is kept."
    )
    clone_on_cpu: bool = option(False, "Use CPU devices even where GPUs exist.")
    tpu: str = option("", "TPU name or address for --strategy=tpu; empty: the local one.")
    jit_compile: bool = option(False, "Compile the forward and backward pass with XLA.")

    optimizer: str = option(
        "momentum",
        "Optimiser: momentum, adam, or (with the extra [addons]) lamb, sgdw, novograd, "
        "rectified_adam, lookahead, swa.",
    )
    learning_policy: str = option(
        "poly", "Learning-rate schedule.", choices=("poly", "step", "cosine")
    )
    base_learning_rate: float = option(0.007, "Learning rate at the start of the schedule.")
    decay_steps: float = option(
        0.0,
        "Length of the poly or cosine decay in steps; 0: all steps after the slow start and "
        "--constant_steps.",
    )
    learning_rate_update_steps: int = option(
        1,
        "The learning rate changes every so many steps; published for STRICT: 10.",
        limits=(1, None),
    )
    constant_steps: int = option(
        0, "Steps at --base_learning_rate before the cosine decay begins.", limits=(0, None)
    )
    end_learning_rate: float = option(0.0, "Learning rate at the end of the poly decay.")
    learning_rate_decay_factor: float = option(0.1, "Factor of the step policy.")
    learning_rate_decay_step: int = option(2000, "Period of the step policy, in steps.")
    learning_power: float = option(0.9, "Power of the poly decay.")
    slow_start_step: int = option(0, "Steps at the constant slow-start rate.")
    slow_start_learning_rate: float = option(1e-4, "Rate of the slow start.")
    momentum: float = option(0.9, "Momentum (v := momentum v + g; w := w - rate v).")
    adam_learning_rate: float = option(0.001, "Constant rate of --optimizer=adam.")
    adam_epsilon: float = option(1e-8, "Epsilon of --optimizer=adam.")
    weight_decay: float = option(4e-5, "L2 factor on convolution kernels; 1e-4 for ResNets.")
    parameter_groups: str = option(
        "deeplab",
        "deeplab: kernels of plain and pointwise convolutions decay, biases learn twice as fast. "
        "plain: every variable decays and learns alike, as in most PyTorch code.",
        choices=("deeplab", "plain"),
    )
    last_layer_gradient_multiplier: float = option(1.0, "Gradient multiplier of the last layers.")
    ema_decay: float = option(
        0.0, "Keep an exponential moving average of the weights (network 'ema'); 0: off."
    )

    tf_initial_checkpoint: str | None = option(
        None, "Checkpoint to initialise from: TF1 model zoo, or ours; a prefix or a directory."
    )
    pretrained_weights: str | None = option(
        None,
        "Weights of the backbone alone: the path of a PyTorch file (.pth, .safetensors), for "
        "resnet50s, resnet101s, resnet101, resnet101_msra, wide_resnet38 and efficientnet_lite0; "
        "or 'imagenet' for efficientnet_lite0, from an installed package (extra [pretrained]), or "
        "the path of its .npz file.",
    )
    initialize_last_layer: bool = option(False, "Take the last layers from the checkpoint too.")
    last_layers_contain_logits_only: bool = option(
        True, "The last layers are the logits only; false: ASPP and decoder too."
    )

    upsample_logits: bool = option(
        True, "Loss at label resolution; false: labels are reduced to the logits' resolution."
    )
    label_weights: tuple[float, ...] | None = option(
        None, "Weight of each class in the cross entropy; None: 1.", multi=True
    )
    hard_example_mining_step: int = option(
        0, "Steps over which the share of mined pixels falls from 1 to --top_k_percent_pixels."
    )
    top_k_percent_pixels: float = option(1.0, "Share of hardest pixels that make the loss; 1: all.")
    weakly: bool = option(False, "The second split has image-level labels; use them.")

    log_steps: int = option(10, "Steps between log lines and scalar summaries.")
    save_interval_secs: int = option(1200, "Seconds between checkpoints.")
    save_interval_steps: int = option(
        0, "Steps between checkpoints, besides --save_interval_secs; 0: none."
    )
    max_to_keep: int = option(5, "Checkpoints kept.")
    reestimate_batch_norm: int = option(
        0,
        "After the last step, or at once where the run is complete: measure the statistics of "
        "batch norm anew on this many training images, seen as evaluation sees images, and write "
        "the network to <train_logdir>/reestimated/, a --checkpoint_dir for eval.py and vis.py. "
        "The run's own files stay as they are. 0: no.",
        limits=(0, None),
    )
    save_summaries_secs: int = option(180, "Seconds between image summaries.")
    save_summaries_images: bool = option(True, "Write image panels to TensorBoard.")
    profile_logdir: str | None = option(
        None, "Write a TensorFlow profile of steps 10 to 20 there; None: off."
    )

    drop_path_keep_prob: float = option(1.0, "Drop path of NAS networks.", unsupported=_NAS)
    num_replicas: int = option(1, "Parameter-server machinery.", dead=True)
    task: int = option(0, "Parameter-server machinery.", dead=True)
    num_ps_tasks: int = option(0, "Parameter-server machinery.", dead=True)
    master: str = option("", "Parameter-server machinery.", dead=True)
    startup_delay_steps: int = option(15, "Parameter-server machinery.", dead=True)
    quantize_delay_step: int = option(-1, "Dead in the published programs.", dead=True)


@dataclasses.dataclass(frozen=True)
class PredictionConfig:
    """How `eval.py` and `vis.py` get from an image to labels."""

    eval_scales: tuple[float, ...] = option((1.0,), "Input scales; repeat the flag.", multi=True)
    add_flipped_images: bool = option(False, "Average with the mirrored image.")
    merge_scales: str = option(
        "probs",
        "What is averaged over scales and mirror images: probabilities, as DeepLab does; logits, "
        "as Learning Pseudo Labels does; or masks (probabilities at the network's own resolution) "
        "and image-level scores, as SLRNet does.",
        choices=("probs", "logits", "masks"),
    )
    scale_kernel: str = option(
        "bilinear",
        "How the input is scaled: bilinear with aligned corners, as DeepLab does, or cubic as "
        "OpenCV or Pillow does, for networks tested that way (Learning Pseudo Labels, SLRNet).",
        choices=("bilinear", "cubic", "pillow"),
    )
    max_side: int | None = option(
        None,
        "Halve the image while a side is longer than this many pixels; 1000 is published for "
        "L2ID. None: off.",
        limits=(2, None),
    )
    eval_resize: str = option(
        "none",
        "Size of image and mask in evaluation: none, their own; warp, --eval_resize_side on both "
        "sides, as STRICT is tested; short_side, on the shorter side, as ZS3Net is tested. Scores "
        "are then of resized masks, which is for the comparison with published numbers.",
        choices=("none", "warp", "short_side"),
    )
    eval_resize_side: int = option(
        513, "Pixels of --eval_resize; ZS3Net: 312 while it trains.", limits=(1, None)
    )
    use_image_labels: bool = option(
        False,
        "Allow in each image only background and the classes of its image-level labels "
        "(image/class/label of its record).",
    )
    fp_cut: float | None = option(
        None,
        "With --merge_scales=masks: take out the classes whose image-level score (0 to 1) is not "
        "above this; published: 0.3. None: none for that reason.",
        limits=(0, 1),
    )
    topk_classes: int | None = option(
        None,
        "With --merge_scales=masks: take out all but this many classes of the highest image-level "
        "scores; published: 6, COCO 8. None: none for that reason.",
        limits=(1, None),
    )
    bg_pow: float = option(
        1.0,
        "With --merge_scales=masks: raise the background's mask to this power; published: 3 where "
        "no mask was trained on, else 1.",
        limits=(1e-3, None),
    )
    suppressed_class: str | None = option(
        None,
        "With --merge_scales=masks: raise the mask of the class of this name to twice the power "
        "of --bg_pow; published for COCO: person.",
    )
    seen_bias: float = option(
        0.0,
        "With a --class_split: how much seen classes are weakened against unseen ones, whose "
        "labels the network never saw (calibrated stacking). SPNet: 0.6 on PASCAL VOC, 0.4 on "
        "COCO-Stuff. Choose it by --seen_bias_sweep.",
        limits=(0, None),
    )
    seen_bias_space: str = option(
        "prob",
        "What --seen_bias is subtracted from: probabilities, as published, or logits.",
        choices=("prob", "logit"),
    )
    dense_crf: bool = option(
        False,
        "Refine the probabilities by a dense CRF on the original image (extra [crf]); the "
        "defaults of its flags are those of Learning Pseudo Labels.",
    )
    crf_iterations: int = option(
        1, "Mean-field iterations of --dense_crf; SLRNet: 10.", limits=(1, None)
    )
    crf_gaussian_sxy: float = option(
        3.0, "Standard deviation in pixels of the CRF's position kernel.", limits=(1e-3, None)
    )
    crf_gaussian_compat: float = option(
        3.0, "Weight of the CRF's position kernel.", limits=(0, None)
    )
    crf_bilateral_sxy: float = option(
        32.0,
        "Standard deviation in pixels of the CRF's position-and-colour kernel; SLRNet: 80.",
        limits=(1e-3, None),
    )
    crf_bilateral_srgb: float = option(
        13.0,
        "Standard deviation in grey levels of the CRF's position-and-colour kernel.",
        limits=(1e-3, None),
    )
    crf_bilateral_compat: float = option(
        10.0, "Weight of the CRF's position-and-colour kernel.", limits=(0, None)
    )
    crf_workers: int = option(
        0,
        "Processes of --dense_crf, each with a few images' probabilities in memory; 0: as many as "
        "there are cores.",
        limits=(0, None),
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig(PredictionConfig):
    """What `eval.py` measures, of which checkpoint, and where it writes."""

    eval_logdir: str | None = option(
        None, "Directory for metrics.json and TensorBoard.", required=True
    )
    checkpoint_dir: str | None = option(
        None, "Training directory (newest checkpoint) or a checkpoint prefix.", required=True
    )
    eval_split: str = option("val", "Split to evaluate.")
    eval_batch_size: int = option(1, "Images per step, over all replicas.")
    eval_crop_size: tuple[int, ...] = option(
        (513, 513),
        "Images are padded to this height,width; larger ones are taken whole. 0,0: no padding at "
        "all, which image-level scores would notice.",
    )
    eval_interval_secs: int = option(300, "Seconds between looks for a new checkpoint.")
    max_number_of_evaluations: int = option(0, "Stop after so many evaluations; 0: never.")
    network: str | None = option(
        None,
        "Which network of the checkpoint: ema, or hybrid, pseudo of learning_pseudo_labels; None: "
        "the deployable one.",
    )
    weakly: bool = option(False, "Also report image-level classification metrics.")
    absent_classes: str = option(
        "skip",
        "Classes that are neither in the masks nor in the predictions: left out of the mean IoU, "
        "or an IoU of zero, as the published evaluation of Learning Pseudo Labels has it.",
        choices=("skip", "zero"),
    )
    modes: tuple[str, ...] | None = option(
        None,
        "With a --class_split, comma-separated: generalised (all classes may be predicted; what "
        "mIoU and class IoUs are of), zero_label (unseen classes alone may be predicted, and their "
        "pixels alone count), vanilla (as zero_label, but all pixels count). None: all three; with "
        "--dense_crf generalised alone.",
    )
    seen_bias_sweep: str | None = option(
        None,
        "first:last:step, for example 0:1:0.05: score the generalised mode with each of these "
        "values of --seen_bias too, of a run with --exclude_validation_classes.",
    )
    num_clones: int = option(1, "Replicas for evaluation.")
    master: str = option("", "Unused.", dead=True)
    quantize_delay_step: int = option(-1, "Unused.", dead=True)


@dataclasses.dataclass(frozen=True)
class VisConfig(PredictionConfig):
    """Which predictions `vis.py` draws, and where."""

    vis_logdir: str | None = option(None, "Directory for the pictures.", required=True)
    checkpoint_dir: str | None = option(
        None, "Training directory (newest checkpoint) or a checkpoint prefix.", required=True
    )
    vis_split: str = option("val", "Split to draw.")
    vis_batch_size: int = option(1, "Images per step.")
    vis_crop_size: tuple[int, ...] = option(
        (513, 513),
        "Images are padded to this height,width; larger ones are taken whole. 0,0: no padding at "
        "all, which image-level scores would notice.",
    )
    colormap_type: str | None = option(
        None,
        "Colours; None: the palette of the records' dataset.json, else the data set's own.",
        choices=("pascal", "cityscapes", "ade20k"),
    )
    also_save_raw_predictions: bool = option(
        False, "Also write class-id PNGs at the original size."
    )
    network: str | None = option(
        None,
        "Which network of the checkpoint: ema, or hybrid, pseudo of learning_pseudo_labels; None: "
        "the deployable one.",
    )
    max_number_of_iterations: int = option(0, "One pass is always made.", dead=True)
    eval_interval_secs: int = option(300, "One pass is always made.", dead=True)
    master: str = option("", "Unused.", dead=True)
    quantize_delay_step: int = option(-1, "Unused.", dead=True)
