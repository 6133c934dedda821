# SPDX-License-Identifier: Apache-2.0
"""An own task with its answers in the data is scored right, whatever its template; all files and the table agree."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_launcher.adapters.archive import save_adapter
from nemo_launcher.config.load import load
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.data.labels import Label
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation import prompting
from nemo_launcher.evaluation import run as evaluation
from nemo_launcher.evaluation.likelihoods import Answers
from nemo_launcher.evaluation.metrics.registry import split_model_problems
from nemo_launcher.evaluation.questions import Question
from nemo_launcher.evaluation.sampling import Request, Sampling
from nemo_launcher.evaluation.scoring import score
from nemo_launcher.evaluation.session import Session
from tests.engine import adapted, write_jsonl
from tests.jobs import evaluation_config, job_config

pytestmark = pytest.mark.unit

TOPICS = ("world", "sports", "business", "science", "politics")


class Job:
    """An evaluation of an adapter with these templates, whose model generates given texts."""

    def __init__(self, base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, templates: list[dict[str, Any]]):
        self.base, self.folder, self.texts = base, folder, list[str]()
        self.prompts: list[str] = []
        config = job_config(base, folder, folder)["model"]
        entry = config["task_templates"][0] | {"truncate_field": None}
        config["task_templates"] = [entry | template for template in templates]
        self.adapter = folder / "adapter.nemo"
        save_adapter(self.adapter, config, adapted(base, config)[1].state_dict())
        monkeypatch.setattr(evaluation, "generate", self._generate)

    def _generate(self, base: Any, samples: Any, *_: Any, **__: Any) -> list[list[int]]:
        self.prompts = [base.tokenizer.ids_to_text(sample.input_ids) for sample in samples]
        return [base.tokenizer.text_to_ids(text) for text in self.texts]

    def run(self, records: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
        data = write_jsonl(self.folder / "test.jsonl", records)
        (self.folder / "test.jsonl").chmod(0o640)
        options = {"data_paths": [str(data)], "ground_truth_file_path": None} | changes
        config = evaluation_config(self.base, self.adapter, self.folder, self.folder, **options)
        evaluation.evaluate(load(config, Evaluation))
        found: dict[str, Any] = json.loads((self.folder / "results/predictions_metrics.json").read_text())
        return found

    def scores(self) -> list[dict[str, Any]]:
        path = self.folder / "results/predictions_scores.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def topics(template: str, **more: Any) -> dict[str, Any]:
    return {"taskname": "topics", "prompt_template": template, "answer_field": "topic"} | more


def records(count: int = 40) -> list[dict[str, Any]]:
    return [{"taskname": "topics", "text": f"text {i}", "topic": TOPICS[i % 5]} for i in range(count)]


def predicted(closing: str = "") -> list[str]:
    """Texts of which 85% are right: 34 of 40."""
    return [f" {TOPICS[(i + (i % 20 > 16)) % 5]}{closing}" for i in range(40)]


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        ("text: {text} topic: {topic}", ""),
        ("text: {text} topic: {topic}", "\n\ntext: another one"),  # goes on below the label
        ("{text}\n\nTopic:{topic}\n", "\n"),
        ("text: {text} topic: {topic} ###", " ###"),
        ("text: {text} topic: {topic} ###", " ### text: another"),
        ("text: {text} topic: {topic}.", "."),
        ("<user>{text}</user><topic>{topic}</topic>", "</topic>"),
    ],
)
def test_a_classification_with_its_answers_in_the_data_is_scored_right(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    template: str,
    closing: str,
) -> None:
    ends = TaskTemplate(**topics(template)).pieces()[-1].is_field
    job = Job(tiny_base, tmp_path, monkeypatch, [topics(template, answer_only_loss=ends)])
    job.texts = predicted(closing)
    found = job.run(records())
    assert found["adapter"]["accuracy"]["value"] == pytest.approx(0.85)
    assert found["adapter"]["macro_f1"]["value"] == pytest.approx(0.85, abs=0.01)
    assert 0.7 < found["adapter"]["accuracy"]["low"] < 0.85 < found["adapter"]["accuracy"]["high"] < 0.95
    # the prompt ends where the answer belongs
    assert job.prompts[3].strip().endswith(template.partition("{topic}")[0].format(text="text 3").strip()[-8:])
    output = capsys.readouterr().out
    table = output[output.index("40 questions") :].splitlines()
    assert table[2].split()[:2] == ["accuracy", "85.0%"]
    assert "canal" not in output
    assert ("begin with a right answer but go on" in output) is ("another" in closing and "###" not in closing)


def test_a_template_that_goes_on_is_cut_behind_the_answer() -> None:
    for template, prediction, answer in (
        ("{q} -> {a}", " x y \n", " x y \n"),
        ("{q} -> {a} END", " x END y END", " x "),
        ("{q} -> {a}.", " U.S.A.", " U.S.A"),
        ("{q} -> {a} by {q}", " x by me", " x by me"),
    ):
        task = TaskTemplate(taskname="t", prompt_template=template, answer_field="a")
        assert task.answer_in(prediction) == answer


@pytest.mark.parametrize("nemo_compat", [False, True])
def test_generate_ends_the_prompt_and_the_prediction_as_an_evaluation_does(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nemo_compat: bool
) -> None:
    job = Job(tiny_base, tmp_path, monkeypatch, [topics("text: {text} topic: {topic} ###", answer_only_loss=False)])
    monkeypatch.setattr(prompting, "generate", job._generate)
    job.texts = [" sports ### text"]
    settings = ["nemo_compat=True"] if nemo_compat else []
    session = Session.open(tiny_base, job.adapter, precision="32", settings=settings)
    data = write_jsonl(tmp_path / "one.jsonl", [{"taskname": "topics", "text": "t"}])
    (answer,) = prompting.answer_records(session, data, None, None, Request(sampling=Sampling(), batch_size=1))
    assert answer["prediction"] == ("sports ### text" if nemo_compat else "sports")
    assert job.prompts == ["text: t topic:  ###" if nemo_compat else "text: t topic:"]


def test_two_tasks_and_both_models_are_compared_question_by_question(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    qa = {"taskname": "qa", "prompt_template": "{context} {question} {answer}", "answer_field": "answer"}
    job = Job(tiny_base, tmp_path, monkeypatch, [topics("{text}: {topic}"), qa])
    questions = [
        {
            "taskname": "qa",
            "context": f"the paragraph {i // 5}",
            "question": f"q {i}",
            "answer": [] if i == 4 else ["one", f"o {i}"],
        }
        for i in range(20)
    ]
    job.texts = predicted() + ["" if i == 4 else "one" if i < 10 else "two" for i in range(20)]
    found = job.run(records() + questions, compare_with_base=True, summary_path=str(tmp_path / "summary.json"))
    assert list(found["adapter"]) == ["exact_match", "f1"]  # what both tasks have
    assert found["questions"] == 60
    assert (found["unanswerable"], found["tasks"]["qa"]["groups"]) == (1, 4)
    assert list(found["tasks"]["topics"]["adapter"]) == ["accuracy", "macro_f1", "exact_match", "f1"]
    assert found["tasks"]["qa"]["adapter"]["exact_match"]["value"] == 0.5
    assert found["adapter"]["exact_match"]["value"] == pytest.approx((34 + 10) / 60)
    assert found["difference"]["exact_match"]["value"] == 0.0
    assert found["difference"]["exact_match"]["better"] is None
    assert json.loads((tmp_path / "summary.json").read_text())["evaluation"] == found
    metric = json.loads((tmp_path / "results/squad_metric.json").read_text())
    assert metric["exact_match"] == pytest.approx(100 * 44 / 60)
    assert (metric["NoAns_exact"], metric["NoAns_total"], metric["HasAns_total"]) == (100, 1, 59)

    lines = job.scores()
    assert [line["question"] for line in lines] == list(range(1, 61))
    assert lines[0]["record"] == f"{tmp_path}/test.jsonl:1"
    assert lines[0]["adapter"] == lines[0]["base"]
    assert lines[0]["adapter"] == {"prediction": "world", "scores": dict.fromkeys(lines[0]["base"]["scores"], 1.0)}
    assert set(lines[0]["base"]["scores"]) == {"accuracy", "exact_match", "f1"}
    assert (lines[44]["task"], lines[44]["answers"], lines[44]["base"]["scores"]["f1"]) == ("qa", [], 1.0)
    assert lines[40]["group"] == lines[43]["group"] != lines[45]["group"]
    output = capsys.readouterr().out
    table = output[output.index("All 2 tasks: ") : output.index("predictions  ")].splitlines()
    assert max(map(len, table)) <= 80
    assert "topics: 40 questions" in table
    assert "qa: 20 questions about 4 texts" in table
    assert any("undecided [" in line for line in table)


def test_scores_are_no_more_open_than_the_data(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tiny_base, tmp_path, monkeypatch, [topics("{text}: {topic}")])
    job.texts = predicted()
    job.run(records())
    for name in ("predictions_scores.jsonl", "predictions_metrics.json"):
        assert stat.S_IMODE((tmp_path / "results" / name).stat().st_mode) & 0o007 == 0


def test_chosen_metrics_and_questions_that_they_leave_out(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(tiny_base, tmp_path, monkeypatch, [topics("{text}: {topic}")])
    job.texts = predicted()
    questions = [record | {"topic": [] if i == 0 else record["topic"]} for i, record in enumerate(records())]
    found = job.run(questions, metrics=["rougeL", "bleu", "accuracy", "exact_match"])
    assert list(found["adapter"]) == ["rougeL", "bleu", "accuracy", "exact_match"]
    assert found["adapter"]["accuracy"] == found["adapter"]["accuracy"] | {"questions": 39, "value": 33 / 39}
    assert found["adapter"]["exact_match"]["questions"] == 40
    assert job.scores()[0]["adapter"]["scores"]["accuracy"] is None
    said = "1 questions have no answer and are left out of: ROUGE-L, BLEU, accuracy"
    assert said in capsys.readouterr().out


def test_perplexity_needs_the_field_of_the_answer(tiny_base: Path) -> None:
    encoder = Session.open(tiny_base, None, precision="32", settings=[]).encoder()
    template = TaskTemplate(taskname="chats", prompt_template="", template_format="chat")
    question = Question(number=1, template=template, group=1, label=Label(["yes"], "chats.jsonl:1", {}))
    with pytest.raises(UserError, match="the template of 'chats': has no answer_field") as error:
        Answers([{}, {}], [question] * 2, encoder)
    assert len(error.value.problems) == 1


def test_perplexity_is_that_of_score(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with the answers in a file of their own, without one, and with several, of which the first counts."""
    job = Job(tiny_base, tmp_path, monkeypatch, [topics("{text}: {topic}")])
    job.texts = predicted()
    truths = [record | {"topic": [record["topic"], "x"] if i else []} for i, record in enumerate(records())]
    truth = write_jsonl(tmp_path / "truth.jsonl", truths)
    asked = [{"taskname": "topics", "text": record["text"]} for record in records()]
    changes = {"ground_truth_file_path": str(truth), "compare_with_base": True}
    found = job.run(asked, metrics=["perplexity", "exact_match"], **changes)
    for name, adapter in (("base", None), ("adapter", job.adapter)):
        session = Session.open(tiny_base, adapter, precision="32", settings=[])
        template, field = (None, None) if adapter else ("{text}: {topic}", "topic")
        data = write_jsonl(tmp_path / "labelled.jsonl", records()[1:])
        scored = list(score(session.base, session.samples(data, template, field, session.encoder()), batch_size=4))
        expected = np.exp(sum(s["nll_sum"] for s in scored) / sum(s["answer_tokens"] for s in scored))
        assert found[name]["perplexity"]["value"] == pytest.approx(expected, rel=1e-5)
        assert found[name]["perplexity"]["questions"] == 39
        alone = job.scores()[1][name]["scores"]["perplexity"]
        assert alone == pytest.approx(np.exp(scored[0]["nll_mean"]), rel=1e-5)
    assert job.scores()[0]["base"]["scores"]["perplexity"] is None
    low, high = (found["adapter"]["perplexity"][end] for end in ("low", "high"))
    assert low < found["adapter"]["perplexity"]["value"] < high
    assert "%" not in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("perplexity"))


def test_perplexity_of_a_split_model_is_refused() -> None:
    problems = split_model_problems(["perplexity", "f1"], 2, "evaluation.metrics")
    assert [problem.what.split()[0] for problem in problems] == ["perplexity"]
    assert split_model_problems(["perplexity"], 1, "evaluation.metrics") == []


def test_a_wrong_name_is_told_before_anything_is_read(tmp_path: Path) -> None:
    absent = tmp_path / "absent.nemo"
    config = evaluation_config(absent, absent, tmp_path, tmp_path, metrics=["acuracy"])
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        evaluation.evaluate(load(config, Evaluation))


def test_an_evaluation_without_answers_leaves_no_scores_of_an_earlier_one(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tiny_base, tmp_path, monkeypatch, [topics("{text}: {topic}")])
    job.texts = predicted()
    job.run(records())
    assert job.scores()
    with pytest.raises(FileNotFoundError, match="predictions_metrics"):
        job.run([{"taskname": "topics", "text": f"text {i}"} for i in range(40)])
    assert not (tmp_path / "results/predictions_scores.jsonl").exists()
