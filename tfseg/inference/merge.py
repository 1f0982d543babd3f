"""Merges a network's scores for the views of an image: several scales, mirrored or not.

Plain graph code for any batch and image size, without a loop over images.

Source: PseudoSeg specification 7; Learning Pseudo Labels specification 4.3; SLRNet specification 6.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfseg.errors import UserError, check_choice
from tfseg.inference.decisions import Restriction
from tfseg.models.heads.parts import scaled_size
from tfseg.ops.class_aware import present_classes
from tfseg.ops.class_filter import filter_classes, kept_classes
from tfseg.ops.resize import rescale_cubic, resize_bilinear, resize_cubic, resize_pillow
from tfseg.ops.shapes import Side, sides

MERGE_SCALES = ("probs", "logits", "masks")
SCALE_KERNELS = ("bilinear", "cubic", "pillow")


@dataclasses.dataclass(frozen=True)
class ClassFilter:
    """What is done to merged masks; see `ops.class_filter`.

    Attributes:
      score_cut, top_classes: which classes are kept by the image-level scores; None: all.
      background_power: the background's masks are raised to this power.
      suppressed_class: class whose masks are raised to twice that power; None: none.

    Source: SLRNet specification 6.
    """

    score_cut: float | None = None
    top_classes: int | None = None
    background_power: float = 1.0
    suppressed_class: int | None = None

    @property
    def uses_scores(self) -> bool:
        """Whether the network must give image-level logits."""
        return self.score_cut is not None or self.top_classes is not None


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of an image that the network sees, and how their scores are merged.

    Attributes:
      scales: the image is seen at each of these sizes.
      flip: each is also seen mirrored.
      merge_scales: what is averaged over the views. 'probs': the logits are brought to the image's
        size, and then their softmax is averaged. 'logits': these logits. 'masks': the softmax of
        the logits at their own size, brought to the image's size; the image-level logits are
        averaged too (in the other cases they are those of the unscaled image).
      scale_kernel: how the image is scaled: 'bilinear' with aligned corners, to
        trunc((side - 1) scale + 1) pixels; 'cubic' as OpenCV does, to round(side scale) pixels;
        'pillow', likewise, as Pillow's cubic resize does.
      valid_sizes: the sizes of scaled images are rounded up to sizes that the network takes; False:
        they are the published ones, which few networks take for images of any size.
      class_filter: what is done to masks; only with 'masks'.

    Raises:
      UserError: an unknown kind of merging, or kernel; or settings that do not go together.

    Source: 'logits' and 'cubic': Learning Pseudo Labels specification 4.3; 'masks' and 'pillow':
      SLRNet specification 6.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge_scales: str = "probs"
    scale_kernel: str = "bilinear"
    valid_sizes: bool = False
    class_filter: ClassFilter = ClassFilter()

    def __post_init__(self):
        check_choice(self.merge_scales, MERGE_SCALES, flag="merge_scales", what="merging")
        check_choice(self.scale_kernel, SCALE_KERNELS, flag="scale_kernel", what="kernel")
        if self.merge_scales == "masks" and 1.0 not in self.scales:
            raise UserError(
                "The scales of --merge_scales=masks must include 1: the image-level scores were "
                "trained at the size of the image.",
                where="--eval_scales",
                received=", ".join(map(str, self.scales)),
                accepted="for example --eval_scales=1 --eval_scales=0.5 --eval_scales=1.5",
            )
        if self.merge_scales != "masks" and self.class_filter != ClassFilter():
            raise UserError(
                "Classes can be filtered only with --merge_scales=masks.",
                where="--fp_cut, --topk_classes, --bg_pow, --suppressed_class",
                received=f"--merge_scales={self.merge_scales}",
                accepted="--merge_scales=masks",
                fix="add --merge_scales=masks, or leave these flags out",
            )

    @property
    def are_merged(self) -> bool:
        """Whether there is more to do than to read the logits of the image as it is."""
        return self.scales != (1.0,) or self.flip or self.merge_scales == "masks"


ONE_VIEW = Views()


@dataclasses.dataclass(frozen=True)
class Merged:
    """The merged scores of a batch.

    Attributes:
      scores: float32 [N, H, W, C] for each restriction.
      are_logits: the scores are logits; else they are probabilities, or masks.
      image_logits: float32 [N, K]; None: the network gave none for the views that count.
    """

    scores: list[tf.Tensor]
    are_logits: bool
    image_logits: tf.Tensor | None


def look(
    model: Any,
    views: Views,
    image: tf.Tensor,
    *,
    present: tf.Tensor | None,
    restrictions: Sequence[Restriction],
    upsampled: bool = True,
) -> Merged:
    """Shows a network the views of a batch, each once, and merges its scores.

    Args:
      model: network of `build_model`.
      views: what it sees.
      image: float32 RGB 0..255 [N, H, W, 3].
      present: float [N, C], the classes that masks keep; None: the image-level scores decide, where
        `views.class_filter` says so.
      restrictions: of `decisions.restriction`; masks are restricted by `present` alone.
      upsampled: bring logits that need no merging to the image's size; False: leave them as small
        as they are.

    Returns:
      The mean over the views of what `views.merge_scales` names.

    Raises:
      UserError: classes are to be filtered by image-level scores, and the network gives none.
    """
    if views.are_merged:
        return _merged(model, views, image, present, restrictions)
    outputs = model(image, training=False)
    logits = outputs["logits"]
    if upsampled:
        logits = resize_bilinear(logits, sides(image))
    scores = [restricted(logits) for restricted in restrictions]
    return Merged(scores, True, outputs.get("image_logits"))


def image_logits_of(model: Any, image: tf.Tensor) -> tf.Tensor:
    """Returns the image-level logits of images as they are, float32 [N, K].

    Raises:
      UserError: the network gives none.
    """
    outputs = model(image, training=False)
    if "image_logits" not in outputs:
        raise _no_scores()
    return outputs["image_logits"]


def _no_scores() -> UserError:
    return UserError(
        "The network gives no image-level scores.",
        where="--fp_cut, --topk_classes, --weakly",
        accepted="a network with image-level scores: of --method=slrnet trained on image-level "
        "labels, or of PseudoSeg trained with --weakly",
        fix="leave out these flags",
    )


def _merged(
    model: Any,
    views: Views,
    image: tf.Tensor,
    present: tf.Tensor | None,
    restrictions: Sequence[Restriction],
) -> Merged:
    """See `look`; the scores are at the image's size, and masks are filtered."""
    size, totals, image_logits = sides(image), [0.0] * len(restrictions), []
    for scale in views.scales:
        scaled = _rescaled(model, views, image, scale)
        grid = _merging_grid(model, views, size, scaled, scale)
        for is_mirrored in (False, True) if views.flip else (False,):
            seen = tf.reverse(scaled, [2]) if is_mirrored else scaled
            outputs = model(seen, training=False, input_scale=scale)
            logits = outputs["logits"]
            if is_mirrored:
                logits = tf.reverse(logits, [2])
            added = _at_image_size(logits, views, size, grid, restrictions)
            totals = [total + x for total, x in zip(totals, added)]
            if views.merge_scales == "masks" or (scale == 1.0 and not is_mirrored):
                image_logits.append(outputs.get("image_logits"))
    means = [total / (len(views.scales) * (2.0 if views.flip else 1.0)) for total in totals]
    has_scores = image_logits and image_logits[0] is not None
    mean_logits = tf.add_n(image_logits) / len(image_logits) if has_scores else None
    if views.merge_scales == "logits":
        means = [restricted(mean) for restricted, mean in zip(restrictions, means)]
    elif views.merge_scales == "masks":
        means = [_filtered(mean, views.class_filter, mean_logits, present) for mean in means]
    return Merged(means, views.merge_scales == "logits", mean_logits)


def _rescaled(model: Any, views: Views, image: tf.Tensor, scale: float) -> tf.Tensor:
    """Returns the image at one of the scales."""
    size = sides(image)
    if views.scale_kernel == "bilinear":
        scaled = _scaled(size, scale)
    else:
        scaled = tuple(_rounded_side(side, scale) for side in size)
    if views.valid_sizes:
        scaled = model.valid_size(*scaled)
    if views.scale_kernel == "bilinear":
        return resize_bilinear(image, scaled)
    if views.scale_kernel == "pillow":
        return resize_pillow(image, scaled)
    return resize_cubic(image, scaled) if views.valid_sizes else rescale_cubic(image, scale)


def _merging_grid(
    model: Any, views: Views, size: Sequence[Side], scaled: tf.Tensor, scale: float
) -> Sequence[Side] | None:
    """Returns the grid to which logits are brought before that of the image; None: straight."""
    if views.merge_scales == "logits":
        # The published network gives logits at the size of its input.
        return sides(scaled)
    if views.merge_scales == "probs" and scale < 1.0:
        # The published graph merges logits at no coarser grid than that of the unscaled
        # image, before it upsamples them; the detour changes the values a little.
        return _scaled(size, 1.0 / model.logits_stride)
    return None


def _at_image_size(
    logits: tf.Tensor,
    views: Views,
    size: Sequence[Side],
    grid: Sequence[Side] | None,
    restrictions: Sequence[Restriction],
) -> list[tf.Tensor]:
    """Returns what one view adds to the mean of each restriction."""
    if views.merge_scales == "masks":
        return [resize_bilinear(tf.nn.softmax(logits), size)] * len(restrictions)
    if grid is not None:
        logits = resize_bilinear(logits, grid)
    logits = resize_bilinear(logits, size)
    if views.merge_scales == "logits":
        return [logits] * len(restrictions)
    return [tf.nn.softmax(restricted(logits)) for restricted in restrictions]


def _filtered(
    masks: tf.Tensor,
    class_filter: ClassFilter,
    image_logits: tf.Tensor | None,
    present: tf.Tensor | None,
) -> tf.Tensor:
    """Filters masks by the classes that are known to be present, else by the image-level scores."""
    if present is None and class_filter.uses_scores:
        if image_logits is None:
            raise _no_scores()
        kept = kept_classes(
            image_logits,
            score_cut=class_filter.score_cut,
            top_classes=class_filter.top_classes,
        )
        present = present_classes(kept, has_background=masks.shape[-1] > kept.shape[-1])
    return filter_classes(
        masks,
        present,
        background_power=class_filter.background_power,
        suppressed_class=class_filter.suppressed_class,
    )


def _rounded_side(side: Side, scale: float) -> Side:
    """Returns round(side scale), halves to even, at least 1."""
    if isinstance(side, int):
        return max(1, round(side * scale))
    scaled = tf.round(tf.cast(side, tf.float64) * scale)
    return tf.maximum(tf.cast(scaled, tf.int32), 1)


def _scaled(size: Sequence[Side], scale: float) -> tuple[Side, Side]:
    """Returns trunc((side - 1) scale + 1) of both sides."""
    return tuple(_scaled_side(side, scale) for side in size)


def _scaled_side(side: Side, scale: float) -> Side:
    if isinstance(side, int):
        return scaled_size(side, scale)
    # The same arithmetic where the side is a tensor.
    return tf.cast(tf.cast(side - 1, tf.float64) * scale + 1.0 + 1e-9, tf.int32)
