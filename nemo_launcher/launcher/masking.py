# SPDX-License-Identifier: Apache-2.0
"""Mask secrets on a command line by an allow-list of keys and options, not by guessing the names of secrets."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from nemo_launcher.config.keys import is_open, is_shown
from nemo_launcher.config.options import WITH_VALUE
from nemo_launcher.config.secret_text import HIDDEN, hide_keys, looks_like_key
from nemo_launcher.launcher.suggestions import GROUPS, type_of

_SHORTEST = 6
"""Minimum length of a hidden value to mask in messages; shorter ones would match parts of ordinary words."""


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line with every value masked that is not on the allow-list.

    Values of known keys that cannot be secret, chosen files and Hydra's options are shown. Values of env_vars, of setup
    lines and of unknown keys are masked, as is anything that looks like an API key.
    """
    shown, before = [], ""
    for argument in arguments:
        is_value = before in WITH_VALUE and not looks_like_key(argument)
        shown.append(argument if is_value else shown_argument(argument))
        before = argument
    return shown


def shown_argument(argument: str) -> str:
    """Return one argument, with its value masked unless it may be shown."""
    key, equals, value = argument.partition("=")
    name = key.lstrip("+~-")  # a key with dashes is a mistake, which is reported
    if not equals:
        return argument if argument.startswith(("-", "~")) or _may_show(name) else HIDDEN
    if (key in WITH_VALUE or _may_show(name)) and not looks_like_key(value):
        return argument
    return f"{hide_keys(key)}={HIDDEN}"


def command_line() -> str:
    """Return the launcher's own command line with masked values, as it can be repeated."""
    is_script = Path(sys.argv[0]).name == "main.py"  # else the verb, which has removed itself from the arguments
    started = ["python3", sys.argv[0]] if is_script else ["nemo-launcher", "launch"]
    return shlex.join([*started, *shown_arguments(sys.argv[1:])])


def is_hidden(key: str, value: str) -> bool:
    """Return whether the value of this key on the command line may be secret."""
    return shown_argument(f"{key}={value}") != f"{key}={value}"


def _may_show(key: str) -> bool:
    if key in GROUPS or key.partition("@")[0] in GROUPS:
        return True
    kind = type_of(key)
    if kind is None or not is_shown(kind):
        return False
    parts = key.split(".")
    above = [type_of(".".join(parts[:i])) for i in range(1, len(parts))]
    return all(section is None or not is_open(section) for section in above)


def hide_in(text: str, arguments: Iterable[str] | None = None) -> str:
    """Return a message with API keys and the command line's hidden values masked."""
    for argument in sys.argv[1:] if arguments is None else arguments:
        value = argument.partition("=")[2].strip("'\"")
        if len(value) >= _SHORTEST and value in text and shown_argument(argument) != argument:
            text = text.replace(value, HIDDEN)
    return hide_keys(text)
