# SPDX-License-Identifier: Apache-2.0
"""Files of NVIDIA's conf/ folder as files of this launcher: keys renamed or left out, and what is still to be done."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from nemo_launcher.adapters.peft import METHODS
from nemo_launcher.clusters import registry
from nemo_launcher.config.older_names import ABSENT, OLDER_NAMES, at, with_current_names
from nemo_launcher.config.resolvers import SHIPPED_CONF
from nemo_launcher.config.schema import check
from nemo_launcher.config.sections import TopLevel
from nemo_launcher.config.without_effect import foreign_keys, without_foreign
from nemo_launcher.errors import Problem
from nemo_launcher.files import yaml_edits
from nemo_launcher.files.foreign_yaml import parse_yaml
from nemo_launcher.launcher.elsewhere import ELSEWHERE, is_copy, stage_of
from nemo_launcher.launcher.stages import STAGES
from nemo_launcher.launcher.suggestions import SECTIONS, unknown_key

LEARNING = ("adapter_learning", "ia3_learning")
_HYDRA = ("defaults", "hydra")
_SHIPPED = {"data_preparation": "squad", "conversion_hf2nemo": "hf", "evaluation": "adapter_gpt3/squad"}
"""Files of conf/ that stand in for those of NVIDIA's that have no counterpart."""


@dataclass
class Migrated:
    """A file as this launcher reads it."""

    text: str
    """Its new text."""
    changes: list[tuple[str, str]] = field(default_factory=list)
    """The keys that were changed, each with how."""
    problems: list[Problem] = field(default_factory=list)
    """What is still to be done by hand, each with its full key."""

    def change(self, key: str, how: str, edit: Callable[[str], str]) -> None:
        """Apply an edit of the text and record it; one that the text does not allow is left to the user."""
        try:
            self.text = edit(self.text)
            self.changes.append((key, how))
        except ValueError:
            self.problems.append(Problem(key, f"is in braces, and was not changed: {how}", "change it by hand"))


def migrate_file(name: str, text: str) -> Migrated | None:
    """Return a file's migration; None for a file without a counterpart here.

    name: its path below conf/, with slashes. Raises UserError for a file that is not YAML.
    """
    if not migrates(name):
        return None
    if name == "config.yaml":
        return _migrate_main(text, name)
    group = name.partition("/")[0]
    return _migrate_cluster(text, name) if group == "cluster" else _migrate_section(text, name, group)


def migrates(name: str) -> bool:
    """Return whether a file of conf/ has a counterpart here."""
    group, _, choice = name.partition("/")
    if group == "cluster":
        return choice.removesuffix(".yaml") in dict(registry.sections())
    return name == "config.yaml" or group in LEARNING or (group == "evaluation" and choice.partition("_")[0] in METHODS)


def _migrate_section(text: str, name: str, stage: str) -> Migrated:
    """Migrate the file of a stage."""
    found, section = Migrated(text), parse_yaml(text, name)
    for older, current in OLDER_NAMES[stage].items():
        value = at(section, older.split("."))
        if value is not ABSENT:
            found.change(older, f"is now {current}", partial(_with_name, older=older, current=current, value=value))
    own = without_foreign(with_current_names(section, stage), stage, str)
    refused = {problem.where: problem for problem in own.refused}
    for full, reason in foreign_keys().items():
        of_stage, _, key = full.partition(".")
        if of_stage == stage and at(section, key.split(".")) is not ABSENT and key not in refused:
            found.change(key, f"left out: {reason}", partial(yaml_edits.removed, path=tuple(key.split("."))))
    found.problems += [Problem(f"{stage}.{problem.where}", problem.what, problem.fix) for problem in own.refused]
    found.problems += _to_do(own.section, check(own.section, SECTIONS[stage], stage), stage)
    for key, how in found.changes:
        if f"{stage}.{key}}}" in found.text:
            found.problems.append(Problem(f"{stage}.{key}", f"another value refers to it, but it {how}", "change that"))
    return found


def _with_name(text: str, older: str, current: str, value: object) -> str:
    """Return the text of a file with the current name of a key; its older name has precedence if it has both."""
    path, target = tuple(older.split(".")), tuple(current.split("."))
    if value is None:
        return yaml_edits.removed(text, path)
    if at(parse_yaml(text, ""), target) is not ABSENT:
        text = yaml_edits.removed(text, target)
    if path[:-1] == target[:-1]:
        return yaml_edits.renamed(text, path, target[-1])
    return yaml_edits.added(yaml_edits.removed(text, path), current, value)


def _migrate_cluster(text: str, name: str) -> Migrated:
    """Check the file of a cluster; its keys are the same here."""
    schema = dict(registry.sections())[name.removeprefix("cluster/").removesuffix(".yaml")]
    section = parse_yaml(text, name)
    return Migrated(text, problems=[*_to_do(section, check(section, schema, "cluster"), "cluster")])


def _migrate_main(text: str, name: str) -> Migrated:
    """Migrate config.yaml: without other stages, in its defaults and in `stages`, and without copies of choices."""
    found, config = Migrated(text), parse_yaml(text, name)
    if not isinstance(config, dict):
        return found
    for key in config:
        if stage_of(key) is not None or is_copy(key):
            how = "left out: no stage reads it"
            found.change(key, how, partial(yaml_edits.removed, path=(key,)))
    for group, choice in _choices(config).items():
        ours = _SHIPPED.get(group)
        if group in ELSEWHERE:
            found.change(f"defaults.{group}", f"left out: {ELSEWHERE[group].what}", _default_setter(group, None))
        elif ours is not None and not _is_migrated(group, choice):
            found.change(
                f"defaults.{group}", f"is now {ours}: {choice} is not a file of it", _default_setter(group, ours)
            )
    stages = config.get("stages")
    named = stages if isinstance(stages, list) else str(stages or "").split(",")
    known = [stage for stage in named if stage in STAGES] or [*LEARNING[:1]]
    if "stages" in config and known != named:
        how = f"is now {', '.join(known)}"
        found.change("stages", how, lambda t: yaml_edits.added(yaml_edits.removed(t, ("stages",)), "stages", known))
    added = "is new: presets and other files of this launcher can be chosen too"
    found.change("hydra.searchpath", added, partial(_with_search_path, has_hydra="hydra" in config))
    own = {key: value for key, value in config.items() if key not in (*_HYDRA, "stages", "cluster_type")}
    own = {key: value for key, value in own.items() if stage_of(key) is None and not is_copy(key)}
    found.problems += _to_do(own, check(own, TopLevel, ""), "")
    return found


def _with_search_path(text: str, has_hydra: bool) -> str:
    """Return the text of config.yaml with this launcher's conf/ behind its own folder."""
    line = f'searchpath: ["file://{SHIPPED_CONF}"]\n'
    if not has_hydra:
        return text.rstrip("\n") + f"\nhydra:\n  {line}"
    first, last = yaml_edits.lines_of(text, ("hydra",))
    lines = text.splitlines(keepends=True)
    below = re.match(r"( +)\w", lines[first + 1]) if first < last else None
    if below is None or yaml_edits.has(text, ("hydra", "searchpath")):
        raise ValueError("hydra has a form that no line can be added to")
    return "".join([*lines[: first + 1], below[1] + line, *lines[first + 1 :]])


def _choices(config: Mapping[str, object]) -> dict[str, object]:
    """Return the groups of a defaults list with the files that they choose."""
    defaults = config.get("defaults")
    entries = [entry for entry in defaults if isinstance(entry, dict)] if isinstance(defaults, list) else []
    return {str(group): choice for entry in entries for group, choice in entry.items()}


def _is_migrated(group: str, choice: object) -> bool:
    """Return whether the file that a group chooses is migrated; null chooses none."""
    return choice is None or migrates(f"{group}/{choice}.yaml")


def _default_setter(group: str, choice: str | None) -> Callable[[str], str]:
    """Return the edit that gives a group another file in the defaults list, or takes it out if `choice` is None."""

    def edit(text: str) -> str:
        first, last = yaml_edits.lines_of(text, ("defaults",))
        lines = text.splitlines(keepends=True)
        number = next((n for n in range(first, last + 1) if re.match(rf"\s*-\s*{group}\s*:", lines[n])), None)
        if number is None:
            raise ValueError(f"defaults.{group} has no line of its own")
        start = lines[number].partition(":")[0]
        return "".join([*lines[:number], *([] if choice is None else [f"{start}: {choice}\n"]), *lines[number + 1 :]])

    return edit


def _to_do(section: object, problems: list[Problem], stage: str) -> Iterator[Problem]:
    """Yield the problems of a file that is not composed yet: values that refer to others are not known."""
    for problem in problems:
        key = problem.where.removeprefix(f"{stage}.") if stage else problem.where
        value = at(section, key.split("."))
        refers = isinstance(value, str) and ("${" in value or value == "???")
        is_composed = isinstance(section, dict) and "defaults" in section
        if refers or (is_composed and (problem.what == "missing" or key == "defaults")):
            continue
        yield unknown_key(problem.where, [stage]) if problem.what == "unknown key" else problem
