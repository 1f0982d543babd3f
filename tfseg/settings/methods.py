"""The settings that belong to one method: a frozen dataclass for each, one field = one flag.

They stand in this folder and not in the methods' files so that `--help` needs no TensorFlow.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tfseg.errors import UserError
from tfseg.settings.method import OF_ZERO_LABEL, MethodSettings
from tfseg.settings.option import NEVER, Choice, option
from tfseg.settings.weak_to_strong import (
    FixMatchConfig,
    FixMatchV2Config,
    UniMatchConfig,
    UniMatchV2Config,
)


@dataclasses.dataclass(frozen=True)
class PseudoSegConfig(MethodSettings):
    """PseudoSeg (specification 1.2, 5). Defaults are the published ones, but for mended faults."""

    use_attention: bool = option(
        True,
        "Self-attention Grad-CAM (SGC) makes pseudo labels together with the decoder; false: the "
        "decoder makes them alone, and without --weakly no image-level classifier is trained, as "
        "published.",
    )
    att_v2: bool = option(
        True, "SGC version 2: skip connection and normalised logits; false: version 1."
    )
    att_strides: tuple[int, ...] = option(
        (15, 16),
        "Layers of SGC's hypercolumn by stride code; the layer of the largest code also gives the "
        "Grad-CAM. 16 and 15 are the last two stages of every backbone.",
    )
    attention_dim: int = option(128, "Channels of SGC's query and key.")
    pseudo_src: str = option(
        "avg",
        "Source of pseudo labels: avg (mean of decoder and SGC), or att (SGC alone).",
        choices=("att", "avg"),
    )
    logit_norm: bool = option(
        True, "Divide decoder and SGC logits by their joint root mean square before the softmax."
    )
    temperature: float = option(
        0.5, "Sharpening of soft pseudo labels: p^(1/T) / sum; 1: none, towards 0: harder."
    )
    soft_pseudo_label: bool = option(True, "Soft targets; false: the arg max.")
    pseudo_label_threshold: float = option(
        0.0,
        "Pixels do not count whose largest probability, after sharpening, is below this; 0: all "
        "count.",
    )
    unlabeled_weight: float = option(
        1.0, "Factor on the losses of images without masks; published: 1.", limits=(0, None)
    )
    unlabeled_ramp_up_steps: int = option(
        0,
        "Steps over which --unlabeled_weight rises linearly from 0; for short runs, whose first "
        "pseudo labels are all background. Published: 0.",
        limits=(0, None),
    )
    cls_with_cls: bool = option(
        True,
        "With --weakly: the classifier learns from the second split; false: from the labelled one.",
    )
    mask_absent_classes: str = option(
        "none",
        "With --weakly: from which prediction classes are removed that the image-level labels "
        "exclude, before sharpening: decoder, fused (the fused label), or none (published).",
        choices=("none", "decoder", "fused"),
    )
    separate_passes: bool = option(
        False,
        "Run the network once for each purpose, as published: five times a step, six with "
        "--weakly, each with its own batch-norm update and dropout; false: three shared passes.",
    )
    grad_cam_mean: str = option(
        "space",
        "Axes over which the class gradient is averaged for the labelled stream's Grad-CAM. "
        "batch_and_rows is a published fault: it mixes the dropout masks of a replica's images. "
        "Pseudo labels do not depend on it.",
        choices=("space", "batch_and_rows"),
    )
    pixel_normalization_statistics: str = option(
        "moving",
        "Statistics that normalise SGC's logits for pseudo labels. batch is a published fault: a "
        "pseudo label then depends on the other images of the batch, and SGC cannot run on an "
        "image alone.",
        choices=("moving", "batch"),
    )


@dataclasses.dataclass(frozen=True)
class LearningPseudoLabelsConfig(MethodSettings):
    """Learning Pseudo Labels (specification 4 and 5). Defaults are the published ones."""

    UNHEEDED: ClassVar[tuple[str, ...]] = (
        *OF_ZERO_LABEL,
        "top_k_percent_pixels",
        "upsample_logits",
    )

    cce_temperature: float = option(
        1.0, "Temperature of the class-aware softmax.", limits=(1e-3, None)
    )
    score_power: float = option(
        8.0,
        "An image's weight is the IoU of its worst class to this power; PseudoNet's labels for the "
        "image count by it. 0: every image counts the same.",
        limits=(0, None),
    )
    score_momentum: float = option(
        0.99, "Share of PseudoNet's running pixel counts that each step keeps.", limits=(0, 1)
    )
    zero_iou_counts_as: str = option(
        "one",
        "IoU that a class counts with as long as PseudoNet has never found it. one: as published; "
        "the other classes of an image then decide its weight. zero: safer; the image has no "
        "weight yet.",
        choices=("one", "zero"),
    )
    score_counts_void: bool = option(
        True,
        "PseudoNet's IoU counts predictions in void and padding as wrong ones, as published. false "
        "is better: padding then does not make an image look worse.",
    )
    pseudo_net_schedule: str = option(
        "constant",
        "Learning rate of PseudoNet: constant (published), or decay (the run's own schedule), "
        "which is better in long runs.",
        choices=("constant", "decay"),
    )
    logits_learning_rate_multiplier: float = option(
        10.0, "Factor on the learning rate of the last convolution.", limits=(0, None)
    )


# What --supervision settles where no flag does (SLRNet specification 1, 4.5, 4.7).
_SLRNET_REGIMES = {
    "image_labels": {
        "loss_coefficients": (1.0, 4.0, 4.0, 1.0),
        "cutoff_top": 0.6,
        "cutoff_low": 0.2,
        "background_factor": 0.7,
    },
    "pixel_and_image_labels": {
        "loss_coefficients": (0.5, 2.0, 2.0, 0.5),
        "cutoff_top": 0.6,
        "cutoff_low": 0.2,
        "background_factor": 0.7,
        "labelled_oversampling": 3,
    },
    "pixel_labels": {
        "loss_coefficients": (1.0, 4.0, 4.0, 1.0),
        "cutoff_top": 0.8,
        "cutoff_low": 0.6,
        "background_factor": 0.9,
        "labelled_oversampling": 7,
    },
}


@dataclasses.dataclass(frozen=True)
class SLRNetConfig(MethodSettings):
    """SLRNet (specification 1, 2, 4). Defaults are the published ones for PASCAL VOC.

    What is None takes the value of the regime, `supervision`.

    Raises:
      UserError: a setting would have no effect, or two contradict each other.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {"head": "low_rank"}
    UNHEEDED: ClassVar[tuple[str, ...]] = (
        *OF_ZERO_LABEL,
        "background_logit",
        "head",
        "hard_example_mining_step",
        "label_weights",
        "last_layer_gradient_multiplier",
        "parameter_groups",
        "top_k_percent_pixels",
        "upsample_logits",
        "weakly",
    )

    supervision: str = option(
        "image_labels",
        "Labels that training uses. image_labels: image-level labels, no masks. "
        "pixel_and_image_labels: masks of --train_split, and image-level labels of all images. "
        "pixel_labels: masks of --train_split alone.",
        choices=("image_labels", "pixel_and_image_labels", "pixel_labels"),
        may_differ=NEVER,
    )
    sampling: str = option(
        "stratified",
        "How a batch is drawn. stratified: --labelled_batch_size images of --train_split and "
        "--train_batch_size of --train_split_cls, whose masks are not used. published: "
        "--train_batch_size images of --train_split_cls, with and without masks in no fixed ratio; "
        "images with masks come --labelled_oversampling times an epoch.",
        choices=("stratified", "published"),
        needs="supervision=pixel_and_image_labels|pixel_labels",
    )
    labelled_batch_size: int | None = option(
        None,
        "Images with masks in a step, over all replicas; None: --train_batch_size.",
        limits=(1, None),
        needs=("supervision=pixel_and_image_labels|pixel_labels", "sampling=stratified"),
    )
    labelled_oversampling: int | None = option(
        None,
        "With --sampling=published: how often an image with a mask comes in an epoch. None: as "
        "published, 3 with image-level labels, 7 without.",
        limits=(1, None),
        needs="sampling=published",
    )
    image_sampling: str = option(
        "uniform",
        "How images without masks are drawn. uniform: each once an epoch. class_weighted: with "
        "replacement, images with rare classes more often, as published for COCO.",
        choices=("uniform", "class_weighted"),
        needs=("supervision=image_labels|pixel_and_image_labels", "sampling=stratified"),
    )
    draws_per_epoch: int | None = option(
        None,
        "Images of an epoch with --image_sampling=class_weighted; None: as many as the split has. "
        "Published for COCO: 40000.",
        limits=(1, None),
        needs="image_sampling=class_weighted",
    )
    clutter_penalty: float = option(
        1.0,
        "With --image_sampling=class_weighted: an image's weight is divided by 1 + the number of "
        "its classes to this power; below 1: it is not divided.",
        limits=(0, None),
        needs="image_sampling=class_weighted",
    )
    pretrain_steps: int = option(
        3966,
        "First steps, which do not learn from pseudo masks. Published: six epochs (of 661 steps) "
        "with image-level labels alone, eleven without them. Give --constant_steps the same "
        "number.",
        limits=(0, None),
    )
    loss_coefficients: tuple[float, ...] | None = option(
        None,
        "Weights of class, mask, code and segmentation loss; None: 1,4,4,1, and 0.5,2,2,0.5 with "
        "--supervision=pixel_and_image_labels. Published for COCO: 1,8,8,1.",
    )
    cutoff_top: float | None = option(
        None,
        "Pseudo mask: a pixel is of a class if its value exceeds this share of the class's largest "
        "value in the image; None: 0.6, without image-level labels 0.8.",
        limits=(0, 1),
    )
    cutoff_low: float | None = option(
        None,
        "Pseudo mask: value that a pixel has to exceed in any case; None: 0.2, without image-level "
        "labels 0.6.",
        limits=(0, 1),
    )
    background_factor: float | None = option(
        None,
        "Pseudo mask: the share of --cutoff_top for background; None: 0.7, without image-level "
        "labels 0.9.",
        limits=(0, 1),
        needs="pseudo_mask_rule=classes",
    )
    pseudo_mask_rule: str = option(
        "classes",
        "Rule by which pseudo masks are made. classes: every class, background too, is compared "
        "with its own largest value, as for PASCAL VOC. foreground: background is where no other "
        "class is above --cutoff_low, as for COCO.",
        choices=("classes", "foreground"),
    )
    require_all_classes: bool = option(
        True,
        "An image's segmentation loss counts only if its pseudo mask (or mask) shows background "
        "and every class of its image-level labels, as published.",
        needs="supervision=image_labels|pixel_and_image_labels",
    )
    positive_weights: tuple[float, ...] | None = option(
        None,
        "Factors on the class loss of classes that are present: one number, or one for each class; "
        "None: 1. Published for COCO: 10 times the class weights.",
        needs="supervision=image_labels|pixel_and_image_labels",
    )
    auxiliary_class_weight: float = option(
        0.4,
        "Share of the auxiliary logits in the class loss; published for L2ID: 1.",
        needs="supervision=image_labels|pixel_and_image_labels",
    )
    second_view_flip: bool = option(False, "Mirror the second view at random.")
    pamr_dilations: tuple[int, ...] = option(
        (1, 2, 4, 8, 12, 24), "Refinement of masks: distances of a cell's neighbours, in cells."
    )
    pamr_iterations: int = option(10, "Refinement of masks: iterations.", limits=(0, None))
    new_layers_learning_rate_multiplier: float = option(
        10.0, "Factor on the learning rate of the layers on top of the backbone.", limits=(0, None)
    )

    def __post_init__(self):
        for name, value in _SLRNET_REGIMES.get(self.supervision, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if len(self.loss_coefficients) != 4:
            raise UserError(
                "--loss_coefficients needs four numbers.",
                where="--loss_coefficients",
                received=", ".join(map(str, self.loss_coefficients)),
                accepted="class scores, masks, codes, segmentation: for example 1,4,4,1",
            )
        if self.cutoff_low > self.cutoff_top:
            raise UserError(
                "--cutoff_low is above --cutoff_top.",
                where="--cutoff_low, --cutoff_top",
                received=f"{self.cutoff_low}, {self.cutoff_top}",
            )


@dataclasses.dataclass(frozen=True)
class ZeroLabelConfig(MethodSettings):
    """What the zero-label methods have in common."""

    UNHEEDED: ClassVar[tuple[str, ...]] = (
        "hard_example_mining_step",
        "last_layer_gradient_multiplier",
        "parameter_groups",
        "top_k_percent_pixels",
        "weakly",
    )

    new_layers_learning_rate_multiplier: float = option(
        10.0, "Factor on the learning rate of the layers on top of the backbone.", limits=(0, None)
    )


@dataclasses.dataclass(frozen=True)
class SPNetConfig(ZeroLabelConfig):
    """SPNet: training on the seen classes alone (STRICT specification 3, ZS3 specification 3)."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {"head": "projection"}

    training_rules: str = option(
        "spnet",
        "How weights are trained. spnet: scale and shift of the backbone's batch norm are "
        "constants; biases of new layers learn twice as fast as their kernels and do not decay. "
        "zs3, for ZS3Net's first step: all weights learn and decay alike, and the mean loss is "
        "divided by the batch size.",
        choices=("spnet", "zs3"),
    )


@dataclasses.dataclass(frozen=True)
class StrictConfig(SPNetConfig):
    """STRICT and its relatives (STRICT specification 4 to 6, 8; ZS3 specification 5)."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {**SPNetConfig.DEFAULTS, "fine_tune_batch_norm": False}

    rounds: int = option(
        1,
        "Rounds of self-training, equal parts of the steps. At the start of each the teacher "
        "becomes a copy of the network, and momentum and learning rate start again.",
        limits=(1, None),
    )
    view_scales: tuple[float, ...] | None = option(
        (1.5, 1.75), "Scales of the teacher's further views of an image; empty: none."
    )
    random_view_scales: bool = option(
        False,
        "Draw as many scales at random at every step, between the smallest and the largest of "
        "--view_scales; published: 0.5,1.75.",
    )
    mirror_views: bool = option(True, "Add the mirror image of every view.")
    generator_classes: str = option(
        "unseen",
        "Classes that a pseudo label may name: the unseen ones, as published, or all.",
        choices=("unseen", "all"),
    )
    teacher: str = option(
        "previous_round",
        "Network that makes pseudo labels: previous_round (the one at the end of the round before, "
        "as published), or ema (a moving average of the network).",
        choices=("previous_round", "ema"),
    )
    teacher_decay: float = option(
        0.999, "Decay of the teacher's average, per step.", limits=(0, 1), needs="teacher=ema"
    )
    teacher_seen_bias: float = option(
        0.0,
        "With --generator_classes=all: number that is subtracted from the teacher's probabilities "
        "of seen classes.",
        limits=(0, 1),
    )
    min_confidence: float = option(
        0.0,
        "Smallest probability of a pseudo label, among the classes of --generator_classes and "
        "averaged over the views. Published: 0.",
        limits=(0, 1),
    )
    pseudo_label_share: float | None = option(
        None,
        "Share of pixels that get a pseudo label, per cent. It is of the pixels of an image that "
        "the teacher takes for an unseen class; the most confident ones get its pseudo label. "
        "Published for ZS5: 25 on PASCAL VOC, 75 on Pascal-Context, with --generator_classes=all "
        "and --disagreeing=ignore. None: all of them.",
        limits=(0, 100),
    )
    pseudo_label_scores: str = option(
        "probability",
        "Score by which --pseudo_label_share chooses. probability. standardised: the logarithm of "
        "an unseen class's probability, minus its mean over the candidates of the image, divided "
        "by its standard deviation there; every candidate then counts as the unseen class that "
        "stands out most.",
        choices=("probability", "standardised"),
    )
    pseudo_label_names: str = option(
        "pixel",
        "Which class stands out, with standardised scores. pixel: every pixel gets the class that "
        "stands out most at this pixel. image: all pixels of an image that stand out get one "
        "class, the one whose scores there exceed its mean over the batch most. The views then "
        "have to agree on the pixels that stand out, not on the class.",
        choices=("pixel", "image"),
    )
    pseudo_label_void: bool = option(
        False,
        "Void and padding get pseudo labels too, as published. Only for class splits without "
        "background.",
    )
    disagreeing: str = option(
        "background",
        "Label of candidates without a pseudo label, where background is a seen class. background: "
        "as published for STRICT. ignore: as published for ZS5. Candidates that the teacher takes "
        "for a seen class, or that do not stand out among standardised scores, are background in "
        "both cases.",
        choices=("background", "ignore"),
    )
    background_loss: str = option(
        "plain",
        "Loss of background pixels. plain: cross entropy, as published. with_unseen: -log of the "
        "sum of the probabilities of background and all unseen classes, as such a pixel may be of "
        "an unseen class.",
        choices=("plain", "with_unseen"),
    )
    pseudo_label_weight: float = option(
        1.0, "Weight of a pixel with a pseudo label in the loss.", limits=(0, None)
    )
    pseudo_label_start: int = option(
        0,
        "First steps of each round, which use no pseudo labels.",
        limits=(0, None),
    )


@dataclasses.dataclass(frozen=True)
class ZS3NetConfig(ZeroLabelConfig):
    """ZS3Net's second step (ZS3 specification 4): features of unseen classes are generated."""

    oracle_layout: bool = option(
        False,
        "LEAK: take the layouts of unseen classes from their ground truth, as published. false: "
        "make them from layouts of seen classes.",
        may_differ=NEVER,
    )
    layout: str = option(
        "rename",
        "Without --oracle_layout: rename gives the pixels of one seen class of an image to an "
        "unseen one; balanced does so for half of its seen classes, rounded up.",
        choices=("rename", "balanced"),
        needs="oracle_layout=false",
    )
    synthetic_share: float = option(
        0.5,
        "Without --oracle_layout: share of images with a made layout.",
        limits=(0, 1),
        needs="oracle_layout=false",
    )
    generated_pixels: str = option(
        "all",
        "Pixels of an image with a made layout whose features are generated: all (published), or "
        "unseen (those of unseen classes).",
        choices=("all", "unseen"),
    )
    generator_updates: str | None = option(
        None,
        "Updates of the generator in a step. per_class: one for every class of every image, one "
        "after the other, as published. mean: one, by the mean of their losses. None: per_class on "
        "one replica, else mean.",
        choices=("per_class", "mean"),
        may_differ=NEVER,
    )
    generator_hidden: int = option(256, "Hidden units of the generator; 0: none.", limits=(0, None))
    noise_dim: int | None = option(
        None, "Length of the noise; None: that of the word vectors.", limits=(1, None)
    )
    noise: str = option("uniform", "Distribution of the noise.", choices=("uniform", "gaussian"))
    generator_samples: int = option(
        128, "Pixels of a class that are compared in one update.", limits=(2, None)
    )
    generator_learning_rate: float = option(2e-4, "Adam's rate of the generator.", limits=(0, None))
    mmd_bandwidths: tuple[float, ...] = option(
        (2.0, 5.0, 10.0, 20.0, 40.0, 80.0), "Widths of the kernels that compare features."
    )
    mmd_weights: str = option(
        "right",
        "Estimator of the maximum mean discrepancy: right, or published, which is wrong if the two "
        "sets differ in size.",
        choices=("right", "published"),
    )
    sampling_dropout: bool = option(
        True, "Dropout also in features that the generator makes for the classifier, as published."
    )
    unseen_weight: float = option(
        100.0, "Weight of unseen classes in the classifier's loss.", limits=(0, None)
    )
    loss_type: str = option(
        "ce",
        "The classifier's loss: ce (cross entropy), or focal, computed from the mean cross entropy "
        "of the batch.",
        choices=("ce", "focal"),
    )
    classifier_init: str = option(
        "normal", "Weights with which the new classifier starts.", choices=("normal", "uniform")
    )
    graph_context: bool = option(
        False, "Generate features along the graph of neighbouring regions (ZS3Net with context)."
    )
    graph_weight: float = option(
        0.1,
        "With --graph_context: weight of the classifier's loss on the features along the graph.",
        limits=(0, None),
        needs="graph_context",
    )

    def __post_init__(self):
        if not self.mmd_bandwidths or min(self.mmd_bandwidths) <= 0:
            raise UserError(
                "--mmd_bandwidths must be positive numbers.",
                where="--mmd_bandwidths",
                received=", ".join(map(str, self.mmd_bandwidths)),
                accepted="published: 2,5,10,20,40,80",
            )


METHODS = {
    "supervised": Choice(MethodSettings, "tfseg.methods.supervised:Supervised"),
    "pseudoseg": Choice(PseudoSegConfig, "tfseg.methods.pseudoseg:PseudoSeg"),
    "learning_pseudo_labels": Choice(
        LearningPseudoLabelsConfig, "tfseg.methods.learning_pseudo_labels:LearningPseudoLabels"
    ),
    "slrnet": Choice(SLRNetConfig, "tfseg.methods.slrnet:SLRNet"),
    "spnet": Choice(SPNetConfig, "tfseg.methods.spnet:SPNet"),
    "strict": Choice(StrictConfig, "tfseg.methods.strict:Strict"),
    "fixmatch": Choice(FixMatchConfig, "tfseg.methods.fixmatch:FixMatch"),
    "unimatch": Choice(UniMatchConfig, "tfseg.methods.unimatch:UniMatch"),
    "fixmatch_v2": Choice(FixMatchV2Config, "tfseg.methods.fixmatch_v2:FixMatchV2"),
    "unimatch_v2": Choice(UniMatchV2Config, "tfseg.methods.unimatch_v2:UniMatchV2"),
    "zs3net": Choice(ZS3NetConfig, "tfseg.methods.zs3net:ZS3Net"),
}
