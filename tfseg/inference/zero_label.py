"""How a run with seen and unseen classes is measured: modes, and biases that are swept.

Source: STRICT specification 4.7 and 6; ZS3 specification 6.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from tfseg import metrics
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError, check_choice
from tfseg.inference.merge import Decision
from tfseg.inference.settings import calibration_of
from tfseg.ops.calibration import Calibration
from tfseg.settings.prediction import EvalConfig

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


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to read what the network says, and the pixels by which it is measured.

    Attributes:
      name: mode, or what is swept.
      decision: from probabilities to labels.
      counted: pixels of these classes count; None: of all.
    """

    name: str
    decision: Decision = Decision()
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
    calibration = calibration_of(config, spec)
    unseen = Decision(classes=split.unseen)
    variants = {
        "generalised": Variant("generalised", Decision(calibration=calibration)),
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


def scores_by_mode(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scores of each mode that was measured."""
    found = result.get("zero_label", {})
    return {mode: found[mode] for mode in MODES if mode in found}


def describe_modes(result: Mapping[str, Any], per_cent: Callable) -> list[str]:
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
