# SPDX-License-Identifier: Apache-2.0
"""Match the records of a ground-truth file to the questions of the data, by text or by order."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_launcher.errors import Problem, UserError

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of a file."""

    where: str
    """`file:line` of the record."""
    record: dict[str, object]
    """The record's fields."""


def match(
    data: Sequence[Entry],
    truths: Sequence[Entry],
    compared: Sequence[str],
    ground_truth: str,
    report: Callable[[str], None] = print,
) -> list[Entry]:
    """Return the ground truth of each question, in the order of the data.

    Records are compared by the fields in `compared` that both have. Questions in another order are reordered; questions
    with the same text are matched in order. Raises UserError if the questions or their number differ.
    """
    fields = _common_fields(data, truths, compared)
    if len(data) == len(truths):
        wrong = next((pair for pair in zip(data, truths, strict=True) if not _agree(*pair, fields)), None)
        if wrong is None:
            if not fields:
                report(f"{ground_truth} has no text of the questions: its answers are matched by order")
            return list(truths)
    waiting: dict[object, list[Entry]] = {}
    for truth in truths:
        waiting.setdefault(_text_of(truth, fields), []).append(truth)
    found = [_first(waiting.get(_text_of(entry, fields))) for entry in data]
    matched = [entry for entry in found if entry is not None]
    if len(matched) == len(data) == len(truths):
        report(
            f"{ground_truth} is ordered differently than the data: its answers are matched by {' and '.join(fields)}"
        )
        return matched
    raise UserError(_mismatch(data, truths, fields, found, ground_truth))


def _common_fields(data: Sequence[Entry], truths: Sequence[Entry], compared: Sequence[str]) -> list[str]:
    """Return the fields that records of both files have, without ids if the files have no id in common."""
    in_data = {name for entry in data for name in compared if name in entry.record}
    fields = [name for name in compared if name in in_data and any(name in entry.record for entry in truths)]
    ids = [{_plain(entry.record.get("id")) for entry in entries} - {None} for entries in (data, truths)]
    return [name for name in fields if name != "id" or ids[0] & ids[1] or fields == ["id"]]


def _agree(entry: Entry, truth: Entry, fields: Sequence[str]) -> bool:
    return all(
        _plain(entry.record[name]) == _plain(truth.record[name])
        for name in fields
        if name in entry.record and name in truth.record
    )


def _first(waiting: list[Entry] | None) -> Entry | None:
    return waiting.pop(0) if waiting else None


def _text_of(entry: Entry, fields: Sequence[str]) -> tuple[object, ...]:
    return tuple(_plain(entry.record.get(name)) for name in fields)


def _plain(value: object) -> str | None:
    """Return a value normalized for comparison: an id may be a number or text, and é one code point or two."""
    return None if value is None else unicodedata.normalize("NFC", str(value)).strip()


def _mismatch(
    data: Sequence[Entry],
    truths: Sequence[Entry],
    fields: Sequence[str],
    found: Sequence[Entry | None],
    ground_truth: str,
) -> list[Problem]:
    """Return the differences between ground truth and data: the numbers, and the first question without an answer."""
    problems = []
    if len(data) != len(truths):
        what = f"{len(truths):,} answers for {len(data):,} questions in data_paths"
        problems.append(Problem(ground_truth, what, "use files with the same questions"))
    if not fields:
        return problems
    missing = [place for place, entry in enumerate(found) if entry is None]
    if missing:
        entry, truth = data[missing[0]], truths[min(missing[0], len(truths) - 1)]
        name = next((n for n in fields if _plain(entry.record.get(n)) != _plain(truth.record.get(n))), fields[0])
        what = f"{name!r} is {_shown(truth.record.get(name))}, but at {entry.where} {_shown(entry.record.get(name))}"
        count = f"{len(missing):,} of {len(data):,} questions are not in the ground truth"
        problems.append(Problem(truth.where, f"{what}; {count}", "use the ground truth of these questions"))
    return problems


def _shown(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "...")
