"""JSON Lines: one JSON object a line, read as a stream, every mistake named by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nemo_launcher.errors import Problem, UserError, nearest

MAX_PROBLEMS = 5
"""So many problems of one file are shown; the rest of a broken file mostly repeats them."""

_ONE_OBJECT_A_LINE = 'write one JSON object a line, such as {"taskname": "squad", "question": "...", "answer": "..."}'


def read_records(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line of a JSON Lines file; blank lines are passed over.

    Raises UserError: no such file, not UTF-8, malformed JSON, a line that is no object, a file without any object.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise UserError(Problem(str(path), what, "write the path of a .jsonl file, or prepare the data first"))
    empty = True
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                empty = False
                yield number, _parse(line, f"{path}:{number}")
    if empty:
        raise UserError(Problem(str(path), "the file is empty", _ONE_OBJECT_A_LINE))


def check_fields(
    path: str | Path, fields: Iterable[str], answer_field: str | None, limit: int | None = None
) -> list[Problem]:
    """Return the problems of the first `limit` records (None: all), `MAX_PROBLEMS` at most.

    fields: what the prompt template reads; answer_field: what must not be empty, None where no answer is wanted.
    Each missing field is told once. Fields that the template does not read are fine.
    """
    fields = list(fields)
    problems: dict[str, Problem] = {}
    try:
        for number, record in islice(read_records(path), limit):
            for problem in record_problems(record, f"{path}:{number}", fields, answer_field):
                problems.setdefault(problem.what, problem)
            if len(problems) >= MAX_PROBLEMS:
                break
    except UserError as error:
        return [*problems.values(), *error.problems][:MAX_PROBLEMS]
    return list(problems.values())[:MAX_PROBLEMS]


def record_problems(
    record: dict[str, Any], where: str, fields: Iterable[str], answer_field: str | None
) -> Iterator[Problem]:
    """Yield what keeps one record from filling a prompt template: fields missing, not text, or an empty answer."""
    for field in fields:
        if field not in record:
            yield Problem(where, f"no field {field!r}, which the prompt template reads", _field_advice(field, record))
        elif not isinstance(record[field], str):
            kind = type(record[field]).__name__
            yield Problem(where, f"field {field!r} holds a {kind}, not text", "write a JSON string in double quotes")
        elif field == answer_field and not record[field].strip():
            yield Problem(where, f"field {field!r} is empty: there is no answer to learn", "fill it or remove the line")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        # utf-8-sig: editors on Windows begin a file with a byte order mark, which is no part of the JSON.
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(Problem(where, f"not UTF-8 (byte {error.start + 1})", "save the file as UTF-8")) from None
    except json.JSONDecodeError as error:
        raise UserError(Problem(f"{where}:{error.colno}", f"not JSON: {error.msg}", _ONE_OBJECT_A_LINE)) from None
    except RecursionError:
        raise UserError(Problem(where, "nested too deeply to be read", _ONE_OBJECT_A_LINE)) from None
    if not isinstance(record, dict):
        what = f"holds a {type(record).__name__}, not an object"
        raise UserError(Problem(where, what, _ONE_OBJECT_A_LINE))
    return record


def _field_advice(field: str, record: dict[str, Any]) -> str:
    has = f"the record has: {', '.join(record) or 'no fields'}"
    match = nearest(field, record)
    return f"did you mean {match!r}? {has}" if match else f"{has}; add the field or change prompt_template"
