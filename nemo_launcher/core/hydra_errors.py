"""Turns Hydra's errors into mistakes with a place and a way out; imported only once there is one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_launcher.core.compose import CONF
from nemo_launcher.core.schema import accepts
from nemo_launcher.core.sections import Cluster, TopLevel
from nemo_launcher.core.stages import STAGES
from nemo_launcher.errors import Problem, did_you_mean, nearest


@dataclass(frozen=True)
class Repaired:
    """What is wrong with a command line, and the arguments that remain when it is left out."""

    mistakes: list[Problem]
    arguments: list[str]

    @contextlib.contextmanager
    def command_line(self) -> Iterator[None]:
        """The remaining arguments as sys.argv for a while."""
        before = sys.argv
        sys.argv = [before[0], *self.arguments]
        try:
            yield
        finally:
            sys.argv = before


def repair(error: Exception) -> Repaired | None:
    """Find the mistakes of the command line that made Hydra raise `error`; its own words if there are none.

    Keys that the schema knows and no file sets are not mistakes, be it in a mapping: Hydra wants ++ in front of them.
    None when `error` is not one of Hydra's and nothing is wrong with the command line.
    """
    given = get_args_parser().parse_args()
    folders = [Path(given.config_dir).absolute(), CONF] if given.config_dir else [CONF]
    mistakes, added = _unparsable(given.overrides), set[str]()
    if not mistakes:
        overrides = OverridesParser.create().parse_overrides(given.overrides)
        mistakes = _wrong_config_name(given.config_name, folders)
        mistakes += [] if given.multirun else [_several_values(o) for o in overrides if o.is_sweep_override()]
        mistakes += [problem for o in overrides if (problem := _wrong_choice(o, folders)) is not None]
        unknown = _unknown_keys(overrides, given.config_name or "config", folders)
        added = {problem.where for problem in unknown if schema_knows(problem.where)}
        mistakes += [problem for problem in unknown if problem.where not in added]
        added |= {o.key_or_group for o in overrides if isinstance(o.value(), dict) and schema_knows(o.key_or_group)}
    if not mistakes and not added:
        if not isinstance(error, (HydraException, OmegaConfBaseException)):
            return None
        return Repaired([Problem("configuration", _first_lines(error))], [])
    return Repaired(mistakes, _remaining({problem.where for problem in mistakes}, added))


def _remaining(wrong: set[str], added: set[str]) -> list[str]:
    keys = {argument: argument.lstrip("+~").partition("=")[0] for argument in sys.argv[1:]}
    remaining = [argument for argument in sys.argv[1:] if argument not in wrong and keys[argument] not in wrong]
    return [f"++{argument.lstrip('+')}" if keys[argument] in added else argument for argument in remaining]


def schema_knows(key: str) -> bool:
    """Whether a full key may be set, be it in a file or not."""
    section, _, rest = key.partition(".")
    if section in STAGES:
        return bool(rest) and accepts(STAGES[section].schema, rest.split("."))
    if section == "cluster":
        return bool(rest) and accepts(Cluster, rest.split("."))
    return accepts(TopLevel, key.split("."))


def _unparsable(texts: list[str]) -> list[Problem]:
    problems = []
    for text in texts:
        try:
            OverridesParser.create().parse_overrides([text])
        except HydraException:
            problems.append(Problem(text, "cannot be read as key=value", _quoted(text)))
    return problems


def _quoted(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return f"write {text}=VALUE, or --{text} if it is an option"
    if any(value.count(opening) != value.count(closing) for opening, closing in ("[]", "{}", "()")):
        return f"close the bracket, and quote the whole for the shell: '{text}...'"
    candidate = f'{key}="{value}"'
    try:
        OverridesParser.create().parse_overrides([candidate])
    except HydraException:
        return "write key=value; lists as [a,b]; quote a value with special characters twice: 'key=\"value\"'"
    return f"quote the value: '{candidate}'"


def _wrong_config_name(name: str | None, folders: list[Path]) -> list[Problem]:
    names = [path.stem for folder in folders for path in folder.glob("*.yaml")]
    if name is None or name.removesuffix(".yaml") in names:
        return []
    return [Problem(f"--config-name {name}", f"no such file in {folders[0]}", did_you_mean(name, names))]


def _wrong_choice(override: Override, folders: list[Path]) -> Problem | None:
    group = override.key_or_group
    choices = _choices(group, folders)
    if not choices or override.is_delete() or override.is_sweep_override() or override.value() in choices:
        return None
    where = str(override.input_line)
    if override.value() is None:
        return Problem(where, "a group is a file's name, not null", f"leave it out, or take it away: ~{group}")
    return Problem(where, f"conf/{group} has no such file", did_you_mean(str(override.value()), choices))


def _several_values(override: Override) -> Problem:
    key, _, values = str(override.input_line).partition("=")
    fix = f"a list: '{key}=[{values}]'; text with a comma: '{key}=\"{values}\"'; one run for each value: add -m"
    return Problem(str(override.input_line), "several values for one key", fix)


def _choices(group: str, folders: list[Path]) -> list[str]:
    roots = [folder / group for folder in folders if "." not in group]
    return [str(path.relative_to(root).with_suffix("")) for root in roots for path in root.rglob("*.yaml")]


def _unknown_keys(overrides: list[Override], config_name: str, folders: list[Path]) -> list[Problem]:
    """Every key that the configuration does not have, found in what the group choices alone compose to."""
    groups = [o for o in overrides if _choices(o.key_or_group, folders) and _wrong_choice(o, folders) is None]
    base = _compose([str(o.input_line) for o in groups if not o.is_sweep_override()], config_name, folders)
    if base is None:
        return []
    problems = []
    for override in overrides:
        key = override.key_or_group
        if override.is_add() or override.is_force_add() or _choices(key, folders) or key.startswith("hydra"):
            continue
        problem = _unknown_key(key, base)
        if problem is not None:
            problems.append(problem)
    return problems


def _compose(overrides: list[str], config_name: str, folders: list[Path]) -> dict[str, Any] | None:
    search_path = [f"hydra.searchpath=[file://{folder}]" for folder in folders[:-1]]
    try:
        with hydra.initialize_config_dir(version_base=None, config_dir=str(CONF)):
            composed = hydra.compose(config_name, overrides=overrides + search_path)
        return OmegaConf.to_container(composed, resolve=False)
    except (HydraException, OmegaConfBaseException):
        return None


def _unknown_key(key: str, config: dict[str, Any]) -> Problem | None:
    node: Any = config
    parts = key.split(".")
    for i, part in enumerate(parts):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return Problem(key, "unknown key", _suggestion(parts, i, node, config))
    return None


def _suggestion(parts: list[str], i: int, siblings: Any, config: dict[str, Any]) -> str:
    """The nearest key: spelt like it in the same section, else of the same name in another section."""
    keys = list(siblings) if isinstance(siblings, dict) else []
    match = nearest(parts[i], keys)
    if match is not None:
        return f"did you mean {'.'.join([*parts[:i], match, *parts[i + 1 :]])!r}?"
    same_section = [path for path in _paths(config) if path.split(".")[0] == parts[0]]
    same_name = [path for path in same_section or _paths(config) if path.split(".")[-1] == parts[-1]]
    if same_name:
        return f"did you mean {same_name[0]!r}?"
    return did_you_mean(parts[i], keys)


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _paths(value, f"{prefix}{key}.")


def _first_lines(error: Exception) -> str:
    """The error's own words, without Hydra's search path and links."""
    lines = [line.strip() for line in str(error).splitlines()]
    end = next((i for i, line in enumerate(lines) if line.startswith(("Config search path", "See http"))), len(lines))
    return " ".join(line for line in lines[:end] if line)
