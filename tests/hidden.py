# SPDX-License-Identifier: Apache-2.0
"""Adapters in the upper layers of a tiny model, below which hidden states can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.families.base import Base
from nemo_launcher.megatron.partial_stack import first_adapted_layer


class UpperAdapters(AdapterSet):
    """Adapters in the layers of each stack from `first` (by the stack's name) on, counted from 0."""

    def __init__(self, base: Base, config: Mapping[str, Any], first: Mapping[str, int]) -> None:
        self._first = first
        super().__init__(base.model, base.shape, config)

    def _adapt(self, layer: Any, stack: Any, seed: int, attached: bool) -> None:
        if layer.layer_number > self._first[stack.name]:
            super()._adapt(layer, stack, seed, attached)


def first_layer(base: Base) -> int:
    """Return the first adapted layer of the stack whose hidden states are stored."""
    stacks = {stack.name: stack for stack in base.family.stacks(base.model, base.shape)}
    return first_adapted_layer(stacks[base.family.hidden.stack].layers)
