# SPDX-License-Identifier: Apache-2.0
"""Exact duplicates within a data file, and records that two files have in common, found by hashes. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nemo_launcher.data.chat import answer_of, question_of
from nemo_launcher.data.record_values import value_at
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.data.templates import TaskTemplate

_KEY_BYTES = 16  # two of a billion records have the same hash with a probability of 1e-21
_NAMES = ("id", "idx")
"""Fields that number records and say nothing about their content."""


@dataclass(slots=True)
class Contents:
    """Hashes of the records of a set of data."""

    tasks: Tasks
    """The templates, which say what of a record is its prompt and its answer."""
    prompts: dict[bytes, str] = field(default_factory=dict)
    """The place of the first record with each prompt, by the prompt's hash."""
    repeated: list[tuple[str, str]] = field(default_factory=list)
    """The place of each record that equals an earlier one, and the place of the earlier one."""
    contradictory: list[tuple[str, str]] = field(default_factory=list)
    """The place of each record with the prompt of an earlier one but an answer of its own, and the earlier place."""
    common: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    """Filled by `add`: for each earlier set, the places of records whose prompt it contains, and their places in it."""
    _records: dict[bytes, str] = field(default_factory=dict)
    """The place of the first record with each prompt and answer."""
    _fields: dict[str, list[str]] = field(default_factory=dict)
    """The fields of each task's prompt."""

    def add(self, record: Mapping[str, object], where: str, earlier: Iterable[Contents] = ()) -> None:
        """Add a record. where: its `file:line`; earlier: other sets with which prompts are compared."""
        prompt, answer = self._content(record)
        whole = _hash(prompt, answer)
        if whole in self._records:
            self.repeated.append((where, self._records[whole]))
        elif answer is not None and prompt in self.prompts:
            self.contradictory.append((where, self.prompts[prompt]))
        self._records.setdefault(whole, where)
        self.prompts.setdefault(prompt, where)
        for number, other in enumerate(earlier):
            if prompt in other.prompts:
                self.common.setdefault(number, []).append((where, other.prompts[prompt]))

    def _content(self, record: Mapping[str, object]) -> tuple[bytes, object]:
        """Return the hash of a record's prompt, and its answer; without a template all fields are the prompt."""
        template = self.tasks.find(record, "") if self.tasks.by_name else None
        if not isinstance(template, TaskTemplate):
            return _hash(b"", {name: value for name, value in record.items() if name not in _NAMES}), None
        if template.is_chat:
            return _hash(template.taskname.encode(), question_of(record)), answer_of(record)
        if template.taskname not in self._fields:
            self._fields[template.taskname] = template.prompt_fields()
        answer = value_at(record, template.answer_field) if template.answer_field is not None else None
        values = [value_at(record, name) for name in self._fields[template.taskname]]
        return _hash(template.taskname.encode(), values), answer


def _hash(start: bytes, value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(start + b"\0" + text.encode(), digest_size=_KEY_BYTES).digest()
