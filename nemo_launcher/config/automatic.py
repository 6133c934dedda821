# SPDX-License-Identifier: Apache-2.0
"""The values `auto` and `find` of keys of `model.optim`: which keys accept them, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from nemo_launcher.config.resume_rules import value_of

AUTO: Final = "auto"
Auto = Literal["auto"]
FIND: Final = "find"
Find = Literal["find"]
RATE, WARMUP = "model.optim.lr", "model.optim.sched.warmup_steps"
LONGEST_WARMUP = 50
"""NVIDIA's warm-up in optimizer steps, which long trainings get."""
TEST_STEPS = 100
"""Optimizer steps of the learning rate range test that `find` runs; as in Lightning."""
TEST_RATES = (1e-8, 1.0)
"""The lowest and the highest learning rate of the range test; as in Lightning."""


def automatic_keys(config: Mapping[str, object]) -> list[str]:
    """Return the keys of a learning stage's section that say `auto`."""
    return [key for key in (RATE, WARMUP) if value_of(config, key) == AUTO]


def finds_rate(config: Mapping[str, object]) -> bool:
    """Return whether a learning stage's section asks for a learning rate range test."""
    return value_of(config, RATE) == FIND


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
