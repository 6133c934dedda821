# SPDX-License-Identifier: Apache-2.0
"""Checks that find a stage's errors before it is queued, in its configuration and in the files that it needs."""

from __future__ import annotations

from nemo_launcher.config.near_duplicates import near_duplicate_problems
from nemo_launcher.errors import Problem
from nemo_launcher.launcher.checks.chats import check_chats
from nemo_launcher.launcher.checks.data import check_data, check_summary
from nemo_launcher.launcher.checks.decoder_start import check_decoder_start
from nemo_launcher.launcher.checks.folder import check_name, check_run, check_space
from nemo_launcher.launcher.checks.gpu_memory import small_gpus
from nemo_launcher.launcher.checks.hidden_states import check_hidden_states
from nemo_launcher.launcher.checks.loggers import check_loggers
from nemo_launcher.launcher.checks.metrics import check_metrics, check_monitors
from nemo_launcher.launcher.checks.models import check_models
from nemo_launcher.launcher.checks.precision import slow_precisions
from nemo_launcher.launcher.checks.reports import check_report
from nemo_launcher.launcher.checks.sizes import (
    check_attention_backend,
    check_family,
    check_one_process,
    check_parallelism,
    check_recomputation,
    check_training_length,
)
from nemo_launcher.launcher.checks.templates import check_learnt, check_line_breaks
from nemo_launcher.launcher.checks.training import check_length, check_wandb, long_prompts, notes, repeated_files
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Evaluation, Learning

__all__ = [
    "check_config",
    "check_files",
    "check_learnt",
    "check_line_breaks",
    "check_name",
    "check_wandb",
    "long_prompts",
    "notes",
    "repeated_files",
    "slow_precisions",
    "small_gpus",
]


def check_config(stage: Stage) -> list[Problem]:
    """Return what is wrong with a stage's configuration, independent of the machine."""
    problems = check_run(stage) + check_family(stage) + check_parallelism(stage) + check_one_process(stage)
    if isinstance(stage, Learning):
        problems += check_training_length(stage) + check_recomputation(stage) + check_attention_backend(stage)
        problems += check_learnt(stage) + check_monitors(stage)
    if isinstance(stage, Evaluation):
        problems += check_metrics(stage) + check_report(stage)
    return problems


def check_files(stage: Stage, earlier: list[Stage], later: list[Stage], probe: LaunchProbe) -> list[Problem]:
    """Return what is wrong with a stage's files, as seen from this machine.

    Outputs of an `earlier` stage need not exist yet; for outputs of a `later` one the fix is to reorder the stages.
    """
    problems = [*check_models(stage, earlier, later, probe), *check_data(stage, earlier, probe)]
    problems += check_summary(stage, earlier)
    if isinstance(stage, Learning):
        problems += check_length(stage, probe) + check_hidden_states(stage, probe)
        problems += check_chats(stage, earlier, probe) + check_decoder_start(stage, earlier, probe)
        problems += check_loggers(stage) + near_duplicate_problems(stage.section.model.data, stage.key)
    return problems + check_space(stage, probe)
