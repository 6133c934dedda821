# SPDX-License-Identifier: Apache-2.0
"""Charts as SVG inside a page: lines, bars with intervals, and histograms. Each has a title that is read aloud."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_launcher.reports.html import Html, element, joined
from nemo_launcher.reports.numbers import short

_WIDTH, _HEIGHT = 480, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 28, 40
_LARGEST = 1e300  # of numbers on an axis, whose differences are floats too
_numbers = itertools.count(1)

STYLES = ("one", "two")
"""The style of the first and of the second series."""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    """Its name in the legend."""
    points: Sequence[tuple[float, float]]
    """Its points, (x, y), in the order of x."""
    style: str = "one"
    """The class of its line."""
    marks: bool = False
    """Whether each point has a mark."""


@dataclass(frozen=True)
class Bar:
    """A value with its interval."""

    name: str
    """Its label."""
    value: float
    """The value, from 0 to 1."""
    low: float | None
    """The lower end of its interval."""
    high: float | None
    """The upper end."""
    style: str = "one"
    """The class of the bar."""


def lines(title: str, series: Sequence[Series], *, x_label: str, y_label: str) -> Html | None:
    """Return a line chart; None without finite points."""
    kept = [_finite(each) for each in series]
    points = [point for each in kept for point in each.points]
    if not points:
        return None
    xs, ys = _scale([x for x, _ in points]), _scale([y for _, y in points])
    parts = [*_frame(xs, ys), *_labels(x_label, y_label)]
    for each in kept:
        places = [(_x(x, xs), _y(y, ys)) for x, y in each.points]
        parts.append(element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), class_=each.style))
        if each.marks or len(places) == 1:
            parts += [element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3", class_=each.style) for x, y in places]
    told = "; ".join(_told(each) for each in kept if each.points)
    if len(kept) > 1:
        parts += _legend([(each.name, each.style) for each in kept if each.points])
    return _svg(title, told, parts, _HEIGHT)


def bars(title: str, rows: Sequence[Bar]) -> Html | None:
    """Return horizontal bars of shares from 0% to 100% with their intervals; None without rows."""
    if not rows:
        return None
    left, right, height = 184, 76, 40 + 26 * len(rows)  # the text is larger on a narrow screen
    span = _WIDTH - left - right
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = f"{left + share * span:.1f}"
        parts += [
            element("line", x1=x, x2=x, y1="8", y2=height - 26, class_="grid"),
            element("text", f"{share:.0%}", x=x, y=height - 8, text_anchor="middle"),
        ]
    for place, row in enumerate(rows):
        y = 12 + 26 * place
        parts += [
            element("text", row.name, x=left - 8, y=y + 13, text_anchor="end"),
            element("rect", x=left, y=y, width=f"{_share(row.value) * span:.1f}", height="16", class_=row.style),
            element("text", f"{row.value:.1%}", x=_WIDTH - right + 8, y=y + 13),
        ]
        if row.low is not None and row.high is not None:
            ends = [f"{left + _share(end) * span:.1f}" for end in (row.low, row.high)]
            parts.append(element("line", x1=ends[0], x2=ends[1], y1=y + 8, y2=y + 8, class_="whisker"))
            parts += [element("line", x1=x, x2=x, y1=y + 3, y2=y + 13, class_="whisker") for x in ends]
    told = "; ".join(f"{row.name} {row.value:.1%}{_range(row)}" for row in rows)
    return _svg(title, told, parts, height)


def histogram(
    title: str, edges: Sequence[float], counts: Sequence[float], *, x_label: str, y_label: str
) -> Html | None:
    """Return the numbers of items between each edge and the next; None if there are none."""
    if len(edges) != len(counts) + 1 or not counts or max(counts) <= 0 or not all(map(_fits, (*edges, *counts))):
        return None
    xs, ys = _scale([edges[0], edges[-1]]), _scale([0.0, *counts])
    parts = [*_frame(xs, ys), *_labels(x_label, y_label)]
    for start, stop, count in zip(edges, edges[1:], counts, strict=False):
        x, top = _x(start, xs), _y(count, ys)
        width = max(0.5, _x(stop, xs) - x - 1)
        size = {"width": f"{width:.1f}", "height": f"{_y(0, ys) - top:.1f}"}
        parts.append(element("rect", x=f"{x:.1f}", y=f"{top:.1f}", class_="one", **size))
    most = max(range(len(counts)), key=counts.__getitem__)
    told = f"{short(sum(counts))} in all, most between {short(edges[most])} and {short(edges[most + 1])}"
    return _svg(title, told, parts, _HEIGHT)


@dataclass(frozen=True)
class _Scale:
    """The range of an axis."""

    low: float
    """Its lower end."""
    high: float
    """Its upper end."""
    ticks: list[float]
    """The values with a label."""


def _scale(values: Sequence[float]) -> _Scale:
    """Return a range with round ends that covers the values, and four to eight ticks."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low <= 1e-12 * size or size < 1e-290:  # ticks between them would be equal
        margin = 0.5 if size < 1e-290 else 0.1 * size
        low, high = low - margin, high + margin
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return _Scale(ticks[0], ticks[-1], ticks)


def _x(value: float, scale: _Scale) -> float:
    return _LEFT + (value - scale.low) / (scale.high - scale.low) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, scale: _Scale) -> float:
    return _HEIGHT - _BOTTOM - (value - scale.low) / (scale.high - scale.low) * (_HEIGHT - _TOP - _BOTTOM)


def _frame(xs: _Scale, ys: _Scale) -> list[Html]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [element("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis")]
    for value in ys.ticks:
        y = f"{_y(value, ys):.1f}"
        parts.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", short(value), x=_LEFT - 6, y=f"{_y(value, ys) + 4:.1f}", text_anchor="end"))
    shown = xs.ticks if len(xs.ticks) <= 6 else xs.ticks[::2]
    for value in shown:
        anchor = "end" if value == xs.ticks[-1] else "middle"
        parts.append(element("text", short(value), x=f"{_x(value, xs):.1f}", y=bottom + 16, text_anchor=anchor))
    return parts


def _labels(x_label: str, y_label: str) -> list[Html]:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [
        element("text", x_label, x=middle, y=_HEIGHT - 6, text_anchor="middle"),
        element("text", y_label, x=6, y=14),
    ]


def _legend(names: Sequence[tuple[str, str]]) -> list[Html]:
    """Return the names of the series at the top right, each behind a piece of its line."""
    parts, end = [], _WIDTH - _RIGHT
    for name, style in reversed(names):
        start = end - 8 * len(name) - 30
        parts.append(element("polyline", points=f"{start},10 {start + 22},10", class_=style))
        parts.append(element("text", name, x=start + 26, y=14))
        end = start - 10
    return parts


def _svg(title: str, told: str, parts: Sequence[Html], height: int) -> Html:
    number = next(_numbers)
    names = [f"chart-{number}-title", f"chart-{number}-text"]
    heads = [element("title", title, id=names[0]), element("desc", told, id=names[1])]
    size = {"viewBox": f"0 0 {_WIDTH} {height}", "aria_labelledby": " ".join(names)}
    return element("figure", element("svg", joined([*heads, *parts]), role="img", **size))


def _fits(value: float) -> bool:
    """Return whether an axis can have a number; NaN and infinity do not fit."""
    return abs(value) <= _LARGEST


def _finite(series: Series) -> Series:
    points = [(x, y) for x, y in series.points if _fits(x) and _fits(y)]
    return Series(series.name, points, series.style, series.marks)


def _told(series: Series) -> str:
    (x0, first), (x1, last) = series.points[0], series.points[-1]
    lowest = min(y for _, y in series.points)
    return f"{series.name}: {short(first)} at {short(x0)}, {short(last)} at {short(x1)}, lowest {short(lowest)}"


def _range(row: Bar) -> str:
    return "" if row.low is None or row.high is None else f" ({row.low:.1%} to {row.high:.1%})"


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
