"""What comes out of a grid, for readers: results.md and learning_curve.svg."""

import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cell_state import Results
from grid_cells import METHODS, NOTHING
from line_chart import Line, Point, line_chart
from tfseg.data.atomic_writing import write_atomically

Entry = Mapping[str, Any]
# Results of a method with a number of masks, by seed.
Group = dict[int, Entry]


def write_report(results: Results) -> None:
    """Writes results.md, and the picture where there is a curve to draw."""
    if not results.entries:
        return
    groups = grouped(entry for entry in results.entries if not entry["trial"])
    has_curve = any(METHODS[name].masks == "budget" for name, _ in groups)
    if has_curve:
        write_atomically(str(results.chart_path), _chart(results, groups).encode())
    text = _report(results, groups, has_curve)
    write_atomically(str(results.report_path), text.encode())


def grouped(entries: Iterable[Entry]) -> dict[tuple[str, int], Group]:
    """Returns results by method and number of masks, in the order of the table and ascending."""
    groups: dict[tuple[str, int], Group] = defaultdict(dict)
    for entry in entries:
        groups[entry["method"], entry["masks"]][entry["seed"]] = entry
    order = list(METHODS)
    return dict(sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def gap_closed(
    groups: Mapping[tuple[str, int], Group], method: str, masks: int
) -> tuple[float, int] | None:
    """Returns the share of the gap between supervised training and the oracle, and its seeds.

    The means are over the seeds that all three have; None without any, or without a gap.
    """
    oracles = [group for (name, _), group in groups.items() if name == "oracle"]
    trio = (groups.get((method, masks)), groups.get(("supervised", masks)), *oracles[:1])
    if len(trio) < 3 or None in trio:
        return None
    seeds = set.intersection(*(set(group) for group in trio))
    if not seeds:
        return None
    own, low, high = (statistics.mean(group[s]["miou"] for s in seeds) for group in trio)
    return ((own - low) / (high - low), len(seeds)) if high > low else None


# The tables --------------------------------------------------------------------------------------


def _report(results: Results, groups: Mapping[tuple[str, int], Group], has_curve: bool) -> str:
    plan = results.plan
    images = {entry["num_images"] for entry in results.entries}
    lines = [
        f"# mIoU on the {', '.join(map(str, sorted(images)))} images of `{plan.eval_split}`",
        "",
        "Made by `experiments/photographs.py` from "
        f"[{results.path.name}]({results.path.name}), which has every command with all its flags. "
        "Last checkpoint, never the best one.",
        "",
    ]
    if groups:
        lines += [*_scores(groups), *_gaps(groups), *_budgets(groups)]
        if has_curve:
            lines += [f"![learning curve]({results.chart_path.name})", ""]
    trials = [entry for entry in results.entries if entry["trial"]]
    if trials:
        lines += [
            "## Trials",
            "",
            "Trainings with further flags than the method's; they are in no other table.",
            "",
            *_table(
                ["training", "mIoU", "further flags"],
                [
                    [entry["cell"], f"{entry['miou']:.3f}", f"`{shlex.join(entry['extra'])}`"]
                    for entry in sorted(trials, key=lambda entry: entry["cell"])
                ],
            ),
        ]
    cells = [entry for group in groups.values() for entry in group.values()]
    lines += ["## Every training", "", *_cells([*cells, *trials])]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _by_masks(
    groups: Mapping[tuple[str, int], Group], cell_of: Any, skipped: Sequence[str] = ()
) -> list[str]:
    """Returns a table with a row a method and a column for each number of masks."""
    rows = list(dict.fromkeys(name for name, _ in groups if name not in skipped))
    columns = sorted({masks for name, masks in groups if name not in skipped})
    head = ["method", "the other images", *(f"{masks} masks" for masks in columns)]
    return _table(
        head,
        [
            [METHODS[name].title, METHODS[name].others]
            + [cell_of(name, masks) if (name, masks) in groups else "" for masks in columns]
            for name in rows
        ],
    )


def _scores(groups: Mapping[tuple[str, int], Group]) -> list[str]:
    def score(name: str, masks: int) -> str:
        values = [entry["miou"] for entry in groups[name, masks].values()]
        mean = f"{statistics.mean(values):.3f}"
        if len(values) == 1:
            return f"{mean} (1 seed)"
        return f"{mean} ({min(values):.3f} to {max(values):.3f}, {len(values)} seeds)"

    return ["Mean, and the smallest and largest of the seeds:", "", *_by_masks(groups, score)]


def _gaps(groups: Mapping[tuple[str, int], Group]) -> list[str]:
    def share(name: str, masks: int) -> str:
        found = gap_closed(groups, name, masks)
        return "" if found is None else f"{100 * found[0]:.0f} % ({_seeds(found[1])})"

    bases = ("supervised", "oracle", "slrnet_labels_only")
    others = {key: group for key, group in groups.items() if key[0] not in bases}
    if not any(gap_closed(groups, *key) for key in others):
        return []
    return [
        "## The gap closed",
        "",
        "Share of the way from supervised training on the same masks to the oracle, by the means "
        "over the seeds that all three have:",
        "",
        *_by_masks(others, share),
    ]


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _budgets(groups: Mapping[tuple[str, int], Group]) -> list[str]:
    rows = []
    for (name, masks), group in groups.items():
        runs = [list(entry["trainings"].values()) for entry in group.values()]
        minutes = [_training_minutes(entry) for entry in group.values()]
        rows.append(
            [
                METHODS[name].title,
                METHODS[name].others,
                str(masks),
                *(
                    _range([sum(run[key] for run in each) for each in runs])
                    for key in ("steps", "images_with_masks", "other_images")
                ),
                _range([round(value, 1) for value in minutes]),
            ]
        )
    head = ["method", "the other images", "masks", "steps"]
    return [
        "## What each training saw",
        "",
        "Images seen are optimiser steps times images of a step, repeats included; further views "
        "of an image (strong ones, a donor's) are not counted. Where all saw as many images with "
        "masks, what differs is what they learned from the others. A second training on the "
        "first one's labels counts as other images. Minutes are those of all trainings of a cell "
        "and of drawing pseudo labels, without evaluation.",
        "",
        *_table([*head, "images with masks seen", "other images seen", "minutes"], rows),
    ]


def _training_minutes(entry: Entry) -> float:
    seconds = (s for step, s in entry["seconds"].items() if not step.startswith("evaluate_"))
    return sum(seconds) / 60


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _cells(entries: Sequence[Entry]) -> list[str]:
    classes = list(entries[0]["class_iou"])

    def row(entry: Entry) -> list[str]:
        iou = (entry["class_iou"].get(name) for name in classes)
        logs = (f"[{log.split('/')[-1].removesuffix('.log')}]({log})" for log in entry["logs"])
        revisions = {str(run["revision"]) for run in entry["trainings"].values()}
        return [
            entry["cell"],
            f"{entry['miou']:.3f}",
            *("-" if value is None else f"{value:.3f}" for value in iou),
            f"{_training_minutes(entry):.1f}",
            ", ".join(sorted(revisions)),
            " ".join(logs),
        ]

    return _table(["training", "mIoU", *classes, "minutes", "revision", "logs"], map(row, entries))


# The picture -------------------------------------------------------------------------------------


def _chart(results: Results, groups: Mapping[tuple[str, int], Group]) -> str:
    """Returns the learning curve: a line a method; what has one number of masks is a level."""
    ticks = sorted({masks for _, masks in groups} - {0})
    # A single number of masks stands between two ticks.
    ticks = ticks if len(ticks) > 1 else [ticks[0] / 2, ticks[0], ticks[0] * 2]
    points: dict[str, list[Point]] = defaultdict(list)
    for (name, masks), group in groups.items():
        values = [entry["miou"] for entry in group.values()]
        points[name].append(Point(masks, statistics.mean(values), min(values), max(values)))
    oracle = points.get("oracle", [])
    lines = []
    for name, found in points.items():
        method = METHODS[name]
        title = method.title if method.others == NOTHING else f"{method.title}, {_told(name)}"
        if method.masks == "budget":
            # Supervised training on all masks is the oracle.
            found = found + oracle if name == "supervised" else found
            lines.append(Line(title, found))
        else:
            level = [Point(tick, found[0].y) for tick in (ticks[0], ticks[-1])]
            lines.append(Line(title, level, reference=True))
    highest = max(point.high for found in points.values() for point in found)
    lowest = min(point.low for found in points.values() for point in found)
    tenths = range(int(lowest * 10), int(highest * 10) + 2)
    return line_chart(
        lines,
        title=f"mIoU on {results.plan.eval_split}: mean and range of the seeds",
        x_label="images with masks",
        y_label="mIoU",
        x_ticks=ticks,
        y_ticks=[tenth / 10 for tenth in tenths],
        log_x=True,
    )


def _told(name: str) -> str:
    """Says of a method, in few words, what it knows of the other images."""
    told = METHODS[name].others
    return f"{told} alone" if METHODS[name].masks == "none" else told
