# SPDX-License-Identifier: Apache-2.0
"""Records that need no template of their own: conversations, and prompts with a completion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nemo_launcher.data.chat import COMPLETION, MESSAGES, PROMPT
from nemo_launcher.errors import Problem

CONVERSATION, COMPLETED = "messages", "prompt_completion"

TEMPLATES: dict[str, dict[str, object]] = {
    CONVERSATION: {"taskname": CONVERSATION, "template_format": "chat", "answer_only_loss": True},
    COMPLETED: {
        "taskname": COMPLETED,
        "prompt_template": f"{{{PROMPT}}}{{{COMPLETION}}}",
        "answer_field": COMPLETION,
        "answer_only_loss": True,
    },
}
"""The template for each of these forms, as an entry of model.task_templates; its taskname is the name of the form."""
MEANINGS = {
    CONVERSATION: "`messages` in the base's chat template, with the loss on the assistant's turns",
    COMPLETED: "`prompt` followed by `completion`, with the loss on the completion",
}
"""What these templates do."""
WITHOUT_CHATS = 'write {"prompt": "...", "completion": "..."}, or use an instruction-tuned base, which has one'
"""What to do about conversations if the base has no chat template."""


def told(forms: Iterable[str]) -> str:
    """Return what the templates of some forms do, for messages: these were assumed."""
    return f"records without a template: {'; '.join(MEANINGS[form] for form in forms)}"


def no_templates(key: str) -> Problem:
    """Return the problem of records of other forms without a template. key: that of the templates."""
    fix = "add a template with taskname and prompt_template; only messages, or a prompt and a completion, need none"
    return Problem(key, "is empty", fix)


def form_of(record: Mapping[str, object]) -> str | None:
    """Return the form of a record, a key of TEMPLATES; None for any other record."""
    if any(isinstance(record.get(name), list) for name in (MESSAGES, PROMPT, COMPLETION)):
        return CONVERSATION
    return COMPLETED if isinstance(record.get(PROMPT), str) else None
