# SPDX-License-Identifier: Apache-2.0
"""A template's `no_answer`: the text learnt for records without an answer, which counts as none in evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.labels import check_answers, find_labels
from nemo_launcher.data.tasks import Tasks, check_tasks
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.data_verb import _unanswered
from nemo_launcher.evaluation.metrics.metric import Answered
from nemo_launcher.evaluation.metrics.registry import find
from nemo_launcher.families.base import load_base
from nemo_launcher.training.run import _samples
from tests import t5
from tests.engine import write_jsonl
from tests.jobs import job_config, loaded

pytestmark = pytest.mark.unit

ENTRY = {"taskname": "squad", "prompt_template": "question: {question} answer: {answer}", "answer_only_loss": True}
ENTRY |= {"answer_field": "answer", "no_answer": "no answer"}
RECORD = {"taskname": "squad", "question": "who wrote it"}


def template(**changes: Any) -> TaskTemplate:
    return TaskTemplate.from_config(ENTRY | changes)


@pytest.fixture(scope="module")
def t5_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5.tiny_base(tmp_path_factory.mktemp("t5") / "base.nemo")


@pytest.mark.parametrize("family", ["tiny_base", "t5_base"])
def test_a_record_without_an_answer_is_trained_with_the_text(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base_file = request.getfixturevalue(family)
    base = load_base(base_file)
    starts = {"model.data.decoder_starts_with_pad": True} if family == "t5_base" else {}
    answers = ["", [], " ", None, "No answer.", ["no answer"], "no answer", "Ann"]
    write_jsonl(tmp_path / "squad_train.jsonl", [RECORD | {"answer": answer} for answer in answers])
    config = job_config(base_file, tmp_path, tmp_path, {"model.data.cache_dir": False} | starts)
    config["model"]["task_templates"] = [ENTRY]
    job = loaded(config)
    assert not check_tasks(tmp_path / "squad_train.jsonl", [template()], for_train=True, nemo_compat=False)
    samples = _samples(job.section, "train_ds", [template()], base, shuffled=False)
    ids = [(list(sample.input_ids), list(getattr(sample, "decoder_ids", ()))) for sample in samples]
    assert ids[:-1] == [ids[0]] * (len(ids) - 1)
    assert ids[-1] != ids[0]


@pytest.mark.parametrize("no_answer", ["no answer", None])
def test_the_verb_data_knows_that_such_a_file_has_answers(no_answer: str | None, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [RECORD | {"answer": []}])
    assert (_unanswered(str(path), Tasks.of([template(no_answer=no_answer)]), {}) is None) is (no_answer is not None)


def test_without_the_key_such_a_record_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [RECORD | {"answer": ""}])
    (problem,) = check_tasks(path, [template(no_answer=None)], for_train=True, nemo_compat=False)
    assert "is empty: there is no answer to learn" in problem.what


@pytest.mark.parametrize("prediction", ["no answer", " No  Answer.\n", "", "\n"])
def test_a_prediction_with_the_text_is_right_if_there_is_no_answer(prediction: str) -> None:
    metrics = find(["exact_match", "f1"], "evaluation.metrics")
    said = template().scored_answer(prediction)
    for answers, right in (([], 1.0), (["Ann"], 0.0)):
        for metric in metrics:
            assert metric.scores is not None
            assert metric.scores([Answered(prediction=said, answers=answers)]) == [right]


def test_other_predictions_stay() -> None:
    assert template().scored_answer("no answer to that") == "no answer to that"
    assert template(no_answer=None).scored_answer("no answer") == "no answer"
    assert template().answer_in("no answer") == "no answer"  # as `generate` shows it


def test_labels(tmp_path: Path) -> None:
    answers: list[Any] = ["", [], None, "No answer.", ["no answer"], "Ann", ["Ann", "no answer", "Anna"]]
    wanted: list[list[str]] = [[], [], [], [], [], ["Ann"], ["Ann", "Anna"]]
    data = write_jsonl(tmp_path / "data.jsonl", [RECORD | {"answer": answer} for answer in answers])
    found = find_labels([str(data)], None, [template()])
    assert [label.answers for label in found] == wanted
    truths = [RECORD | {"answer": answer, "question": str(place)} for place, answer in enumerate(answers)]
    asked = [{name: value for name, value in record.items() if name != "answer"} for record in truths]
    truth, prompts = write_jsonl(tmp_path / "truth.jsonl", truths), write_jsonl(tmp_path / "prompts.jsonl", asked)
    assert [label.answers for label in find_labels([str(prompts)], str(truth), [template()])] == wanted
    assert not check_answers(truth, [template()], len(truths))


def test_an_evaluation_may_have_only_questions_without_an_answer(tmp_path: Path) -> None:
    """`[]` alone means that a file has no answers; the text says that its questions have none."""
    path = write_jsonl(tmp_path / "data.jsonl", [RECORD | {"answer": "no answer"}])
    assert [label.answers for label in find_labels([str(path)], None, [template()])] == [[]]
    assert not check_answers(path, [template()], 20)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"no_answer": " "}, "is empty"),
        ({"no_answer": 3}, "is not a text"),
        ({"choices": ["a", "b"]}, "beside answer choices"),
        ({"answer_field": None, "answer_only_loss": False}, "no_answer requires it"),
        ({"template_format": "chat", "prompt_template": "", "answer_field": None}, "no effect in a chat"),
    ],
)
def test_mistakes(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        template(**changes)
