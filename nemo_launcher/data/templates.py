# SPDX-License-Identifier: Apache-2.0
"""Task templates, which turn the fields of a record into a prompt; used by launcher and engine, without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import Any

from nemo_launcher.errors import Problem, UserError, did_you_mean, json_kind

MAX_FIELD_LENGTH = 100
"""The maximum length of a field name in a template, in characters."""

_VIRTUAL_PROMPT_MARKER = "<|VIRTUAL_PROMPT_"
_PIECE = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<lone>[{}])|[^{}]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt template."""

    text: str
    """The name of a field, or literal text."""
    is_field: bool
    """Whether it is a field."""


@lru_cache(maxsize=256)
def template_pieces(prompt_template: str) -> tuple[Piece, ...]:
    """Return the pieces of a prompt template: `{name}` is a field, `{{` and `}}` are braces, all else is text.

    An unmatched brace is text here; `brace_problems` reports it.
    """
    pieces: list[Piece] = []
    for match in _PIECE.finditer(prompt_template):
        if match["name"] is not None:
            pieces.append(Piece(match["name"], is_field=True))
            continue
        text = match[0][0] if match["brace"] else match[0]
        if pieces and not pieces[-1].is_field:
            text = pieces.pop().text + text
        pieces.append(Piece(text, is_field=False))
    return tuple(pieces)


def brace_problems(prompt_template: str, where: str) -> list[Problem]:
    """Return the problems of braces in a prompt template, with their positions, which count from 1."""
    problems = []
    for match in _PIECE.finditer(prompt_template):
        place, name = f"at character {match.start() + 1}", match["name"]
        if match["lone"] == "{":
            what = f"the brace {{ {place} is not closed"
            problems.append(Problem(where, what, "close it, as in {question}; write {{ for a literal brace"))
        elif match["lone"] == "}":
            what = f"the brace }} {place} has no opening brace"
            problems.append(Problem(where, what, "remove it; write }} for a literal brace"))
        elif name is not None and not name.strip():
            what = f"{{{name}}} {place} has no field name"
            problems.append(Problem(where, what, "add a name, as in {question}; write {{ and }} for literal braces"))
        elif name is not None and (len(name) > MAX_FIELD_LENGTH or not name.isprintable()):
            what = f"{{{name[:20]!r}...}} {place} is not a field name"
            fix = f"a name has up to {MAX_FIELD_LENGTH} printable characters; write {{{{ and }}}} for literal braces"
            problems.append(Problem(where, what, fix))
    return problems


def repeated_tasknames(names: Sequence[str], where: str = "model.task_templates") -> list[Problem]:
    """Return a Problem for each task with two templates; names: the tasks of the templates."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [Problem(where, f"two templates for {name!r}", "keep one of them") for name in repeated]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTemplate:
    """One entry of model.task_templates."""

    taskname: str
    """The `taskname` of its records."""
    prompt_template: str
    """The text of the prompt, with {field} for values of the record."""
    total_virtual_tokens: int = 0
    """Always 0: adapters have no virtual tokens."""
    virtual_token_splits: tuple[int, ...] = ()
    """Always empty: adapters have no virtual tokens."""
    truncate_field: str | None = None
    """The field to shorten if a prompt is too long; None for none."""
    answer_only_loss: bool = False
    """Whether the loss covers only the answer instead of all tokens."""
    answer_field: str | None = None
    """The field to learn, which is empty in inference."""
    choices_field: str | None = None
    """The field with the list of all possible answers of a record."""
    choices: tuple[str, ...] = ()
    """The possible answers of all records, instead of choices_field."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "model.task_templates") -> TaskTemplate:
        """Return the template in a configuration entry; where: the entry's key, for messages.

        Raises UserError with all problems of the entry.
        """
        problems = list(_form_problems(config, where))
        if problems:
            raise UserError(problems)
        values = {str(key): value for key, value in config.items()}
        for key in ("virtual_token_splits", "choices"):
            values[key] = tuple(values.get(key) or ())
        template = cls(**values)
        problems = template.problems(where)
        if problems:
            raise UserError(problems)
        return template

    def fields(self) -> list[str]:
        """Return the distinct names of the fields in the prompt, in order."""
        return list(dict.fromkeys(piece.text for piece in self.pieces() if piece.is_field))

    def pieces(self) -> tuple[Piece, ...]:
        """Return the parsed prompt_template."""
        return template_pieces(self.prompt_template)

    def has_space_before(self, field: str) -> bool:
        """Return whether a space precedes the field at any of its occurrences."""
        pieces = self.pieces()
        return any(
            piece.is_field and piece.text == field and not before.is_field and before.text.endswith(" ")
            for before, piece in pairwise(pieces)
        )

    def prompt_fields(self) -> list[str]:
        """Return the fields that a prompt needs in inference: all but the answer."""
        return [field for field in self.fields() if field != self.answer_field]

    def closing_text(self) -> str:
        """Return the text behind the answer, without white space around it; empty if a field follows the answer."""
        pieces = self.pieces()
        places = [place for place, piece in enumerate(pieces) if piece.is_field and piece.text == self.answer_field]
        behind = pieces[places[0] + 1 :] if places else ()
        return behind[0].text.strip() if len(behind) == 1 and not behind[0].is_field else ""

    def answer_in(self, prediction: str) -> str:
        """Return a prediction without the template's closing text and what follows it.

        A single character, such as a full stop, may be part of an answer: it is removed only from the end.
        """
        closing = self.closing_text()
        if len(closing) > 1:
            return prediction.partition(closing)[0]
        return prediction.rstrip().removesuffix(closing) if closing else prediction

    @property
    def has_choices(self) -> bool:
        """Whether its records have answer choices (data.choices)."""
        return self.choices_field is not None or bool(self.choices)

    def problems(self, where: str = "model.task_templates") -> list[Problem]:
        """Return the problems of the template with adapters; where: the entry's key, for messages."""
        braces = brace_problems(self.prompt_template, f"{where}.prompt_template")
        if braces:  # the fields are then unknown
            return [*braces, *self._virtual_token_problems(where)]
        return [
            *self._field_problems(where),
            *self._virtual_token_problems(where),
            *self._answer_problems(where),
            *self._choice_problems(where),
        ]

    def _field_problems(self, where: str) -> Iterator[Problem]:
        if not self.fields():
            yield Problem(f"{where}.prompt_template", "has no {field}", 'add one, as in "question: {question}"')
            return
        for key in ("truncate_field", "answer_field"):
            name = getattr(self, key)
            if name is not None and name not in self.fields():
                what = f"{name!r} is not a field of prompt_template"
                choices = self.fields() if key == "answer_field" else self.prompt_fields()
                yield Problem(f"{where}.{key}", what, did_you_mean(name, choices))

    def _virtual_token_problems(self, where: str) -> Iterator[Problem]:
        for key, none in (("total_virtual_tokens", "0"), ("virtual_token_splits", "[]")):
            if getattr(self, key):
                yield Problem(f"{where}.{key}", "adapters have no virtual tokens", f"{where}.{key}={none}")
        if _VIRTUAL_PROMPT_MARKER in self.prompt_template:
            what = f"{_VIRTUAL_PROMPT_MARKER}...|> marks virtual tokens, which adapters do not have"
            yield Problem(f"{where}.prompt_template", what, "remove the marker")

    def _answer_problems(self, where: str) -> Iterator[Problem]:
        if not self.answer_only_loss:
            return
        if self.answer_field is None:
            yield Problem(f"{where}.answer_field", "answer_only_loss requires it", "set it, or answer_only_loss: False")
            return
        answer = Piece(self.answer_field, is_field=True)
        if answer in self.pieces() and (self.pieces()[-1] != answer or self.pieces().count(answer) > 1):
            what = f"must end with {{{self.answer_field}}}, its only occurrence: answer_only_loss learns the end"
            fix = f"move {{{self.answer_field}}} to the end, or answer_only_loss: False"
            yield Problem(f"{where}.prompt_template", what, fix)
        if self.truncate_field == self.answer_field:
            what = f"{self.truncate_field!r} is the answer, which is never cut"
            yield Problem(f"{where}.truncate_field", what, "use another field, or null")

    def _choice_problems(self, where: str) -> Iterator[Problem]:
        if not self.has_choices:
            return
        if self.choices_field is not None and self.choices:
            yield Problem(f"{where}.choices", "choices_field names the choices too", "remove one of the two keys")
        if not self.answer_only_loss:
            yield Problem(f"{where}.answer_only_loss", "must be True: the choices are answers", "set it to True")
            if self.answer_field is None:
                yield Problem(f"{where}.answer_field", "choices require it", "name the field with the right answer")
        if self.choices_field is not None and self.choices_field == self.answer_field:
            what = f"{self.choices_field!r} is answer_field, one text"
            yield Problem(f"{where}.choices_field", what, "name the field with the list of all choices")
        for what in wrong_choices(self.choices) if self.choices else ():
            yield Problem(f"{where}.choices", what, 'write two or more different texts, such as ["yes", "no"]')


def fill_template(
    template: TaskTemplate, values: Mapping[str, str], *, nemo_compat: bool, until: str | None = None
) -> str:
    """Return the filled template, without leading and trailing spaces; missing values are empty.

    until: a field at which the text ends, such as the answer that a model is to continue with; not with nemo_compat.
    """
    if nemo_compat:
        text = "".join(f"{{{piece.text}}}" if piece.is_field else piece.text for piece in template.pieces())
        for name in template.fields():
            text = text.replace(f"{{{name}}}", values.get(name, ""))
    else:
        # A single pass: "{question}" inside a value is text, not a field.
        pieces = takewhile(lambda piece: not (piece.is_field and piece.text == until), template.pieces())
        text = "".join(values.get(piece.text, "") if piece.is_field else piece.text for piece in pieces)
    return text.strip(" ")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not _is_text(value)


_VALUE_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "taskname": (_is_text, "text"),
    "prompt_template": (_is_text, "text"),
    "total_virtual_tokens": (lambda value: isinstance(value, int), "0"),
    "virtual_token_splits": (_is_list, "[]"),
    "truncate_field": (_is_text, "the name of a field, or null"),
    "answer_only_loss": (lambda value: isinstance(value, bool), "True or False"),
    "answer_field": (_is_text, "the name of a field, or null"),
    "choices_field": (_is_text, "the name of a field, or null"),
    "choices": (_is_list, 'a list of texts, such as ["yes", "no"]'),
}


def wrong_choices(choices: Sequence[object]) -> Iterator[str]:
    """Yield what is wrong with a list of answer choices."""
    others = [choice for choice in choices if not isinstance(choice, str)]
    texts = [choice for choice in choices if isinstance(choice, str)]
    if others:
        yield f"holds {json_kind(others[0])}, not only texts"
    elif len(texts) < 2:
        yield f"has {len(texts)} choice{'' if texts else 's'}, but nothing can be chosen from fewer than two"
    if any(not text.strip() for text in texts):
        yield "holds an empty choice"
    repeated = next((text for text in texts if texts.count(text) > 1), None)
    if repeated is not None and repeated.strip():
        yield f"holds {repeated!r} twice"


def _form_problems(config: Mapping[str, object], where: str) -> Iterator[Problem]:
    """Yield unknown keys, missing keys and values of the wrong type."""
    for key in config:
        if key not in _VALUE_CHECKS:
            yield Problem(f"{where}.{key}", "no such key", did_you_mean(str(key), _VALUE_CHECKS))
    for key in ("taskname", "prompt_template"):
        if not config.get(key):
            yield Problem(f"{where}.{key}", "is missing", f"add {key}")
    for key, (is_right, wanted) in _VALUE_CHECKS.items():
        if config.get(key) is not None and not is_right(config[key]):
            yield Problem(f"{where}.{key}", f"{config[key]!r} is not {wanted}", f"write {wanted}")
