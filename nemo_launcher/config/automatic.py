# SPDX-License-Identifier: Apache-2.0
"""The value `auto` of keys of `model.optim`: which keys accept it, and how many steps the warm-up then has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from nemo_launcher.config.resume_rules import value_of

AUTO: Final = "auto"
Auto = Literal["auto"]
RATE, WARMUP = "model.optim.lr", "model.optim.sched.warmup_steps"
LONGEST_WARMUP = 50
"""NVIDIA's warm-up in optimizer steps, which long trainings get."""


def automatic_keys(config: Mapping[str, object]) -> list[str]:
    """Return the keys of a learning stage's section that say `auto`."""
    return [key for key in (RATE, WARMUP) if value_of(config, key) == AUTO]


def warmup_steps(steps: int) -> int:
    """Return the warm-up of a training with so many optimizer steps: a tenth of them, at least 1 and at most 50."""
    return min(LONGEST_WARMUP, max(1, steps // 10))


def with_values(config: Mapping[str, Any], values: Mapping[str, object]) -> dict[str, Any]:
    """Return a copy of a section with the values of dotted keys whose sections exist."""
    changed = dict(config)
    for key, value in values.items():
        first, _, rest = key.partition(".")
        changed[first] = with_values(changed[first], {rest: value}) if rest else value
    return changed
