# SPDX-License-Identifier: Apache-2.0
"""All ranks of a job must go by the same settings and files: a node may have a copy of its own, and an old one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from nemo_launcher.config.resume_rules import is_below
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.digest import sha256_of
from nemo_launcher.runtime import ranks

_FIX = "give every rank the same, such as on a file system that all nodes share"


def check_same(seen: Callable[[], Mapping[str, str]]) -> None:
    """Raise UserError, on every rank, where one goes by something else than rank 0; all ranks must call it.

    seen: what this rank goes by, such as the checksum of a file, by the key that names it; asked of several ranks
    alone. Where a rank has ended, the others are told so (ranks.is_lost_connection).
    """
    if ranks.world_size() == 1:
        return
    (first_node, first), *others = ranks.gather_objects(dict(seen()))
    problems: dict[str, Problem] = {}
    for number, (node, values) in enumerate(others, start=1):
        for where in {**first, **values}:
            if first.get(where) != values.get(where) and where not in problems:
                what = f"rank {number} (on {node}) has something else than rank 0 (on {first_node})"
                problems[where] = Problem(where, what, _FIX)
    if problems:
        raise UserError(list(problems.values())[:10])


def flat_settings(config: Mapping[str, object], free: Iterable[str]) -> dict[str, str]:
    """Return the values of a configuration by their dotted keys; free: keys that may differ, and those below them."""
    return {key: value for key, value in _flat(config, "") if not is_below(key, tuple(free))}


def file_checksum(path: str | Path | None) -> str:
    """Return a checksum of a file's content; of none or one that cannot be read, that there is none."""
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
