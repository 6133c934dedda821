# SPDX-License-Identifier: Apache-2.0
"""The questions of an evaluation: their tasks, their right answers, and which of them are about the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.data.labels import Label
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.data.templates import TaskTemplate

MIN_DISTINCT_SHARE = 0.05
"""A field groups questions if its distinct values are at least this share of them; an instruction groups nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of the data."""

    number: int
    """Its number in the data, from 1."""
    template: TaskTemplate
    """The template of its prompt."""
    group: int
    """Questions about the same text have the same group, so that their scores are not independent."""
    label: Label
    """Its record and its right answers."""

    @property
    def task(self) -> str:
        """The name of its task."""
        return self.template.taskname


def questions_of(
    records: Sequence[Mapping[str, object]],
    labels: Sequence[Label],
    templates: Sequence[TaskTemplate],
    only: str | None,
) -> list[Question]:
    """Return the questions of the data.

    records: the records of the data files, in order. labels: theirs. only: the task of all records, overriding their
    taskname.
    """
    tasks = Tasks.of(templates, only, any_name=only is not None)
    found = [tasks.find(dict(record), label.where) for record, label in zip(records, labels, strict=True)]
    templates_of = [template if isinstance(template, TaskTemplate) else templates[0] for template in found]
    shared = {
        template.taskname: shared_field(
            [r for r, t in zip(records, templates_of, strict=True) if t is template], template.prompt_fields()
        )
        for template in templates
    }
    groups: dict[object, int] = {}
    questions = []
    for number, (record, template, label) in enumerate(zip(records, templates_of, labels, strict=True), start=1):
        field = shared[template.taskname]
        key = number if field is None else (template.taskname, str(record.get(field)))
        group = groups.setdefault(key, len(groups))
        questions.append(Question(number=number, template=template, group=group, label=label))
    return questions


def shared_field(records: Sequence[Mapping[str, object]], fields: Sequence[str]) -> str | None:
    """Return the field whose value makes questions belong together: the longest, on average; None if there is none.

    Fields with few distinct values, such as an instruction, do not count.
    """
    lengths: dict[str, int] = {}
    for field in fields:
        values = [str(record[field]) for record in records if field in record]
        if values and len(set(values)) >= max(2, MIN_DISTINCT_SHARE * len(records)):
            lengths[field] = sum(map(len, values))
    return max(lengths, key=lengths.__getitem__, default=None)
