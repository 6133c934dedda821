"""What an earlier run left in a job folder: the same configuration goes on from it, another one must not touch it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_launcher.core.job import config_file
from nemo_launcher.core.resume_rules import describe, refused_changes
from nemo_launcher.core.stages import Learning, Stage
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.foreign import load_yaml


def check_earlier_run(stage: Stage) -> list[Problem]:
    """Refuse to train with another configuration in a folder that holds checkpoints of an earlier training."""
    if not isinstance(stage, Learning) or not has_checkpoints(stage.folder / "results"):
        return []
    before = read_earlier(stage)
    differing = [] if before is None else refused_changes(before, stage.config)
    if not differing:
        return []
    what = f"{stage.folder} holds a training with other settings: {describe(before, stage.config, differing)}"
    fix = f"train somewhere else: {stage.key('run.results_dir')}=/another/folder; or start over: remove {stage.folder}"
    return [Problem(stage.key("run.results_dir"), what, fix)]


def has_checkpoints(results: Path) -> bool:
    """Whether training has left something worth keeping in `results`."""
    return results.is_dir() and any(any(results.rglob(pattern)) for pattern in ("*.ckpt", "*.nemo"))


def read_earlier(stage: Learning) -> dict[str, Any] | None:
    """Return the configuration that the earlier run was started with; None when it left none that can be read.

    The job compares what its checkpoint was trained with all the same.
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
