# SPDX-License-Identifier: Apache-2.0
"""Check a training that stores hidden states (model.data.cache_hidden) against its base model."""

from __future__ import annotations

from pathlib import Path

from nemo_launcher.adapters.registry import method_of, settings_of
from nemo_launcher.checkpoint.outline import dropout_rates
from nemo_launcher.config.hidden_states import dropout_problem, layer_problem, stored_stack
from nemo_launcher.errors import Problem
from nemo_launcher.launcher.base_sizes import stacks_of
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stages import Learning


def check_hidden_states(stage: Learning, probe: LaunchProbe) -> list[Problem]:
    """Check that a layer is below the adapters and that its output is the same in each epoch, if the base is known."""
    outline = probe.known_outline(Path(stage.section.model.language_model_path))
    stacks = stacks_of(outline)
    if not stage.section.model.data.cache_hidden or outline is None or not stacks:
        return []
    problems = []
    model = stage.config["model"]
    counts = {name: sizes.num_layers for name, sizes in stacks.items()}
    stack = stored_stack(counts)
    if 0 in settings_of(model).chosen_layers(stack, counts[stack]):
        problems.append(layer_problem(stack, counts, f"model.{method_of(model).block}.layers", stage.key))
    rates = dropout_rates(outline.config)
    if stage.section.model.nemo_compat and any(rates):
        problems.append(dropout_problem(rates, stage.key))
    return problems
