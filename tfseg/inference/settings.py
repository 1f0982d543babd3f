"""What the settings of predictions mean, and which of them go together."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfseg.data.image_input import UNPADDED, ImageInput
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError, check_choice
from tfseg.inference import protocols, zero_label
from tfseg.inference.merge import ClassFilter, Views
from tfseg.inference.tiles import Tiling
from tfseg.ops import dense_crf
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import PredictionConfig

_CRF_PREFIX = "crf_"
# Flags of the class filter.
_CLASS_FILTER = ("fp_cut", "topk_classes", "bg_pow", "suppressed_class")
# A hundred times the pixels of an image are all that its memory will bear.
_LARGEST_SCALE = 10


def check(config: PredictionConfig, spec: DatasetSpec) -> None:
    """Insists on settings that can be used together.

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
            "Filtering of classes needs a background class, which takes the place of removed "
            "classes.",
            where=", ".join(f"--{name}" for name in given),
            received=f"data set {spec.name}, which has none",
            fix="leave these flags out",
        )
    if uses_scores(config) and config.use_image_labels:
        raise UserError(
            "Classes can be filtered by image-level labels or by image-level scores, not by both.",
            where="--use_image_labels, --fp_cut, --topk_classes",
            fix="leave out --use_image_labels, or --fp_cut and --topk_classes",
        )
    _check_tiles(config)
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


def _check_tiles(config: PredictionConfig) -> None:
    """Insists on tiles of a possible size; see also `tiling_of`.

    Raises:
      UserError: the overlap leaves no step, or something needs the image as a whole.
    """
    if config.tile_size is None:
        return
    overlap = config.tile_overlap
    if overlap is not None and overlap >= config.tile_size:
        raise UserError(
            "The overlap of tiles must be less than their side.",
            where="--tile_overlap",
            received=overlap,
            accepted=f"0 to {config.tile_size - 1}, for example {config.tile_size // 2}",
        )
    whole = {
        "--dense_crf": config.dense_crf,
        "--fp_cut, --topk_classes": uses_scores(config),
        "--weakly": getattr(config, "weakly", False),
        "--eval_crop_size": getattr(config, "eval_crop_size", None) is not None,
        "--vis_crop_size": getattr(config, "vis_crop_size", None) is not None,
    }
    for flag in [flag for flag, is_set in whole.items() if is_set]:
        raise UserError(
            f"{flag} needs the whole image and cannot be used with tiles.",
            where=flag,
            received=f"--tile_size={config.tile_size}",
            fix=f"leave out --tile_size, or {flag}",
        )


def tiling_of(config: PredictionConfig, model: Any) -> Tiling | None:
    """Returns how images are cut into tiles; None: they are not.

    Args:
      config: settings of predictions.
      model: network of `build_model`.

    Raises:
      UserError: the network does not take tiles of this size.
    """
    size = config.tile_size
    if size is None:
        return None
    # One cell is the smallest image of which a network predicts anything.
    smallest = model.valid_size(2, 2)[0]
    if size < smallest or model.valid_size(size, size) != (size, size):
        larger = max(model.valid_size(size, size)[0], smallest)
        raise UserError(
            "The network does not take tiles of this size.",
            where="--tile_size",
            received=size,
            accepted=f"for example {larger} or {model.valid_size(larger + 1, larger + 1)[0]}",
        )
    overlap = size // 2 if config.tile_overlap is None else config.tile_overlap
    return Tiling(size, overlap)


def crf_settings(config: PredictionConfig) -> dict[str, Any]:
    """Returns the keyword arguments of `ops.dense_crf.dense_crf`."""
    return {name: getattr(config, _CRF_PREFIX + name) for name in dense_crf.LEARNING_PSEUDO_LABELS}


def views_of(
    config: PredictionConfig, spec: DatasetSpec, crop_size: Sequence[int] | None = None
) -> Views:
    """Returns the views in which the network sees an image, and what is done to masks.

    Args:
      config: settings.
      spec: the data set.
      crop_size: to which images are padded. Without one, scaled images have sizes that the network
        takes; with one, the published sizes.

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
        valid_sizes=crop_size is None,
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


def image_input_of(
    config: PredictionConfig,
    data_config: DataConfig,
    model: Any,
    crop_size: Sequence[int] | None,
) -> ImageInput:
    """Returns how images enter the network.

    Args:
      config: settings of predictions.
      data_config: the resizing of the run.
      model: network of `build_model`.
      crop_size: height and width in pixels to which images are padded; None: each to its next size.
        Images that are predicted in tiles are not padded; their tiles are. Nor are those of the
        published protocols.

    Raises:
      UserError: two settings resize the images.
    """
    if config.tile_size is not None or protocols.is_chosen(config):
        padded_to = UNPADDED
    else:
        padded_to = None if crop_size is None else tuple(crop_size)
    return ImageInput(
        mean_pixel=model.mean_pixel,
        valid_size=model.valid_size,
        crop_size=padded_to,
        config=data_config,
        max_side=config.max_side,
        resize_to=resize_of(config),
    )


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


def settings_of(
    config: PredictionConfig, data_config: DataConfig, crop_size: Sequence[int] | None
) -> dict[str, Any]:
    """Returns how predictions were made, in JSON's own types.

    Args:
      config, data_config, crop_size: see `image_input_of`.
    """
    resizing = (
        data_config.min_resize_value,
        data_config.max_resize_value,
        data_config.resize_factor,
    )
    return {
        "crop_size": None if crop_size is None else list(crop_size),
        "resize_value": None if data_config.min_resize_value is None else list(resizing),
        "eval_scales": list(config.eval_scales),
        "add_flipped_images": config.add_flipped_images,
        "merge_scales": config.merge_scales,
        "scale_kernel": config.scale_kernel,
        "tile_size": config.tile_size,
        "tile_overlap": config.tile_overlap,
        "max_side": config.max_side,
        "eval_resize": resize_of(config) and list(resize_of(config)),
        "sliding_window": config.sliding_window and [config.sliding_window, config.window_border],
        "input_multiple": config.input_multiple,
        "class_filter": class_filter_of(config) or None,
        "use_image_labels": config.use_image_labels,
        "dense_crf": crf_settings(config) if config.dense_crf else None,
    }


def facts_of(config: PredictionConfig, spec: DatasetSpec) -> dict[str, str]:
    """Returns how the predictions were made, as the page says it."""
    facts = {}
    if len(config.eval_scales) > 1 or config.add_flipped_images or config.eval_scales[0] != 1.0:
        mirrored = ", mirrored too" if config.add_flipped_images else ""
        facts["scales"] = ", ".join(f"{s:g}" for s in config.eval_scales) + mirrored
        facts["merged"] = f"{config.merge_scales}, {config.scale_kernel} scaling"
    if config.tile_size is not None:
        facts["tiles"] = f"{config.tile_size} pixels"
    if config.use_image_labels:
        facts["classes"] = "those of the image-level labels"
    facts |= zero_label.facts(config, spec)
    class_filter = class_filter_of(config)
    if class_filter:
        facts["class filter"] = ", ".join(f"{k} {v}" for k, v in class_filter.items())
    if config.dense_crf:
        settings = crf_settings(config)
        facts["dense CRF"] = ", ".join(f"{k} {v:g}" for k, v in settings.items())
    return facts
