# SPDX-License-Identifier: Apache-2.0
"""Check that the libraries of a training's loggers can be imported."""

from __future__ import annotations

from nemo_launcher.config.loggers import logger_problems
from nemo_launcher.errors import Problem
from nemo_launcher.launcher.stages import Learning


def check_loggers(stage: Learning) -> list[Problem]:
    """Return a problem for each chosen logger whose library cannot be imported here."""
    return logger_problems(stage.section.exp_manager, stage.key)
