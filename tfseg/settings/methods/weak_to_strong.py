"""Settings of FixMatch, UniMatch and their second versions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tfseg.settings.methods.base import OF_ZERO_LABEL, MethodSettings
from tfseg.settings.option import option


@dataclasses.dataclass(frozen=True)
class WeakToStrongConfig(MethodSettings):
    """What FixMatch, UniMatch and their second versions have in common (UniMatch specification 1).

    Defaults of this and other sections are those published for PASCAL VOC.
    """

    UNHEEDED: ClassVar[tuple[str, ...]] = (
        *OF_ZERO_LABEL,
        "hard_example_mining_step",
        "last_layer_gradient_multiplier",
        "parameter_groups",
        "top_k_percent_pixels",
        "upsample_logits",
    )

    confidence_threshold: float = option(
        0.95,
        "Smallest probability of a pseudo label that counts. Published for FixMatch and UniMatch "
        "on Cityscapes: 0.",
        limits=(0, 1),
    )
    labelled_loss: str = option(
        "cross_entropy",
        "Loss of the labelled images. cross_entropy: the mean over all pixels. hard_examples, "
        "published for Cityscapes: the mean over the pixels whose true class has a probability of "
        "at most --hard_example_threshold, and over --hard_example_pixels pixels at least.",
        choices=("cross_entropy", "hard_examples"),
    )
    hard_example_threshold: float = option(
        0.7,
        "A pixel is a hard example if the probability of its true class is at most this.",
        limits=(0, 1),
        needs="labelled_loss=hard_examples",
    )
    hard_example_pixels: int = option(
        200000,
        "Smallest number of pixels that count in a replica's labelled batch, the hardest ones.",
        limits=(0, None),
        needs="labelled_loss=hard_examples",
    )
    unlabeled_weight: float = option(
        1.0,
        "Factor on the losses of images without masks; published: 1.",
        limits=(0, None),
    )
    unlabeled_ramp_up_steps: int = option(
        0,
        "Steps over which --unlabeled_weight rises linearly from 0; for short runs, whose first "
        "pseudo labels are all background. Published: 0.",
        limits=(0, None),
    )
    strong_loss: str = option(
        "plain",
        "With --weakly: cross entropy of strong views. plain: among all classes. class_aware: "
        "among the classes that the image-level labels name, as in Learning Pseudo Labels.",
        choices=("plain", "class_aware"),
        needs="weakly",
    )
    class_thresholds: str = option(
        "fixed",
        "Confidence threshold of each class. fixed: --confidence_threshold, as published. "
        "balanced, for rare classes: --confidence_threshold times the mean confidence of the "
        "class, divided by the largest mean confidence of a class.",
        choices=("fixed", "balanced"),
    )
    class_threshold_momentum: float = option(
        0.999,
        "Share of the classes' mean confidences that each step keeps.",
        limits=(0, 1),
        needs="class_thresholds=balanced",
    )
    distribution_alignment: bool = option(
        False,
        "Brings the area of each class in the pseudo labels to its area in the masks, on average "
        "over some 100 steps, as ReMixMatch does for the classes of images. Published: false.",
    )


# What both networks of the first version's authors are trained with.
_OF_FIRST_VERSION = {
    "augmentation": "long_side_crop",
    "base_learning_rate": 0.001,
    "learning_rate_lag_steps": 1,
    "train_batch_size": 8,
    "weight_decay": 1e-4,
}
_OF_SECOND_VERSION = {
    "augmentation": "long_side_crop",
    "base_learning_rate": 5e-6,
    "learning_rate_lag_steps": 1,
    "optimizer": "adamw",
    "train_batch_size": 16,
    "weight_decay": 0.01,
}


@dataclasses.dataclass(frozen=True)
class FixMatchConfig(WeakToStrongConfig):
    """FixMatch by UniMatch's authors (UniMatch specification 3)."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = _OF_FIRST_VERSION

    # Published on Cityscapes: 1.
    new_layers_learning_rate_multiplier: float = option(
        10.0, "Factor on the learning rate of the layers on top of the backbone.", limits=(0, None)
    )


@dataclasses.dataclass(frozen=True)
class UniMatchConfig(FixMatchConfig):
    """UniMatch (UniMatch specification 3)."""

    feature_dropout: float = option(
        0.5, "Share of channels that UniMatch drops from a weak view's features.", limits=(0, 0.99)
    )


@dataclasses.dataclass(frozen=True)
class FixMatchV2Config(WeakToStrongConfig):
    """FixMatch by UniMatch V2's authors (UniMatch specification 4)."""

    UNHEEDED: ClassVar[tuple[str, ...]] = (*WeakToStrongConfig.UNHEEDED, "ema_decay")
    DEFAULTS: ClassVar[Mapping[str, Any]] = _OF_SECOND_VERSION

    # Reached after 250 steps; before, the average is the mean of all steps.
    teacher_decay: float = option(0.996, "Decay of the teacher's average, per step.", limits=(0, 1))
    new_layers_learning_rate_multiplier: float = option(
        40.0, "Factor on the learning rate of the layers on top of the backbone.", limits=(0, None)
    )


@dataclasses.dataclass(frozen=True)
class UniMatchV2Config(FixMatchV2Config):
    """UniMatch V2 (UniMatch specification 4)."""
