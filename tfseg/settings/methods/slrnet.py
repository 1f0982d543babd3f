"""Settings of SLRNet."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tfseg.errors import UserError
from tfseg.settings.methods.base import OF_ZERO_LABEL, MethodSettings
from tfseg.settings.option import NEVER, option

# What --supervision settles where no flag does (SLRNet specification 1, 4.5, 4.7).
_REGIMES = {
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
        limits=(0, None),
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
        limits=(0, None),
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
        for name, value in _REGIMES.get(self.supervision, {}).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if len(self.loss_coefficients) != 4:
            raise UserError(
                "--loss_coefficients needs four numbers.",
                where="--loss_coefficients",
                received=", ".join(map(str, self.loss_coefficients)),
                accepted="class scores, masks, codes, segmentation: for example 1,4,4,1",
            )
        if not self.pamr_dilations or min(self.pamr_dilations) < 1:
            raise UserError(
                "--pamr_dilations must be positive numbers.",
                where="--pamr_dilations",
                received=", ".join(map(str, self.pamr_dilations)) or "none",
                accepted="published: 1,2,4,8,12,24",
                fix="to leave out the refinement: --pamr_iterations=0",
            )
        if self.cutoff_low > self.cutoff_top:
            raise UserError(
                "--cutoff_low is above --cutoff_top.",
                where="--cutoff_low, --cutoff_top",
                received=f"{self.cutoff_low}, {self.cutoff_top}",
            )
