# SPDX-License-Identifier: Apache-2.0
"""The numbers that `auto` stands for in a learning stage's section: they depend on the method and the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.config.automatic import RATE, WARMUP, automatic_keys, warmup_steps
from nemo_launcher.config.optimizers import OPTIMIZERS
from nemo_launcher.config.resume_rules import value_of


def automatic_values(config: Mapping[str, Any], steps: int) -> dict[str, object]:
    """Return the keys of a section that say `auto`, with their numbers for a training of so many steps.

    The learning rate is missing with an optimizer that has no usual rate (config.training_options refuses that). A
    warm-up gives way to `warmup_ratio`.
    """
    found: dict[str, object] = {}
    for key in automatic_keys(config):
        if key == WARMUP:
            given = value_of(config, "model.optim.sched.warmup_ratio")
            found[key] = warmup_steps(steps) if given is None else None
        elif key == RATE and OPTIMIZERS[str(value_of(config, "model.optim.name"))].steps_by_rate:
            found[key] = settings_of(config["model"]).LEARNING_RATES.of(steps)
    return found
