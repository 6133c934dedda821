# SPDX-License-Identifier: Apache-2.0
"""The table of an evaluation's metrics with their intervals, within 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = {"base": "frozen base", "adapter": "base + adapter"}
MANY = 0.1
"""The share of predictions that begin with a right answer but go on, from which the table says so."""
_TITLE, _CELL = 12, 22  # columns; a difference takes up to 24 more


def results_table(measured: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table: overall and, if there are several, each task. measured: of figures.figures."""
    if not measured:
        return []
    tasks = measured.get("tasks", {})
    lines = _part(measured, measured["metrics"], f"All {len(tasks)} tasks: " if tasks else "")
    for task, part in tasks.items():
        lines += ["", *_part(part, measured["metrics"], f"{_cut(task, 40)}: ")]
    return [*lines, "", f"Brackets hold {measured['confidence']:.0%} intervals."]


def _part(part: Mapping[str, Any], metrics: Mapping[str, Any], title: str) -> list[str]:
    models = [name for name in _NAMES if name in part]
    lines = [title + _counts(part)]
    if not models:  # tasks without a common metric
        return lines
    compares = "difference" in part
    heads = [f"{_NAMES[name]:<{_CELL}}" for name in models] + ["difference"] * compares
    lines.append((" " * _TITLE + "".join(heads)).rstrip())
    left_out = []
    for name in part["adapter"]:
        metric = metrics[name]
        cells = [f"{_cell(part[model][name], metric['is_share']):<{_CELL}}" for model in models]
        cells += [_difference(part["difference"][name], metric["is_share"])] if compares else []
        lines.append((f"{_cut(metric['title'], _TITLE - 1):<{_TITLE}}" + "".join(cells)).rstrip())
        if part["adapter"][name]["questions"] < part["questions"]:
            left_out.append(metric["title"])
    return lines + _dropped(part, left_out) + _begun(part)


def _counts(part: Mapping[str, Any]) -> str:
    text = f"{part['questions']:,} questions"
    return f"{text} about {part['groups']:,} texts" if part["groups"] < part["questions"] else text


def _dropped(part: Mapping[str, Any], titles: Sequence[str]) -> list[str]:
    """Return a line about the questions that some metrics leave out."""
    if not titles:
        return []
    return [f"{part['unanswerable']:,} questions have no answer and are left out of: {', '.join(titles)}"]


def _begun(part: Mapping[str, Any]) -> list[str]:
    """Return advice if many predictions of the adapter begin with a right answer, but go on."""
    begun, total = part["begins_right"]["adapter"], part["questions"]
    if begun < max(3, MANY * total):
        return []
    return [
        f"{begun:,} of {total:,} predictions begin with a right answer but go on behind it:",
        "the adapter has not learnt to stop. Train longer, with model.data.add_eos=True.",
    ]


def _cell(figure: Mapping[str, Any], is_share: bool) -> str:
    """Return a value and its interval, as `60.0% [47.4, 71.4]`."""
    if figure["value"] is None:
        return "-"
    value = f"{figure['value']:.1%}" if is_share else f"{figure['value']:.4g}"
    return value if figure["low"] is None else f"{value} {_interval(figure, is_share, sign='')}"


def _difference(figure: Mapping[str, Any], is_share: bool) -> str:
    """Return a difference in percentage points and its interval, or that it is undecided."""
    if figure["value"] is None:
        return "-"
    value = f"{100 * figure['value']:+.1f}" if is_share else f"{figure['value']:+.4g}"
    if figure["low"] is None:
        return value
    return f"{value if figure['better'] else 'undecided'} {_interval(figure, is_share, sign='+')}"


def _interval(figure: Mapping[str, Any], is_share: bool, *, sign: str) -> str:
    ends = (figure["low"], figure["high"])
    return "[" + ", ".join(f"{100 * end:{sign}.1f}" if is_share else f"{end:{sign}.4g}" for end in ends) + "]"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
