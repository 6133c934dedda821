# SPDX-License-Identifier: Apache-2.0
"""Check that all ranks of a job use the same settings and files: a node may have an outdated local copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from nemo_launcher.config.resume_rules import is_below
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.digest import sha256_of
from nemo_launcher.runtime import ranks

_FIX = "give every rank the same file or value, for example on a shared file system"


def check_same(local_values: Callable[[], Mapping[str, str]]) -> None:
    """Raise UserError on every rank if a rank's values differ from those of rank 0; all ranks must call this.

    local_values: returns this rank's values by key, such as the checksum of a file; called only with several ranks. If
    a rank has ended, the others get an error (ranks.is_lost_connection).
    """
    if ranks.world_size() == 1:
        return
    (first_node, first), *others = ranks.gather_objects(dict(local_values()))
    problems: dict[str, Problem] = {}
    for number, (node, values) in enumerate(others, start=1):
        for where in {**first, **values}:
            if first.get(where) != values.get(where) and where not in problems:
                what = f"differs between rank {number} (on {node}) and rank 0 (on {first_node})"
                problems[where] = Problem(where, what, _FIX)
    if problems:
        raise UserError(list(problems.values())[:10])


def flat_settings(config: Mapping[str, object], free: Iterable[str]) -> dict[str, str]:
    """Return the values of a configuration by dotted key, without the keys in `free` and those below them."""
    return {key: value for key, value in _flat(config, "") if not is_below(key, tuple(free))}


def file_checksum(path: str | Path | None) -> str:
    """Return the SHA-256 of a file's content, "none" without a path, or "unreadable"."""
    if path is None:
        return "none"
    try:
        return sha256_of(path)
    except OSError:
        return "unreadable"


def _flat(value: object, key: str) -> Iterable[tuple[str, str]]:
    if not isinstance(value, Mapping):
        return [(key, repr(value))]
    return [entry for name in value for entry in _flat(value[name], f"{key}.{name}" if key else str(name))]
