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


def _table(
    results: Sequence[SplitResult], names: Sequence[str], columns: Sequence[list[str] | None]
) -> list[str]:
    """Returns the lines of a table: a row for each name, a column for each split; None: nothing."""
    width = max(map(len, names))
    lines = [" " * (width + 2) + "".join(f"{r.split[:16]:>17}" for r in results)]
    for k, name in enumerate(names):
        cells = ["-" if column is None else column[k] for column in columns]
        lines.append(f"  {name:<{width}}" + "".join(f"{cell:>17}" for cell in cells))
    return lines


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
    shares, weights = [], []
    for r in results:
        total = 0 if r.pixels is None else r.pixels.sum()
        shares.append([f"{n / total:.2%}" for n in r.pixels] if total else None)
        has_labels = total and r.pixels[:-1].any()
        weights.append(
            [f"{w:g}" for w in label_weights.balanced(r.pixels[:-1])] if has_labels else None
        )
    names = (*spec.class_names, "(ignored)")
    lines += ["", "share of the masks' pixels:", *_table(results, names, shares)]
    if any(weights):
        lines += ["", "--label_weights=balanced:", *_table(results, spec.class_names, weights)]
    lines.append("")
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
