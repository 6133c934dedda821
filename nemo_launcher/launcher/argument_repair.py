# SPDX-License-Identifier: Apache-2.0
"""Suggest corrections for arguments that Hydra's grammar rejects; each is tested before it is suggested."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from nemo_launcher.adapters.sections import STAGES
from nemo_launcher.config.overrides import quoted
from nemo_launcher.errors import Problem
from nemo_launcher.launcher.suggestions import GROUPS, is_accepted, type_of, unknown_key

LONGEST = 2000
"""Maximum characters of an argument for which a suggestion is searched."""
_COMMA_AT_END = re.compile(r",\s*(?=[\]}])")
_END_OF_VALUE = re.compile(r"(.*?)(\s*,\s*|\s*\}\s*,\s*\{\s*|\s*\}\s*\]?\s*)", re.DOTALL)


def unreadable(text: str) -> Problem | None:
    """Return what is wrong with the syntax of an argument; None for a valid override."""
    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
        if parsed.key_or_group:
            return None
        return Problem(repr(text[:80]), "has no key", "write key=value, or remove the argument")
    except HydraException:
        if not text.partition("=")[0].strip():
            return Problem(repr(text[:80]), "has no key", "write key=value, or remove the argument")
        shown = text if len(text) <= 200 else f"{text[:100]}... ({len(text):,} characters)"
        return Problem(shown, "cannot be read as key=value", _way_out(text))


def with_spaces(arguments: Sequence[str]) -> list[Problem]:
    """Return a problem for each `key = value` that was split into two or three arguments."""
    problems = []
    for i in range(len(arguments) - 1):
        key, *rest = arguments[i : i + 3]
        if key.endswith("=") and key != "=" and "=" not in rest[0]:
            parts = arguments[i : i + 2]
        elif "=" not in key and rest[0] == "=" and len(rest) == 2:
            parts = arguments[i : i + 3]
        elif "=" not in key and rest[0].startswith("=") and rest[0] != "=":
            parts = arguments[i : i + 2]
        else:
            continue
        meant = "".join(parts)
        if is_accepted(meant):
            problems.append(Problem(" ".join(parts), "has spaces around =", f"write it without spaces: {shell(meant)}"))
    return problems


def several_values(override: Override) -> Problem:
    """Return the problem of `key=a,b` without -m."""
    text = str(override.input_line)
    key, _, values = text.partition("=")
    ways = [("a list", f"{key}=[{values}]"), ("text with a comma", f"{key}={quoted(values)}")]
    fixes = [f"{name}: {shell(way)}" for name, way in ways if is_accepted(way)]
    return Problem(text, "several values for one key", "; ".join([*fixes, "one run for each value: add -m"]))


def shell(text: str) -> str:
    """Return an argument in single quotes for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def _way_out(text: str) -> str:
    key, equals, value = text.partition("=")
    name = key.strip().lstrip("+~")
    before, colon, after = text.partition(":")
    if colon and "=" not in before and type_of(before.strip().lstrip("+~")) is not None:
        key, value = before, after  # key: value, as in a file
    elif value.startswith("="):
        value = value.lstrip("=")
    meant = f"{key.strip()}={value.strip()}"
    if meant != text and type_of(key.strip().lstrip("+~")) is not None and is_accepted(meant):
        return f"write {shell(meant)}"
    if not equals and name in STAGES:
        return f"to run it: 'stages=[{name}]'; to choose its file: {name}=FILE"
    if not equals:
        return f"write {text}=VALUE, or --{text} if it is an option" if re.fullmatch(r"[\w.]+", text) else _GENERAL
    if not re.fullmatch(r"[\w./@-]+", name):
        return "start with the key: letters, digits, _ and dots, no spaces around ="
    if name not in GROUPS and type_of(name) is None:
        return unknown_key(name).fix
    if len(text) <= LONGEST:
        for candidate in _candidates(key.strip(), value, type_of(name)):
            if is_accepted(candidate):
                return f"quote it: {shell(candidate)}"
    if _is_template_list(type_of(name)):
        example = f'{name}.0.prompt_template="question: {{question}} answer: {{answer}}"'
        return f"set one key at a time: {shell(example)}"
    return _GENERAL


_GENERAL = "write key=value; lists as [a,b]; a value with special characters in two pairs of quotes: 'key=\"value\"'"


def _candidates(key: str, value: str, kind: object) -> Iterator[str]:
    value = value.strip()
    missing = "".join("]" * (value.count("[") - value.count("]")) + "}" * (value.count("{") - value.count("}")))
    yield f"{key}={value}"
    yield f"{key}={_COMMA_AT_END.sub('', value)}"
    if missing and value[:1] in "[{":
        yield f"{key}={value}{missing}"
        yield f"{key}={value}{missing[::-1]}"
    yield f"{key}={quoted(value.strip(chr(34) + chr(39)))}"
    if value.startswith("["):
        inner = value[1:].removesuffix("]")
        if inner.count("[") != inner.count("]"):
            inner = value.strip("[]")
        parts = [part.strip(" \"'") for part in inner.split(",")]
        yield f"{key}=[{','.join(quoted(part) for part in parts if part)}]"
    yield f"{key}=[{quoted(value)}]"
    names = _names_of(kind)
    if names:
        yield f"{key}={_with_quoted_texts(value, names)}"
        yield f"{key}={_with_quoted_texts(value + missing[::-1], names)}"


def _names_of(kind: object) -> list[str]:
    """Return the keys of the sections in a list of sections."""
    sections = [argument for argument in typing.get_args(kind) if dataclasses.is_dataclass(argument)]
    return [field.name for section in sections for field in dataclasses.fields(section)]


def _is_template_list(kind: object) -> bool:
    return "prompt_template" in _names_of(kind)


def _with_quoted_texts(value: str, names: list[str]) -> str:
    """Return a list of mappings with every unquoted text quoted; `names` are the keys of the mappings."""
    first, *rest = re.split(rf"(?<=[{{,])\s*({'|'.join(names)})\s*:\s*", value)
    written = first
    for name, text in zip(rest[::2], rest[1::2], strict=True):
        end = _END_OF_VALUE.fullmatch(text)
        inner, after = end.groups() if end is not None else (text, "")
        if inner[:1] not in "\"'[" and not re.fullmatch(r"[\w.-]*", inner):
            inner = quoted(inner)
        written += f"{name}: {inner}{after}"
    return written
