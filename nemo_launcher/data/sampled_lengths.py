# SPDX-License-Identifier: Apache-2.0
"""The lengths of samples in tokens, estimated from a part of the data in a bounded time. Imports no torch."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from nemo_launcher.data.chat import Chat, message_problems, messages_of
from nemo_launcher.data.choices import choice_problems, choices_of
from nemo_launcher.data.jsonl import MAX_LINE_BYTES
from nemo_launcher.data.record_values import prepared
from nemo_launcher.data.records import is_plain_lines, read_records
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.data.templates import TaskTemplate, fill_template
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import parse_json

READ_BYTES = 16 << 20
"""The bytes of each file that are read."""
FIRST_RECORDS = 256
"""The number of records from which the mean length is taken."""
LONGEST_RECORDS = 8
"""The number of longest lines from which the maximum is taken."""
MIN_SHARED_CHARACTERS = 64
"""Shorter common prefixes do not count: prefix_tree.MIN_SHARED_TOKENS, of four characters each."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths of samples in tokens."""

    longest: float
    """The longest prompt, with its answer where a prompt contains it."""
    mean: float
    """The mean of the prompts."""
    own: float
    """The mean of what a prompt does not share with others."""
    tree: float
    """The most tokens of prompts with a common prefix, which counts once, in the part that was read."""
    answer: float
    """The mean of what is in the loss."""
    longest_answer: float
    """The longest of it."""


@dataclass(frozen=True, slots=True)
class _Text:
    """The texts of a record."""

    prompt: str
    """The filled template."""
    answer: str
    """What is in the loss."""
    other_choices: str = ""
    """The record's other answer choices, if the loss compares them."""


def sampled_lengths(
    paths: Sequence[Path],
    templates: Iterable[TaskTemplate],
    count: Callable[[str], int],
    *,
    limit: int,
    answer_apart: bool,
    columns: Mapping[str, str] | None = None,
    with_choices: bool = False,
    chat: Chat | None = None,
) -> Lengths | None:
    """Return the lengths of the records in data files; None if nothing can be read.

    limit: the maximum number of tokens of a prompt. answer_apart: whether the answer is not in the prompt (T5).
    columns: as in `read_records`. with_choices: the other answer choices of a record are computed too, where the answer
    is. chat: the base's chat template, without which only the messages count. Records with mistakes are left out: the
    job's checks report them.
    """
    tasks = Tasks.of(templates)
    texts = partial(_texts, tasks=tasks, answer_apart=answer_apart, with_choices=with_choices, chat=chat)
    first: list[_Text] = []
    longest: list[_Text] = []
    for path in paths:
        found: list[bytes | dict[str, object]] = list(
            _lines(path) if is_plain_lines(path) and not columns else _records(path, columns)
        )
        first += texts(found[: FIRST_RECORDS // len(paths) + 1])
        longest += texts(heapq.nlargest(LONGEST_RECORDS, found, key=_size))
    if not first:
        return None
    with contextlib.suppress(UserError):

        def answer_length(text: _Text) -> int:
            return count(text.answer) + (count(text.other_choices) if text.other_choices else 0)

        def prompt_length(text: _Text) -> int:
            others = 0 if answer_apart or not text.other_choices else count(text.other_choices)
            return min(limit, count(text.prompt)) + others

        prompts = [prompt_length(text) for text in first]
        answers = [answer_length(text) for text in first]
        shared = _shared([text.prompt for text in first], prompts)
        return Lengths(
            longest=max([*prompts, *map(prompt_length, longest)]),
            mean=sum(prompts) / len(first),
            own=sum(tokens - common for tokens, common in shared) / len(first),
            tree=max(_trees(shared)),
            answer=sum(answers) / len(first),
            longest_answer=max([*answers, *map(answer_length, longest)]),
        )
    return None


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the non-blank lines in the first READ_BYTES of a file."""
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                left = READ_BYTES
                while left > 0 and (line := file.readline(MAX_LINE_BYTES)):
                    left -= len(line)
                    if line.strip():
                        yield line


def _records(path: Path, columns: Mapping[str, str] | None) -> Iterator[dict[str, object]]:
    """Yield the first records of a file in another form, with READ_BYTES in total."""
    with contextlib.suppress(OSError, UserError):
        left = READ_BYTES
        for _, record in read_records(path, columns):
            yield record
            left -= _size(record)
            if left <= 0:
                break


def _size(found: bytes | dict[str, object]) -> int:
    """Return the length of a line, or of a record's texts."""
    if isinstance(found, bytes):
        return len(found)
    return sum(len(value) for value in found.values() if isinstance(value, str))


def _texts(
    found: Iterable[bytes | dict[str, object]],
    *,
    tasks: Tasks,
    answer_apart: bool,
    with_choices: bool,
    chat: Chat | None,
) -> Iterator[_Text]:
    """Yield the texts of the records that are complete. found: lines of JSON, or records."""
    for line in found:
        with contextlib.suppress(UserError):
            record = parse_json(line, "data") if isinstance(line, bytes) else line
            template = tasks.find(record, "data") if isinstance(record, dict) else None
            if template is None or isinstance(template, Problem):
                continue
            if template.is_chat:
                yield _chat_text(record, chat)
                continue
            record = prepared(record, template, for_train=True)
            values: dict[str, Any] = dict.fromkeys(template.fields(), "")
            values |= template.values(record, template.fields())
            answer = str(values.get(str(template.answer_field), ""))
            if answer_apart:
                values.pop(str(template.answer_field), None)
            prompt = fill_template(template, values, nemo_compat=False)
            learnt = answer if answer_apart or template.answer_only_loss else prompt
            yield _Text(prompt, learnt, _other_choices(record, template, answer) if with_choices else "")


def _other_choices(record: dict[str, object], template: TaskTemplate, answer: str) -> str:
    """Return a record's choices but for its answer, with spaces between them."""
    if any(choice_problems(record, "data", template, for_train=False)):
        return ""
    return " ".join(choice for choice in choices_of(record, template) if choice != answer)


def _chat_text(record: dict[str, object], chat: Chat | None) -> _Text:
    """Return the text of a conversation; without a chat template, that of its messages alone."""
    messages = [] if message_problems(record, "data", for_train=True) else messages_of(record)
    if chat is not None and messages:
        text, spans = chat.training(messages, "data")
        return _Text(text, "".join(text[start:end] for start, end in spans))
    said = [str(message["content"]) for message in messages if message["role"] == "assistant"]
    return _Text("\n".join(str(message["content"]) for message in messages), "\n".join(said))


def _shared(prompts: Sequence[str], tokens: Sequence[int]) -> list[tuple[float, float]]:
    """Return for each prompt, sorted by text, its tokens and how many of them are those of the prompt before it."""
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    found = [(float(tokens[order[0]]), 0.0)]
    for before, number in pairwise(order):
        common = _common_prefix(prompts[before], prompts[number])
        share = common / max(1, len(prompts[number])) if common >= MIN_SHARED_CHARACTERS else 0.0
        found.append((float(tokens[number]), share * tokens[number]))
    return found


def _common_prefix(first: str, second: str) -> int:
    """Return the number of characters that two texts have in common at their start."""
    limit = min(len(first), len(second))
    return next((place for place in range(limit) if first[place] != second[place]), limit)


def _trees(shared: Iterable[tuple[float, float]]) -> Iterator[float]:
    """Yield the tokens of each tree of prompts with a common prefix."""
    total = 0.0
    for tokens, common in shared:
        if not common:
            yield total
            total = 0.0
        total += tokens - common
    yield total
