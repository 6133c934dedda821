# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_launcher.data.template_pieces import Piece, brace_problems, template_pieces
from nemo_launcher.data.templates import TaskTemplate, fill_template
from nemo_launcher.errors import UserError

pytestmark = pytest.mark.unit

SQUAD: dict[str, Any] = {
    "taskname": "squad",
    "prompt_template": "context: {context} question: {question} answer: {answer}",
    "total_virtual_tokens": 0,
    "virtual_token_splits": [],
    "truncate_field": None,
    "answer_only_loss": True,
    "answer_field": "answer",
}


def _error(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        TaskTemplate.from_config({**SQUAD, **changes}, "model.task_templates[0]")
    return str(error.value)


def test_the_documented_entry_is_read_from_a_config() -> None:
    template = TaskTemplate.from_config(OmegaConf.create(SQUAD))
    assert template == TaskTemplate(
        taskname="squad",
        prompt_template=SQUAD["prompt_template"],
        answer_only_loss=True,
        answer_field="answer",
    )
    assert template.fields() == ["context", "question", "answer"]
    assert template.prompt_fields() == ["context", "question"]
    assert template.problems() == []


@pytest.mark.parametrize(
    ("changes", "key", "what"),
    [
        ({"truncate_fild": "context"}, "truncate_fild", "did you mean 'truncate_field'?"),
        ({"taskname": ""}, "taskname", "is missing"),
        ({"prompt_template": 3}, "prompt_template", "3 is not text"),
        ({"virtual_token_splits": "3"}, "virtual_token_splits", "'3' is not []"),
        ({"total_virtual_tokens": 10, "virtual_token_splits": [10]}, "total_virtual_tokens", "total_virtual_tokens=0"),
        ({"prompt_template": "<|VIRTUAL_PROMPT_0|> {answer}"}, "prompt_template", "remove the marker"),
        ({"prompt_template": "no field", "answer_only_loss": False}, "prompt_template", "has no {field}"),
        ({"truncate_field": "contxt"}, "truncate_field", "did you mean 'context'?"),
        ({"answer_field": "anwser"}, "answer_field", "did you mean 'answer'?"),
        ({"answer_field": None}, "answer_field", "answer_only_loss requires it"),
        ({"prompt_template": "{question} {answer}."}, "prompt_template", "must end with {answer}"),
        ({"prompt_template": "{answer} {question} {answer}"}, "prompt_template", "its only occurrence"),
        ({"truncate_field": "answer"}, "truncate_field", "never cut"),
        ({"answer_field": []}, "answer_field", "[] is not the name of a field"),
        ({"truncate_field": False}, "truncate_field", "False is not the name of a field"),
        ({"answer_only_loss": "yes"}, "answer_only_loss", "'yes' is not True or False"),
    ],
)
def test_a_mistake_is_named_by_its_key(changes: dict[str, Any], key: str, what: str) -> None:
    message = _error(**changes)
    assert f"model.task_templates[0].{key}: " in message
    assert what in message


def test_all_mistakes_come_at_once() -> None:
    assert _error(truncate_field="contxt", answer_field="anwser").count("did you mean") == 2
    assert _error(task="squad", taskname=None).count("model.task_templates[0].") == 2


@pytest.mark.parametrize(
    ("text", "fields", "filled"),
    [
        ("{question} {answer}", ["question", "answer"], "q a"),
        ('{{"q": "{question}"}} {answer}', ["question", "answer"], '{"q": "q"} a'),
        ("{{question}} {answer}", ["answer"], "{question} a"),
        ("{{{question}}} {answer}", ["question", "answer"], "{q} a"),
        ("}}{question}{{ {answer}", ["question", "answer"], "}q{ a"),
        ("first\nsecond {my question:x} {answer}", ["my question:x", "answer"], "first\nsecond ! a"),
    ],
)
def test_doubled_braces_are_literal_and_all_else_is_a_field(text: str, fields: list[str], filled: str) -> None:
    template = TaskTemplate.from_config({**SQUAD, "prompt_template": text})
    assert template.fields() == fields
    values = {"question": "q", "answer": "a", "my question:x": "!"}
    for nemo_compat in (False, True):
        assert fill_template(template, values, nemo_compat=nemo_compat) == filled


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{question {answer}", "the brace { at character 1 is not closed"),
        ("question} {answer}", "the brace } at character 9 has no opening brace"),
        ("{a{b}c} {answer}", "the brace } at character 7 has no opening brace"),
        ("{} {answer}", "{} at character 1 has no field name"),
        ("{question} { } {answer}", "{ } at character 12 has no field name"),
        ("{question} {answer}{", "the brace { at character 20 is not closed"),
        ("{answer}}", "the brace } at character 9 has no opening brace"),
        ("{a\nb} {answer}", "at character 1 is not a field name"),
        (f"{{{'x' * 101}}} {{answer}}", "at character 1 is not a field name"),
    ],
)
def test_braces_that_make_no_field_are_told_with_their_place(text: str, what: str) -> None:
    assert what in _error(prompt_template=text)


def test_every_text_can_be_written_with_doubled_braces() -> None:
    for text in map("".join, itertools.product("{}a ", repeat=4)):
        template = text.replace("{", "{{").replace("}", "}}") + "{answer}"
        assert brace_problems(template, "") == []
        assert template_pieces(template) == (Piece(text, is_field=False), Piece("answer", is_field=True))


def test_the_suggested_field_to_cut_is_never_the_answer() -> None:
    assert "did you mean" not in _error(truncate_field="answr")
