# SPDX-License-Identifier: Apache-2.0
"""Compose conf/ and the command line with Hydra into plain dictionaries, or raise one UserError with every mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_launcher import places
from nemo_launcher.clusters import registry
from nemo_launcher.config import resolvers
from nemo_launcher.config.options import check_options, overrides_first, with_config_path
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.launcher import shell, sweep
from nemo_launcher.launcher.composed import COMPOSITION_ERRORS, Composed
from nemo_launcher.launcher.elsewhere import without_other_stages

MISSING = "???"
CRASHES = (ValueError, TypeError, AttributeError, LookupError)
"""Other exceptions that Hydra raises on an invalid command line; on a valid one they are bugs."""
# stages=a,b is a list of stages here but a sweep to Hydra
STAGE_NAMES = re.compile(r"^stages=(\w+(?:,\w+)+)$")

ADDED = re.compile(r"^\+{0,2}(preset|task)=(.*)$", re.DOTALL)
"""A choice in conf/preset or conf/task, whose files are added to those of the stages."""


def compose() -> list[Composed]:
    """Compose the configurations of the command line: one, several with -m, none with --help or --cfg.

    A misspelt key, group or choice is left out and listed in `mistakes`. Raises UserError if nothing can be composed.
    """
    resolvers.register()
    sys.argv[1:] = overrides_first(sys.argv[1:])
    check_options(sys.argv[1:])
    sys.argv[1:] = overrides_first(with_config_path(sys.argv[1:]))
    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    if flags:  # the parser does not accept it between two overrides
        sys.argv[1:] = ["-m", *(argument for argument in sys.argv[1:] if argument not in flags)]
    else:
        sys.argv[1:] = [STAGE_NAMES.sub(r"stages=[\1]", argument) for argument in sys.argv[1:]]
    sys.argv[1:], notices = without_other_stages(sys.argv[1:])
    sys.argv[1:] = overrides_first(with_added_files(sys.argv[1:]) + cluster_file(sys.argv[1:]))
    try:
        return _compose([], notices)
    except (*COMPOSITION_ERRORS, *CRASHES) as error:
        from nemo_launcher.launcher.hydra_errors import not_composed, repair

        repaired = repair(error)
        if repaired is None:
            raise
        try:
            with repaired.command_line():
                return _compose(repaired.mistakes, notices)
        except (*COMPOSITION_ERRORS, *CRASHES) as again:
            raise UserError(repaired.mistakes or [not_composed(again)]) from error


def with_added_files(arguments: list[str]) -> list[str]:
    """Return a command line with one `+preset=` and one `+task=`, however they were written.

    Hydra accepts one of each, and only with a plus. Raises UserError for several tasks, the last of which would replace
    the others.
    """
    chosen: dict[str, list[str]] = {"preset": [], "task": []}
    others = []
    for argument in arguments:
        found = ADDED.match(argument)
        if found is None:
            others.append(argument)
        elif found[2] not in chosen[found[1]]:
            chosen[found[1]].append(found[2])
    tasks = _names(chosen["task"])
    if len(tasks) > 1:
        what = f"chooses one task, not {len(tasks)}: each sets the same keys"
        fix = f"+task={tasks[0]}; for a training on several, list their files and templates (docs/data.md)"
        raise UserError(Problem("+task", what, fix))
    for group, values in chosen.items():
        if values:
            several = f"[{','.join(_names(values))}]"
            others.append(f"+{group}={values[0] if len(values) == 1 else several}")
    return others


def _names(values: list[str]) -> list[str]:
    """Return the names in values such as `cpu` and `[small,cpu]`."""
    return [name.strip() for value in values for name in value.removeprefix("[").removesuffix("]").split(",")]


def cluster_file(arguments: list[str]) -> list[str]:
    """Return the override that chooses conf/cluster/NAME.yaml for `cluster_type=NAME`, unless a file is chosen.

    The first cluster type with options needs none, as config.yaml already uses its file.
    """
    kinds = [name for name, _ in registry.sections()]
    chosen = [argument.removeprefix("cluster_type=") for argument in arguments if argument.startswith("cluster_type=")]
    if any(argument.startswith("cluster=") for argument in arguments) or not chosen or chosen[-1] not in kinds[1:]:
        return []
    return [f"cluster={chosen[-1]}"]


def _compose(mistakes: list[Problem], notices: list[Problem]) -> list[Composed]:
    """Run Hydra on sys.argv. mistakes, notices: of the arguments that were left out."""
    composed: list[Composed] = []
    swept = sweep.swept_keys()

    def keep(config: DictConfig) -> None:
        composed.append(dataclasses.replace(read(config, mistakes, swept), notices=notices))

    entry = hydra.main(version_base=None, config_path=str(places.CONF), config_name="config")(keep)
    with _hydra_raises():
        entry()
    return composed


def read(config: DictConfig, mistakes: list[Problem], swept: list[str]) -> Composed:
    """Convert a configuration composed by Hydra into plain values by section. swept: keys with several values."""
    runtime = HydraConfig.get()
    given_overrides = OmegaConf.to_container(runtime.overrides.task, resolve=False)  # an override may contain ${...}
    overrides = [str(override) for override in given_overrides] if isinstance(given_overrides, list) else []
    values = sweep.swept_values(swept, overrides)
    sweep.isolate_sweep_runs(config, values)
    if OmegaConf.is_missing(config, "launcher_scripts_path"):  # as NVIDIA's config.yaml has it
        config["launcher_scripts_path"] = str(places.LAUNCHER_SCRIPTS)
    for key in ("launcher_scripts_path", "data_dir", "base_results_dir"):  # jobs run in other working directories
        given = config._get_node(key)
        if given is not None and _is_plain_path(given._value()):
            config[key] = os.path.abspath(os.path.expanduser(given._value()))
    setup = shell.take_setup(config)
    plain: dict[str, object] = {}
    unresolved: dict[str, list[Problem]] = {}
    for key in map(str, config):
        try:
            plain[key] = _plain(config, key, resolve=True)
        except OmegaConfBaseException as error:
            plain[key] = _plain(config, key, resolve=False)
            what = str(error.msg or error).splitlines()[0]
            unresolved[key] = [Problem(str(error.full_key or key), what, _INTERPOLATION)]
        missing = [_give_value(path) for path in _missing_keys(_plain(config, key, resolve=False), key)]
        if missing:  # values interpolated from them fail too, without adding information
            unresolved[key] = missing
    cluster = plain.get("cluster")
    if setup is not None and isinstance(cluster, dict):
        cluster["setup"] = setup
    return Composed(
        config=plain,
        choices={group: _without_ending(choice) for group, choice in runtime.runtime.choices.items()},
        overrides=overrides,
        config_name=str(runtime.job.config_name).removesuffix(".yaml"),
        unresolved=unresolved,
        mistakes=mistakes,
        label=sweep.label(values),
        folders=[Path(source.path) for source in runtime.runtime.config_sources if source.schema == "file"],
    )


def _without_ending(choice: str | None) -> str | None:
    """Return a chosen file's name without .yaml, which Hydra accepts too."""
    return choice.removesuffix(".yaml") if choice is not None else None


def _is_plain_path(value: object) -> bool:
    return isinstance(value, str) and "${" not in value and bool(value.strip())


def _plain(config: DictConfig, key: str, *, resolve: bool) -> object:
    """Return the value of a top-level `key` as plain Python."""
    node = config._get_node(key)
    if isinstance(node, Container) and not node._is_none():
        return OmegaConf.to_container(node, resolve=resolve)
    if resolve and not OmegaConf.is_missing(config, key):
        return config[key]
    return None if node is None else node._value()


def _missing_keys(value: object, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _missing_keys(item, f"{path}.{key}")
    elif isinstance(value, str) and value == MISSING:
        yield path


_INTERPOLATION = "${...} refers to another key; write \\${ for a literal ${"


def _give_value(path: str) -> Problem:
    return Problem(path, "needs a value", f"add {path}=... to the command line")


@contextlib.contextmanager
def _hydra_raises() -> Iterator[None]:
    """Make Hydra raise its errors instead of printing them and exiting: set HYDRA_FULL_ERROR temporarily."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
