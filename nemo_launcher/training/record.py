# SPDX-License-Identifier: Apache-2.0
"""The record of what determines a training's result, stored in checkpoints and compared at the next start."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from nemo_launcher import __version__
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.resume_rules import (
    BY_CONTENT,
    HARMLESS,
    LAST_DIGITS,
    OUTPUTS,
    differing_keys,
    is_below,
    refused_changes,
    value_of,
)
from nemo_launcher.config.sections import Learning
from nemo_launcher.config.sections.learning import LearningData
from nemo_launcher.errors import Problem
from nemo_launcher.families.base import Base
from nemo_launcher.files.digest import sha256_of
from nemo_launcher.files.foreign import parse_json
from nemo_launcher.files.values import Section, text
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.agreement import file_checksum, flat_settings

SECTIONS = ("trainer", "exp_manager", "model")
DATA_KEYS = ("train_ds", "validation_ds")
_SUMS = [key for key in LAST_DIGITS if key not in ("trainer.devices", "trainer.num_nodes")]  # "ranks" reports these
_FILES = ("model.restore_path", "model.data.cache_dir", "trainer.resume_from_checkpoint")  # may differ between nodes
_DROPOUT_SEEDS = "blake2b"
"""How dropout masks are seeded (megatron.seeded_dropout). Release 0.1.0 used Python's `hash` and stored no name."""
_SHOWN = 60  # characters of a value in a message


class BaseRecord(TypedDict, total=False):
    """What identifies a base."""

    weights: str
    """Its fingerprint (checkpoint.fingerprint)."""
    checksum: str
    """Of every number of its weights; release 0.1.0 kept none."""
    tokenizer: str | None
    """What its token ids depend on; None: that cannot be told."""
    settings: dict[str, str]
    """What changes the results of its weights."""


class TrainingRecord(TypedDict, total=False):
    """What decides the result of a training, as checkpoints hold it; empty for one that was saved outside a job."""

    config: dict[str, Section]
    """The sections that decide it."""
    data: dict[str, list[str]]
    """The SHA-256 of each data file, by its key."""
    environment: dict[str, object]
    """What changes the order of sums."""
    dropout_seeds: str
    """How dropout masks are seeded; release 0.1.0 stored none."""
    slurm_job: str | None
    """The job of the queue."""
    base: BaseRecord
    """Its base model."""


def record_of_job(job: Loaded[Learning]) -> TrainingRecord:
    """Return what is known before the base is loaded: settings, checksums of the data, and the environment.

    Raises OSError if a data file cannot be read.
    """
    plain = {name: job.values[name] for name in SECTIONS}
    data = {key: [sha256_of(path) for path in getattr(job.section.model.data, key)] for key in DATA_KEYS}
    return {
        "config": plain,
        "data": data,
        "environment": _environment(),
        "dropout_seeds": _DROPOUT_SEEDS,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def values_of_rank(record: TrainingRecord) -> dict[str, str]:
    """Return the values that must be equal on all ranks (agreement.check_same), before the base is loaded."""
    config = record["config"]
    seen = flat_settings(config, (*OUTPUTS, *BY_CONTENT, *_FILES))
    restored = text(config["model"], "restore_path")
    seen["model.restore_path"] = file_checksum(restored)
    return seen | {f"model.data.{key}[{i}]": mark for key in DATA_KEYS for i, mark in enumerate(record["data"][key])}


def identity_of(record: TrainingRecord) -> str:
    """Return a SHA-256 of what decides a training's result, whatever its length, its folder and its ranks."""
    values = values_of_rank(record)
    kept = {key: value for key, value in values.items() if not is_below(key, (*HARMLESS, *LAST_DIGITS))}
    text_of_all = json.dumps([kept, record["base"]], sort_keys=True)
    return hashlib.sha256(text_of_all.encode()).hexdigest()


def is_restarted() -> bool:
    """Return whether Slurm has requeued this job."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def is_of_this_job(before: TrainingRecord) -> bool:
    """Return whether an earlier start of this Slurm job made a checkpoint's record."""
    job = os.environ.get("SLURM_JOB_ID")
    return bool(job) and before.get("slurm_job") == job


def record_of_base(base: Base) -> BaseRecord:
    """Return the identity of a base: its weights, the settings that affect its output, and its tokenizer."""
    return {
        "weights": base.fingerprint,
        "checksum": base.checksum,
        "tokenizer": base.tokenizer.identity,
        "settings": {name: str(value) for name, value in sorted(base.settings.items())},
    }


def changed_settings(before: TrainingRecord, after: TrainingRecord, fix: str) -> list[Problem]:
    """Return a Problem for each setting that affects the result and differs between the records of two jobs."""
    old, new = before["config"], after["config"]
    keys = refused_changes(old, new, also_free=(*OUTPUTS, *BY_CONTENT))
    return [_changed(key, value_of(old, key), value_of(new, key), fix) for key in keys]


def changed_data(before: TrainingRecord, after: TrainingRecord, files: LearningData, fix: str) -> list[Problem]:
    """Return a Problem for each data file that has changed since the checkpoint was saved."""
    problems = []
    for key in DATA_KEYS:
        old, new = before["data"][key], after["data"][key]
        paths: list[str] = getattr(files, key)
        if len(old) != len(new):
            problems.append(Problem(f"model.data.{key}", f"{len(old)} file(s) -> {len(new)}", fix))
            continue
        for path, was, now in zip(paths, old, new, strict=True):
            if was != now:
                what = f"its content changed since the checkpoint was saved ({was[:12]} -> {now[:12]})"
                problems.append(Problem(f"model.data.{key}: {path}", what, fix))
    return problems


def changed_base(before: BaseRecord, after: BaseRecord, path: str, fix: str) -> list[Problem]:
    """Return a Problem for each difference between the base at `path` and the base of the checkpoint."""
    where = f"model.language_model_path: {path}"
    problems = []
    if before["weights"] != after["weights"]:
        what = f"is not the base of the checkpoint: its weights are {before['weights']} -> {after['weights']}"
        problems.append(Problem(where, what, fix))
    elif before.get("checksum", after["checksum"]) != after["checksum"]:
        what = "is not the base of the checkpoint: some of its weights have other values"
        problems.append(Problem(where, what, fix))
    if before["tokenizer"] != after["tokenizer"]:
        problems.append(Problem(where, "has another tokenizer than the base of the checkpoint", fix))
    old, new = before["settings"], after["settings"]
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            problems.append(_changed(f"{where}: {name}", old.get(name), new.get(name), fix))
    return problems


def environment_changes(before: TrainingRecord, after: TrainingRecord) -> str | None:
    """Return a line that names changes in software and hardware, which may change rounding; None without changes."""
    old, new = before["environment"], after["environment"]
    changed = [f"{name} {old.get(name)} -> {value}" for name, value in new.items() if old.get(name) != value]
    keys = [key for key in differing_keys(before["config"], after["config"]) if is_below(key, _SUMS)]
    changed += [f"{key} {value_of(before['config'], key)} -> {value_of(after['config'], key)}" for key in keys]
    return f"{', '.join(changed)}: the last digits may differ from a run without a break" if changed else None


def dropout_changes(before: TrainingRecord, after: TrainingRecord) -> str | None:
    """Return a line for a checkpoint whose dropout masks were seeded in another way; None if there is no dropout.

    Such a training continues. Its new masks are as good as those of another seed, but not those of an uninterrupted
    run.
    """
    if before.get("dropout_seeds") == after["dropout_seeds"]:
        return None
    model = after["config"]["model"]
    drawn = [key for key, rate in _adapter_dropout(model).items() if rate]
    drawn += ["model.nemo_compat (dropout of the base)"] if model.get("nemo_compat") else []
    if not drawn:
        return None
    release = before["environment"].get("nemo-launcher")
    return f"{', '.join(drawn)}: release {release} drew other dropout masks; this release draws its own from now on"


def _adapter_dropout(model: Section) -> dict[str, object]:
    """Return the dropout rates of the adapter settings, by dotted key."""
    blocks = {name: block for name, block in model.items() if name.endswith("_tuning") and isinstance(block, Mapping)}
    return {
        f"model.{name}.{key}": value
        for name, block in blocks.items()
        for key, value in block.items()
        if key.endswith("dropout")
    }


def _changed(where: str, old: object, new: object, fix: str) -> Problem:
    shown = [text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..." for text in (str(old), str(new))]
    return Problem(where, f"{shown[0]} -> {shown[1]}: the checkpoint was trained with the first", fix)


def _environment() -> dict[str, object]:
    """Return what may change the order of sums, and so the last digits of results."""
    device = torch.cuda.get_device_name() if ranks.uses_gpu() else "cpu"
    return {
        "nemo-launcher": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "ranks": ranks.world_size(),
        "device": device,
    }


def finished_summary(path: Path) -> dict[str, object] | None:
    """Return the content of training_summary.json, or None if there is no readable one."""
    try:
        value = parse_json(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
