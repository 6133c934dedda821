# SPDX-License-Identifier: Apache-2.0
"""Right answers of an evaluation: from a ground-truth file, matched by text or order, or from the data itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nemo_launcher.data.chat import COMPLETION, MESSAGES, answer_of
from nemo_launcher.data.given_records import GivenRecords
from nemo_launcher.data.jsonl import MAX_PROBLEMS
from nemo_launcher.data.label_matching import Entry, match
from nemo_launcher.data.no_answer import is_no_answer
from nemo_launcher.data.record_values import has_value, value_at
from nemo_launcher.data.records import read_records
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError, nearest

DEFAULT_ANSWER_FIELD = "answer"
"""The answer field of the documented ground-truth file."""

LONGEST_KEPT = 300
"""The maximum length, as JSON, of a field that is stored with its prediction; the question is always stored."""

_OF_A_PREDICTION = ("record", "answers", "prediction")
"""The keys of predictions.jsonl that are not fields of the record."""


@dataclass(frozen=True, slots=True)
class Label:
    """The right answers of one question in the data."""

    answers: list[str] | None
    """All right answers, [] for a question that has none; None if the evaluation has no answers."""
    where: str
    """`file:line` of the record in the data."""
    fields: dict[str, object]
    """Fields that identify the record, without its answer, long texts and nulls.

    `id` and `question` may come from the ground truth.
    """


def find_labels(
    data_paths: Sequence[str | GivenRecords],
    ground_truth: str | None,
    templates: Sequence[TaskTemplate],
    *,
    only_task: str | None = None,
    columns: Mapping[str, str] | None = None,
    report: Callable[[str], None] = print,
) -> list[Label]:
    """Return the label of each record of the data files, or of records in memory, in order.

    ground_truth: a data file with the same questions; None takes the template's answer_field from the data, and
    if no record has one, the labels have no answers. only_task: the task of all records, overriding their taskname.
    columns: of the data, as in `read_records`.
    Raises UserError for unreadable files, records without a right answer, and a ground truth with other questions.
    """
    fields = _Fields(templates, only_task)
    data, truths = _read(data_paths, ground_truth, columns)
    if ground_truth is None:
        return _own_labels(data, fields, report)
    matched = match(data, truths, fields.compared(), ground_truth, report)
    problems = _answer_problems(truths, fields)
    if problems:
        raise UserError(problems[:MAX_PROBLEMS])
    labels = []
    for entry, truth in zip(data, matched, strict=True):
        right = fields.answers(truth.record, fields.of_truth(truth.record), asked=entry.record)
        labels.append(_label(entry, right, fields.of_data(entry.record), truth))
    return labels


def check_answers(path: str | Path, templates: Sequence[TaskTemplate], limit: int) -> list[Problem]:
    """Return the problems of the first `limit` records of a ground-truth file, at most `MAX_PROBLEMS`.

    templates: those of its tasks, if they are known.
    """
    entries: list[Entry] = []
    unread: list[Problem] = []
    try:
        entries += (Entry(place, record) for place, record in islice(read_records(path), limit))
    except UserError as error:
        unread = error.problems
    found = _answer_problems(entries, _Fields(templates, None), is_whole=len(entries) < limit)
    distinct = {problem.what: problem for problem in reversed(found)}
    return [*reversed(distinct.values()), *unread][:MAX_PROBLEMS]


def answers_in(record: Mapping[str, object], field: str) -> list[str] | None:
    """Return the right answers in a record's field, a text or a list of texts; [] for an empty list, else None."""
    value = value_at(record, field)
    if isinstance(value, str):
        return [value] if value.strip() else None
    if isinstance(value, list) and all(isinstance(answer, str) and answer.strip() for answer in value):
        return list(value)
    return None


class _Fields:
    """The fields of the templates that hold answers, and those that identify questions."""

    def __init__(self, templates: Sequence[TaskTemplate], only_task: str | None) -> None:
        self.templates = templates
        only = only_task or (templates[0].taskname if len(templates) == 1 else None)
        self.tasks = Tasks.of(templates, only, any_name=only is not None)

    def compared(self) -> list[str]:
        """Return the fields that may identify a question in both files; without any, only the order counts."""
        names = [name for template in self.templates for name in template.prompt_fields()]
        return list(dict.fromkeys([*names, "question", "context", "id"]))

    def of_data(self, record: Mapping[str, object]) -> str | None:
        """Return the answer field of a data record, from its template."""
        template = self.tasks.find(record, "")
        if isinstance(template, Problem):
            return None
        if template.is_chat:
            return MESSAGES if MESSAGES in record else COMPLETION
        return template.answer_field

    def answers(
        self, record: Mapping[str, object], name: str | None, *, asked: Mapping[str, object] | None = None
    ) -> list[str] | None:
        """Return the right answers of a record, [] for one without an answer (data.no_answer).

        name: its answer field; a conversation's is its last message. asked: for a ground truth, the record in the data.
        """
        if name is None:
            return None
        template = self.tasks.find(record if asked is None else asked, "")
        if isinstance(template, Problem) or (template.is_chat and name not in (MESSAGES, COMPLETION)):
            return answers_in(record, name)
        if template.is_chat:
            answer = answer_of(record)
            return [answer] if answer and answer.strip() else None
        if has_value(record, name) and is_no_answer(value_at(record, name), template.no_answer):
            return []
        right = answers_in(record, name)
        return right and [answer for answer in right if not is_no_answer(answer, template.no_answer)]

    def of_truth(self, record: Mapping[str, object]) -> str:
        """Return the answer field of a ground-truth record."""
        named = [self.of_data(record), *(template.answer_field for template in self.templates)]
        return next((name for name in named if name is not None and has_value(record, name)), DEFAULT_ANSWER_FIELD)

    def any_answers(self, answers: Sequence[list[str] | None]) -> bool:
        """Return whether questions have answers; with `no_answer`, all of them may be without one."""
        has_text = any(template.no_answer is not None for template in self.templates)
        return any(right or (has_text and right is not None) for right in answers)


def _read(
    data_paths: Sequence[str | GivenRecords], ground_truth: str | None, columns: Mapping[str, str] | None
) -> tuple[list[Entry], list[Entry]]:
    """Return the records of all data files and of the ground truth. Raises UserError with the problems of all files."""
    problems: list[Problem] = []

    def entries(path: str | GivenRecords, columns: Mapping[str, str] | None = None) -> Iterable[Entry]:
        try:
            for place, record in path if isinstance(path, GivenRecords) else read_records(path, columns):
                yield Entry(place, record)
        except UserError as error:
            problems.extend(error.problems)

    data = [entry for path in data_paths for entry in entries(path, columns)]
    truths = list(entries(ground_truth)) if ground_truth is not None else []
    if problems:
        raise UserError(problems)
    return data, truths


def _own_labels(data: Sequence[Entry], fields: _Fields, report: Callable[[str], None]) -> list[Label]:
    """Return labels with the answers in the data."""
    named = [fields.of_data(entry.record) for entry in data]
    answers = [fields.answers(entry.record, name) for entry, name in zip(data, named, strict=True)]
    has_answers, problems, without = fields.any_answers(answers), [], []
    for entry, name, right in zip(data, named, answers, strict=True):
        value = value_at(entry.record, name) if name is not None else None
        if right is None and name != MESSAGES and value and not (isinstance(value, str) and not value.strip()):
            what = f"{name!r} is neither text nor a list of texts"
            problems.append(Problem(entry.where, what, "write the right answer, or a list of all right answers"))
        elif right is None and has_answers:
            without.append(Problem(entry.where, f"has no answer in {name!r}, which other records have", _WITHOUT))
    problems += without
    if problems:
        raise UserError(problems[:MAX_PROBLEMS])
    if not has_answers:
        report("the data has no answers and ground_truth_file_path is null: predictions are written, but no scores")
    return [
        _label(entry, right if has_answers else None, name)
        for entry, name, right in zip(data, named, answers, strict=True)
    ]


_WITHOUT = "add it ([] if the question has none), or remove the line; without any, only predictions are written"


def _label(entry: Entry, answers: list[str] | None, answer_field: str | None, truth: Entry | None = None) -> Label:
    of_truth = {name: truth.record.get(name) for name in ("id", "question")} if truth is not None else {}
    kept = {
        name: value
        for name, value in (of_truth | entry.record).items()
        if name not in (answer_field, *_OF_A_PREDICTION) and value is not None
        if name == "question" or len(json.dumps(value)) <= LONGEST_KEPT
    }
    return Label(answers, entry.where, kept)


def _answer_problems(entries: Sequence[Entry], of_templates: _Fields, *, is_whole: bool = True) -> list[Problem]:
    """Return the problems of ground-truth records. An empty list is valid unless a whole file has nothing else."""
    fields = [of_templates.of_truth(entry.record) for entry in entries]
    answers = [of_templates.answers(entry.record, field) for entry, field in zip(entries, fields, strict=True)]
    are_valid = not is_whole or of_templates.any_answers(answers)
    return [
        _answer_problem(entry, field)
        for entry, field, right in zip(entries, fields, answers, strict=True)
        if not right and (right is None or not are_valid)
    ]


def _answer_problem(entry: Entry, field: str) -> Problem:
    value = value_at(entry.record, field)
    if isinstance(value, list) and value and all(isinstance(answer, str) for answer in value):
        return Problem(entry.where, f"{field!r} holds an empty answer", "remove it, or omit the question")
    if has_value(entry.record, field):
        what = f"{field!r} is not a list of right answers"
        return Problem(
            entry.where, what, f'write "{field}": ["...", "..."], with at least one answer, or omit the question'
        )
    match = nearest(field, entry.record)
    fix = f"did you mean {match!r}?" if match else "to use the answers in the data, if any: ground_truth_file_path=null"
    return Problem(entry.where, f"has no {field!r}, the list of right answers", fix)
