# SPDX-License-Identifier: Apache-2.0
"""Check a training against its data, logger and folder: errors, and settings that are probably unintended."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.config.sections.exp_manager import WandbLogger
from nemo_launcher.config.training_length import length_problems
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.launcher.checks.learning import cannot_learn
from nemo_launcher.launcher.earlier_run import read_earlier
from nemo_launcher.launcher.estimate import base_length, training_records
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Learning
from nemo_launcher.runtime.earlier_training import CHECKPOINTS
from nemo_launcher.runtime.progress_file import PROGRESS_NAME, SUMMARY_NAME, load_progress

WANDB_HOSTS = ("api.wandb.ai", "wandb")
WITHOUT_KEY = ("offline", "disabled", "dryrun")


def check_length(stage: Learning, probe: LaunchProbe) -> list[Problem]:
    """Check that there is enough data for a batch and for validation, if its lines can be counted."""
    records = training_records(stage, probe)
    return [] if not records else length_problems(stage.section, records, stage.key)


def check_wandb(stage: Stage, config: Mapping[str, object]) -> list[Problem]:
    """Check that a job that logs to Weights & Biases has a key. config: the whole configuration."""
    if not isinstance(stage, Learning) or not stage.wants_wandb:
        return []
    logger = stage.section.exp_manager.wandb_logger_kwargs or WandbLogger()
    mode = logger.mode or value_of(config, "env_vars.WANDB_MODE") or os.environ.get("WANDB_MODE")
    by_launcher = config.get("wandb_api_key_file") or config.get("wandb_api_bcp_secret_key")
    if mode in WITHOUT_KEY or by_launcher or os.environ.get("WANDB_API_KEY") or _netrc_has_key():
        return []
    kwargs = "exp_manager.wandb_logger_kwargs.mode"
    fix = f"wandb_api_key_file=/path/to/key, or export WANDB_API_KEY, or without a key: ++{stage.key(kwargs)}=offline"
    return [Problem(stage.key("exp_manager.create_wandb_logger"), "there is no key for Weights & Biases", fix)]


def _netrc_has_key() -> bool:
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return path.is_file() and any(netrc.netrc(path).authenticators(host) for host in WANDB_HOSTS)
    except (OSError, netrc.NetrcParseError, UnicodeError):
        return False


def notes(stage: Learning, probe: LaunchProbe, overrides: Sequence[str]) -> Iterator[Problem]:
    """Yield settings that work but are probably unintended."""
    yield from cannot_learn(stage, probe, overrides)
    yield from _same_files(stage)
    yield from _unused_checkpoint(stage)
    if is_finished(stage):
        what = f"{stage.folder} has a finished training with the same settings: nothing is left to do"
        more = f"continue with a higher {stage.key('trainer.max_epochs')}, or train in another folder"
        yield Problem(stage.key("run.results_dir"), what, f"{more}: {stage.key('run.results_dir')}=/another/folder")


def long_prompts(stage: Learning, probe: LaunchProbe, overrides: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for an encoder_seq_length on the command line that exceeds the base model's limit."""
    key = stage.key("model.encoder_seq_length")
    if not any(text.lstrip("+").startswith(f"{key}=") for text in overrides):
        return
    limit, wanted = base_length(stage, probe), stage.section.model.encoder_seq_length
    if limit is not None and wanted > limit:
        yield Problem(key, f"is {wanted}, but the base model's limit of {limit} tokens applies", f"{key}={limit}")


def _same_files(stage: Learning) -> Iterator[Problem]:
    data = stage.section.model.data
    trained = {identity: path for path in data.train_ds if (identity := _identity(path)) is not None}
    others = {"validation_ds": ("val_loss does", data.validation_ds), "test_ds": ("its scores do", data.test_ds or [])}
    for key, (figures, paths) in others.items():
        for path in paths:
            if (identity := _identity(path)) in trained:
                other = trained[identity]
                named = path if path == other else f"{path} ({other})"
                what = f"{named} is also used for training: {figures} not measure generalisation"
                yield Problem(stage.key(f"model.data.{key}"), what, "name a file with other records")


def _unused_checkpoint(stage: Learning) -> Iterator[Problem]:
    manager = stage.section.exp_manager
    folder = Path(manager.explicit_log_dir) / CHECKPOINTS
    if stage.section.trainer.resume_from_checkpoint and manager.resume_if_exists and any(folder.glob("*.ckpt")):
        what = f"is not used: training resumes from the newest checkpoint in {folder}"
        fix = f"to resume from another one, use another folder: {stage.key('run.results_dir')}=/another/folder"
        yield Problem(stage.key("trainer.resume_from_checkpoint"), what, fix)


REPEATED = {"train_ds": "trained on", "validation_ds": "validated", "data_paths": "answered and scored"}
"""Maps the last part of a key that lists files to what happens to their records."""


def repeated_files(stage: Stage) -> Iterator[Problem]:
    """Yield a warning for each file that a key names twice, even by different paths."""
    first: dict[object, Path] = {}
    for key, path in stage.data_files():
        identity = (key, _identity(str(path)) or os.path.realpath(path))
        if identity not in first:
            first[identity] = path
            continue
        other = first[identity]
        named = f"{path}" if path == other else f"{path} ({other})"
        what = f"{named} is listed twice: its records are {REPEATED[key.rpartition('.')[2]]} twice"
        yield Problem(key, what, "name it once, unless this is intended")


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and inode, which are the same for hard and symbolic links; None for an absent file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_finished(stage: Learning) -> bool:
    """Return whether the job folder has the results of the same training, run to its end."""
    results = Path(stage.section.exp_manager.explicit_log_dir)
    if not (results / SUMMARY_NAME).exists() or not Path(stage.section.model.nemo_path).exists():
        return False
    before = read_earlier(stage)
    ends = {"max_epochs": stage.section.trainer.max_epochs, "max_steps": stage.section.trainer.max_steps}
    trainer = None if before is None else before.get("trainer")
    if not isinstance(trainer, dict):
        return False
    try:
        state = load_progress(results / PROGRESS_NAME)
    except (OSError, UserError):
        return False
    same_end = all(trainer.get(key) == value for key, value in ends.items())
    return same_end and state is not None and 0 < state.max_steps <= state.step
