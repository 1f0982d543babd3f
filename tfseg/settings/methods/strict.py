"""Settings of STRICT."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tfseg.settings.methods.spnet import SPNetConfig
from tfseg.settings.option import option


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
        "Per cent of pixels that get a pseudo label, of those that the teacher takes for an unseen "
        "class in an image. The most confident ones get it. Published for ZS5: 25 on PASCAL VOC, "
        "75 on Pascal-Context, with --generator_classes=all and --disagreeing=ignore. None: all.",
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
