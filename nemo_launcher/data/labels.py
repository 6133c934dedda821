# SPDX-License-Identifier: Apache-2.0
"""Right answers of an evaluation: from a ground-truth file, matched by text or order, or from the data itself."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nemo_launcher.data.jsonl import MAX_PROBLEMS, read_records
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError, nearest

DEFAULT_ANSWER_FIELD = "answer"
"""The answer field of the documented ground-truth file."""

LONGEST_KEPT = 300
"""The maximum length, as JSON, of a field that is stored with its prediction; the question is always stored."""

_OF_A_PREDICTION = ("record", "answers", "prediction")
"""The keys of predictions.jsonl that are not fields of the record."""
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Label:
    """The right answers of one question in the data."""

    answers: list[str] | None
    """All right answers; None if the evaluation has none."""
    where: str
    """`file:line` of the record in the data."""
    fields: dict[str, object]
    """Fields that identify the record, without its answer, long texts and nulls.

    `id` and `question` may come from the ground truth.
    """


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record of a file."""

    where: str
    """`file:line` of the record."""
    record: dict[str, object]
    """The record's fields."""


def find_labels(
    data_paths: Sequence[str],
    ground_truth: str | None,
    templates: Sequence[TaskTemplate],
    *,
    only_task: str | None = None,
    report: Callable[[str], None] = print,
) -> list[Label]:
    """Return the label of each record of the data files, in order.

    ground_truth: a JSON Lines file with the same questions; None takes the template's answer_field from the data, and
    if no record has one, the labels have no answers. only_task: the task of all records, overriding their taskname.
    Raises UserError for unreadable files, records without a right answer, and a ground truth with other questions.
    """
    fields = _Fields(templates, only_task)
    data, truths = _read(data_paths, ground_truth)
    if ground_truth is None:
        return _own_labels(data, fields, report)
    matched = match(data, truths, fields.compared(), ground_truth, report)
    found = (_answer_problem(entry, fields.of_truth(entry.record)) for entry in truths)
    problems = [problem for problem in found if problem is not None]
    if problems:
        raise UserError(problems[:MAX_PROBLEMS])
    return [
        _label(entry, answers_in(truth.record, fields.of_truth(truth.record)), fields.of_data(entry.record), truth)
        for entry, truth in zip(data, matched, strict=True)
    ]


def check_answers(path: str | Path, answer_fields: Iterable[str], limit: int) -> list[Problem]:
    """Return the problems of the first `limit` records of a ground-truth file, at most `MAX_PROBLEMS`.

    answer_fields: the answer fields of the templates, if they are known.
    """
    problems: list[Problem] = []
    try:
        for line, record in islice(read_records(path), limit):
            field = next((name for name in answer_fields if name in record), DEFAULT_ANSWER_FIELD)
            problem = _answer_problem(_Entry(f"{path}:{line}", record), field)
            if problem is not None and problem.what not in [told.what for told in problems]:
                problems.append(problem)
    except UserError as error:
        problems += error.problems
    return problems[:MAX_PROBLEMS]


def match(
    data: Sequence[_Entry],
    truths: Sequence[_Entry],
    compared: Sequence[str],
    ground_truth: str,
    report: Callable[[str], None] = print,
) -> list[_Entry]:
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
    waiting: dict[object, list[_Entry]] = {}
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


def answers_in(record: Mapping[str, object], field: str) -> list[str] | None:
    """Return the right answers in a record's field, a text or a list of texts; None if there are none."""
    value = record.get(field)
    if isinstance(value, str):
        return [value] if value.strip() else None
    if isinstance(value, list) and value and all(isinstance(answer, str) and answer.strip() for answer in value):
        return list(value)
    return None


class _Fields:
    """The fields of the templates that hold answers, and those that identify questions."""

    def __init__(self, templates: Sequence[TaskTemplate], only_task: str | None) -> None:
        self.templates = templates
        self.answer_fields = {template.taskname: template.answer_field for template in templates}
        self.only_task = only_task or (templates[0].taskname if len(templates) == 1 else None)

    def compared(self) -> list[str]:
        """Return the fields that may identify a question in both files; without any, only the order counts."""
        names = [name for template in self.templates for name in template.prompt_fields()]
        return list(dict.fromkeys([*names, "question", "context", "id"]))

    def of_data(self, record: Mapping[str, object]) -> str | None:
        """Return the answer field of a data record, from its template."""
        task = self.only_task or record.get("taskname")
        return self.answer_fields.get(task) if isinstance(task, str) else None

    def of_truth(self, record: Mapping[str, object]) -> str:
        """Return the answer field of a ground-truth record."""
        named = [self.of_data(record), *self.answer_fields.values()]
        return next((name for name in named if name is not None and name in record), DEFAULT_ANSWER_FIELD)


def _read(data_paths: Sequence[str], ground_truth: str | None) -> tuple[list[_Entry], list[_Entry]]:
    """Return the records of all data files and of the ground truth. Raises UserError with the problems of all files."""
    problems: list[Problem] = []

    def entries(path: str) -> Iterable[_Entry]:
        try:
            for line, record in read_records(path):
                yield _Entry(f"{path}:{line}", record)
        except UserError as error:
            problems.extend(error.problems)

    data = [entry for path in data_paths for entry in entries(path)]
    truths = list(entries(ground_truth)) if ground_truth is not None else []
    if problems:
        raise UserError(problems)
    return data, truths


def _own_labels(data: Sequence[_Entry], fields: _Fields, report: Callable[[str], None]) -> list[Label]:
    """Return labels with the answers in the data."""
    found, problems, without = [], [], []
    for entry in data:
        field = fields.of_data(entry.record)
        answers = answers_in(entry.record, field) if field is not None else None
        value = entry.record.get(field) if field is not None else None
        if answers is None and value and not (isinstance(value, str) and not value.strip()):
            what = f"{field!r} is neither text nor a list of texts"
            problems.append(Problem(entry.where, what, "write the right answer, or a list of all right answers"))
        elif answers is None:
            without.append(Problem(entry.where, f"has no answer in {field!r}, which other records have", _WITHOUT))
        found.append(_label(entry, answers, field))
    if without and len(without) < len(data):
        problems += without
    if problems:
        raise UserError(problems[:MAX_PROBLEMS])
    if without:
        report("the data has no answers and ground_truth_file_path is null: predictions are written, but no scores")
    return found


_WITHOUT = "add it, or remove the line; if no record has an answer, only predictions are written"


def _label(entry: _Entry, answers: list[str] | None, answer_field: str | None, truth: _Entry | None = None) -> Label:
    of_truth = {name: truth.record.get(name) for name in ("id", "question")} if truth is not None else {}
    kept = {
        name: value
        for name, value in (of_truth | entry.record).items()
        if name not in (answer_field, *_OF_A_PREDICTION) and value is not None
        if name == "question" or len(json.dumps(value)) <= LONGEST_KEPT
    }
    return Label(answers, entry.where, kept)


def _answer_problem(entry: _Entry, field: str) -> Problem | None:
    if answers_in(entry.record, field) is not None:
        return None
    value = entry.record.get(field)
    if isinstance(value, list) and value and all(isinstance(answer, str) for answer in value):
        return Problem(entry.where, f"{field!r} holds an empty answer", "remove it, or omit the question")
    if field in entry.record:
        what = f"{field!r} is not a list of right answers"
        return Problem(
            entry.where, what, f'write "{field}": ["...", "..."], with at least one answer, or omit the question'
        )
    match = nearest(field, entry.record)
    fix = f"did you mean {match!r}?" if match else "to use the answers in the data, if any: ground_truth_file_path=null"
    return Problem(entry.where, f"has no {field!r}, the list of right answers", fix)


# --- matching -----------------------------------------------------------------------------------------------------


def _common_fields(data: Sequence[_Entry], truths: Sequence[_Entry], compared: Sequence[str]) -> list[str]:
    """Return the fields that records of both files have, without ids if the files have no id in common."""
    in_data = {name for entry in data for name in compared if name in entry.record}
    fields = [name for name in compared if name in in_data and any(name in entry.record for entry in truths)]
    ids = [{_plain(entry.record.get("id")) for entry in entries} - {None} for entries in (data, truths)]
    return [name for name in fields if name != "id" or ids[0] & ids[1] or fields == ["id"]]


def _agree(entry: _Entry, truth: _Entry, fields: Sequence[str]) -> bool:
    return all(
        _plain(entry.record[name]) == _plain(truth.record[name])
        for name in fields
        if name in entry.record and name in truth.record
    )


def _first(waiting: list[_Entry] | None) -> _Entry | None:
    return waiting.pop(0) if waiting else None


def _text_of(entry: _Entry, fields: Sequence[str]) -> tuple[object, ...]:
    return tuple(_plain(entry.record.get(name)) for name in fields)


def _plain(value: object) -> str | None:
    """Return a value normalized for comparison: an id may be a number or text, and é one code point or two."""
    return None if value is None else unicodedata.normalize("NFC", str(value)).strip()


def _mismatch(
    data: Sequence[_Entry],
    truths: Sequence[_Entry],
    fields: Sequence[str],
    found: Sequence[_Entry | None],
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
