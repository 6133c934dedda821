# SPDX-License-Identifier: Apache-2.0
"""Checks of records against the fields that a prompt template reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from nemo_launcher.data.jsonl import MAX_PROBLEMS
from nemo_launcher.data.records import read_records
from nemo_launcher.errors import Problem, UserError, json_kind, nearest

_TEXT = "write a JSON string in double quotes"
_SHOWN_NAMES, _SHOWN_CHARACTERS = 20, 60


def check_fields(
    path: str | Path, fields: Iterable[str], answer_field: str | None, limit: int | None = None
) -> list[Problem]:
    """Return the problems of the first `limit` records (None: all), at most `MAX_PROBLEMS`.

    fields: those that the prompt template reads; answer_field: a field that must not be empty, or None. Each missing
    field is reported once; additional fields are ignored.
    """
    fields = list(fields)
    return first_problems(path, lambda record, where: record_problems(record, where, fields, answer_field), limit)


def first_problems(
    path: str | Path,
    problems_of: Callable[[dict[str, object], str], Iterable[Problem]],
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Return the distinct problems of the first `limit` records (None: all), at most `MAX_PROBLEMS`.

    problems_of: called with a record and its place; columns: as in `read_records`. An unreadable file is also a
    problem.
    """
    problems: dict[str, Problem] = {}
    try:
        for place, record in islice(read_records(path, columns), limit):
            for problem in problems_of(record, place):
                problems.setdefault(problem.what, problem)
            if len(problems) >= MAX_PROBLEMS:
                break
    except UserError as error:
        return [*problems.values(), *error.problems][:MAX_PROBLEMS]
    return list(problems.values())[:MAX_PROBLEMS]


def record_problems(
    record: dict[str, object], where: str, fields: Iterable[str], answer_field: str | None
) -> Iterator[Problem]:
    """Yield a record's problems with a prompt template: missing fields, values other than text, an empty answer."""
    for field in fields:
        if field not in record:
            yield Problem(where, f"no field {field!r}, which the prompt template reads", field_advice(field, record))
            continue
        value = record[field]
        if not isinstance(value, str):
            what = f"field {field!r} holds {json_kind(value)}, not text"
            inside = next(iter(value), None) if isinstance(value, dict) else None
            fix = f"`fields` can name a value in it, as in COLUMN.{inside}" if inside else _TEXT
            yield Problem(where, what, fix)
        elif field == answer_field and not value.strip():
            yield Problem(where, f"field {field!r} is empty: there is no answer to learn", "fill it or remove the line")


def field_advice(field: str, record: Mapping[str, object]) -> str:
    """Return what to write instead of a field that a record does not have."""
    names = [name[:_SHOWN_CHARACTERS] for name in islice(record, _SHOWN_NAMES)]
    more = ", ..." if len(record) > _SHOWN_NAMES else ""
    has = f"the record has: {', '.join(names) + more or 'no fields'}"
    match = nearest(field, record)
    return f"did you mean {match!r}? {has}" if match else f"{has}; add the field or change prompt_template"
