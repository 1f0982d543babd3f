"""A line chart as an SVG file: what results.md and the calibration tool draw."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

# Okabe and Ito's colours, which colour-blind readers tell apart; dark ones first.
_COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#7a4fa3",
    "#8c564b",
)
_GREY = "#555555"
# Pixels: the plot, and what stands around it.
_WIDTH, _HEIGHT = 520, 360
_LEFT, _TOP, _BOTTOM = 64, 40, 56
# Of the legend: before the names, and for each letter.
_BEFORE_NAMES, _LETTER = 56, 7


@dataclasses.dataclass(frozen=True)
class Point:
    """A mark at (x, y), with a bar from `low` to `high` where they are given."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """A named line; a reference is grey and dashed, without marks, its name at its end."""

    name: str
    points: Sequence[Point]
    reference: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    log_x: bool = False,
) -> str:
    """Returns the text of an SVG file.

    Args:
      lines: drawn in this order; named beside the plot, references at their ends.
      title, x_label, y_label: texts.
      x_ticks, y_ticks: ascending, at least two; the plot reaches from the first to the last.
      log_x: equal factors of x have equal lengths; all x are above 0.
    """
    x_of = _scale(x_ticks, _LEFT, _LEFT + _WIDTH, math.log if log_x else float)
    y_of = _scale(y_ticks, _TOP + _HEIGHT, _TOP, float)
    legend = _BEFORE_NAMES + _LETTER * max((len(line.name) for line in lines), default=0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + legend}" '
        f'height="{_TOP + _HEIGHT + _BOTTOM}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(title, _LEFT, _TOP - 16, size=15),
        *_axes(x_ticks, y_ticks, x_of, y_of),
        _text(x_label, _LEFT + _WIDTH / 2, _TOP + _HEIGHT + 44, anchor="middle"),
        f'<g transform="translate(16 {_TOP + _HEIGHT / 2:g}) rotate(-90)">'
        + _text(y_label, 0, 0, anchor="middle")
        + "</g>",
    ]
    for line in lines:
        if line.reference:
            parts += _reference(line, x_of, y_of)
    for row, line in enumerate(line for line in lines if not line.reference):
        color = _COLORS[row % len(_COLORS)]
        parts += _line(line, color, x_of, y_of)
        parts += _legend(line, color, _TOP + 10 + 22 * row)
    return "\n".join((*parts, "</svg>", ""))


def _scale(
    ticks: Sequence[float], start: float, end: float, measure: Callable[[float], float]
) -> Callable[[float], float]:
    """Returns the function from values to pixels."""
    first, last = measure(ticks[0]), measure(ticks[-1])
    return lambda value: start + (end - start) * (measure(value) - first) / (last - first)


def _axes(x_ticks, y_ticks, x_of, y_of) -> list[str]:
    bottom, right = _TOP + _HEIGHT, _LEFT + _WIDTH
    parts = []
    for y in y_ticks:
        parts.append(_stroke(_LEFT, y_of(y), right, y_of(y), "#dddddd"))
        parts.append(_text(f"{y:g}", _LEFT - 8, y_of(y) + 4, anchor="end"))
    for x in x_ticks:
        parts.append(_stroke(x_of(x), bottom, x_of(x), bottom + 5, _GREY))
        parts.append(_text(f"{x:g}", x_of(x), bottom + 20, anchor="middle"))
    return [*parts, _stroke(_LEFT, bottom, right, bottom, _GREY)]


def _corners(line: Line, x_of, y_of) -> str:
    return " ".join(f"{x_of(p.x):.1f},{y_of(p.y):.1f}" for p in line.points)


def _reference(line: Line, x_of, y_of) -> list[str]:
    end = line.points[-1]
    return [
        f'<polyline points="{_corners(line, x_of, y_of)}" fill="none" stroke="{_GREY}" '
        'stroke-width="2" stroke-dasharray="6 4"/>',
        _text(line.name, x_of(end.x), y_of(end.y) - 6, anchor="end"),
    ]


def _line(line: Line, color: str, x_of, y_of) -> list[str]:
    parts = [
        f'<polyline points="{_corners(line, x_of, y_of)}" fill="none" stroke="{color}" '
        'stroke-width="2"/>'
    ]
    for point in line.points:
        x = x_of(point.x)
        if point.low is not None and point.high is not None:
            parts.append(_stroke(x, y_of(point.low), x, y_of(point.high), color))
        parts.append(f'<circle cx="{x:.1f}" cy="{y_of(point.y):.1f}" r="4" fill="{color}"/>')
    return parts


def _legend(line: Line, color: str, y: float) -> list[str]:
    x = _LEFT + _WIDTH + 16
    return [
        f'<line x1="{x}" y1="{y:g}" x2="{x + 24}" y2="{y:g}" stroke="{color}" stroke-width="2"/>',
        _text(line.name, x + 32, y + 4),
    ]


def _stroke(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _text(text: str, x: float, y: float, *, anchor: str = "start", size: int = 13) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
