# SPDX-License-Identifier: Apache-2.0
"""The form of an entry of model.task_templates: its keys and the types of their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from nemo_launcher.errors import Problem, did_you_mean

FORMATS = ("fields", "jinja", "chat")
"""How a prompt is made: {field} in prompt_template, a Jinja prompt_template, or the base's own chat template."""


def form_problems(config: Mapping[str, object], where: str) -> Iterator[Problem]:
    """Yield unknown keys, missing keys and values of the wrong type. where: the entry's key, for messages."""
    for key in config:
        if key not in _VALUE_CHECKS:
            yield Problem(f"{where}.{key}", "no such key", did_you_mean(str(key), _VALUE_CHECKS))
    for key in ("taskname",) if config.get("template_format") == "chat" else ("taskname", "prompt_template"):
        if not config.get(key):
            yield Problem(f"{where}.{key}", "is missing", f"add {key}")
    for key, (is_right, wanted) in _VALUE_CHECKS.items():
        if config.get(key) is not None and not is_right(config[key]):
            yield Problem(f"{where}.{key}", f"{config[key]!r} is not {wanted}", f"write {wanted}")


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
    "no_answer": (_is_text, "a text, or null"),
    "template_format": (lambda value: value in FORMATS, " or ".join(FORMATS)),
}
