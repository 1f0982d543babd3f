"""From an image to labels: one scale or several, mirrored or not.

Shared by evaluation and pictures. The functions are plain graph code; `evaluation` and
`visualization` wrap them in a `tf.function`.

Where it is known which classes an image may hold, the others are left out of every arg max and
softmax, or taken out of the masks after the softmax, as the network's way of testing has it.
Networks that never saw labels of some classes can be calibrated: the others are made weaker.

Source: PseudoSeg specification 7; Learning Pseudo Labels specification 4.3 and 4.4; SLRNet
specification 6; STRICT specification 1.6.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfseg.errors import UserError, check_choice
from tfseg.models.heads.parts import scaled_size
from tfseg.ops.calibration import Calibration, calibrated
from tfseg.ops.class_aware import mask_absent_logits, present_classes
from tfseg.ops.class_filter import filter_classes, kept_classes
from tfseg.ops.resize import (
    rescale_cubic,
    resize_bilinear,
    resize_nearest_align_corners,
    resize_pillow,
)

Side = int | tf.Tensor

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
class Decision:
    """One of several ways to get from what a network says to labels.

    Attributes:
      classes: ids of the only classes that may be answered; None: all that may be in the image.
      calibration: of the probabilities of these; None: none.
    """

    classes: tuple[int, ...] | None = None
    calibration: Calibration | None = None


@dataclasses.dataclass(frozen=True)
class Views:
    """The views in which the network sees an image, and how what it says of them is merged.

    Attributes:
      scales: the image is seen at each of these sizes.
      flip: each is also seen mirrored.
      merge_scales: what is averaged over the views. 'probs': the softmax of logits that were
        brought to the image's size; 'logits': these logits; 'masks': the softmax of the logits as
        they are, brought to the image's size, and the image-level logits too, which otherwise are
        those of the unscaled image.
      scale_kernel: how the image is scaled: 'bilinear' with aligned corners, to
        trunc((side - 1) scale + 1) pixels; 'cubic' as OpenCV does, to round(side scale) pixels;
        'pillow', likewise, as Pillow's cubic resize does.
      class_filter: what is done to masks; only with 'masks'.
      calibration: of what was merged; None: none.

    Raises:
      UserError: an unknown kind of merging, or kernel; or settings that do not go together.

    Source: 'logits' and 'cubic': Learning Pseudo Labels specification 4.3; 'masks' and 'pillow':
      SLRNet specification 6.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge_scales: str = "probs"
    scale_kernel: str = "bilinear"
    class_filter: ClassFilter = ClassFilter()
    calibration: Calibration | None = None

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
                "Classes are filtered in merged masks only.",
                where="--fp_cut, --topk_classes, --bg_pow, --suppressed_class",
                received=f"--merge_scales={self.merge_scales}",
                accepted="--merge_scales=masks",
                fix="add --merge_scales=masks, or leave these flags out",
            )


ONE_VIEW = Views()


def predict(
    model: Any,
    image: tf.Tensor,
    views: Views = ONE_VIEW,
    *,
    prediction_with_upsampled_logits: bool = True,
    present: tf.Tensor | None = None,
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the class of every pixel.

    Args:
      model: network of `build_model`.
      image: RGB 0..255 [N, H, W, 3].
      views: what the network sees of it.
      prediction_with_upsampled_logits: upsample the logits and take the arg max; False: the
        reverse. With several views, or merged masks, it is always the former.
      present: float [N, C], 1 for the classes that may be in an image and 0 for the others, of
        `ops.class_aware.present_classes`; None: all may.
      weight: [N]; rows of weight 0 at the end only fill the batch up, and their result is
        undefined: no work need be done for them.

    Returns:
      int32 [N, H, W].

    Raises:
      UserError: classes are to be filtered by scores, and the network gives none.

    Source: `present`: Learning Pseudo Labels specification 4.3.
    """

    def function(*one: tf.Tensor) -> tf.Tensor:
        return _labels(model, views, prediction_with_upsampled_logits, *one)[0]

    return _one_by_one(function, (image, present), tf.int32, weight)


def predict_decisions(
    model: Any,
    image: tf.Tensor,
    views: Views = ONE_VIEW,
    *,
    decisions: Sequence[Decision],
    prediction_with_upsampled_logits: bool = True,
    present: tf.Tensor | None = None,
    weight: tf.Tensor | None = None,
) -> list[tf.Tensor]:
    """Returns the class of every pixel by several decisions; the network sees each view once.

    Args:
      model, image, prediction_with_upsampled_logits, present, weight: see `predict`. A softmax runs
        over the classes that a decision allows, and only these are merged.
      views: see `predict`; its `calibration` is not heeded, that of the decisions is.
      decisions: at least one.

    Returns:
      int32 [N, H, W] for each of them.
    """

    def function(*one: tf.Tensor) -> list[tf.Tensor]:
        return _decided(model, views, prediction_with_upsampled_logits, decisions, *one)[0]

    return _one_by_one(function, (image, present), [tf.int32] * len(decisions), weight)


def predict_with_image_logits(
    model: Any,
    image: tf.Tensor,
    views: Views = ONE_VIEW,
    *,
    prediction_with_upsampled_logits: bool = True,
    present: tf.Tensor | None = None,
    weight: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the class of every pixel and the image-level logits.

    Args:
      model: network with a classifier.
      image, views, prediction_with_upsampled_logits, present, weight: see `predict`. The
        image-level logits are of all classes, and of the unscaled image, but the mean over the
        views with merge_scales='masks'.

    Returns:
      int32 [N, H, W] and float32 [N, K].

    Raises:
      UserError: the network gives no image-level logits.
    """

    def function(*one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        labels, logits = _labels(model, views, prediction_with_upsampled_logits, *one)
        return labels, _image_logits(model, one[0]) if logits is None else logits

    return _one_by_one(function, (image, present), (tf.int32, tf.float32), weight)


def predict_probabilities(
    model: Any,
    image: tf.Tensor,
    views: Views = ONE_VIEW,
    *,
    present: tf.Tensor | None = None,
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the probability of every class at every pixel.

    Args:
      model, image, views, present, weight: see `predict`. With merge_scales='probs' it is the mean
        probability over the views, with 'logits' the softmax of the mean logits, with 'masks' the
        mean mask after `views.class_filter`. With `views.calibration` they are calibrated; where
        its space is 'logit' they sum to 1 again.

    Returns:
      float32 [N, H, W, C], sums to 1 over the classes of `present`, 0 elsewhere; with 'masks' the
      sum is what the filter left. (The published PseudoSeg programs store its softmax, a softmax
      of a probability; its arg max is the same.)
    """

    def function(*one: tf.Tensor) -> tf.Tensor:
        return _probabilities(model, views, *one)[0]

    return _one_by_one(function, (image, present), tf.float32, weight)


def predict_probabilities_with_image_logits(
    model: Any,
    image: tf.Tensor,
    views: Views = ONE_VIEW,
    *,
    present: tf.Tensor | None = None,
    weight: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the probability of every class, and the image-level logits.

    Args:
      model: network with a classifier.
      image, views, present, weight: see `predict_probabilities`; and `predict_with_image_logits`
        for what the image-level logits are of.

    Returns:
      float32 [N, H, W, C] and float32 [N, K].

    Raises:
      UserError: the network gives no image-level logits.
    """

    def function(*one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        probs, logits = _probabilities(model, views, *one)
        return probs, _image_logits(model, one[0]) if logits is None else logits

    return _one_by_one(function, (image, present), (tf.float32, tf.float32), weight)


def _one_by_one(
    function: Callable[..., Any],
    inputs: tuple[tf.Tensor, tf.Tensor | None],
    dtypes: Any,
    weight: tf.Tensor | None,
) -> Any:
    """Applies a function of batches to each image alone where there are only CPUs.

    A CPU kernel may cut its work, and so round, differently with the batch size; one image is
    work enough for it, and so results do not depend on the batch size, bit for bit.
    """
    inputs = [x for x in inputs if x is not None]
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return function(*inputs)
    if inputs[0].shape[0] == 1:
        return function(*inputs)

    @tf.autograph.experimental.do_not_convert
    def of_one(one: list[tf.Tensor]) -> Any:
        batches = [x[tf.newaxis] for x in one]
        return tf.nest.map_structure(lambda x: tf.squeeze(x, 0), function(*batches))

    size = tf.shape(inputs[0])[0]
    count = size
    if weight is not None:
        # At least one, because the shape of no results is not known.
        count = tf.reduce_max(tf.where(tf.not_equal(weight, 0), tf.range(1, size + 1), 1))
    results = tf.map_fn(
        of_one, [x[:count] for x in inputs], parallel_iterations=1, fn_output_signature=dtypes
    )

    def filled_up(x: tf.Tensor) -> tf.Tensor:
        return tf.pad(x, [[0, size - count], *[[0, 0]] * (x.shape.rank - 1)])

    return tf.nest.map_structure(filled_up, results)


def _labels(
    model: Any,
    views: Views,
    prediction_with_upsampled_logits: bool,
    image: tf.Tensor,
    present: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Returns labels, and image-level logits if the unscaled image was seen by a classifier."""
    decisions = (Decision(calibration=views.calibration),)
    labels, image_logits = _decided(
        model, views, prediction_with_upsampled_logits, decisions, image, present
    )
    return labels[0], image_logits


def _decided(
    model: Any,
    views: Views,
    prediction_with_upsampled_logits: bool,
    decisions: Sequence[Decision],
    image: tf.Tensor,
    present: tf.Tensor | None = None,
) -> tuple[list[tf.Tensor], tf.Tensor | None]:
    """Returns labels by each decision, and image-level logits as `_labels`."""
    size = _sides(image)
    restrictions = {d.classes: _restriction(present, d.classes) for d in decisions}
    is_merged = views.scales != (1.0,) or views.flip or views.merge_scales == "masks"
    if is_merged:
        merged, image_logits = _merged(model, views, image, present, tuple(restrictions.values()))
    else:
        outputs = model(image, training=False)
        logits, image_logits = outputs["logits"], outputs.get("image_logits")
        if prediction_with_upsampled_logits:
            logits = resize_bilinear(logits, size)
        merged = [restricted(logits) for restricted in restrictions.values()]
    are_logits = not is_merged or views.merge_scales == "logits"
    scores = dict(zip(restrictions, merged))
    pairs: dict[Any, Any] = {}

    def labels_of(decision: Decision) -> tf.Tensor:
        found, calibration = scores[decision.classes], decision.calibration
        if calibration is None or not calibration.bias:
            return _arg_max(found)
        key = decision.classes, calibration.seen
        if key not in pairs:
            probs = tf.nn.softmax(found) if are_logits else found
            pairs[key] = _best_two(restrictions[decision.classes](probs), calibration.seen)
        probs, classes = pairs[key]
        # Of the seen classes the best stays the best, and of the others too.
        chosen = _arg_max(calibrated(probs, dataclasses.replace(calibration, seen=(0,))))
        return tf.where(tf.equal(chosen, 0), classes[..., 0], classes[..., 1])

    labels = [labels_of(decision) for decision in decisions]
    if not is_merged and not prediction_with_upsampled_logits:
        labels = [resize_nearest_align_corners(x, size) for x in labels]
    return labels, image_logits


def _best_two(probs: tf.Tensor, seen: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the best seen and the best other class of each pixel.

    Args:
      probs: float32 [N, H, W, C].
      seen: class ids; some, but not all.

    Returns:
      Their probabilities, float32 [N, H, W, 2], and their ids, int32 [N, H, W, 2].
    """
    groups = tuple(seen), tuple(c for c in range(probs.shape[-1]) if c not in seen)
    values, ids = [], []
    for group in groups:
        of_group = tf.gather(probs, group, axis=-1)
        values.append(tf.reduce_max(of_group, -1))
        ids.append(tf.gather(tf.constant(group, tf.int32), _arg_max(of_group)))
    return tf.stack(values, -1), tf.stack(ids, -1)


def _probabilities(
    model: Any, views: Views, image: tf.Tensor, present: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Returns probabilities, and image-level logits as `_labels`."""
    (merged,), image_logits = _merged(model, views, image, present, (_restriction(present),))
    if views.merge_scales == "logits":
        merged = tf.nn.softmax(merged)
    if views.calibration is not None:
        merged = calibrated(merged, views.calibration)
        if views.calibration.space == "logit":
            merged /= tf.reduce_sum(merged, -1, keepdims=True)
    return merged, image_logits


def _image_logits(model: Any, image: tf.Tensor) -> tf.Tensor:
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


def _restriction(
    present: tf.Tensor | None, classes: Sequence[int] | None = None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of logits (or scores) after which only some classes can win.

    Those that are present, and among `classes`; None: all.
    """

    def restricted(logits: tf.Tensor) -> tf.Tensor:
        allowed = present
        if classes is not None:
            only = tf.reduce_sum(tf.one_hot(classes, logits.shape[-1]), 0, keepdims=True)
            allowed = only if present is None else present * only
        return logits if allowed is None else mask_absent_logits(logits, allowed)

    return restricted


def _arg_max(x: tf.Tensor) -> tf.Tensor:
    return tf.argmax(x, axis=-1, output_type=tf.int32)


def _merged(
    model: Any,
    views: Views,
    image: tf.Tensor,
    present: tf.Tensor | None,
    restrictions: Sequence[Callable[[tf.Tensor], tf.Tensor]],
) -> tuple[list[tf.Tensor], tf.Tensor | None]:
    """Returns the mean of what `views.merge_scales` names, at the image's size, masks filtered.

    One for each restriction; masks know only that by `present`. And image-level logits, if a
    classifier saw the views of which they are wanted.
    """
    image = tf.cast(image, tf.float32)
    size, totals, image_logits = _sides(image), [0.0] * len(restrictions), []
    for scale in views.scales:
        scaled = _rescaled(image, scale, views.scale_kernel)
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
    return means, mean_logits


def _rescaled(image: tf.Tensor, scale: float, kernel: str) -> tf.Tensor:
    """Returns the image at one of the scales."""
    if kernel == "cubic":
        return rescale_cubic(image, scale)
    if kernel == "pillow":
        return resize_pillow(image, tuple(_rounded_side(side, scale) for side in _sides(image)))
    return resize_bilinear(image, _scaled(_sides(image), scale))


def _merging_grid(
    model: Any, views: Views, size: Sequence[Side], scaled: tf.Tensor, scale: float
) -> Sequence[Side] | None:
    """Returns the grid to which logits are brought before that of the image; None: straight."""
    if views.merge_scales == "logits":
        # The published network gives logits at the size of its input.
        return _sides(scaled)
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
    restrictions: Sequence[Callable[[tf.Tensor], tf.Tensor]],
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


def _sides(image: tf.Tensor) -> tuple[Side, Side]:
    """Returns height and width: ints where they are known while a graph is built."""
    dynamic = tf.shape(image)
    return tuple(
        dynamic[axis] if image.shape[axis] is None else image.shape[axis] for axis in (1, 2)
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
