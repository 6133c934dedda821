# SPDX-License-Identifier: Apache-2.0
"""Conversations, and prompts with a completion, need no template; which ones are assumed, and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.assumed import assumed, with_assumed
from nemo_launcher.data.duplicates import Contents
from nemo_launcher.data.given_records import GivenRecords
from nemo_launcher.data.labels import find_labels
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.record_forms import COMPLETED, CONVERSATION, TEMPLATES
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.data.templates import TaskTemplate
from tests.caches import gpt_encoder, t5_encoder
from tests.engine import write_jsonl
from tests.jobs import job_config, loaded

pytestmark = pytest.mark.unit

SQUAD = TaskTemplate(taskname="squad", prompt_template="{context} {question} {answer}", answer_field="answer")
OTHER = TaskTemplate(taskname="other", prompt_template="{prompt} -> {completion}", answer_field="completion")
COMPLETE = {"prompt": "What is 2? ->", "completion": " two"}
MESSAGES = {"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "two"}]}
CHAT_PROMPT = {"prompt": MESSAGES["messages"][:1], "completion": MESSAGES["messages"][1:]}
OF_FORMS = [TaskTemplate.from_config(entry) for entry in TEMPLATES.values()]


def forms(templates: list[TaskTemplate], *records: dict[str, Any], for_train: bool = True) -> Any:
    found = assumed(templates, [GivenRecords(records)], None, for_train=for_train)
    return None if found is None else (list(found.forms), found.others_fit)


@pytest.mark.parametrize("templates", [[], [SQUAD]])
def test_records_of_a_known_form_need_no_template(templates: list[TaskTemplate]) -> None:
    assert forms(templates, MESSAGES) == ([CONVERSATION], False)
    assert forms(templates, CHAT_PROMPT, COMPLETE) == ([CONVERSATION, COMPLETED], False)
    assert forms(templates, COMPLETE | {"taskname": "mine"}) == ([COMPLETED], False)


def test_a_template_that_fits_is_used() -> None:
    assert forms([OTHER], COMPLETE) is None
    assert forms([OTHER, SQUAD], COMPLETE | {"taskname": "other"}) is None
    chat = TaskTemplate(taskname="mine", prompt_template="", template_format="chat")
    assert forms([chat], MESSAGES) is None


def test_records_without_a_task_may_stand_beside_others() -> None:
    squad = {"taskname": "squad", "context": "c", "question": "q", "answer": "a"}
    assert forms([SQUAD, OTHER], squad, MESSAGES) == ([CONVERSATION], True)


def test_other_records_are_left_to_the_checks() -> None:
    squad = {"taskname": "squad", "context": "c", "question": "q", "answer": "a"}
    assert forms([SQUAD], squad, COMPLETE | {"taskname": "sqaud"}) is None  # a misspelt task among others
    assert forms([], COMPLETE, {"text": "t"}) is None
    assert forms([], {"prompt": "p", "answer": "a"}) is None
    assert forms([], {"messages": "text"}) is None
    assert forms([], {"prompt": "p"}, for_train=False) == ([COMPLETED], False)


def test_the_configuration_of_a_training_gets_the_templates(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [COMPLETE, MESSAGES]))
    changes = {"model.data.train_ds": [path], "model.data.validation_ds": [str(tmp_path / "absent.jsonl")]}
    job = loaded(job_config(Path("base.nemo"), tmp_path, tmp_path, changes))
    found = with_assumed(job.values, job.section.model)
    assert found is not None
    assert [entry["taskname"] for entry in found[0]["model"]["task_templates"]] == [CONVERSATION, COMPLETED]
    assert found[0]["model"]["new_tasks"] == [CONVERSATION, COMPLETED]
    again = loaded(found[0])
    assert with_assumed(again.values, again.section.model) is None
    old = loaded(job_config(Path("base.nemo"), tmp_path, tmp_path, changes | {"model.existing_tasks": ["squad"]}))
    kept = with_assumed(old.values, old.section.model)
    assert kept is not None
    assert [entry["taskname"] for entry in kept[0]["model"]["task_templates"]] == ["squad", CONVERSATION, COMPLETED]


def test_a_record_finds_the_template_of_its_form() -> None:
    tasks = Tasks.of(OF_FORMS)
    assert [tasks.find(record, "") for record in (MESSAGES, CHAT_PROMPT, COMPLETE)] == [*OF_FORMS[:1] * 2, OF_FORMS[1]]
    assert tasks.find(COMPLETE | {"taskname": "mine"}, "") is OF_FORMS[1]
    assert tasks.find({"prompt": "without an answer"}, "") is OF_FORMS[1]
    beside = Tasks.of([SQUAD, *OF_FORMS])
    assert beside.find(MESSAGES, "") is OF_FORMS[0]
    assert "no task template" in str(beside.find(MESSAGES | {"taskname": "sqaud"}, ""))


def test_the_loss_covers_the_completion_alone(tmp_path: Path) -> None:
    """As published: OpenAI's legacy form starts a completion with a space."""
    path, template = str(write_jsonl(tmp_path / "a.jsonl", [COMPLETE])), OF_FORMS[1]
    encoder = gpt_encoder(max_seq_length=100)
    (sample,) = encode_files([path], [template], encoder)

    def text(ids: list[int]) -> str:
        return encoder.tokenizer.ids_to_text([token for token in ids if token not in encoder.tokenizer.special_ids])

    assert text(sample.input_ids[: sample.answer_start]) == COMPLETE["prompt"]
    assert text(sample.input_ids[sample.answer_start :]) == COMPLETE["completion"]
    (asked,) = encode_files([path], [template], gpt_encoder(max_seq_length=100, for_train=False), withhold_answers=True)
    assert text(asked.input_ids) == COMPLETE["prompt"]
    (pair,) = encode_files([path], [template], t5_encoder())
    assert len(pair.decoder_ids) > len("two")
    assert len(pair.input_ids) < len(COMPLETE["prompt"] + COMPLETE["completion"])


def test_the_assumed_templates_learn_answers_alone_everywhere(tmp_path: Path) -> None:
    """In the launcher's configuration, and where templates are made from the entries themselves."""
    path = str(write_jsonl(tmp_path / "a.jsonl", [COMPLETE, MESSAGES]))
    job = loaded(job_config(Path("base.nemo"), tmp_path, tmp_path, {"model.data.train_ds": [path]}))
    found = with_assumed(job.values, job.section.model)
    assert found is not None
    of_training = [TaskTemplate.from_config(vars(entry)) for entry in loaded(found[0]).section.model.task_templates]
    assert of_training == OF_FORMS
    assert all(template.answer_only_loss for template in of_training)


def test_right_answers_and_duplicates_are_those_of_the_form(tmp_path: Path) -> None:
    other = COMPLETE | {"completion": " three"}
    path = str(write_jsonl(tmp_path / "a.jsonl", [COMPLETE, MESSAGES, other, MESSAGES]))
    labels = find_labels([path], None, OF_FORMS)
    assert [label.answers for label in labels] == [[" two"], ["two"], [" three"], ["two"]]
    contents = Contents(Tasks.of(OF_FORMS))
    for number, record in enumerate([COMPLETE, MESSAGES, other, MESSAGES]):
        contents.add(record, str(number))
    assert contents.contradictory == [("2", "0")]
    assert contents.repeated == [("3", "1")]
