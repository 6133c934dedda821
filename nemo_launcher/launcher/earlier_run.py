# SPDX-License-Identifier: Apache-2.0
"""Check a job folder for an earlier run: the same configuration resumes it, any other must not touch it."""

from __future__ import annotations

from pathlib import Path

from nemo_launcher.clusters.job import config_file, moved_from
from nemo_launcher.config.resume_rules import BY_CONTENT, describe, refused_changes, value_of
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Learning


def check_earlier_run(stage: Stage) -> list[Problem]:
    """Return a problem if the folder has checkpoints of a training with another configuration."""
    if not isinstance(stage, Learning) or not has_checkpoints(stage.folder / "results"):
        return []
    before = read_earlier(stage)
    old_folder = None if before is None else moved_from(before, stage.folder)
    if before is not None and old_folder is not None:  # the job itself compares the content of the files
        moved = {key: _in_folder(value, old_folder, stage.section.run.results_dir) for key, value in before.items()}
        before = moved | {"run": stage.config["run"]}
    free = BY_CONTENT if old_folder is not None else ()
    differing = [] if before is None else refused_changes(before, stage.config, also_free=free)
    if not differing:
        return []
    what = f"{stage.folder} has a training with other settings: {describe(before, stage.config, differing)}"
    fix = f"train in another folder: {stage.key('run.results_dir')}=/another/folder; or remove {stage.folder}"
    said = stage.section.run.automatic or []
    if before is not None and all(key in said for key in differing):
        fix = f"continue it with {' '.join(f'{stage.key(key)}={value_of(before, key)}' for key in differing)}; or {fix}"
    return [Problem(stage.key("run.results_dir"), what, fix)]


def _in_folder(value: object, old: str, new: str) -> object:
    """Return a configuration with the paths of a moved folder replaced."""
    if isinstance(value, dict):
        return {key: _in_folder(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_folder(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value


def has_checkpoints(results: Path) -> bool:
    """Return whether `results` has checkpoints or archives of a training."""
    return results.is_dir() and any(any(results.rglob(pattern)) for pattern in ("*.ckpt", "*.nemo"))


def read_earlier(stage: Learning) -> dict[str, object] | None:
    """Return the configuration of the earlier run; None if there is no readable one.

    The job itself also compares its configuration with that of the checkpoint.
    """
    named = config_file(stage.folder, stage.job_name)
    candidates = [named] if named.is_file() else sorted(stage.folder.glob("*_hydra.yaml"))
    if not candidates:
        return None
    try:
        before = load_yaml(candidates[0])
    except (OSError, UserError):
        return None
    return before if isinstance(before, dict) else None
