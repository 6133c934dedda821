# SPDX-License-Identifier: Apache-2.0
"""`model.loss`: T-Few's losses over answer choices, and the settings that rule them out; for launcher and job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nemo_launcher.config.overrides import override
from nemo_launcher.errors import Problem

if TYPE_CHECKING:
    from nemo_launcher.config.sections.learning import Ia3Model

KEY = "model.loss"


def uses_choices(model: Ia3Model) -> bool:
    """Return whether the loss needs all answer choices of a record."""
    return model.loss is not None and (model.loss.unlikelihood or model.loss.length_norm)


def choice_loss_problems(model: Ia3Model, key: Callable[[str], str] = str) -> list[Problem]:
    """Return the settings that rule out losses over answer choices, if any is asked for.

    key: converts a dotted key within the stage into the full key for messages.
    """
    if not uses_choices(model):
        return []
    obstacles = (
        ("model.nemo_compat", model.nemo_compat, True, "NeMo has no such loss"),
        ("model.data.cache_hidden", model.data.cache_hidden, True, "states are stored for one answer of each record"),
        ("model.data.traversal", model.data.traversal, "depth", "it divides the choices of a record among rows"),
    )
    problems = []
    for name, value, refused, reason in obstacles:
        if value == refused:
            instead = override(key(name), "auto" if refused == "depth" else False)
            problems.append(Problem(key(name), f"{value} is impossible with {key(KEY)}: {reason}", instead))
    for place, template in enumerate(model.task_templates):
        if template.choices_field is None and not template.choices:
            where = key(f"model.task_templates.{place}.choices")
            what = f"{key(KEY)} needs the answer choices of {template.taskname!r}"
            fix = 'set choices: ["yes", "no"], or choices_field: the field that lists them in each record'
            problems.append(Problem(where, what, fix))
    return problems
