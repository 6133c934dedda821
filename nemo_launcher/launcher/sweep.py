# SPDX-License-Identifier: Apache-2.0
"""Hydra's multirun (-m): every run gets its own job names and folders, so that no two runs write the same files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_launcher.adapters.sections import STAGES
from nemo_launcher.clusters.job import Job
from nemo_launcher.config.secret_text import HIDDEN
from nemo_launcher.errors import Problem
from nemo_launcher.launcher.masking import is_hidden

# these are already part of the documented folder names
IN_FOLDERS = ("base_results_dir", "run.results_dir", "run.model_train_name", "run.task_name")


def swept_keys() -> list[str]:
    """Return the keys with several values on the command line."""
    try:
        overrides = OverridesParser.create().parse_overrides(get_args_parser().parse_args().overrides)
    except HydraException:  # reported when Hydra composes
        return []
    return [override.key_or_group for override in overrides if override.is_sweep_override()]


def swept_values(keys: Sequence[str], overrides: Iterable[str]) -> dict[str, str]:
    """Return the values of the swept keys in one run's overrides."""
    given = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    return {key: given[key] for key in keys if key in given}


def label(values: dict[str, str]) -> str:
    """Return a run's name in messages, such as `adapter_dim=8, lr=1e-3`."""
    shown = {key: HIDDEN if is_hidden(key, value) else value for key, value in values.items()}
    return ", ".join(f"{name}={shown[key]}" for key, name in _short_names(values).items())


def isolate_sweep_runs(config: DictConfig, values: dict[str, str]) -> None:
    """Add the swept values to the job name and folder of each stage that they affect.

    A stage is affected by its own keys, those of earlier stages and keys outside stages. A later stage that reads the
    results of a stage is pointed to the new folder.
    """
    names = _short_names({key: value for key, value in values.items() if not key.endswith(IN_FOLDERS)})
    stages = [stage for stage in _chosen(config) if stage in STAGES and _has_run(config, stage)]
    for i, stage in enumerate(stages):
        own = {key: name for key, name in names.items() if key.split(".")[0] in (*stages[: i + 1], *_no_stage(key))}
        if not own:
            continue
        suffix = "".join(f"_{name}_{_file_name(key, values[key])}" for key, name in own.items())
        before = _value(config, f"{stage}.run.results_dir")
        for key in ("name", "results_dir"):
            node = config[stage].run._get_node(key)
            if node is not None and isinstance(node._value(), str):
                config[stage].run[key] = node._value() + suffix
        for later in stages[i + 1 :]:
            for key in list(config[later].run):
                if key.endswith("_dir") and before is not None and _value(config, f"{later}.run.{key}") == before:
                    config[later].run[key] = f"${{{stage}.run.results_dir}}"


def check_places(jobs_of_runs: Iterable[Sequence[Job]]) -> list[Problem]:
    """Check that no two runs are the same or write to the same folder, except for a job that they share."""
    problems: dict[Problem, None] = {}
    configs: dict[tuple[str, str], object] = {}
    runs: set[tuple[str, ...]] = set()
    for jobs in jobs_of_runs:
        for job in jobs:
            if configs.setdefault((str(job.folder), job.stage), job.config) != job.config:
                fix = f"leave out {job.stage}.run.results_dir, or vary it too"
                problems[Problem(str(job.folder), "several runs of this sweep would write to it", fix)] = None
        folders = tuple(str(job.folder) for job in jobs)
        if folders in runs and not problems:
            what = f"several runs of this sweep are the same: {', '.join(job.stage for job in jobs)}"
            problems[Problem(folders[-1], what, "vary a key of a stage that is in stages")] = None
        runs.add(folders)
    return list(problems)


def _chosen(config: DictConfig) -> list[str]:
    stages = config.get("stages")
    return [str(name).strip() for name in (stages.split(",") if isinstance(stages, str) else stages or [])]


def _has_run(config: DictConfig, stage: str) -> bool:
    return OmegaConf.is_dict(config.get(stage)) and OmegaConf.is_dict(config[stage].get("run"))


def _no_stage(key: str) -> tuple[str, ...]:
    section = key.split(".")[0]
    return () if section in STAGES else (section,)


def _short_names(values: Iterable[str]) -> dict[str, str]:
    """Return the last part of each key, with the part before it if two keys have the same last part."""
    keys = list(values)
    last = [key.split(".")[-1] for key in keys]
    return {k: n if last.count(n) == 1 else "_".join(k.split(".")[-2:]) for k, n in zip(keys, last, strict=True)}


def _file_name(key: str, value: str) -> str:
    """Return the value as part of a file name; for a possible secret, a digest that is stable across launches."""
    if is_hidden(key, value):
        return hashlib.sha256(value.encode("utf-8", errors="surrogateescape")).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-")


def _value(config: DictConfig, key: str) -> object:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:  # reported when the section is checked
        return None
