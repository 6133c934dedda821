# SPDX-License-Identifier: Apache-2.0
"""Values of records below dotted names, such as `answers.text`, and the record as a template reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nemo_launcher.data.no_answer import is_no_answer
from nemo_launcher.data.templates import TaskTemplate

_ABSENT = object()


def value_at(record: Mapping[str, object], name: str, default: object = None) -> object:
    """Return the value of a field, or of a dotted name: `answers.text` is `text` in the object `answers`.

    In a list of objects, it is the list of their values. A field whose own name has dots comes first. default: the
    result if there is no such value.
    """
    if name in record:
        return record[name]
    first, _, rest = name.partition(".")
    below = record.get(first) if rest else None
    if isinstance(below, Mapping):
        return value_at(below, rest, default)
    if isinstance(below, list) and all(isinstance(item, Mapping) for item in below):
        found = [value_at(item, rest, _ABSENT) for item in below]
        return default if _ABSENT in found else found
    return default


def has_value(record: Mapping[str, object], name: str) -> bool:
    """Return whether a record has a field or dotted name."""
    return value_at(record, name, _ABSENT) is not _ABSENT


def names_in(record: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of a record's fields, and the dotted ones of the level below."""
    for name, value in record.items():
        yield name
        below = value[0] if isinstance(value, list) and value else value
        if isinstance(below, Mapping):
            yield from (f"{name}.{inner}" for inner in below)


def prepared(record: dict[str, object], template: TaskTemplate, *, for_train: bool) -> dict[str, object]:
    """Return a record with the values of the template's dotted fields.

    for_train: of several right answers only the first one stays, and of none an empty text, or the template's
    `no_answer`, which also replaces an answer that says so (data.no_answer).
    """
    if template.is_chat:
        return record
    names = [] if template.is_jinja else [piece.text for piece in template.pieces() if piece.is_field]
    names += [template.choices_field] if template.choices_field is not None else []
    dotted = [name for name in names if "." in name and name not in record and has_value(record, name)]
    found = record | {name: value_at(record, name) for name in dotted}
    field = template.answer_field
    if for_train and field is not None and field in found:
        answers, no_answer = found[field], template.no_answer
        if is_no_answer(answers, no_answer):
            found[field] = no_answer
        elif isinstance(answers, list):
            found[field] = next((answer for answer in answers if not is_no_answer(answer, no_answer)), "")
    return found
