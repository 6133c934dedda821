# SPDX-License-Identifier: Apache-2.0
"""Reader of JSON files in the SQuAD format; errors name the place in the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nemo_launcher.data.jsonl import MAX_PROBLEMS
from nemo_launcher.errors import Problem, UserError, json_kind
from nemo_launcher.files.foreign import parse_json, read_bytes

MAX_FILE_BYTES = 2**30
"""The maximum size of a file; SQuAD has 30 MB, and parsing takes several times the size."""

_FORMAT_ADVICE = "SQuAD v1.1 is data[].paragraphs[].{context, qas[].{id, question, answers[].text}}"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one paragraph."""

    id: str
    """SQuAD's id of the question."""
    context: str
    """The paragraph."""
    question: str
    """The question."""
    answers: tuple[str, ...]
    """The answers of all annotators, at least one, including duplicates."""


@dataclass(frozen=True, slots=True)
class SquadFile:
    """The content of a file in the SQuAD format."""

    questions: list[Question]
    """The questions with an answer, in the file's order."""
    num_unanswerable: int
    """The number of questions without an answer, as in SQuAD 2."""


def read_questions(path: Path) -> list[Question]:
    """Return the questions with an answer; raises what `read_squad` raises."""
    return read_squad(path).questions


def read_squad(path: Path) -> SquadFile:
    """Return the content of a file in the SQuAD format.

    Raises UserError with the first problems, each with its place (`file: data[3].paragraphs[0].context`), if the file
    is not JSON, not in the SQuAD format, or has no question with an answer.
    """
    fix = "the file may be incomplete: copy it again, or remove it to have it downloaded"
    content = parse_json(read_bytes(path, MAX_FILE_BYTES), str(path), fix=fix)
    reader = _Reader(path)
    questions = list(reader.questions(content))
    if not reader.problems and not questions:
        reader.problems.append(Problem(str(path), "holds no question with an answer", _FORMAT_ADVICE))
    if reader.problems:
        raise UserError(reader.problems)
    return SquadFile(questions, reader.num_unanswerable)


class _Reader:
    """Iterates over one file; problems are collected, and the entries with problems skipped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.num_unanswerable = 0

    def questions(self, content: object) -> Iterator[Question]:
        for article, at in self._items(content, "data", ""):
            for paragraph, at_paragraph in self._items(article, "paragraphs", at):
                context = self._text(paragraph, "context", at_paragraph)
                for entry, at_question in self._items(paragraph, "qas", at_paragraph):
                    question = self._question(entry, context, at_question)
                    if question is not None:
                        yield question

    def _question(self, entry: object, context: str | None, at: str) -> Question | None:
        name = self._text(entry, "id", at)
        question = self._text(entry, "question", at)
        texts = [self._text(answer, "text", at_answer) for answer, at_answer in self._items(entry, "answers", at)]
        answers = tuple(text for text in texts if text is not None and text.strip())
        if name is None or question is None or context is None:
            return None
        if not answers:
            self.num_unanswerable += all(text is not None for text in texts)
            return None
        return Question(name, context, question, answers)

    def _items(self, holder: object, key: str, at: str) -> Iterator[tuple[object, str]]:
        """Yield each element of the list at `key`, with its place."""
        items = self._value(holder, key, at, list)
        for index, item in enumerate(items or []):
            yield item, f"{at}{'.' if at else ''}{key}[{index}]"

    def _text(self, holder: object, key: str, at: str) -> str | None:
        return self._value(holder, key, at, str)

    def _value(self, holder: object, key: str, at: str, kind: type[T]) -> T | None:
        """Return the value at `key` if it has the right type; otherwise record a problem and return None."""
        wanted = "text" if kind is str else "a list"
        if not isinstance(holder, dict):
            self._problem(at, f"is {json_kind(holder)}, not an object")
        elif key not in holder:
            self._problem(at, f"has no {key!r} ({wanted})")
        elif isinstance(value := holder[key], kind):
            return value
        else:
            self._problem(f"{at}{'.' if at else ''}{key}", f"is {json_kind(value)}, not {wanted}")
        return None

    def _problem(self, at: str, what: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(f"{self.path}: {at}" if at else str(self.path), what, _FORMAT_ADVICE))
