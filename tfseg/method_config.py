"""The settings that belong to one method: a frozen dataclass for each, one field = one flag.

They stand here and not in the methods' files so that `--help` needs no TensorFlow. Their flags have
no default of their own: a flag that is not given takes the chosen method's default, and one that
the chosen method lacks is a usage error.
"""

import dataclasses

from tfseg.config import option


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """A method that has no settings of its own."""


@dataclasses.dataclass(frozen=True)
class PseudoSegConfig:
    """PseudoSeg (specification 1.2, 5). Defaults are the published ones, but for mended faults."""

    use_attention: bool = option(
        True,
        "Self-attention Grad-CAM (SGC) beside the decoder; false: the decoder alone makes pseudo "
        "labels, and, as published, without --weakly no image-level classifier is trained.",
    )
    att_v2: bool = option(
        True, "SGC version 2: skip connection and normalised logits; false: version 1."
    )
    att_strides: tuple[int, ...] = option(
        (15, 16),
        "Layers of SGC's hypercolumn by stride code; the largest also gives the Grad-CAM. Codes: "
        "16 and 15 are the last two stages of every backbone.",
    )
    attention_dim: int = option(128, "Channels of SGC's query and key.")
    pseudo_src: str = option(
        "avg", "Pseudo label: mean of decoder and SGC, or SGC alone.", choices=("att", "avg")
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
        "Pixels whose largest probability, after sharpening, is below this do not count; 0: all "
        "count.",
    )
    unlabeled_weight: float = option(1.0, "Weight of the consistency loss.")
    unlabeled_ramp_up_steps: int = option(
        0,
        "Steps over which that weight rises linearly from 0; for short runs, whose first pseudo "
        "labels are all background. Published: 0.",
        limits=(0, None),
    )
    cls_with_cls: bool = option(
        True,
        "With --weakly: the classifier learns from the second split; false: from the labelled one.",
    )
    mask_absent_classes: str = option(
        "none",
        "With --weakly: remove classes that the image-level label denies from the decoder's "
        "prediction, or from the fused label, before sharpening. Published: none.",
        choices=("none", "decoder", "fused"),
    )
    separate_passes: bool = option(
        False,
        "Run the network once for each purpose, five times a step and six with --weakly, as "
        "published, each with its own batch-norm update and dropout; false: three shared passes.",
    )
    grad_cam_mean: str = option(
        "space",
        "Axes over which the class gradient is averaged for the labelled stream's Grad-CAM. "
        "batch_and_rows is the published fault: it mixes the dropout masks of a replica's images. "
        "Pseudo labels are the same in both.",
        choices=("space", "batch_and_rows"),
    )
    pixel_normalization_statistics: str = option(
        "moving",
        "Statistics that normalise SGC's logits where it makes pseudo labels. batch is the "
        "published fault: labels depend on the other images of the batch, and SGC can be run on "
        "nothing else.",
        choices=("moving", "batch"),
    )


@dataclasses.dataclass(frozen=True)
class LearningPseudoLabelsConfig:
    """Learning Pseudo Labels (specification 4 and 5). Defaults are the published ones."""

    cce_temperature: float = option(
        1.0, "Temperature of the class-aware softmax.", limits=(1e-3, None)
    )
    score_power: float = option(
        8.0,
        "Exponent on the IoU of an image's worst class, which weighs PseudoNet's labels for it; 0: "
        "every image counts the same.",
        limits=(0, None),
    )
    score_momentum: float = option(
        0.99, "What is kept of PseudoNet's running pixel counts at each step.", limits=(0, 1)
    )
    zero_iou_counts_as: str = option(
        "one",
        "IoU of a class that PseudoNet never got right yet: one, as published (the image then has "
        "the weight of its other classes), or zero, which is safer: such an image waits.",
        choices=("one", "zero"),
    )
    score_counts_void: bool = option(
        True,
        "Predictions in void and padding count as predictions in PseudoNet's IoU, as published; "
        "false, which is better: they do not, and padded images are not thought worse than they "
        "are.",
    )
    pseudo_net_schedule: str = option(
        "constant",
        "Learning rate of PseudoNet: constant (published) or decay, the run's own schedule, which "
        "is better in the long run.",
        choices=("constant", "decay"),
    )
    logits_learning_rate_multiplier: float = option(
        10.0, "Factor on the learning rate of the last convolution.", limits=(0, None)
    )


# By name of the method, as in `tfseg.methods.METHODS`.
METHOD_CONFIGS = {
    "supervised": NoSettings,
    "pseudoseg": PseudoSegConfig,
    "learning_pseudo_labels": LearningPseudoLabelsConfig,
}
