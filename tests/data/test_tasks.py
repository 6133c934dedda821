# SPDX-License-Identifier: Apache-2.0
"""Templates of records, and the checks of a data file before slow steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.prompt_encoder import smallest_limit
from nemo_launcher.data.tasks import FIRST_RECORDS, Tasks, check_tasks, has_records
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem
from tests.engine import write_jsonl

pytestmark = pytest.mark.unit

SQUAD = TaskTemplate(taskname="squad", prompt_template="{question} {answer}", answer_field="answer")
TITLES = TaskTemplate(taskname="titles", prompt_template="{text} {title}", answer_field="title")


def problems(folder: Path, records: list[dict[str, Any]], **modes: bool) -> str:
    path = write_jsonl(folder / "data.jsonl", records)
    found = check_tasks(path, [SQUAD, TITLES], **{"for_train": True, "nemo_compat": False, **modes})
    return "\n".join(map(str, found)).replace(f"{path}", "data")


def test_each_record_is_held_against_the_template_of_its_task(tmp_path: Path) -> None:
    fine = [{"taskname": "squad", "question": "q", "answer": "a"}, {"taskname": "titles", "text": "x", "title": "t"}]
    assert problems(tmp_path, fine) == ""
    assert "data:1: no field 'text'" in problems(tmp_path, [fine[0] | {"taskname": "titles"}])
    without_answer = [{"taskname": "squad", "question": "q"}]
    assert "no field 'answer'" in problems(tmp_path, without_answer)
    assert problems(tmp_path, without_answer, for_train=False) == ""
    assert problems(tmp_path, [{"taskname": "squad", "answer": "a"}], nemo_compat=True) == ""


def test_a_record_of_no_task_is_told_with_the_names(tmp_path: Path) -> None:
    assert "did you mean 'squad'?" in problems(tmp_path, [{"taskname": "squadd"}])
    assert 'add "taskname": "squad" or "taskname": "titles"' in problems(tmp_path, [{"question": "q"}])
    for taskname in (7, ["squad"], {}, True):
        assert "no task template" in problems(tmp_path, [{"taskname": taskname}])
    found = Tasks.of([SQUAD]).find({"taskname": "x" * 10**6}, "data:1")
    assert isinstance(found, Problem)
    assert len(str(found)) < 500


def test_each_kind_is_told_once_and_no_more_than_the_first_records_are_read(tmp_path: Path) -> None:
    wrong = {"taskname": "squad", "answer": "a"}
    assert len(problems(tmp_path, [wrong] * 10).splitlines()) == 2
    fine = {"taskname": "squad", "question": "q", "answer": "a"}
    assert problems(tmp_path, [fine] * FIRST_RECORDS + [wrong]) == ""


def test_records_of_all_files_count_and_blank_lines_do_not(tmp_path: Path) -> None:
    one, two = write_jsonl(tmp_path / "a.jsonl", [{}] * 3), write_jsonl(tmp_path / "b.jsonl", [{}] * 2)
    two.write_text("\n\n" + two.read_text() + "\n \n")
    assert has_records([one, two], 5)
    assert not has_records([one, two], 6)


def test_the_advice_names_what_limits_a_prompt() -> None:
    assert smallest_limit(512, None, 2048) == ("encoder_seq_length", 512)
    assert smallest_limit(512, 100, 2048) == ("data.max_seq_length", 100)
    for of_training in (4096, 2048, None):
        assert smallest_limit(of_training, None, 2048) == ("base", 2048)
