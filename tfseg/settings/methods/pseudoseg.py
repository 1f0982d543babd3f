"""Settings of PseudoSeg."""

import dataclasses

from tfseg.settings.methods.base import MethodSettings
from tfseg.settings.option import option


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
        limits=(1, None),
    )
    attention_dim: int = option(128, "Channels of SGC's query and key.", limits=(1, None))
    pseudo_src: str = option(
        "avg",
        "Source of pseudo labels: avg (mean of decoder and SGC), or att (SGC alone).",
        choices=("att", "avg"),
    )
    logit_norm: bool = option(
        True, "Divide decoder and SGC logits by their joint root mean square before the softmax."
    )
    temperature: float = option(
        0.5,
        "Sharpening of soft pseudo labels: p^(1/T) / sum; 1: none, towards 0: harder.",
        limits=(0.001, None),
    )
    soft_pseudo_label: bool = option(True, "Soft targets; false: the arg max.")
    pseudo_label_threshold: float = option(
        0.0,
        "A pixel counts only if its largest probability, after sharpening, is at least this; 0: "
        "all pixels count.",
        limits=(0, 1),
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
        "With --weakly: the prediction from which classes are removed that the image does not "
        "show, before sharpening: decoder, fused (the fused label), or none (published).",
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
