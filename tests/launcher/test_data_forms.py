# SPDX-License-Identifier: Apache-2.0
"""Data files of any form, and renamed fields, as the launcher checks them."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from tests.archives import write_folder_base
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

PREFIX = "adapter_learning."
COLUMNS = "{context: passage, taskname: kind}"


def _arguments(train: Path, columns: str) -> list[str]:
    data = [f"model.data.train_ds=[{train}]", f"model.data.validation_ds=[{train}]", f"model.data.fields={columns}"]
    return [*(PREFIX + argument for argument in data), PREFIX + "run.task_name=mine", "debug=True"]


def _csv(folder: Path) -> Path:
    path = folder / "train.csv"
    path.write_text("kind;passage;question;answer\n" + 'squad;"a text;\nin two lines";q;7\n' * 40)
    return path


def test_a_table_with_its_own_column_names_is_launched(launch: Launch, workplace: Workplace, tmp_path: Path) -> None:
    path = _csv(tmp_path)
    result = launch(*workplace.arguments, *_arguments(path, COLUMNS))
    assert result.status == 0, result.err
    assert f"adapter_learning: {path}: columns separated by semicolons: kind, passage, question, answer\n" in result.out


def test_a_misspelt_column_is_refused_at_launch(launch: Launch, workplace: Workplace, tmp_path: Path) -> None:
    path = _csv(tmp_path)
    result = launch(*workplace.arguments, *_arguments(path, "{context: pasage, taskname: kind}"))
    assert result.status == 2
    assert "adapter_learning.model.data.train_ds" in result.err
    assert f"{path}:2: no column 'pasage', which `fields` names" in result.err
    assert "did you mean 'passage'?" in result.err


def test_a_folder_of_datasets_is_a_data_file(launch: Launch, workplace: Workplace, tmp_path: Path) -> None:
    rows = [{"kind": "squad", "passage": "text", "question": "q", "answer": str(number)} for number in range(40)]
    data = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    data.save_to_disk(tmp_path / "all")
    assert launch(*workplace.arguments, *_arguments(tmp_path / "all" / "train", COLUMNS)).status == 0
    result = launch(*workplace.arguments, *_arguments(tmp_path / "all", COLUMNS))
    assert result.status == 2
    assert f"{tmp_path / 'all'} is a data set of several splits" in result.err
    assert f"name one of them: {tmp_path / 'all' / 'train'}" in result.err


def test_a_chat_needs_no_prompt(launch: Launch, workplace: Workplace, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"prompt": "hi", "completion": "ho"}\n' * 40)
    templates = PREFIX + "model.task_templates=[{taskname: mine, template_format: chat}]"
    base = write_folder_base(workplace.root / "chat.nemo", chat_template="{{ messages }}")
    arguments = [*_arguments(path, "null"), PREFIX + "model.new_tasks=[mine]", templates]
    arguments.append(PREFIX + f"model.language_model_path={base}")
    result = launch(*workplace.arguments, *arguments)
    assert result.status == 0, result.err
    path.write_text('{"prompt": "hi", "answer": "ho"}\n' * 40)
    result = launch(*workplace.arguments, *arguments)
    assert result.status == 2
    assert f"{path}:1: has no message of the assistant" in result.err
