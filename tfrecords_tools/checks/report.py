"""What was found, for people."""

import collections
from collections.abc import Sequence

import numpy as np

from tfrecords_tools import class_files
from tfrecords_tools.checks.split import Problem, SplitResult
from tfseg.data import label_weights
from tfseg.data.specs import DatasetSpec


def class_warnings(results: Sequence[SplitResult], spec: DatasetSpec) -> list[str]:
    """Says which classes may mean something else than their name; see `class_files.warnings`."""
    with_masks = [r for r in results if r.pixels is not None]
    labelled = sum((r.labelled for r in results), collections.Counter())
    return class_files.warnings(
        spec,
        {r.split: r.pixels for r in with_masks},
        np.array([labelled[k] for k in range(spec.num_classes)]),
        are_pseudo=any(r.num_pseudo_labels for r in with_masks),
    )


def _balanced_weights(results: Sequence[SplitResult], spec: DatasetSpec) -> list[str]:
    """Returns what --label_weights=balanced is in each split with masks, in order of the classes."""
    lines = [
        f"  {r.split}: {' '.join(f'{weight:g}' for weight in label_weights.balanced(r.pixels[:-1]))}"
        for r in results
        if r.pixels is not None and r.pixels[:-1].any()
    ]
    return ["--label_weights=balanced, by class:", *lines] if lines else []


def describe(
    results: Sequence[SplitResult],
    problems: Sequence[Problem],
    remarks: Sequence[str],
    spec: DatasetSpec,
    *,
    max_listed: int,
) -> str:
    """Returns the report."""
    lines = [
        f"{'split':<24} {'records':>8} {'masks':>8} {'pseudo':>8} {'labels':>8} {'MB':>8} "
        f"{'problems':>9}"
    ]
    for r in results:
        lines.append(
            f"{r.split:<24} {r.count:>8} {r.num_masks:>8} {r.num_pseudo_labels:>8} "
            f"{r.num_image_labels:>8} "
            f"{r.num_bytes / 1e6:>8.1f} {len(r.problems):>9}"
        )
    lines += ["", "share of the masks' pixels:"]
    names = (*spec.class_names, "(ignored)")
    width = max(map(len, names))
    lines.append(" " * (width + 2) + "".join(f"{r.split[:16]:>17}" for r in results))
    for k, name in enumerate(names):
        shares = [
            "-" if r.pixels is None or not r.pixels.sum() else f"{r.pixels[k] / r.pixels.sum():.2%}"
            for r in results
        ]
        lines.append(f"  {name:<{width}}" + "".join(f"{s:>17}" for s in shares))
    lines += ["", *_balanced_weights(results, spec), ""]
    for r in results:
        lines += [f"note: {r.split}: {n} x {note}" for note, n in sorted(r.notes.items())]
    lines += [f"note: {remark}" for remark in remarks]
    lines += [f"warning: {warning}" for warning in class_warnings(results, spec)]
    by_kind: dict[str, list[Problem]] = {}
    for problem in problems:
        by_kind.setdefault(problem.kind, []).append(problem)
    for kind, members in sorted(by_kind.items()):
        lines.append(f"PROBLEM: {kind}: {len(members)}")
        lines += [f"  {p.text}" for p in members[:max_listed]]
        if len(members) > max_listed:
            lines.append(f"  ... and {len(members) - max_listed} more (--max_listed)")
    return "\n".join(lines)
