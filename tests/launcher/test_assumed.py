# SPDX-License-Identifier: Apache-2.0
"""Conversations, and prompts with a completion, are launched without a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.archives import write_folder_base
from tests.engine import write_jsonl
from tests.hugging_face import write_folder
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

PREFIX = "adapter_learning."
CHAT = {"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "two"}]}
COMPLETE = {"prompt": "2? ->", "completion": " two"}


def base_of(workplace: Workplace, **tokenizer: str) -> str:
    return f"{PREFIX}model.language_model_path={write_folder_base(workplace.root / 'chat.nemo', **tokenizer)}"


def arguments(folder: Path, *records: dict[str, Any]) -> list[str]:
    path = write_jsonl(folder / "mine.jsonl", list(records) * 40)
    files = [f"{PREFIX}model.data.{key}=[{path}]" for key in ("train_ds", "validation_ds")]
    return [*files, f"{PREFIX}run.task_name=mine", "debug=True"]


def model_in(workplace: Workplace) -> dict[str, Any]:
    (file,) = workplace.results.rglob("*_hydra.yaml")
    found: dict[str, Any] = yaml.safe_load(file.read_text())["model"]
    return found


def test_chats_are_launched_with_the_shipped_files(launch: Launch, workplace: Workplace, tmp_path: Path) -> None:
    base = base_of(workplace, chat_template="{{ messages }}")
    result = launch(*workplace.arguments, base, *arguments(tmp_path, CHAT))
    assert result.status == 0, result.err
    assert "adapter_learning: records without a template: `messages` in the base's chat template" in result.out
    model = model_in(workplace)
    assert [entry["template_format"] for entry in model["task_templates"]] == ["chat"]
    assert model["new_tasks"] == ["messages"]


def test_prompts_with_completions_are_launched_with_any_base(
    launch: Launch, workplace: Workplace, tmp_path: Path
) -> None:
    result = launch(*workplace.arguments, *arguments(tmp_path, COMPLETE), f"{PREFIX}model.task_templates=[]")
    assert result.status == 0, result.err
    assert "`prompt` followed by `completion`, with the loss on the completion" in result.out
    assert model_in(workplace)["task_templates"][0]["prompt_template"] == "{prompt}{completion}"


def test_chats_with_a_base_that_has_no_template_are_refused(
    launch: Launch, workplace: Workplace, tmp_path: Path
) -> None:
    for base in ((), (base_of(workplace, bos_token="<s>"),)):
        result = launch(*workplace.arguments, *base, *arguments(tmp_path, CHAT))
        assert result.status == 2
        assert "the records are conversations, but the tokenizer of " in result.err
        assert '{"prompt": "...", "completion": "..."}' in result.err
    kept = [text for text in workplace.arguments if not text.startswith("adapter_learning")]
    t5 = launch(*kept, "adapter_learning=t5/squad", *arguments(tmp_path, CHAT))
    assert "the records are conversations, but a T5 has no chat template" in t5.err


def test_the_chat_template_of_a_processor_counts_in_the_same_chain(
    launch: Launch, workplace: Workplace, tmp_path: Path
) -> None:
    source = write_folder(tmp_path / "llama")
    given = ["stages=[conversion_hf2nemo,adapter_learning]", "conversion_hf2nemo=hf", "adapter_learning=llama/squad"]
    given += [f"conversion_hf2nemo.model.hf_model_path={source}", "conversion_hf2nemo.run.model_train_name=llama_7b"]
    kept = [text for text in workplace.arguments if not text.startswith(("stages", "adapter_learning"))]
    chain = [*kept, *given, *arguments(tmp_path, CHAT)]
    assert "the records are conversations, but the tokenizer of " in launch(*chain).err
    (source / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert "the records are conversations" not in launch(*chain).err


def test_other_records_still_need_a_template(launch: Launch, workplace: Workplace, tmp_path: Path) -> None:
    given = arguments(tmp_path, {"text": "t", "label": "l"})
    result = launch(*workplace.arguments, *given, f"{PREFIX}model.task_templates=[]")
    assert result.status == 2
    assert "adapter_learning.model.task_templates (command line): is empty" in result.err
    assert "add a template" in result.err
    result = launch(*workplace.arguments, *given)
    assert "no field 'context', which the prompt template reads" in result.err


def test_an_evaluation_is_checked_with_the_same_templates(launch: Launch, workplace: Workplace, tmp_path: Path) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", [{"prompt": "3? ->", "completion": " three"}])
    chosen = ["stages=[adapter_learning,evaluation]", "evaluation=adapter_gpt3/squad", "evaluation.run.task_name=mine"]
    chosen += [f"evaluation.data_paths=[{test}]", "evaluation.ground_truth_file_path=null"]
    chosen += [f"evaluation.language_model_path={workplace.base_model}", "evaluation.trainer.accelerator=cpu"]
    both = [*workplace.arguments, *arguments(tmp_path, COMPLETE), *chosen]
    result = launch(*both)
    assert result.status == 0, result.err
    test.write_text('{"text": "t"}\n')
    assert "no field 'prompt', which the prompt template reads" in launch(*both).err
