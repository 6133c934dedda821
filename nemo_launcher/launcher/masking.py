# SPDX-License-Identifier: Apache-2.0
"""What of a command line may be shown: an allow-list of keys and options, never a list of what secrets are called."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence

from nemo_launcher.config.keys import is_open, is_shown
from nemo_launcher.config.options import WITH_VALUE
from nemo_launcher.config.secret_text import HIDDEN, hide_keys, looks_like_key
from nemo_launcher.launcher.suggestions import GROUPS, type_of

_SHORTEST = 6
"""Of a hidden value that is looked for in messages; a shorter one is found in half of all words."""


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which every value that is not on the allow-list is hidden.

    Shown are values of keys that the configuration knows and that cannot hold a secret, chosen files, and Hydra's own
    options; not those of env_vars, of setup lines, of unknown keys, nor anything that looks like a key.
    """
    shown, before = [], ""
    for argument in arguments:
        is_value = before in WITH_VALUE and not looks_like_key(argument)
        shown.append(argument if is_value else shown_argument(argument))
        before = argument
    return shown


def shown_argument(argument: str) -> str:
    """Return one argument, its value hidden unless it may be shown."""
    key, equals, value = argument.partition("=")
    name = key.lstrip("+~-")  # with dashes it is a mistake that is told
    if not equals:
        return argument if argument.startswith(("-", "~")) or _may_show(name) else HIDDEN
    if (key in WITH_VALUE or _may_show(name)) and not looks_like_key(value):
        return argument
    return f"{hide_keys(key)}={HIDDEN}"


def command_line() -> str:
    """Return the launcher's own command line as `shown_arguments` shows it."""
    return shlex.join(["python3", sys.argv[0], *shown_arguments(sys.argv[1:])])


def is_hidden(key: str, value: str) -> bool:
    """Whether the value of this key of the command line may be secret."""
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
    """Return a message without what looks like a key and without the hidden values of the command line."""
    for argument in sys.argv[1:] if arguments is None else arguments:
        value = argument.partition("=")[2].strip("'\"")
        if len(value) >= _SHORTEST and value in text and shown_argument(argument) != argument:
            text = text.replace(value, HIDDEN)
    return hide_keys(text)
