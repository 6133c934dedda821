# SPDX-License-Identifier: Apache-2.0
"""Find the keys of the table of ignored keys (config/ignored.py) in a configuration; take out those of NeMo alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_launcher.config.ignored import IGNORED, LEARNING, SIZE_COPIES, SIZES, Ignored
from nemo_launcher.config.older_names import ABSENT, at, take
from nemo_launcher.config.overrides import hydra_value, override
from nemo_launcher.errors import Problem

KeyOf = Callable[[str], str]


def full_keys() -> dict[str, str]:
    """Return the reason of every key in the table that the configuration has: {full key: reason}."""
    copies = {f"{section}.{key}": SIZES for section, keys in SIZE_COPIES.items() for key in keys}
    return _reasons(foreign=False) | copies


def foreign_keys() -> dict[str, str]:
    """Return the reason of every key in the table that only NeMo has: {full key: reason}."""
    return _reasons(foreign=True)


def _reasons(*, foreign: bool) -> dict[str, str]:
    entries = [entry for entry in IGNORED if entry.foreign is foreign]
    return {f"{s}.{key}": entry.reason for entry in entries for s in entry.sections for key in entry.keys}


@dataclass(frozen=True)
class Own:
    """A section without NeMo's own keys, and what is to be said about them."""

    section: object
    """A copy of the section without them."""
    refused: Sequence[Problem]
    """The errors: values that would change results."""
    warnings: Sequence[Problem]
    """A warning for each reason why a value has no effect."""


def without_foreign(section: object, name: str, key: KeyOf) -> Own:
    """Take the keys that only NeMo has out of a section that has not been checked yet."""
    if not isinstance(section, dict):
        return Own(section, [], [])
    section, found = copy.deepcopy(section), list(_found(section, name, key, foreign=True))
    for full in foreign_keys():
        if full.startswith(f"{name}."):
            take(section, full.removeprefix(f"{name}."))
    return Own(section, [problem for entry, problem in found if entry.refused], _by_reason(found))


def keys_below(parent: str, section: str) -> list[str]:
    """Return the names of the ignored keys directly below `parent`, a key of `section`."""
    prefix = f"{section}.{parent}."
    return [name for key in full_keys() if "." not in (name := key.removeprefix(prefix)) and key.startswith(prefix)]


def refused(config: Mapping[str, object], section: str, key: KeyOf = str) -> list[Problem]:
    """Return the errors of one section's ignored keys that must have their documented values."""
    return [problem for entry, problem in _found(config, section, key) if entry.refused]


def warnings(config: Mapping[str, object], section: str, key: KeyOf = str) -> list[Problem]:
    """Return the warnings about one section's ignored keys, one for each reason."""
    return [*_size_copies(config, section, key), *_by_reason(_found(config, section, key))]


def _by_reason(found: Iterable[tuple[Ignored, Problem]]) -> list[Problem]:
    """Return one warning for each reason of the keys that are not refused."""
    by_reason: dict[str, list[Problem]] = {}
    for entry, problem in found:
        if not entry.refused:
            by_reason.setdefault(entry.reason, []).append(problem)
    problems = []
    for reason, (first, *more) in by_reason.items():
        what = f"has no effect: {reason}" + (f"; nor have {', '.join(p.where for p in more)}" if more else "")
        problems.append(Problem(first.where, what, first.fix))
    return problems


def _found(
    config: Mapping[str, object], section: str, key: KeyOf, *, foreign: bool = False
) -> Iterator[tuple[Ignored, Problem]]:
    """Yield (entry, problem) for each key with a value other than the documented ones."""
    for entry in IGNORED:
        for name in entry.keys if section in entry.sections and entry.foreign is foreign else ():
            value = at(config, name.split("."))
            if value is ABSENT or _is_documented(value, entry.documented):
                continue
            default = entry.documented[0] if entry.documented else None
            fix = "leave it out" if foreign else override(key(name), default) + entry.fix_suffix
            yield entry, Problem(key(name), f"must be {default}: {entry.reason}", fix)


def _is_documented(value: object, documented: Sequence[object]) -> bool:
    return any(type(value) is type(other) and value == other for other in documented)


def _size_copies(config: Mapping[str, Any], section: str, key: KeyOf) -> Iterator[Problem]:
    if section not in SIZE_COPIES:
        return
    sizes = config["model"] if section in LEARNING else config
    product = sizes["tensor_model_parallel_size"] * sizes["pipeline_model_parallel_size"]
    for name in SIZE_COPIES[section]:
        value = at(config, name.split("."))
        if value is not ABSENT and value not in (None, 1, product):
            yield Problem(key(name), f"has no effect: {SIZES}, {product} in all", f"{key(name)}={product}")


def rows() -> list[tuple[str, str, str]]:
    """Return the table's rows for the documentation: keys, values without a warning, outcome of other values."""
    lines = []
    for entry in IGNORED:
        documented = ", ".join(hydra_value(value) for value in entry.documented) or "none"
        outcome = "refused" if entry.refused else "warning"
        lines.append((", ".join(f"`{key}`" for key in entry.keys), documented, f"{outcome}: {entry.reason}"))
    copies = dict.fromkeys(key for keys in SIZE_COPIES.values() for key in keys)
    return [*lines, (", ".join(f"`{key}`" for key in copies), "1, the product", f"warning: {SIZES}")]
