# SPDX-License-Identifier: Apache-2.0
"""Right answers are matched to questions by text and order; a ground truth for other questions is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.labels import Label, check_answers, find_labels
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from tests.engine import TEMPLATE, squad_records, write_jsonl

pytestmark = pytest.mark.unit

SQUAD = TaskTemplate(taskname="squad", prompt_template=TEMPLATE, answer_field="answer")
HEADLINES = TaskTemplate(taskname="headlines", prompt_template="{text} -> {title}", answer_field="title")


class Case:
    """Questions and their ground truth, written to files, and the expected answers of each question."""

    def __init__(self, folder: Path, count: int = 12) -> None:
        self.folder = folder
        self.questions = [{k: v for k, v in r.items() if k != "answer"} for r in squad_records(count)]
        self.truths: list[dict[str, Any]] = [
            {**question, "answer": [f"answer {number}"], "id": f"q{number}"}
            for number, question in enumerate(self.questions)
        ]
        self.lines: list[str] = []

    def labels(self, templates: Sequence[TaskTemplate] = (SQUAD,)) -> list[Label]:
        data = write_jsonl(self.folder / "test.jsonl", self.questions)
        truths = write_jsonl(self.folder / "truth.jsonl", self.truths)
        return find_labels([str(data)], str(truths), templates, report=self.lines.append)

    def answers(self) -> list[list[str] | None]:
        return [label.answers for label in self.labels()]

    def error(self) -> str:
        with pytest.raises(UserError) as error:
            self.labels()
        return str(error.value)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def in_order(count: int) -> list[list[str]]:
    return [[f"answer {number}"] for number in range(count)]


# --- a ground-truth file ----------------------------------------------------------------------------------------


def test_the_same_order_is_taken_as_it_is(case: Case) -> None:
    assert case.answers() == in_order(12)
    label = case.labels()[3]
    assert label.answers == ["answer 3"]
    assert label.where.endswith(":4")
    assert label.fields["question"] == case.questions[3]["question"]
    assert label.fields["id"] == "q3"
    assert case.lines == []


def test_a_letter_of_two_signs_is_the_letter(case: Case) -> None:
    """Programs may write é as one code point or as two."""
    case.questions[3]["question"], case.truths[3]["question"] = "caf\u00e9?", "cafe\u0301?"
    assert case.answers() == in_order(12)
    assert case.lines == []


def test_another_order_is_matched_by_text_and_told(case: Case) -> None:
    random.Random(1).shuffle(case.truths)
    assert case.answers() == in_order(12)
    assert "truth.jsonl is ordered differently than the data" in case.lines[0]
    case.truths.sort(key=lambda truth: str(truth["question"]))
    assert case.answers() == in_order(12)


def test_the_same_question_twice_is_taken_in_order(case: Case) -> None:
    case.questions[5] = dict(case.questions[2])
    case.truths[5] |= case.questions[2]
    assert case.answers() == in_order(12)
    case.truths.append(case.truths.pop(0))  # reordered: the first of both is still first
    assert case.answers() == in_order(12)


def test_without_text_the_order_counts_and_it_is_said(case: Case) -> None:
    case.truths = [{"answer": truth["answer"]} for truth in case.truths]
    assert case.answers() == in_order(12)
    assert "has no text of the questions" in case.lines[0]


def test_a_mismatch_names_file_line_and_both_texts(case: Case) -> None:
    case.truths[4]["question"] = "Where does Zoe live?"
    text = case.error()
    asked = case.questions[4]["question"]
    assert f"{case.folder}/truth.jsonl:5: 'question' is 'Where does Zoe live?'" in text
    assert f"at {case.folder}/test.jsonl:5 {asked!r}" in text
    assert "1 of 12 questions are not in the ground truth" in text


@pytest.mark.parametrize(("kept", "words"), [(9, "9 answers for 12 questions"), (13, "13 answers for 12 questions")])
def test_a_part_or_more_than_the_questions_is_refused(case: Case, kept: int, words: str) -> None:
    case.truths = [*case.truths, {"question": "?", "answer": ["x"]}][:kept]
    assert words in case.error()


def test_ids_of_two_schemes_are_no_mismatch_and_common_ones_are(case: Case) -> None:
    for number, question in enumerate(case.questions):
        question["id"] = str(1000 + number)
    assert case.answers() == in_order(12)
    for number, question in enumerate(case.questions):
        question["id"] = f"q{number}"
    case.questions[3]["id"] = "q77"
    assert "'id' is 'q3'" in case.error()


def test_ids_alone_are_matched(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"taskname": "headlines", "text": "x", "id": 1}, {"text": "y", "id": 2}])
    truths = write_jsonl(tmp_path / "t.jsonl", [{"id": "2", "title": "second"}, {"id": "1", "title": ["first"]}])
    labels = find_labels([str(data)], str(truths), [HEADLINES], report=lambda line: None)
    assert [label.answers for label in labels] == [["first"], ["second"]]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"answer": []}, "'answer' is not a list of right answers"),
        ({"answer": 7}, "'answer' is not a list of right answers"),
        ({"answer": [7]}, "'answer' is not a list of right answers"),
        ({"answers": ["x"]}, "did you mean 'answers'?"),
        ({}, "has no 'answer'"),
    ],
)
def test_a_ground_truth_without_answers_is_told_in_the_job_and_at_launch(
    case: Case, answer: dict[str, Any], words: str
) -> None:
    case.truths = [{k: v for k, v in truth.items() if k != "answer"} | answer for truth in case.truths]
    assert f"truth.jsonl:1: {words.split(';')[0]}" in case.error() or words in case.error()
    problems = check_answers(case.folder / "truth.jsonl", [SQUAD], limit=20)
    assert len(problems) == 1
    assert words in str(problems[0])


def test_problems_of_all_files_come_together(case: Case) -> None:
    (case.folder / "a.jsonl").write_text("{", encoding="utf-8")
    (case.folder / "b.jsonl").write_text("[]\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        find_labels([str(case.folder / "a.jsonl")], str(case.folder / "b.jsonl"), [SQUAD])
    assert len(error.value.problems) == 2


# --- the data's own ---------------------------------------------------------------------------------------------


def own(folder: Path, records: list[dict[str, Any]]) -> tuple[list[list[str] | None], list[str]]:
    lines: list[str] = []
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    labels = find_labels([str(path)], None, [SQUAD, HEADLINES], report=lines.append)
    return [label.answers for label in labels], lines


def test_an_empty_text_is_no_right_answer(tmp_path: Path) -> None:
    """It would match an answer without any generated text."""
    path = write_jsonl(tmp_path / "truth.jsonl", [{"question": "q", "answer": ["a", " "]}])
    (problem,) = check_answers(path, [], 20)
    assert problem.what == "'answer' holds an empty answer"


def test_without_a_file_each_tasks_answer_field_counts(tmp_path: Path) -> None:
    records = [
        {"taskname": "squad", "question": "q", "answer": ["a", "b"], "title": "no"},
        {"taskname": "headlines", "text": "x", "title": "t", "answer": "no"},
    ]
    assert own(tmp_path, records) == ([["a", "b"], ["t"]], [])


@pytest.mark.parametrize("empty", [{}, {"answer": None}, {"answer": ""}, {"answer": []}])
def test_without_any_answer_there_are_no_scores_and_it_is_said(tmp_path: Path, empty: dict[str, Any]) -> None:
    answers, lines = own(tmp_path, [{"taskname": "squad", "question": "q"} | empty] * 2)
    assert answers == [None, None]
    assert "no scores" in lines[0]


@pytest.mark.parametrize("answer", [None, 7, [7], {"text": "a"}, " "])
def test_some_records_without_an_answer_are_an_error(tmp_path: Path, answer: Any) -> None:
    records = [{"taskname": "squad", "answer": "a"}, {"taskname": "squad", "answer": answer}]
    with pytest.raises(UserError, match=r"data\.jsonl:2: "):
        own(tmp_path, records)
