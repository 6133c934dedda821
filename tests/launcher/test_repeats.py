# SPDX-License-Identifier: Apache-2.0
"""Duplicates: files under any spelling are reported, tasks and their templates refused."""

from __future__ import annotations

import json
import os

import pytest

from tests.workplace import Workplace

from .test_mistake_table import RECORD, Launch

pytestmark = pytest.mark.unit


def test_a_file_under_two_names_is_told(launch: Launch, workplace: Workplace) -> None:
    train, validation = workplace.root / "train.jsonl", workplace.root / "validation.jsonl"
    train.write_text((json.dumps(RECORD) + "\n") * 100)
    validation.write_text(json.dumps(RECORD) + "\n")
    (workplace.root / "link.jsonl").symlink_to(train)
    os.link(validation, workplace.root / "other.jsonl")
    data = "adapter_learning.model.data"
    given = [
        f"{data}.train_ds=[{train},{workplace.root}/x/../link.jsonl]",
        f"{data}.validation_ds=[{validation},{workplace.root}/other.jsonl]",
    ]
    result = launch(*workplace.arguments, *given, "debug=True")
    assert result.status == 0, result.err
    assert f"{workplace.root}/link.jsonl ({train}) is listed twice: its records are trained on twice" in result.err
    assert f"{workplace.root}/other.jsonl ({validation}) is listed twice: its records are validated twice" in result.err
    once = launch(
        *workplace.arguments, f"{data}.train_ds=[{train}]", f"{data}.validation_ds=[{validation}]", "debug=True"
    )
    assert "twice" not in once.err


@pytest.mark.parametrize(
    ("argument", "what"),
    [
        ("new_tasks=[squad,squad]", "model.new_tasks (command line): 'squad' is named twice"),
        ("existing_tasks=[squad]", "'squad' is named twice"),
        (
            'task_templates=[{taskname: squad, prompt_template: "{a} {answer}", answer_field: answer},'
            '{taskname: squad, prompt_template: "{b} {answer}", answer_field: answer}]',
            "model.task_templates (command line): two templates for 'squad'",
        ),
    ],
)
def test_a_task_named_twice_is_refused(launch: Launch, workplace: Workplace, argument: str, what: str) -> None:
    result = launch(*workplace.arguments, f"adapter_learning.model.{argument}", "debug=True")
    assert result.status == 2
    assert what in result.err
