# SPDX-License-Identifier: Apache-2.0
"""Conversations, rendered by a base's own chat template, with the parts that are trained: the assistant's turns.

A template that marks what the assistant says ({% generation %}) tells the trained parts itself. Without marks, a turn's
part is what the conversation up to it adds to the one before it, with the template's own start of an answer
(add_generation_prompt); this needs a template that does not rewrite earlier turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_launcher.data.jinja_text import SPAN_END, SPAN_START, render
from nemo_launcher.errors import Problem, UserError, json_kind

MESSAGES, PROMPT, COMPLETION = "messages", "prompt", "completion"
"""The fields of a conversation: all messages, or a prompt (text or messages) with the completion to learn."""
_ASSISTANT = "assistant"
_FORM = '"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'

Message = Mapping[str, object]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Chat:
    """A base's chat template."""

    template: str
    """The Jinja template."""
    special: tuple[tuple[str, str], ...]
    """The special tokens that it may read, such as bos_token, by name."""

    def training(self, messages: Sequence[Message], where: str) -> tuple[str, list[Span]]:
        """Return the text of a conversation and the character spans of the assistant's turns in it.

        Raises UserError if the template fails, or does not tell the turns.
        """
        marked = self._render(messages, where)
        if SPAN_START in marked:
            return _without_marks(marked)
        spans, end = [], 0
        for index, message in enumerate(messages):
            if message["role"] != _ASSISTANT:
                continue
            before = self._render(messages[:index], where, add_generation_prompt=True)
            until = self._render(messages[: index + 1], where)
            if not (marked.startswith(before) and marked.startswith(until) and end <= len(before) < len(until)):
                what = f"the base's chat template rewrites turns before message {index + 1}, or marks none"
                raise UserError(Problem(where, what, "write each answer as a record of its own, its last message"))
            end = len(until.rstrip())  # a line break after the end of a turn is not the assistant's
            spans.append((len(before), end))
        return marked, spans

    def prompt(self, messages: Sequence[Message], where: str) -> str:
        """Return the text before the answer to a conversation, without its last message if that is an answer."""
        if messages[-1]["role"] == _ASSISTANT:
            messages = messages[:-1]
        return _without_marks(self._render(messages, where, add_generation_prompt=True))[0]

    def _render(self, messages: Sequence[Message], where: str, *, add_generation_prompt: bool = False) -> str:
        values: dict[str, Any] = dict(self.special)
        values |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        return render(self.template, values | {"tools": None, "documents": None}, where, strict=False)


def messages_of(record: Mapping[str, object]) -> list[Message]:
    """Return the messages of a record that `message_problems` accepts."""
    if MESSAGES in record:
        return _as_list(record[MESSAGES])
    prompt, completion = record[PROMPT], record.get(COMPLETION)
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _as_list(prompt)
    if isinstance(completion, str):
        return [*messages, {"role": _ASSISTANT, "content": completion}]
    return [*messages, *_as_list(completion)]


def _as_list(messages: object) -> list[Message]:
    return list(messages) if isinstance(messages, list) else []


def answer_of(record: Mapping[str, object]) -> str | None:
    """Return what the assistant says last in a record; None if the last message is not an answer."""
    if message_problems(record, "", for_train=False):
        return None
    last = messages_of(record)[-1]
    return str(last["content"]) if last["role"] == _ASSISTANT else None


def question_of(record: Mapping[str, object]) -> object:
    """Return the messages before the last answer of a record; all of its values if it is no conversation."""
    if message_problems(record, "", for_train=False):
        return record
    messages = messages_of(record)
    return messages[:-1] if messages[-1]["role"] == _ASSISTANT else messages


def message_problems(record: Mapping[str, object], where: str, *, for_train: bool) -> list[Problem]:
    """Return the problems of a record as a conversation. for_train: an answer of the assistant is required."""
    found = [name for name in (MESSAGES, PROMPT, COMPLETION) if name in record]
    if not found or found == [COMPLETION]:
        return [Problem(where, "no messages", f"write {_FORM}, or a prompt and a completion")]
    if MESSAGES in found and len(found) > 1:
        return [Problem(where, f"has both 'messages' and {found[1]!r}", "keep one of them")]
    for name in found:
        value = record[name]
        if name == MESSAGES or not isinstance(value, str):
            problem = _list_problem(value, name, where)
            if problem is not None:
                return [problem]
    messages = messages_of(record)
    if not messages or (not for_train and [message["role"] for message in messages] == [_ASSISTANT]):
        return [Problem(where, "has no message to answer", f"write {_FORM}")]
    if for_train and not any(message["role"] == _ASSISTANT for message in messages):
        return [Problem(where, "has no message of the assistant: there is no answer to learn", f"write {_FORM}")]
    return []


def _list_problem(value: object, name: str, where: str) -> Problem | None:
    if not isinstance(value, list):
        return Problem(where, f"field {name!r} holds {json_kind(value)}, not a list of messages", f"write {_FORM}")
    for number, message in enumerate(value, start=1):
        is_message = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not is_message or not isinstance(message.get("content"), str):
            what = f"message {number} of {name!r} has no role and content that are text"
            return Problem(where, what, f"write {_FORM}")
        if any(mark in str(message["content"]) for mark in (SPAN_START, SPAN_END)):
            return Problem(where, f"message {number} of {name!r} has U+FDD0 or U+FDD1, which are no characters", "")
    return None


def _without_marks(marked: str) -> tuple[str, list[Span]]:
    """Return a text without the marks of {% generation %}, and the spans between them."""
    text, *parts = marked.split(SPAN_START)
    spans = []
    for part in parts:
        start = len(text)
        inside, _, after = part.partition(SPAN_END)
        text += inside
        spans.append((start, len(text)))
        text += after
    return text, spans
