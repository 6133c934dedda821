from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_launcher.data.templates import TaskTemplate
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
        ({"total_virtual_tokens": 10, "virtual_token_splits": [10]}, "total_virtual_tokens", "write 0"),
        ({"prompt_template": "<|VIRTUAL_PROMPT_0|> {answer}"}, "prompt_template", "remove the marker"),
        ({"prompt_template": "no field", "answer_only_loss": False}, "prompt_template", "has no {field}"),
        ({"truncate_field": "contxt"}, "truncate_field", "did you mean 'context'?"),
        ({"answer_field": "anwser"}, "answer_field", "did you mean 'answer'?"),
        ({"answer_field": None}, "answer_field", "answer_only_loss needs it"),
        ({"prompt_template": "{question} {answer}."}, "prompt_template", "at the very end"),
        ({"prompt_template": "{answer} {question} {answer}"}, "prompt_template", "once, at the very end"),
        ({"truncate_field": "answer"}, "truncate_field", "never cut"),
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
