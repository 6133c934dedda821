"""Task templates: how the fields of a record become one prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_launcher.errors import Problem, UserError, did_you_mean

FIELD_PATTERN = re.compile(r"\{(.*?)\}")
"""`{name}` in a prompt template; the group is the name."""

_VIRTUAL_PROMPT_MARKER = "<|VIRTUAL_PROMPT_"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTemplate:
    """One entry of model.task_templates.

    taskname: which records it is for; prompt_template: the text with a {field} for each value of the record;
    total_virtual_tokens, virtual_token_splits: 0 and [], adapters have none; truncate_field: the field that gives way
    when a prompt is too long, None: no field does; answer_only_loss: train on the answer alone, otherwise on every
    token; answer_field: the field that is learned and that is left empty in inference.
    """

    taskname: str
    prompt_template: str
    total_virtual_tokens: int = 0
    virtual_token_splits: tuple[int, ...] = ()
    truncate_field: str | None = None
    answer_only_loss: bool = False
    answer_field: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "model.task_templates") -> TaskTemplate:
        """Return the template of one config entry, checked; `where` names the entry in the messages.

        Raises UserError with all problems of the entry.
        """
        problems = list(_form_problems(config, where))
        if problems:
            raise UserError(problems)
        values = {str(key): value for key, value in config.items()}
        values["virtual_token_splits"] = tuple(values.get("virtual_token_splits") or ())
        template = cls(**values)
        problems = template.problems(where)
        if problems:
            raise UserError(problems)
        return template

    def fields(self) -> list[str]:
        """Return the names of the fields in the prompt, each once, in order."""
        return list(dict.fromkeys(FIELD_PATTERN.findall(self.prompt_template)))

    def prompt_fields(self) -> list[str]:
        """Return the fields that a prompt needs in inference: all but the answer."""
        return [field for field in self.fields() if field != self.answer_field]

    def problems(self, where: str = "model.task_templates") -> list[Problem]:
        """Return what makes the template unusable for adapters; `where` names the entry in the messages."""
        return [*self._field_problems(where), *self._virtual_token_problems(where), *self._answer_problems(where)]

    def _field_problems(self, where: str) -> Iterator[Problem]:
        if not self.fields():
            yield Problem(f"{where}.prompt_template", "has no {field}", 'write one, as in "question: {question}"')
        for key in ("truncate_field", "answer_field"):
            name = getattr(self, key)
            if name is not None and name not in self.fields():
                what = f"{name!r} is no field of prompt_template"
                yield Problem(f"{where}.{key}", what, did_you_mean(name, self.fields()))

    def _virtual_token_problems(self, where: str) -> Iterator[Problem]:
        if self.total_virtual_tokens or self.virtual_token_splits:
            what = "adapters have no virtual tokens"
            yield Problem(f"{where}.total_virtual_tokens", what, "write 0, and virtual_token_splits: []")
        if _VIRTUAL_PROMPT_MARKER in self.prompt_template:
            what = f"{_VIRTUAL_PROMPT_MARKER}...|> marks virtual tokens, which adapters do not have"
            yield Problem(f"{where}.prompt_template", what, "remove the marker")

    def _answer_problems(self, where: str) -> Iterator[Problem]:
        if not self.answer_only_loss:
            return
        if self.answer_field is None:
            yield Problem(
                f"{where}.answer_field", "answer_only_loss needs it", "name the field, or answer_only_loss: False"
            )
            return
        marker = f"{{{self.answer_field}}}"
        if not self.prompt_template.endswith(marker) or self.prompt_template.count(marker) > 1:
            what = f"answer_only_loss needs {marker} once, at the very end"
            yield Problem(f"{where}.prompt_template", what, "move it to the end, or answer_only_loss: False")
        if self.truncate_field == self.answer_field:
            what = f"{self.truncate_field!r} is the answer, which is never cut"
            yield Problem(f"{where}.truncate_field", what, "name another field, or null")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not _is_text(value)


_VALUE_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "taskname": (_is_text, "text"),
    "prompt_template": (_is_text, "text"),
    "total_virtual_tokens": (lambda value: isinstance(value, int), "0"),
    "virtual_token_splits": (_is_list, "[]"),
    "truncate_field": (_is_text, "the name of a field, or null"),
    "answer_only_loss": (lambda value: isinstance(value, bool), "True or False"),
    "answer_field": (_is_text, "the name of a field, or null"),
}


def _form_problems(config: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Yield the unknown keys, the missing ones and the values of a wrong type."""
    for key in config:
        if key not in _VALUE_CHECKS:
            yield Problem(f"{where}.{key}", "no such key", did_you_mean(str(key), _VALUE_CHECKS))
    for key in ("taskname", "prompt_template"):
        if not config.get(key):
            yield Problem(f"{where}.{key}", "is missing", f"add {key}")
    for key, (is_right, wanted) in _VALUE_CHECKS.items():
        if config.get(key) and not is_right(config[key]):
            yield Problem(f"{where}.{key}", f"{config[key]!r} is not {wanted}", f"write {wanted}")
