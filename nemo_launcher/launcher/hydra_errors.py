# SPDX-License-Identifier: Apache-2.0
"""Turn Hydra's errors into problems with a place and a fix; imported only when there is one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_launcher.clusters import CLUSTERS, registry
from nemo_launcher.config.layers import selection_problem
from nemo_launcher.config.literal import plain_mapping
from nemo_launcher.config.older_names import is_older
from nemo_launcher.config.resolvers import SHIPPED_CONF
from nemo_launcher.config.schema import check
from nemo_launcher.config.without_effect import foreign_keys
from nemo_launcher.errors import Problem, did_you_mean, nearest
from nemo_launcher.files.foreign import MAX_NAME_BYTES, first_line
from nemo_launcher.launcher.argument_repair import several_values, unreadable, with_spaces
from nemo_launcher.launcher.composed import COMPOSITION_ERRORS
from nemo_launcher.launcher.suggestions import type_of, unknown_key
from nemo_launcher.places import CONF

EXAMPLES = {"stages": "'stages=[adapter_learning]'", "cluster_type": "cluster_type=interactive"}
"""Top-level keys that are not sections, each with an example of how to set it."""


@dataclass(frozen=True)
class Repaired:
    """A command line that Hydra accepts, and the problems of the arguments that were removed."""

    mistakes: list[Problem]
    """The problems of the removed arguments."""
    arguments: list[str]
    """The arguments that remain."""

    @contextlib.contextmanager
    def command_line(self) -> Iterator[None]:
        """Replace sys.argv by the remaining arguments inside the context."""
        before = sys.argv
        sys.argv = [before[0], *self.arguments]
        try:
            yield
        finally:
            sys.argv = before


def repair(error: Exception) -> Repaired | None:
    """Find the mistakes on the command line that made Hydra raise `error`, or return Hydra's message.

    Keys that the schema has but no file sets are not mistakes, even in a mapping; they get the ++ that Hydra needs.
    Returns None if `error` is not a composition error and the command line is valid.
    """
    given = get_args_parser().parse_args()
    main = Path(given.config_path) if given.config_path else CONF
    folders = [CONF] if main != CONF and _adds_shipped(main / f"{given.config_name or 'config'}.yaml") else []
    folders += [Path(given.config_dir).absolute(), main] if given.config_dir else [main]
    mistakes, added = with_spaces(given.overrides), set[str]()
    mistakes = mistakes or [problem for text in given.overrides if (problem := unreadable(text)) is not None]
    if not mistakes:
        overrides = OverridesParser.create().parse_overrides(given.overrides)
        mistakes = _wrong_config_name(given.config_name, folders)
        mistakes += [] if given.multirun else [several_values(o) for o in overrides if o.is_sweep_override()]
        mistakes += [problem for o in overrides if (problem := _wrong_choice(o, folders)) is not None]
        mistakes += [_plug_in(o) for o in overrides if o.key_or_group.startswith("hydra/")]
        mistakes += _misplaced_sections(overrides)
        mistakes += [_section_for(o) for o in overrides if o.key_or_group in EXAMPLES and isinstance(o.value(), dict)]
        unknown = _unknown_keys(overrides, given.config_name or "config", folders)
        added = {p.where for p in unknown if schema_knows(p.where) and p.what == "unknown key"}
        mistakes += [problem for problem in unknown if problem.where not in added]
        added |= {o.key_or_group for o in overrides if _is_set_anew(o)}
    if not mistakes and not added:
        return Repaired([not_composed(error)], []) if isinstance(error, COMPOSITION_ERRORS) else None
    return Repaired(mistakes, _remaining({problem.where for problem in mistakes}, added))


def _adds_shipped(file: Path) -> bool:
    """Return whether a main file adds this launcher's conf/ to its own folder, as those that `migrate` writes do."""
    return file.is_file() and SHIPPED_CONF in file.read_text(encoding="utf-8", errors="replace")


def not_composed(error: Exception) -> Problem:
    """Return Hydra's own message as a problem, when the cause is unknown."""
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        fix = "list entries are counted from 0; to add one, write the whole list"
        return Problem(str(error.full_key), first_line(error), fix)
    if isinstance(error, RecursionError) or "maximum recursion depth" in str(error):
        return Problem("configuration", "a value contains itself or is nested too deeply", "check your own YAML files")
    return Problem("configuration", _first_lines(error), "check your own YAML files and your latest changes")


def _is_set_anew(override: Override) -> bool:
    """Return whether an override of a known key works only with ++: a mapping, or + before an existing key."""
    given = override.is_add() or (isinstance(override.value(), dict) and not override.is_delete())
    return given and schema_knows(override.key_or_group)


def _remaining(wrong: set[str], added: set[str]) -> list[str]:
    keys = {argument: argument.lstrip("+~").partition("=")[0] for argument in sys.argv[1:]}
    remaining = [argument for argument in sys.argv[1:] if argument not in wrong and keys[argument] not in wrong]
    return [f"++{argument.lstrip('+')}" if keys[argument] in added else argument for argument in remaining]


def schema_knows(key: str) -> bool:
    """Return whether the schema has a full key, whether or not a file sets it, or has a rule for it."""
    return type_of(key) is not None or is_older(key) or key in foreign_keys()


def _wrong_config_name(name: str | None, folders: list[Path]) -> list[Problem]:
    names = [path.stem for folder in folders for path in folder.glob("*.yaml")]
    if name is None and "config" not in names:
        fix = "name one by --config-name, or add your files to the shipped ones: --config-dir FOLDER"
        return [Problem(f"--config-path {folders[-1]}", "holds no config.yaml", fix)]
    if name is None or name.removesuffix(".yaml") in names:
        return []
    return [Problem(f"--config-name {name}", f"no such file in {folders[0]}", did_you_mean(name, names))]


def _plug_in(override: Override) -> Problem:
    what = "Hydra's launchers and sweepers are not used: each run is a job on cluster_type"
    return Problem(str(override.input_line).partition("=")[0], what, "leave it out")


def _misplaced_sections(overrides: list[Override]) -> list[Problem]:
    """Return the problems of mappings for keys that do not accept them.

    A key that another override sets is checked in the composed configuration.
    """
    problems: list[Problem] = []
    given = {override.key_or_group for override in overrides}
    for override in overrides:
        key = override.key_or_group
        kind = type_of(key) if not override.is_delete() and not override.is_sweep_override() else None
        if kind is not None and isinstance(override.value(), dict):
            problems += [found for found in check(override.value(), kind, key) if found.where not in given - {key}]
    return problems


def _section_for(override: Override) -> Problem:
    key = override.key_or_group
    return Problem(str(override.input_line), "sets a section, but this key has a single value", EXAMPLES[key])


def _wrong_choice(override: Override, folders: list[Path]) -> Problem | None:
    group = override.key_or_group
    choices = _choices(group, folders)
    if not choices or override.is_delete() or override.is_sweep_override() or override.value() in choices:
        return None
    where, value = str(override.input_line), override.value()
    if value is None:
        return Problem(where, "a group must be a file's name, not null", f"leave it out, or remove the group: ~{group}")
    if isinstance(value, list) and override.is_add() and all(isinstance(word, str) for word in value):
        return _wrong_list(where, group, value, choices)
    if not isinstance(value, str):
        words = [word for word in (value if isinstance(value, list) else []) if isinstance(word, str)]
        match = next((found for word in words if (found := nearest(word, choices))), choices[0])
        return Problem(where, "a group must be the name of one file", f"{group}={match}")
    named = registry.meant_by(value) or (value if value in CLUSTERS else None)
    kind = named if group == "cluster" else None
    if kind is not None:
        return Problem(where, "chooses the file with cluster options, not the type of cluster", f"cluster_type={kind}")
    shown = f"conf/{group}" if folders[-1] == CONF else str(folders[-1] / group)
    return Problem(where, f"{shown} has no such file", did_you_mean(value.removesuffix(".yaml"), choices))


def _wrong_list(where: str, group: str, names: list[str], choices: list[str]) -> Problem | None:
    """Return the problem of a list of files that are added; None if all exist."""
    unknown = [name for name in names if name not in choices]
    if not unknown:
        return None
    meant = [name if name in choices else nearest(name, choices) for name in names]
    kept = list(dict.fromkeys(name for name in meant if name is not None)) or choices[:1]
    return Problem(where, f"conf/{group} has no file {' and '.join(unknown)}", f"+{group}=[{','.join(kept)}]")


def _choices(group: str, folders: list[Path]) -> list[str]:
    if not 0 < len(group) <= MAX_NAME_BYTES or "." in group or not group.isprintable():
        return []
    roots = [folder / group for folder in folders]
    return [str(path.relative_to(root).with_suffix("")) for root in roots for path in sorted(root.rglob("*.yaml"))]


def _unknown_keys(overrides: list[Override], config_name: str, folders: list[Path]) -> list[Problem]:
    """Return a problem for each key that the configuration composed from the group choices does not have."""
    groups = [o for o in overrides if _choices(o.key_or_group, folders) and _wrong_choice(o, folders) is None]
    base = _compose([str(o.input_line) for o in groups if not o.is_sweep_override()], config_name, folders)
    if base is None:
        return []
    stages = _stages(overrides, base)
    given = {
        o.key_or_group: o.value()
        for o in overrides
        if not (o.is_add() or o.is_force_add() or _choices(o.key_or_group, folders) or o.key_or_group == "hydra")
    }
    wanted = [key for key in given if not key.startswith(("hydra.", "hydra/")) and not _has(base, key)]
    return [_beyond_list(base, key) or selection_problem(key, given[key]) or unknown_key(key, stages) for key in wanted]


def _beyond_list(config: dict[str, object], key: str) -> Problem | None:
    """Return the problem of an index beyond the end of a list; None for any other key."""
    above = key
    while "." in above:
        above, _, last = above.rpartition(".")
        node = OmegaConf.select(OmegaConf.create(config), above, default=None) if _has(config, above) else None
        if node is not None and OmegaConf.is_list(node) and last.isdigit():
            what = f"{above} has {len(node)} entries, counted from 0"
            return Problem(key, what, f"{key.replace(f'{above}.{last}', f'{above}.0')}=..., or set the whole list")
    return None


def _stages(overrides: list[Override], base: dict[str, object]) -> list[str]:
    given = [o.value() for o in overrides if o.key_or_group == "stages" and not o.is_sweep_override()]
    value = given[-1] if given else base.get("stages")
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [str(word) for word in words]


def _compose(overrides: list[str], config_name: str, folders: list[Path]) -> dict[str, object] | None:
    # Hydra looks for the main file in the main folder only
    main = next((folder for folder in reversed(folders) if (folder / _yaml(config_name)).is_file()), folders[-1])
    others = ",".join(f"file://{folder}" for folder in folders if folder != main)
    try:
        with hydra.initialize_config_dir(version_base=None, config_dir=str(main)):
            composed = hydra.compose(config_name, overrides=[*overrides, f"hydra.searchpath=[{others}]"])
        return plain_mapping(composed, resolve=False)
    except COMPOSITION_ERRORS:
        return None


def _yaml(name: str) -> str:
    return f"{name.removesuffix('.yaml')}.yaml"


def _has(config: dict[str, object], key: str) -> bool:
    node: object = config
    for part in key.split("."):
        if isinstance(node, list) and part.isascii() and part.isdigit() and int(part[:9]) < len(node):
            node = node[int(part[:9])]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return False
    return True


def _first_lines(error: Exception) -> str:
    """Return the error's message without Hydra's search path and links."""
    lines = [line.strip() for line in str(error).splitlines()]
    end = next((i for i, line in enumerate(lines) if line.startswith(("Config search path", "See http"))), len(lines))
    return " ".join(line for line in lines[:end] if line)[:1000] or first_line(error)
