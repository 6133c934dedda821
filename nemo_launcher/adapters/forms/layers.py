# SPDX-License-Identifier: Apache-2.0
"""The layers that an adapter from elsewhere is in, as a value of `layers`."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_launcher.adapters.forms.changes import Target


def chosen(names: Iterable[str], target: Target) -> object:
    """Return `layers` for an adapter of these linear layers; None if it is in all layers, or in none that is known."""
    where = {name: entry for entry in target.form.table.entries(target.model.stacks) for name in entry.theirs}
    used = {(where[name].stack, where[name].layer) for name in names if name in where}
    every = {(stack, layer) for stack, shape in target.model.stacks.items() for layer in range(shape.num_layers)}
    if used in (every, set()):
        return None
    by_stack = {stack: sorted(layer for name, layer in used if name == stack) for stack in target.model.stacks}
    if len(by_stack) == 1:
        return next(iter(by_stack.values()))
    return {stack: layers or "none" for stack, layers in by_stack.items()}
