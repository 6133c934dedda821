# SPDX-License-Identifier: Apache-2.0
"""Where a value comes from: the command line or a configuration file. Asked only when there is a problem with it."""

from __future__ import annotations

import contextlib

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.launcher.composed import Composed


def with_sources(problems: list[Problem], composed: Composed) -> list[Problem]:
    """Add the origin of the value, the command line or a file, to each problem with a key."""
    sources = {p: "" if p in composed.mistakes else _source(p.where, composed) for p in problems}
    return [Problem(f"{p.where}{source}", p.what, p.fix) for p, source in sources.items()]


def _source(key: str, composed: Composed) -> str:
    section = key.split(".")[0]
    if section not in composed.config or "/" in key:
        return ""
    keys = [override.lstrip("+~").partition("=")[0] for override in composed.overrides]
    if any(key == given or (key.startswith(f"{given}.") and "." in given) for given in keys):
        return " (command line)"
    choice = composed.choices.get(section)
    is_of_group = choice is not None and not _sets(composed, key)
    return f" ({composed.file(f'{section}/{choice}' if is_of_group else composed.config_name)})"


def _sets(composed: Composed, key: str) -> bool:
    """Return whether the main file itself sets a key or a value that holds it."""
    node: object = None
    with contextlib.suppress(UserError):  # the composition reports a file that cannot be read
        node = load_yaml(composed.path(composed.config_name))
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return isinstance(node, list)
        node = node[part]
    return True
