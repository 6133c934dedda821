"""What an earlier run left in a job folder: the same configuration goes on from it, another one must not touch it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nemo_launcher.core.job import config_file
from nemo_launcher.core.stages import Learning, Stage
from nemo_launcher.errors import Problem

# changing these goes on with the same training; all of them below the stage's section
MAY_CHANGE = (
    "run.time_limit",
    "run.dependency",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.log_every_n_steps",
    "exp_manager.create_wandb_logger",
    "exp_manager.wandb_logger_kwargs",
    "exp_manager.create_tensorboard_logger",
    "exp_manager.summary_writer_kwargs",
    "exp_manager.log_step_timing",
)


def check_earlier_run(stage: Stage) -> list[Problem]:
    """Refuse to train with another configuration in a folder that holds checkpoints of an earlier training."""
    if not isinstance(stage, Learning) or not has_checkpoints(stage.folder / "results"):
        return []
    before = _read_earlier(stage)
    if before is None:
        return []
    differing = [key for key in differing_keys(before, stage.config) if not key.startswith(MAY_CHANGE)]
    if not differing:
        return []
    shown = ", ".join(f"{key} ({_value(before, key)} -> {_value(stage.config, key)})" for key in differing[:8])
    more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
    what = f"{stage.folder} holds a training with other settings: {shown}{more}"
    fix = f"train somewhere else: {stage.key('run.results_dir')}=/another/folder; or start over: remove {stage.folder}"
    return [Problem(stage.key("run.results_dir"), what, fix)]


def has_checkpoints(results: Path) -> bool:
    """Whether training has left something worth keeping in `results`."""
    return results.is_dir() and any(any(results.rglob(pattern)) for pattern in ("*.ckpt", "*.nemo"))


def differing_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two sections."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        below = f"{prefix}." if prefix else ""
        return [found for key in keys for found in differing_keys(before.get(key), after.get(key), f"{below}{key}")]
    return [] if before == after else [prefix]


def _read_earlier(stage: Learning) -> dict[str, Any] | None:
    """The configuration that the earlier run was started with; None when it left none that can be read."""
    named = config_file(stage.folder, stage.job_name)
    candidates = [named] if named.is_file() else sorted(stage.folder.glob("*_hydra.yaml"))
    if not candidates:
        return None
    try:
        before = yaml.safe_load(candidates[0].read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return before if isinstance(before, dict) else None


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config
