"""Settings of Learning Pseudo Labels."""

import dataclasses
from typing import ClassVar

from tfseg.settings.methods.base import OF_ZERO_LABEL, MethodSettings
from tfseg.settings.option import option


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
