# SPDX-License-Identifier: Apache-2.0
"""Rank classification: choices are scored as single answers would be, and the best one is the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.metrics.metric import Answered
from nemo_launcher.evaluation.metrics.ranking import best_choice
from nemo_launcher.evaluation.metrics.registry import names_for, registered
from nemo_launcher.evaluation.ranking import rank_choices
from nemo_launcher.evaluation.scoring import score
from nemo_launcher.families.base import load_base
from tests import t5
from tests.evaluation.test_own_task import TOPICS, Job, predicted, topics

pytestmark = pytest.mark.unit

TEMPLATE = TaskTemplate(
    taskname="topics",
    prompt_template="a text with more than a few words: {text} topic: {topic}",
    answer_field="topic",
    answer_only_loss=True,
    choices_field="topics",
)


def records(count: int = 40) -> list[dict[str, Any]]:
    rows = [{"text": f"text number {i}", "topics": list(TOPICS[: 5 - i % 3])} for i in range(count)]
    return [row | {"taskname": "topics", "topic": TOPICS[i % 2]} for i, row in enumerate(rows)]


@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_choices_are_scored_as_single_answers_are(tiny_base: Path, tmp_path: Path, family: str) -> None:
    path = tiny_base if family == "gpt" else t5.tiny_base(tmp_path / "t5.nemo")
    base = load_base(path, dtype=torch.float64)
    settings = PromptSettings.read({"decoder_starts_with_pad": family == "t5", "add_eos": True})
    encoder, single = (
        base.family.prompt_encoder(base.tokenizer, base.shape, settings, with_choices=choices)
        for choices in (True, False)
    )
    rows = records(7)
    samples = [encoder.encode(row, TEMPLATE, f"data:{i}") for i, row in enumerate(rows, start=1)]
    found = rank_choices(base, samples, [TEMPLATE] * 7, batch_size=3)
    sentinel = 1 if family == "t5" else 0  # a label of every answer, and no token of a choice
    for row, scores in zip(rows, found, strict=True):
        alone = [single.encode(row | {"topic": topic}, TEMPLATE, "data:1") for topic in row["topics"]]
        expected = list(score(base, alone, batch_size=1))
        assert list(scores.choice_scores) == row["topics"]
        assert [scores.choice_tokens[topic] + sentinel for topic in row["topics"]] == [
            one["answer_tokens"] for one in expected
        ]
        if not sentinel:
            sums = torch.tensor([-one["nll_sum"] for one in expected])
            torch.testing.assert_close(torch.tensor(list(scores.choice_scores.values())), sums, rtol=1e-6, atol=1e-6)
        else:  # the sentinel adds the same to all
            sums = torch.tensor([-one["nll_sum"] for one in expected]) - torch.tensor(
                list(scores.choice_scores.values())
            )
            torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=0, atol=1e-5)


def test_the_mean_or_the_sum_decides_and_labels_are_compared() -> None:
    question = Answered(
        prediction="",
        answers=["very  bad"],
        choice_scores={"good": -2.0, "very bad": -2.4},
        choice_tokens={"good": 1, "very bad": 2},
    )
    assert (best_choice(question), best_choice(question, normalize=False)) == ("very bad", "good")
    scores = {name: registered()[name].scores for name in ("rank_classification", "rank_classification_sum")}
    assert [of([question]) for of in scores.values() if of is not None] == [[1.0], [0.0]]
    assert best_choice(Answered(prediction="x", answers=["x"])) is None
    assert names_for([["a"]], has_choices=True) == ("rank_classification", "exact_match", "f1")


def test_an_evaluation_ranks_the_choices_of_base_and_adapter(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = topics(TEMPLATE.prompt_template, answer_only_loss=True, choices_field="topics")
    job = Job(tiny_base, tmp_path, monkeypatch, [template])
    job.texts = predicted()
    found = job.run(records(), compare_with_base=True)
    lines = job.scores()
    for model in ("base", "adapter"):
        right = []
        for line, record in zip(lines, records(), strict=True):
            assert list(line[model]["choice_scores"]) == record["topics"]
            right.append(float(line[model]["choice"] == record["topic"]))
        assert [line[model]["scores"]["rank_classification"] for line in lines] == right
        assert found[model]["rank_classification"]["value"] == pytest.approx(sum(right) / len(right))
    assert "rank_classification" in found["difference"]
    assert lines[0]["base"]["choice_scores"] != lines[0]["adapter"]["choice_scores"]
    sums = job.run(records(), metrics=["rank_classification_sum"])
    assert list(sums["adapter"]) == ["rank_classification_sum"]


def test_a_task_without_choices_is_not_ranked(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tiny_base, tmp_path, monkeypatch, [topics("text: {text} topic: {topic}")])
    job.texts = predicted()
    assert "rank_classification" not in job.run(records())["adapter"]
    assert "choice" not in job.scores()[0]["adapter"]
    with pytest.raises(UserError, match="needs answer choices, but the adapter's template of 'topics' has none"):
        job.run(records(), metrics=["rank_classification"])
