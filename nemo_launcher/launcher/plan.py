# SPDX-License-Identifier: Apache-2.0
"""Find every mistake of a run before anything is written, and return an executable plan."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_launcher import places
from nemo_launcher.adapters import sections
from nemo_launcher.clusters import CLUSTERS, Cluster, Settings
from nemo_launcher.clusters.job import Job, config_file
from nemo_launcher.config.load import load
from nemo_launcher.config.older_names import with_current_names
from nemo_launcher.config.schema import check
from nemo_launcher.config.sections.top_level import NumaMapping
from nemo_launcher.config.without_effect import warnings as ignored_keys
from nemo_launcher.config.without_effect import without_foreign
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.launcher.assumed import assume_templates
from nemo_launcher.launcher.automatic import settle
from nemo_launcher.launcher.checks import (
    check_config,
    check_files,
    check_line_breaks,
    check_name,
    check_wandb,
    long_prompts,
    notes,
    repeated_files,
    slow_precisions,
    small_gpus,
)
from nemo_launcher.launcher.checks.top_level import check_top_level, cluster_type, keys_in_clear
from nemo_launcher.launcher.chosen import chosen_stages
from nemo_launcher.launcher.composed import Composed
from nemo_launcher.launcher.conditional import on_other_clusters, without_switch
from nemo_launcher.launcher.earlier_run import check_earlier_run
from nemo_launcher.launcher.elsewhere import ignored_stages, other_stages
from nemo_launcher.launcher.estimate import training_records
from nemo_launcher.launcher.evaluation_data import with_test_data
from nemo_launcher.launcher.hub_data import hub_problems
from nemo_launcher.launcher.hub_models import model_problems
from nemo_launcher.launcher.other_types import without_other_types
from nemo_launcher.launcher.outputs import check_outputs
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.sources import with_sources
from nemo_launcher.launcher.stage import Preparation, Stage
from nemo_launcher.launcher.stages import STAGES, Conversion, Evaluation, Learning
from nemo_launcher.launcher.suggestions import unknown_key
from nemo_launcher.runtime import binding


@dataclass(frozen=True)
class Plan:
    """A checked run."""

    stages: list[Stage]
    """The stages in order."""
    jobs: list[Job]
    """The jobs to launch, in order."""
    cluster: Cluster
    """The cluster that runs them."""
    preparations: list[Preparation]
    """Task data to prepare before the jobs."""
    warnings: list[Problem]
    """Warnings about the run."""
    label: str
    """The name of the run in a sweep; empty without a sweep."""
    debug: bool
    """Whether scripts are only written and nothing is started."""


def make_plan(composed: Composed, probe: LaunchProbe) -> Plan:
    """Check a composed configuration and return the plan. Raises UserError with all mistakes."""
    config = composed.config
    if config.get("preflight") is False:  # YAML reads off as false
        config["preflight"] = "off"
    names, stage_problems = chosen_stages(config.get("stages"))
    kind, cluster_problems = cluster_type(config.get("cluster_type"))
    problems = composed.mistakes + stage_problems + cluster_problems + check_top_level(composed, kind)
    top_level_is_sound = not problems
    stages: list[Stage] = []
    notices = [*composed.notices]
    for name in names:
        own = without_foreign(with_current_names(config.get(name), name, composed.given), name, f"{name}.{{}}".format)
        config[name] = own.section
        problems += own.refused
        notices += own.warnings
        if name == "adapter_learning":
            config[name] = without_other_types(config[name], composed.overrides)
        section, data_dir, filled_in = config[name], config.get("data_dir"), list[str]()
        if name == Evaluation.name and isinstance(section, dict):
            section, filled_in = with_test_data(section, composed, probe)
            config[name] = section
        found = check_section(composed, name)
        problems += found
        # checks of a configuration without its misspelt parts would mislead
        if not found and not composed.mistakes and isinstance(section, dict) and isinstance(data_dir, str):
            stage = STAGES[name](section, composed.choices.get(name) or "", data_dir)
            stage.assumed = filled_in
            found = check_name(stage)
            problems += found
            stages += [stage] if not found else []  # file names depend on the job name
    for stage in stages:
        assume_templates(stage)
        settle(stage, training_records(stage, probe))
        problems += check_config(stage) + check_earlier_run(stage)
        problems += check_line_breaks(stage, composed.overrides) if isinstance(stage, Learning) else []
    problems += check_folders(stages) + check_outputs(stages)
    mode = config.get("preflight", "error")
    outside = check_all_files(stages, probe) if mode != "off" else []
    if mode != "off":
        outside += [problem for stage in stages for problem in check_wandb(stage, config)]
    if not top_level_is_sound:
        problems += outside if mode != "warn" else []
        raise UserError(with_sources(problems, composed))
    settings = make_settings(config)
    jobs = in_order([make_job(stage, settings.launcher_scripts) for stage in stages])
    cluster = CLUSTERS[kind](settings)
    if mode != "off" and not settings.debug:
        outside += probe.site(CLUSTERS[kind]).problems(settings, jobs)
    problems += outside if mode != "warn" else []
    problems += cluster.problems(jobs)
    problems += check_scripts(jobs, settings.launcher_scripts)
    if problems:
        raise UserError(with_sources(problems, composed))
    learning = [stage for stage in stages if isinstance(stage, Learning)]
    notices += [n for s in learning if mode != "off" for n in notes(s, probe, composed.overrides)]
    notices += [note for stage in stages for note in repeated_files(stage)] if mode != "off" else []
    notices += [*slow_precisions(stages, kind), *small_gpus(stages, kind, probe)] if mode != "off" else []
    notices += [p for s in learning for p in long_prompts(s, probe, composed.overrides)]
    notices += without_effect(config, stages, kind, composed.overrides) + without_stage(composed.overrides, names)
    notices += [] if composed.notices else ignored_stages(other_stages(config))
    warnings = with_sources(cluster.warnings(jobs) + outside + notices, composed)
    return Plan(stages, jobs, cluster, preparations(stages), warnings, composed.label, settings.debug)


def without_effect(config: dict[str, object], stages: list[Stage], kind: str, overrides: list[str]) -> list[Problem]:
    """Return warnings about keys without effect and about API keys in plain text."""
    problems = on_other_clusters(overrides, kind) + keys_in_clear(config)
    for stage in stages:
        problems += ignored_keys(stage.config, stage.name, stage.key) + without_switch(stage)
    return problems


def without_stage(overrides: list[str], names: list[str]) -> list[Problem]:
    """Return a warning for each unchosen stage whose keys are on the command line."""
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    sections = {key: key.partition(".")[0] for key in keys if "." in key}
    problems = []
    for stage in dict.fromkeys(section for section in sections.values() if section in STAGES and section not in names):
        given = [key for key, section in sections.items() if section == stage]
        more = f" and {len(given) - 1} more" if len(given) > 1 else ""
        what = f"has no effect{more}: {stage} is not in stages"
        chain = ",".join(name for name in STAGES if name in (*names, stage))
        problems.append(Problem(given[0], what, f"'stages=[{chain}]' runs it as well"))
    return problems


def check_all_files(stages: list[Stage], probe: LaunchProbe) -> list[Problem]:
    """Check the files of all stages, as seen from this machine."""
    return [p for i, stage in enumerate(stages) for p in check_files(stage, stages[:i], stages[i + 1 :], probe)]


def check_section(composed: Composed, name: str) -> list[Problem]:
    """Check that the section of a chosen stage exists and is complete, with known keys and correct types."""
    section = composed.config.get(name)
    if section is None:
        first, *others = sorted(_choices(name))
        what = "the stage is in stages, but no file is chosen for it"
        return [Problem(name, what, f"add {name}={first}" + (f" (or {', '.join(others)})" if others else ""))]
    problems = composed.unresolved.get(name) or check(section, sections.STAGES[name], name)
    problems = problems or (_hub_problems(section, name) if isinstance(section, dict) else [])
    return [unknown_key(p.where, [name]) if p.what == "unknown key" else p for p in problems]


def _hub_problems(section: dict[str, object], name: str) -> list[Problem]:
    return model_problems(section, name) if name == Conversion.name else hub_problems(section, name)


def _choices(group: str) -> list[str]:
    folder = places.CONF / group
    return [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")]


def check_folders(stages: list[Stage]) -> list[Problem]:
    """Check that no two jobs have the same folder and name."""
    problems = []
    first: dict[Path, Stage] = {}
    for stage in stages:
        other = first.setdefault(config_file(stage.folder, stage.job_name), stage)
        if other is not stage:
            what = f"is the same as for {other.name}, with the same run.name: {stage.folder}"
            problems.append(Problem(stage.key("run.results_dir"), what, "give each stage its own folder or run.name"))
    return problems


def check_scripts(jobs: list[Job], launcher_scripts: Path) -> list[Problem]:
    """Check that the scripts of the jobs exist."""
    names = dict.fromkeys(Path(job.command[0]).name for job in jobs)
    fix = f"leave it out: {places.LAUNCHER_SCRIPTS} is the default"
    return [
        Problem("launcher_scripts_path", f"{launcher_scripts} has no {name}", fix)
        for name in names
        if not (launcher_scripts / name).is_file()
    ]


def make_settings(config: dict[str, Any]) -> Settings:
    """Collect the settings that all jobs share from a checked configuration."""
    scripts = Path(config["launcher_scripts_path"]).absolute()
    return Settings(
        launcher_scripts=scripts,
        data_dir=Path(config["data_dir"]).absolute(),
        base_results_dir=Path(config["base_results_dir"]).absolute(),
        container=config.get("container"),
        container_mounts=[mount for mount in config.get("container_mounts") or [] if mount],
        env_vars={k: str(v) for k, v in (config.get("env_vars") or {}).items() if v is not None}
        | binding.variables(load(config.get("numa_mapping") or {}, NumaMapping).section),
        wandb_key_file=config.get("wandb_api_key_file"),
        wandb_key_name=config.get("wandb_api_bcp_secret_key"),
        bcp_no_redirect=config.get("bcp_no_redirect", True),
        cluster=config.get("cluster") or {},
        dependency=config.get("dependency", "afterok"),
        debug=is_debug(config),
        preflight=config.get("preflight", "error"),
        container_runtime=config.get("container_runtime", "pyxis"),
    )


def is_debug(config: dict[str, object]) -> bool:
    """Return whether job folders are only written and nothing is launched."""
    return bool(config.get("debug")) or os.environ.get("NEMO_LAUNCHER_DEBUG", "0") not in ("", "0")


def make_job(stage: Stage, launcher_scripts: Path) -> Job:
    """Return the job that runs `stage`."""
    return Job(
        stage=stage.name,
        name=stage.job_name,
        folder=stage.folder,
        config=stage.config,
        command=stage.command(launcher_scripts, config_file(stage.folder, stage.job_name)),
        devices=stage.devices,
        num_nodes=stage.num_nodes,
        dependency=stage.section.run.dependency,
        time_limit=stage.section.run.time_limit,
        inputs=inputs_of(stage),
        writes=[output.path.absolute() for output in stage.writes()],
        outputs=stage.outputs(),
        wants_gpu=stage.accelerator != "cpu",
        needs_gpu=stage.accelerator in ("gpu", "cuda"),
        wants_wandb=stage.wants_wandb,
        splits_layers=stage.parallel is not None and stage.parallel.tensor_model_parallel_size > 1,
    )


def inputs_of(stage: Stage) -> list[Path]:
    """Return the files that a stage's job reads."""
    return [path for _, path in stage.reads()]


def in_order(jobs: list[Job]) -> list[Job]:
    """Return the jobs of a chain, each with the script of the one before it."""
    before = [None, *(job.script_file for job in jobs)]
    return [dataclasses.replace(job, previous=script) for job, script in zip(jobs, before, strict=False)]


def preparations(stages: list[Stage]) -> list[Preparation]:
    """Return the task data to prepare at launch, which no chosen stage prepares."""
    made = {output.absolute() for stage in stages for output in stage.outputs()}
    wanted = []
    for stage in stages:
        preparation = stage.preparation()
        missing = any(path.absolute() not in made for _, path in stage.data_files())
        if preparation is not None and missing and preparation not in wanted:
            wanted.append(preparation)
    return wanted
