"""Runs with seen and unseen classes: how they predict, and how they are measured.

Only seen and unseen classes may be predicted. The class split says how pixels of other classes are
measured. A bias can lower the scores of seen classes. Such a run is measured in several modes, each
with a matrix of its own: the network sees every image once, and its scores are read several times.

Source: STRICT specification 1.6, 4.7 and 6; ZS3 specification 6.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfseg import metrics
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError, check_choice
from tfseg.inference.decisions import ARG_MAX, Decision
from tfseg.inference.scores import or_none, summarize
from tfseg.ops.calibration import Calibration
from tfseg.settings.prediction import EvalConfig, PredictionConfig

# How a run with seen and unseen classes is measured.
MODES = ("generalised", "zero_label", "vanilla")
_MAX_SWEPT = 1001
# Settings of a training run, or one before it, by which masks of unseen classes acted, and what to
# say of them.
_UNSEEN_MASKS = {
    "oracle_layout": "trained with --oracle_layout, in this run or one before it: masks of unseen "
    "classes were used.",
    "drop_images": "trained with --drop_images, in this run or one before it: a list said which "
    "images to leave out.",
}


# Classes and the bias ---------------------------------------------------------------------------


def check(config: PredictionConfig, spec: DatasetSpec) -> None:
    """Insists on settings that fit the class split, or the lack of one.

    Raises:
      UserError: they do not.
    """
    if spec.seen_unseen is None:
        if config.seen_bias:
            raise UserError(
                "--seen_bias needs a class split, which says which classes are seen.",
                where="--seen_bias",
                received=config.seen_bias,
                fix="leave out --seen_bias, or evaluate a run that was trained with --class_split",
            )
        return
    if config.seen_bias_space == "prob" and config.seen_bias > 1:
        raise UserError(
            "A --seen_bias above 1 rules out every seen class.",
            where="--seen_bias",
            received=config.seen_bias,
            accepted="0 to 1, or any number from 0 on with --seen_bias_space=logit",
        )
    if config.seen_bias_space == "prob" and config.seen_bias and config.dense_crf:
        raise UserError(
            "The dense CRF needs probabilities. After --seen_bias is subtracted they are none.",
            where="--seen_bias, --dense_crf",
            accepted="--seen_bias_space=logit",
            fix="sweep and set the bias in logit space, or leave out one of the two",
        )
    refused = {
        "--use_image_labels": config.use_image_labels,
        "--merge_scales=masks": config.merge_scales == "masks",
    }
    for flag in [flag for flag, is_set in refused.items() if is_set]:
        raise UserError(
            f"{flag} cannot be used with a run of seen and unseen classes.",
            where=flag,
            received=f"class split {spec.seen_unseen.name}",
            fix=f"leave out {flag}",
        )


def classes_taking_part(spec: DatasetSpec) -> np.ndarray:
    """Returns the ids of the classes that may be predicted and are measured, ascending."""
    if spec.seen_unseen is None:
        return np.arange(spec.num_classes)
    return np.array(spec.seen_unseen.visible)


def evaluated_label(label: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Returns a mask as it is measured: classes that take no part in the split are ignored.

    Args:
      label: integers of any shape; ids that are no class stay, for the caller to refuse.
      spec: the data set.

    Returns:
      Integers of the same shape.
    """
    if spec.seen_unseen is None:
        return label
    table = spec.seen_unseen.evaluation_table(spec.num_classes, spec.ignore_label)
    is_class = (label >= 0) & (label < spec.num_classes)
    return np.where(is_class, table[np.where(is_class, label, 0)], label)


def decision_of(config: PredictionConfig, spec: DatasetSpec) -> Decision:
    """Returns how labels come from a network's scores: with or without a bias of seen classes."""
    if spec.seen_unseen is None or not config.seen_bias:
        return ARG_MAX
    seen = spec.seen_unseen.seen
    return Decision(calibration=Calibration(seen, config.seen_bias, config.seen_bias_space))


def decision_among_visible(config: PredictionConfig, spec: DatasetSpec) -> Decision:
    """Returns `decision_of` where nothing else says which classes may be predicted."""
    decision = decision_of(config, spec)
    classes = tuple(classes_taking_part(spec).tolist())
    if len(classes) == spec.num_classes:
        return decision
    return dataclasses.replace(decision, classes=classes)


def facts(config: PredictionConfig, spec: DatasetSpec) -> dict[str, str]:
    """Returns what a page of pictures says of seen and unseen classes."""
    if spec.seen_unseen is None:
        return {}
    unseen = ", ".join(spec.class_names[c] for c in spec.seen_unseen.unseen)
    found = {"class split": spec.seen_unseen.name, "unseen classes": unseen}
    if config.seen_bias:
        found["seen bias"] = f"{config.seen_bias:g} ({config.seen_bias_space})"
    return found


# Modes and swept biases -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to read the network's scores, and the pixels on which it is measured.

    Attributes:
      name: mode, or what is swept.
      decision: from probabilities to labels.
      counted: pixels of these classes count; None: of all.
    """

    name: str
    decision: Decision = ARG_MAX
    counted: tuple[int, ...] | None = None


def variants_of(config: EvalConfig, spec: DatasetSpec) -> tuple[Variant, ...]:
    """Returns what is measured, the generalised mode first; swept biases last.

    Raises:
      UserError: settings need a class split, do not go together, or are malformed.
    """
    split, given = spec.seen_unseen, config.modes
    if split is None:
        for flag in ("modes", "seen_bias_sweep"):
            if getattr(config, flag) is not None:
                raise UserError(
                    f"--{flag} is for runs with seen and unseen classes.",
                    where=f"--{flag}",
                    received=getattr(config, flag),
                    fix=f"leave out --{flag}, or evaluate a run trained with --class_split",
                )
        return (Variant("all"),)
    if config.weakly:
        raise UserError(
            "Networks of zero-label runs give no image-level scores.",
            where="--weakly",
            received=f"class split {split.name}",
            fix="leave out --weakly",
        )
    for mode in given or ():
        check_choice(mode, MODES, flag="modes", what="mode")
    if config.dense_crf and (set(given or ()) - {"generalised"} or config.seen_bias_sweep):
        raise UserError(
            "With the dense CRF only the generalised mode is measured, with one bias.",
            where="--dense_crf",
            received=f"--modes={','.join(given or ())}, --seen_bias_sweep={config.seen_bias_sweep}",
            accepted="--modes=generalised",
            fix="leave out --dense_crf, or the other flags",
        )
    unseen = Decision(classes=split.unseen)
    variants = {
        "generalised": Variant("generalised", decision_of(config, spec)),
        "zero_label": Variant("zero_label", unseen, counted=split.unseen),
        "vanilla": Variant("vanilla", unseen),
    }
    wanted = given or (("generalised",) if config.dense_crf else MODES)
    # What the top of metrics.json is of is measured always.
    modes = ["generalised", *(mode for mode in MODES[1:] if mode in wanted)]
    return *(variants[mode] for mode in modes), *_swept_variants(config, spec)


def _swept_variants(config: EvalConfig, spec: DatasetSpec) -> list[Variant]:
    if config.seen_bias_sweep is None:
        return []
    if not spec.seen_unseen.held_out:
        raise UserError(
            "The bias is swept on validation classes, never on the unseen ones.",
            where="--seen_bias_sweep",
            received=f"a run that trained on {len(spec.seen_unseen.validation)} validation classes"
            if spec.seen_unseen.validation
            else f"class split {spec.seen_unseen.name}, which has no validation classes",
            accepted="a run trained with --exclude_validation_classes",
            fix="train one with --exclude_validation_classes and sweep there; then evaluate this "
            "run with the --seen_bias that was found",
        )
    return [
        Variant(
            f"seen_bias {bias:g}",
            Decision(calibration=Calibration(spec.seen_unseen.seen, bias, config.seen_bias_space)),
        )
        for bias in swept_values(config.seen_bias_sweep)
    ]


def swept_values(text: str) -> list[float]:
    """Returns the numbers of 'first:last:step', last included.

    Raises:
      UserError: another form, or more than a thousand numbers.
    """
    try:
        first, last, step = (float(part) for part in text.split(":"))
        # The last number is one of them in spite of what rounding adds up to.
        count = math.floor((last - first) / step + 1e-6) + 1
        if not (step > 0 and first >= 0 and 0 < count <= _MAX_SWEPT):
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(
            "--seen_bias_sweep is not a range of numbers from 0 on.",
            where="--seen_bias_sweep",
            received=text,
            accepted=f"first:last:step of at most {_MAX_SWEPT} numbers, for example 0:1:0.05",
        ) from None
    return [round(first + i * step, 10) for i in range(count)]


# Results ----------------------------------------------------------------------------------------


def results(
    variants: Sequence[Variant],
    matrices: np.ndarray,
    config: EvalConfig,
    spec: DatasetSpec,
    *,
    unseen_masks: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what metrics.json says of seen and unseen classes, under 'zero_label'.

    Args:
      variants: of `variants_of`.
      matrices: their confusion matrices, integers [variants, C, C].
      config: the bias, and how absent classes count.
      spec: the data set.
      unseen_masks: settings of the training run by which masks of unseen classes acted, by name.

    Returns:
      One key, or none where there is no class split.
    """
    split = spec.seen_unseen
    if split is None:
        return {}

    def names(ids: Sequence[int]) -> list[str]:
        return [spec.class_names[c] for c in ids]

    found: dict[str, Any] = {
        "split": split.name,
        "seen": names(split.seen),
        "unseen": names(split.unseen),
        "held_out": names(split.held_out),
        "background": "takes no part" if split.background is None else "seen",
        **unseen_masks,
        "seen_bias": config.seen_bias,
        "seen_bias_space": config.seen_bias_space,
    }
    swept = []
    for variant, matrix in zip(variants, matrices):
        scores = metrics.group_scores(
            matrix, seen=split.seen, unseen=split.unseen, absent=config.absent_classes
        )
        scores = {
            quantity: {group: or_none(value) for group, value in values.items()}
            for quantity, values in scores.items()
        }
        if variant.name not in MODES:
            swept.append({"seen_bias": variant.decision.calibration.bias, **scores})
            continue
        if variant.name == "zero_label":
            # No pixel of a seen class counts.
            scores = {quantity: {"unseen": x["unseen"]} for quantity, x in scores.items()}
        summary = summarize(
            matrix, spec, classes=classes_taking_part(spec), absent=config.absent_classes
        )
        found[variant.name] = {**scores, "class_iou": summary["class_iou"]}
    if swept:
        best = max(swept, key=lambda scores: scores["mean_iou"]["harmonic"])
        found |= {"seen_bias_sweep": swept, "best_seen_bias": best["seen_bias"]}
    return {"zero_label": found}


def scores_by_mode(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scores of each mode that was measured."""
    found = result.get("zero_label", {})
    return {mode: found[mode] for mode in MODES if mode in found}


def describe(result: Mapping[str, Any], per_cent: Callable[[float | None], str]) -> list[str]:
    """Returns lines on the modes; none where there is no class split.

    Args:
      result: the content of metrics.json.
      per_cent: writes a fraction.
    """
    if "zero_label" not in result:
        return []
    found = result["zero_label"]
    bias = f", seen bias {found['seen_bias']:g}" if found["seen_bias"] else ""
    lines = [f"split {found['split']}{bias}, mIoU in per cent:"]
    lines.append(f"  {'mode':<12}" + "".join(f"{group:>10}" for group in metrics.GROUPS))
    for mode, scores in scores_by_mode(result).items():
        values = (per_cent(scores["mean_iou"].get(group)) for group in metrics.GROUPS)
        lines.append(f"  {mode:<12}" + "".join(f"{value:>10}" for value in values))
    if "best_seen_bias" in found:
        lines.append(
            f"best harmonic mean of the sweep: --seen_bias={found['best_seen_bias']:g} "
            f"--seen_bias_space={found['seen_bias_space']}"
        )
    for name in [name for name in found if name in _UNSEEN_MASKS and found[name]]:
        lines.append(f"WARNING: {_UNSEEN_MASKS[name]}")
    return lines
