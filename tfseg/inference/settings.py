"""What the settings of predictions mean, and which of them go together."""

import dataclasses
from typing import Any

from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError, check_choice
from tfseg.inference import zero_label
from tfseg.inference.merge import ClassFilter, Views
from tfseg.ops import dense_crf
from tfseg.settings.prediction import PredictionConfig

_CRF_PREFIX = "crf_"
# Flags of the class filter.
_CLASS_FILTER = ("fp_cut", "topk_classes", "bg_pow", "suppressed_class")
# A hundred times the pixels of an image are all that its memory will bear.
_LARGEST_SCALE = 10


def check(config: PredictionConfig, spec: DatasetSpec) -> None:
    """Insists on settings that can be meant.

    Raises:
      UserError: a scale is not positive, settings do not go together or do not fit the data set, a
        flag of the CRF was given without --dense_crf, or the extra that it needs is missing.
    """
    scales = config.eval_scales
    if not scales or not all(0 < scale <= _LARGEST_SCALE for scale in scales):
        raise UserError(
            f"The scales must be positive numbers, at most {_LARGEST_SCALE}.",
            where="--eval_scales",
            received=", ".join(map(str, scales)) or "none",
            accepted="for example --eval_scales=0.75 --eval_scales=1 --eval_scales=1.25",
        )
    # Refuses what does not go together.
    views_of(config, spec)
    given = class_filter_of(config)
    if given and not spec.has_background:
        raise UserError(
            "Where classes are filtered the background takes what they leave, and this data set "
            "has none.",
            where=", ".join(f"--{name}" for name in given),
            received=f"data set {spec.name}",
            fix="leave these flags out",
        )
    if uses_scores(config) and config.use_image_labels:
        raise UserError(
            "Classes are filtered by image-level labels or by image-level scores.",
            where="--use_image_labels, --fp_cut, --topk_classes",
            fix="leave out --use_image_labels, or --fp_cut and --topk_classes",
        )
    zero_label.check(config, spec)
    if config.dense_crf:
        dense_crf.require()
        return
    for field in dataclasses.fields(PredictionConfig):
        if field.name.startswith(_CRF_PREFIX) and getattr(config, field.name) != field.default:
            raise UserError(
                f"--{field.name} needs --dense_crf.",
                where=f"--{field.name}",
                received=getattr(config, field.name),
                fix=f"add --dense_crf, or leave out --{field.name}",
            )


def crf_settings(config: PredictionConfig) -> dict[str, Any]:
    """Returns the keyword arguments of `ops.dense_crf.dense_crf`."""
    return {name: getattr(config, _CRF_PREFIX + name) for name in dense_crf.LEARNING_PSEUDO_LABELS}


def views_of(config: PredictionConfig, spec: DatasetSpec) -> Views:
    """Returns the views in which the network sees an image, and what is done to masks.

    Raises:
      UserError: settings do not go together, or the data set has no such class.
    """
    suppressed = config.suppressed_class
    if suppressed is not None:
        names = spec.class_names[spec.first_image_class :]
        check_choice(suppressed, names, flag="suppressed_class", what="class")
        suppressed = spec.class_names.index(suppressed)
    return Views(
        scales=tuple(config.eval_scales),
        flip=config.add_flipped_images,
        merge_scales=config.merge_scales,
        scale_kernel=config.scale_kernel,
        class_filter=ClassFilter(
            score_cut=config.fp_cut,
            top_classes=config.topk_classes,
            background_power=config.bg_pow,
            suppressed_class=suppressed,
        ),
    )


def resize_of(config: PredictionConfig) -> tuple[str, int] | None:
    """Returns how images and masks are resized, and to how many pixels; None: they are not."""
    return None if config.eval_resize == "none" else (config.eval_resize, config.eval_resize_side)


def uses_scores(config: PredictionConfig) -> bool:
    """Whether predictions need the image-level scores of the network."""
    return config.fp_cut is not None or config.topk_classes is not None


def class_filter_of(config: PredictionConfig) -> dict[str, Any]:
    """Returns the flags of the class filter that were set, by name."""
    defaults = PredictionConfig()
    return {
        name: getattr(config, name)
        for name in _CLASS_FILTER
        if getattr(config, name) != getattr(defaults, name)
    }


def settings_of(config: PredictionConfig) -> dict[str, Any]:
    """Returns how predictions were made, in JSON's own types."""
    return {
        "eval_scales": list(config.eval_scales),
        "add_flipped_images": config.add_flipped_images,
        "merge_scales": config.merge_scales,
        "scale_kernel": config.scale_kernel,
        "max_side": config.max_side,
        "eval_resize": resize_of(config) and list(resize_of(config)),
        "sliding_window": config.sliding_window and [config.sliding_window, config.window_border],
        "input_multiple": config.input_multiple,
        "class_filter": class_filter_of(config) or None,
        "use_image_labels": config.use_image_labels,
        "dense_crf": crf_settings(config) if config.dense_crf else None,
    }
