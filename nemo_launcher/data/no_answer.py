# SPDX-License-Identifier: Apache-2.0
"""Questions without an answer, for templates whose `no_answer` names the text that a model learns to say then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemo_launcher.errors import Problem

if TYPE_CHECKING:
    from nemo_launcher.data.templates import TaskTemplate


def is_no_answer(value: object, no_answer: str | None) -> bool:
    """Return whether the answer of a record, or a prediction, says that there is no answer.

    It does if it is empty, null or the text `no_answer`, whose case, white space and final full stop do not matter, and
    a list if all of its answers do. no_answer: None if the template names no text; nothing then says so.
    """
    if no_answer is None:
        return False
    if isinstance(value, list):
        return all(is_no_answer(answer, no_answer) for answer in value)
    return value is None or (isinstance(value, str) and _plain(value) in ("", _plain(no_answer)))


def no_answer_problems(template: TaskTemplate, where: str) -> Iterator[Problem]:
    """Yield what is wrong with a template's `no_answer`. where: the template's key."""
    if template.no_answer is None:
        return
    key = f"{where}.no_answer"
    if not _plain(template.no_answer):
        yield Problem(key, "is empty", f"{key}=unanswerable, or null")
    elif template.is_chat:
        yield Problem(key, "has no effect in a chat, whose last message is the answer", "remove it")
    elif template.has_choices:
        yield Problem(key, "has no effect beside answer choices", "remove it, and name the text among the choices")
    elif template.answer_field is None:
        yield Problem(f"{where}.answer_field", "no_answer requires it", "name the field of the answer")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()
