# SPDX-License-Identifier: Apache-2.0
"""Task templates, which turn the fields of a record into a prompt; used by launcher and engine, without torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

from nemo_launcher.data.jinja_text import names_in, render
from nemo_launcher.data.no_answer import is_no_answer, no_answer_problems
from nemo_launcher.data.template_form import form_problems
from nemo_launcher.data.template_pieces import Piece, brace_problems, template_pieces
from nemo_launcher.errors import Problem, UserError, did_you_mean, json_kind

_VIRTUAL_PROMPT_MARKER = "<|VIRTUAL_PROMPT_"


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
    no_answer: str | None = None
    """The text for questions without an answer (data.no_answer); None: each record has an answer."""
    template_format: str = "fields"
    """One of template_form.FORMATS. With `chat`, records hold messages, and prompt_template is empty."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "model.task_templates") -> TaskTemplate:
        """Return the template in a configuration entry; where: the entry's key, for messages.

        Raises UserError with all problems of the entry.
        """
        problems = list(form_problems(config, where))
        if problems:
            raise UserError(problems)
        values = {str(key): value for key, value in config.items()}
        for key in ("virtual_token_splits", "choices"):
            values[key] = tuple(values.get(key) or ())
        values |= {"prompt_template": values.get("prompt_template") or ""}
        values |= {"template_format": values.get("template_format") or "fields"}
        template = cls(**values)
        problems = template.problems(where)
        if problems:
            raise UserError(problems)
        return template

    def fields(self) -> list[str]:
        """Return the distinct names of the fields in the prompt, in order; none in a chat, which has messages."""
        if self.is_jinja:
            return names_in(self.prompt_template, "prompt_template")
        return list(dict.fromkeys(piece.text for piece in self.pieces() if piece.is_field))

    @property
    def is_jinja(self) -> bool:
        """Whether prompt_template is Jinja's."""
        return self.template_format == "jinja"

    @property
    def is_chat(self) -> bool:
        """Whether records are conversations in the base's chat template."""
        return self.template_format == "chat"

    def values(self, record: Mapping[str, object], names: Iterable[str]) -> dict[str, Any]:
        """Return the values of the fields in a record: text, and for Jinja also lists, numbers and objects."""
        found = {name: record[name] for name in names if name in record}
        return found if self.is_jinja else {name: str(value) for name, value in found.items()}

    def pieces(self) -> tuple[Piece, ...]:
        """Return the parsed prompt_template."""
        return template_pieces(self.prompt_template)

    def has_space_before(self, field: str) -> bool:
        """Return whether a space precedes the field at any of its occurrences."""
        if self.is_jinja:
            return re.search(r" \{\{\s*" + re.escape(field) + r"\b", self.prompt_template) is not None
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
        if self.template_format != "fields":
            return ""
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

    def scored_answer(self, prediction: str) -> str:
        """Return the answer in a prediction as metrics score it: empty for `no_answer`."""
        answer = self.answer_in(prediction)
        return "" if is_no_answer(answer, self.no_answer) else answer

    @property
    def has_choices(self) -> bool:
        """Whether its records have answer choices (data.choices)."""
        return self.choices_field is not None or bool(self.choices)

    def problems(self, where: str = "model.task_templates") -> list[Problem]:
        """Return the problems of the template with adapters; where: the entry's key, for messages."""
        if self.is_chat:
            return [*self._chat_problems(where), *no_answer_problems(self, where), *self._virtual_token_problems(where)]
        if self.is_jinja:
            try:
                names_in(self.prompt_template, f"{where}.prompt_template")
            except UserError as error:
                return error.problems
        braces = [] if self.is_jinja else brace_problems(self.prompt_template, f"{where}.prompt_template")
        if braces:  # the fields are then unknown
            return [*braces, *self._virtual_token_problems(where)]
        return [
            *self._field_problems(where),
            *self._virtual_token_problems(where),
            *self._answer_problems(where),
            *self._choice_problems(where),
            *no_answer_problems(self, where),
        ]

    def _field_problems(self, where: str) -> Iterator[Problem]:
        if not self.fields():
            example = "{{ question }}" if self.is_jinja else "{question}"
            yield Problem(f"{where}.prompt_template", "has no {field}", f'add one, as in "question: {example}"')
            return
        for key in ("truncate_field", "answer_field"):
            name = getattr(self, key)
            if name is not None and name not in self.fields():
                what = f"{name!r} is not a field of prompt_template"
                choices = self.fields() if key == "answer_field" else self.prompt_fields()
                yield Problem(f"{where}.{key}", what, did_you_mean(name, choices))

    def _chat_problems(self, where: str) -> Iterator[Problem]:
        for key in ("prompt_template", "truncate_field", "answer_field", "choices_field", "choices"):
            if getattr(self, key):
                what = "has no effect: the base's chat template makes the prompt, and the assistant's turns are learnt"
                yield Problem(f"{where}.{key}", what, "remove it, or template_format: jinja")

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
        if not self._ends_with(self.answer_field):
            shown = f"{{{{ {self.answer_field} }}}}" if self.is_jinja else f"{{{self.answer_field}}}"
            what = f"must end with {shown}, its only occurrence: answer_only_loss learns the end"
            fix = f"move {shown} to the end, or answer_only_loss: False"
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

    def _ends_with(self, name: str) -> bool:
        """Return whether a field of the prompt occurs only once, at its end."""
        if name not in self.fields():
            return True
        if self.is_jinja:
            uses = re.findall(rf"\b{re.escape(name)}\b(?=[^{{}}]*[}}%]}})", self.prompt_template)
            at_end = rf"\{{\{{-?\s*{re.escape(name)}\s*-?\}}\}}$"
            return len(uses) == 1 and re.search(at_end, self.prompt_template) is not None
        answer = Piece(name, is_field=True)
        return self.pieces()[-1] == answer and self.pieces().count(answer) == 1


def fill_template(
    template: TaskTemplate, values: Mapping[str, Any], *, nemo_compat: bool, until: str | None = None
) -> str:
    """Return the filled template, without leading and trailing spaces; missing values are empty.

    until: a field at which the text ends, such as the answer that a model is to continue with; not with nemo_compat and
    not for Jinja, whose prompts end with the answer.
    """
    if template.is_jinja:
        present = {name: values.get(name, "") for name in template.fields()}
        text = render(template.prompt_template, present, f"the template of {template.taskname!r}")
    elif nemo_compat:
        text = "".join(f"{{{piece.text}}}" if piece.is_field else piece.text for piece in template.pieces())
        for name in template.fields():
            text = text.replace(f"{{{name}}}", values.get(name, ""))
    else:
        # A single pass: "{question}" inside a value is text, not a field.
        pieces = takewhile(lambda piece: not (piece.is_field and piece.text == until), template.pieces())
        text = "".join(values.get(piece.text, "") if piece.is_field else piece.text for piece in pieces)
    return text.strip(" ")


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
    repeated = next((text for text, count in Counter(texts).items() if count > 1), None)
    if repeated is not None and repeated.strip():
        yield f"holds {repeated!r} twice"
