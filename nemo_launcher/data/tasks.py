# SPDX-License-Identifier: Apache-2.0
"""Templates of records by taskname, and checks of records against them; torch-free, for launcher and job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nemo_launcher.data.chat import message_problems
from nemo_launcher.data.choices import choice_problems
from nemo_launcher.data.jsonl import bounded_lines
from nemo_launcher.data.record_checks import first_problems, record_problems
from nemo_launcher.data.record_forms import TEMPLATES, form_of
from nemo_launcher.data.record_values import prepared
from nemo_launcher.data.records import is_plain_lines, read_records
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, did_you_mean

FIRST_RECORDS = 20
"""The number of records in each data file that are checked before slow steps."""
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Tasks:
    """The templates of a job."""

    by_name: Mapping[str, TaskTemplate]
    """The templates by taskname."""
    default: str | None = None
    """The taskname of records without one; None: such records are an error."""
    any_name: bool = False
    """Whether the default replaces the taskname of all records."""

    @classmethod
    def of(cls, templates: Iterable[TaskTemplate], default: str | None = None, *, any_name: bool = False) -> Tasks:
        """Return the tasks of some templates.

        A record without a taskname belongs to the only template, or to that of its form (record_forms).
        """
        by_name = {template.taskname: template for template in templates}
        if default is None and len(by_name) == 1:
            (default,) = by_name
        return cls(by_name, default, any_name)

    def find(self, record: Mapping[str, object], where: str) -> TaskTemplate | Problem:
        """Return the template of a record, or a Problem."""
        taskname = record.get("taskname")
        if self.default is not None and (taskname is None or self.any_name):
            taskname = self.default
        template = self.by_name.get(taskname) if isinstance(taskname, str) else None
        if template is None:
            template = self._of_form(record)
        if template is not None:
            return template
        shown = str(taskname)[:_SHOWN_CHARACTERS]
        what = "no 'taskname'" if taskname is None else f"no task template for taskname {shown!r}"
        fix = did_you_mean(shown, self.by_name)
        if taskname is None:
            fix = " or ".join(f'"taskname": "{name}"' for name in self.by_name)
            fix = f"add {fix} to each line"
        return Problem(where, what, fix)

    def _of_form(self, record: Mapping[str, object]) -> TaskTemplate | None:
        """Return the template of a record's form; with a taskname, only if all templates are those of forms."""
        if record.get("taskname") is not None and not TEMPLATES.keys() >= self.by_name.keys():
            return None
        return self.by_name.get(form_of(record) or "") or self.by_name.get(self.default or "")


def template_problems(
    record: dict[str, object], where: str, template: TaskTemplate, *, for_train: bool, nemo_compat: bool
) -> list[Problem]:
    """Return the problems of a record with its template.

    for_train: the answer is required. nemo_compat: other missing fields are empty, as in NeMo.
    """
    if template.is_chat:
        return message_problems(record, where, for_train=for_train)
    record = prepared(record, template, for_train=for_train)
    answer_field = template.answer_field if for_train else None
    fields = template.fields() if for_train else template.prompt_fields()
    if nemo_compat:
        fields = [field for field in template.fields() if field in record or field == answer_field]
    if template.is_jinja:  # which may loop over lists and read objects
        texts = (template.answer_field, template.truncate_field)
        is_value = {name: isinstance(record.get(name), list | dict | int | float) for name in fields}
        fields = [name for name in fields if name in texts or not is_value[name]]
    return [
        *record_problems(record, where, fields, answer_field),
        *choice_problems(record, where, template, for_train=for_train),
    ]


def check_tasks(
    path: str | Path,
    templates: Iterable[TaskTemplate],
    *,
    for_train: bool,
    nemo_compat: bool,
    columns: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Return the distinct problems of the first records of a data file, at most `MAX_PROBLEMS`.

    for_train, nemo_compat: as in `template_problems`; columns: as in `read_records`.
    """
    tasks = Tasks.of(templates)

    def problems_of(record: dict[str, object], where: str) -> list[Problem]:
        found = tasks.find(record, where)
        if isinstance(found, TaskTemplate):
            return list(template_problems(record, where, found, for_train=for_train, nemo_compat=nemo_compat))
        return [found] if isinstance(found, Problem) else []

    return first_problems(path, problems_of, FIRST_RECORDS, columns)


def has_records(paths: Iterable[str | Path], count: int) -> bool:
    """Return whether data files have at least `count` records in total, without reading more."""

    def records() -> Iterator[object]:
        for path in paths:
            if is_plain_lines(path):
                with Path(path).open("rb") as file:
                    yield from (line for line in bounded_lines(file, str(path)) if line.strip())
            else:
                yield from read_records(path)

    return sum(1 for _ in islice(records(), count)) == count
