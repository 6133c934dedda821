# SPDX-License-Identifier: Apache-2.0
"""Superseded checkpoints of finished trainings: neither the last one nor among the best ones to keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.runtime.earlier_training import CHECKPOINTS
from nemo_launcher.training.checkpoint_header import (
    CALLBACK,
    LAST,
    SUFFIX,
    DamagedCheckpointError,
    ForeignCheckpointError,
    is_ours,
    names_of,
    read_facts,
)


def superseded(folder: Path) -> list[str]:
    """Return the names of checkpoints in a folder that the training's last checkpoint does not list as kept.

    The list is empty if the training is unfinished, its last checkpoint is incomplete, or its configuration is missing.
    """
    if folder.name != CHECKPOINTS:
        return []
    try:
        params = _params(folder.parents[1])
        last, facts = _finished(folder)
        if params is None or last is None:
            return []
        kept = {last.name, *_kept(facts)}
        mine = names_of(str(params["filename"]))
        all_are_kept = params.get("monitor", "val_loss") is None and params.get("save_top_k") == -1
        ends = f"{LAST}{SUFFIX}" if all_are_kept else SUFFIX
        names = [path.name for path in sorted(folder.glob(f"*{ends}")) if path.is_file() and not path.is_symlink()]
        return [name for name in names if name not in kept and mine.fullmatch(name) and is_ours(folder / name)]
    except (OSError, UserError, AttributeError, KeyError, TypeError):
        return []  # foreign files


def _params(job: Path) -> Mapping[str, object] | None:
    """Return checkpoint_callback_params of the one job of a folder that has them."""
    found = [value_of(load_yaml(path), "exp_manager.checkpoint_callback_params") for path in job.glob("*_hydra.yaml")]
    params = [value for value in found if isinstance(value, dict) and value.get("filename")]
    return params[0] if len(params) == 1 else None


def _finished(folder: Path) -> tuple[Path | None, dict[str, object]]:
    """Return the last complete checkpoint and its facts; (None, {}) if training is not finished."""
    found: list[tuple[int, Path, dict[str, object]]] = []
    for path in folder.glob(f"*{LAST}{SUFFIX}"):
        try:
            facts = read_facts(path)
        except (DamagedCheckpointError, ForeignCheckpointError):
            continue
        found.append((int(str(facts["global_step"])), path, facts))
    if not found:
        return None, {}
    _, path, facts = max(found, key=lambda item: item[:2])
    return (path, facts) if facts["finished"] is True else (None, {})


def _kept(facts: Mapping[str, object]) -> set[str]:
    callbacks = facts["callbacks"]
    assert isinstance(callbacks, dict)  # read_facts
    state = callbacks[CALLBACK]
    paths = [*state["best_k_models"], state["best_model_path"], state["last_model_path"]]
    return {Path(path).name for path in paths if path}
