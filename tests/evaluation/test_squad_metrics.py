# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.metrics.squad import exact_match, f1, normalize
from nemo_launcher.evaluation.squad_score import Score, evaluate, split_by_answer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Vistula", "vistula"),
        ("  a  river,\tan  OCEAN! ", "river ocean"),
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("theatre another a1", "theatre another a1"),
        ("the.", ""),
        ("Żółw “quoted”", "żółw “quoted”"),  # non-ASCII punctuation is kept, as in the official metric
        ("the-end", "theend"),  # punctuation is removed before articles
    ],
)
def test_normalize(text: str, normalized: str) -> None:
    assert normalize(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "answer", "expected_exact_match", "expected_f1"),
    [
        ("the Vistula.", "Vistula", 1.0, 1.0),
        ("Denver Broncos", "Denver", 0.0, 2 / 3),  # precision 1/2, recall 1
        ("in the old city of Warsaw", "Warsaw city", 0.0, 4 / 7),  # 2 of 5 words, 2 of 2: 2*0.4/1.4
        ("two two two", "two two", 0.0, 0.8),  # repeats count: precision 2/3, recall 1
        ("Paris", "London", 0.0, 0.0),
        ("", "London", 0.0, 0.0),
        ("the", "a", 1.0, 0.0),  # both are empty: equal, but without a common word
    ],
)
def test_worked_examples(prediction: str, answer: str, expected_exact_match: float, expected_f1: float) -> None:
    assert exact_match(prediction, answer) == expected_exact_match
    assert f1(prediction, answer) == pytest.approx(expected_f1)


def test_the_best_answer_counts_for_each_metric_and_the_mean_is_over_questions() -> None:
    score = evaluate(["Denver Broncos", "1998"], [["Denver", "Broncos of Denver"], ["1989", "in 1998"]])
    # question 1: F1 max(2/3, 2*(1*2/3)/(5/3) = 4/5); question 2: max(0, 2*(1*1/2)/(3/2) = 2/3)
    assert score == Score({"exact_match": 0.0, "f1": pytest.approx((4 / 5 + 2 / 3) / 2)}, total=2)
    assert evaluate(["x", "y"], [["x"], ["x"]]) == Score({"exact_match": 0.5, "f1": 0.5}, total=2)


@pytest.mark.parametrize(
    ("predictions", "answers", "message"),
    [
        (["a", "b"], [["a"]], "2 predictions, but 1 questions"),
        ([], [], "no question to score"),
    ],
)
def test_what_cannot_be_scored_is_told(predictions: list[str], answers: list[list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(predictions, answers)


def test_a_question_without_an_answer_counts_as_in_squad_2() -> None:
    """An empty prediction is right, also if only articles and punctuation are left; any other is wrong."""
    predictions, answers = ["", "The.", "Paris", "Paris"], [[], [], [], ["Paris"]]
    assert evaluate(predictions, answers) == Score({"exact_match": 0.75, "f1": 0.75}, total=4)
    parts = split_by_answer(predictions, answers)
    assert {name: (part.values["f1"], part.total) for name, part in parts.items()} == {
        "HasAns": (1.0, 1),
        "NoAns": (2 / 3, 3),
    }
    assert split_by_answer(["a"], [["a"]]) == {}
