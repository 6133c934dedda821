# SPDX-License-Identifier: Apache-2.0
"""Command-line overrides from mappings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import HALF_A_PAIR, SURROGATE

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
_MAX_BYTES = 100_000  # Linux allows 131,071 in one argument
_WORDS = ("null", "true", "false", "nan", "inf")


def overrides_of(settings: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return settings as overrides of Hydra's command line.

    settings: overrides, which are returned as they are, or a nested mapping, also one of omegaconf. Raises UserError
    for a single text and for values that a configuration cannot hold.
    """
    if isinstance(settings, str):
        raise UserError(Problem("settings", "is one text", f"pass a list: train([{settings!r}])"))
    if not isinstance(settings, Iterable):
        raise UserError(Problem("settings", f"is {kind_of(settings)}", "pass a list of overrides, or a mapping"))
    if not hasattr(settings, "keys"):
        return [str(override) for override in settings]
    if not isinstance(settings, dict):
        from omegaconf import DictConfig, OmegaConf

        settings = OmegaConf.to_container(DictConfig(settings), resolve=False)  # type: ignore[assignment]
    problems: list[Problem] = []
    # ++ also sets the keys that conf/ does not show; the launcher refuses those that do not exist
    found = [
        f"{'++' if '.' in key else ''}{key}={_written(value, key, problems)}" for key, value in _leaves(settings, "")
    ]
    if problems:
        raise UserError(problems)
    return found


def kind_of(value: object) -> str:
    """Return the words for a value of a wrong type, such as `of type int`."""
    return "None" if value is None else f"of type {type(value).__name__}"


def argument_problems(arguments: Sequence[str]) -> list[Problem]:
    """Return the problems of overrides that no command line can hold."""
    problems = []
    for argument in arguments:
        size = len(argument.encode("utf-8", errors="surrogatepass"))
        what = (
            f"has {HALF_A_PAIR}" if SURROGATE.search(argument) else "has a NUL character" if "\0" in argument else None
        )
        if what is None and size > _MAX_BYTES:
            what = f"has {size:,} bytes; an override has at most {_MAX_BYTES:,}"
        if what is not None:
            key = ascii(argument.partition("=")[0][:100])[1:-1]
            problems.append(Problem(key, what, "correct the value"))
    return problems


def _leaves(settings: Any, prefix: str) -> Iterator[tuple[str, object]]:
    """Yield the dotted key and the value of each leaf; an empty mapping is one."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _written(value: object, key: str, problems: list[Problem]) -> str:
    """Return a value in Hydra's grammar of overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        return (
            "{" + ",".join(f"{name}:{_written(item, f'{key}.{name}', problems)}" for name, item in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ",".join(_written(item, f"{key}[{number}]", problems) for number, item in enumerate(value)) + "]"
    if hasattr(value, "__fspath__"):
        return _quoted(str(value))
    problems.append(Problem(key, f"holds {type(value).__name__}", "write a number, a text, a list or a mapping"))
    return "null"


def _quoted(text: str) -> str:
    """Return a text in single quotes unless it is a plain word; Hydra keeps a backslash unless a quote follows."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    parts = text.split("'")
    escaped = [part + "\\" * (len(part) - len(part.rstrip("\\"))) for part in parts]
    return "'" + "\\'".join(escaped) + "'"
