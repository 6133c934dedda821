# SPDX-License-Identifier: Apache-2.0
"""Questions of an evaluation with the answers of base and adapter, and who won."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_launcher.reports.html import Html, element, joined, quoted, section, table
from nemo_launcher.reports.numbers import number

DEFAULT_EXAMPLES = 100
MAX_CHARACTERS = 1_200_000
"""Maximum size of all examples as HTML."""
_NAMES = {"win": "better", "loss": "worse", "tie": "equal", "right": "right", "wrong": "wrong", "": "-"}
_OF_A_LINE = ("record", "answers", "prediction", "taskname", "id")
_HIDES = {"win": "better", "loss": "worse", "tie": "equal"}


def examples(
    scores: Sequence[Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]], metrics: Sequence[str], limit: int
) -> Html | None:
    """Return the section with at most `limit` questions, as many of each outcome as there are; None without any.

    records: the lines of predictions.jsonl by record. metrics: the names of the metrics; the first that has a score
    decides.
    """
    lines = list(scores) or [
        {"record": name, "answers": line.get("answers"), "adapter": {"prediction": line.get("prediction")}}
        for name, line in records.items()
    ]
    if not lines or limit < 1:
        return None
    compared = any(isinstance(line.get("base"), dict) for line in lines)
    outcomes = [outcome(line, metrics) for line in lines]
    head = ["question", "input", "right answers", *(["frozen base"] if compared else []), "adapter", "outcome"]
    rows, classes, size = [], [], 0
    for place in chosen(outcomes, limit):
        cells = _cells(place, lines[place], records, outcomes[place], compared=compared)
        size += sum(len(str(cell).encode()) for cell in cells)
        if size > MAX_CHARACTERS:
            break
        rows.append(cells)
        classes.append(outcomes[place])
    counts = Counter(outcomes)
    told = ", ".join(f"{counts[name]:,} {title}" for name, title in _NAMES.items() if name and counts[name])
    shown = f"{len(rows):,} of {len(lines):,} questions are shown" if len(rows) < len(lines) else "all are shown"
    caption = "Questions, right answers and predictions"
    parts = [*_filters(counts), table(head, rows, caption=caption, classes=classes)]
    title = "Base against adapter on the same questions" if compared else "Examples"
    intro = f"{told}; {shown}." if told else f"{shown[0].upper()}{shown[1:]}."
    return section(title, element("p", intro), element("div", *parts, class_="examples"))


def outcome(line: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Return win, loss or tie of the adapter against the base, or right or wrong without one; "" without scores."""
    for metric in metrics:
        adapter, base = (_score(line, name, metric) for name in ("adapter", "base"))
        if adapter is None:
            continue
        if "base" not in line:
            return "right" if adapter >= 1 else "wrong"
        if base is not None:
            return "win" if adapter > base else "loss" if adapter < base else "tie"
    return ""


def chosen(outcomes: Sequence[str], limit: int) -> list[int]:
    """Return the indices of at most `limit` questions in order: the first of each outcome, in equal shares."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(outcomes):
        places.setdefault(name, []).append(place)
    found: list[int] = []
    waiting = sorted(places.values(), key=len)
    while waiting:
        share = (limit - len(found)) // len(waiting)
        found += waiting.pop(0)[:share]
    return sorted(found)


def _cells(
    place: int, line: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], name: str, *, compared: bool
) -> list[object]:
    record = str(line.get("record", ""))
    fields = {key: value for key, value in records.get(record, {}).items() if key not in _OF_A_LINE}
    task = line.get("task")
    inputs = [
        joined([element("strong", f"{key[:60]}: "), quoted(value), " "]) for key, value in list(fields.items())[:6]
    ]
    answers = line.get("answers")
    right = [quoted(answer) for answer in answers[:4]] if isinstance(answers, list) else []
    separated = [part for each in right for part in (each, " · ")][:-1]
    number_cell = joined([f"{place + 1}", f" ({str(task)[:60]})" if task else None])
    predictions = [quoted(_prediction(line, model)) for model in ("base", "adapter") if compared or model == "adapter"]
    style = {"win": "good", "right": "good", "loss": "bad", "wrong": "bad"}.get(name)
    return [number_cell, joined(inputs), joined(separated), *predictions, element("span", _NAMES[name], class_=style)]


def _filters(counts: Mapping[str, int]) -> list[Html]:
    """Return choices that work without JavaScript; [] if there are no wins or losses to choose."""
    if not (counts.get("win") or counts.get("loss")):
        return []
    names = {"all": "all", **{name: f"{title} ({counts.get(name, 0):,})" for name, title in _HIDES.items()}}
    parts = []
    for name, title in names.items():
        box = element("input", type="radio", name="show", id=f"show-{name}", checked=name == "all")
        parts += [box, element("label", title, for_=f"show-{name}", class_="choice")]
    return parts


def _score(line: Mapping[str, Any], model: str, metric: str) -> float | None:
    of_model = line.get(model)
    scores = of_model.get("scores") if isinstance(of_model, dict) else None
    return number(scores.get(metric)) if isinstance(scores, dict) else None


def _prediction(line: Mapping[str, Any], model: str) -> object:
    of_model = line.get(model)
    return of_model.get("prediction", "") if isinstance(of_model, dict) else ""
