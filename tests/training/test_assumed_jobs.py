# SPDX-License-Identifier: Apache-2.0
"""Conversations without a template, from a training job to an evaluation, answers and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.config.load import load
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation import run as evaluation
from nemo_launcher.evaluation.session import Session
from tests.engine import save_llama, tiny_gpt_nemo, write_jsonl
from tests.jobs import evaluation_config
from tests.made import converted
from tests.training.runs import train

pytestmark = pytest.mark.integration

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_chat_model(folder: Path) -> Path:
    save_llama(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def chats(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"{n} and 1?"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training on conversations and on prompts with completions, not in its configuration."""
    folder = tmp_path_factory.mktemp("chats")
    base = converted(folder / "chat.nemo", save_chat_model)
    plain = [{"prompt": f"{n} plus 1 is", "completion": f" {n + 1}"} for n in range(8)]
    data = str(write_jsonl(folder / "train.jsonl", chats(8) + plain))
    changes = {"model.data.train_ds": [data], "model.data.validation_ds": [data]}
    job = train(base, folder, folder, changes)
    assert job.status == 0, job.output
    assert "records without a template: `messages` in the base's chat template" in job.output
    return folder


def test_the_archive_names_what_was_assumed(folder: Path) -> None:
    config = read_adapter(folder / "results/adapter.nemo")[0]
    assert [entry["taskname"] for entry in config["task_templates"]] == ["messages", "prompt_completion"]
    assert config["existing_tasks"] == ["messages", "prompt_completion"]


def test_an_evaluation_compares_with_the_last_answer_and_the_completion(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []

    def answer(base: Any, samples: Any, *_: Any, **__: Any) -> list[list[int]]:
        prompts.extend(base.tokenizer.ids_to_text(sample.input_ids) for sample in samples)
        return [base.tokenizer.text_to_ids(text) for text in (" 1", " 2", " 4", " 7")]

    monkeypatch.setattr(evaluation, "generate", answer)
    plain = [{"prompt": "3 plus 1 is", "completion": " 4"}, {"prompt": "4 plus 1 is", "completion": " 5"}]
    data = write_jsonl(folder / "test.jsonl", chats(2) + plain)
    options = {"data_paths": [str(data)], "ground_truth_file_path": None, "metrics": ["accuracy", "exact_match"]}
    config = evaluation_config(folder / "chat.nemo", folder / "results/adapter.nemo", folder, folder, **options)
    evaluation.evaluate(load(config, Evaluation))
    found = json.loads((folder / "results/predictions_metrics.json").read_text())
    assert prompts[0] == "user: 0 and 1?assistant: "
    assert prompts[2] == "3 plus 1 is"
    assert {name: figure["value"] for name, figure in found["adapter"].items()} == {
        "accuracy": 0.75,
        "exact_match": 0.75,
    }


def test_answers_and_scores_need_no_template_either(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.open(folder / "chat.nemo", None, precision="32", settings=[])
    adapted = Session.open(folder / "chat.nemo", folder / "results/adapter.nemo", precision="32", settings=[])
    for opened in (session, adapted):
        samples = opened.samples(chats(1), None, None, opened.encoder())
        text = opened.base.tokenizer.ids_to_text(samples[0].input_ids)
        assert text == "user: 0 and 1?assistant: 1"
    assert "records without a template" in capsys.readouterr().err
    bare = Session.open(tiny_gpt_nemo(tmp_path / "base.nemo"), None, precision="32", settings=[])
    with pytest.raises(UserError, match="no chat template"):
        bare.samples(chats(1), None, None, bare.encoder())
