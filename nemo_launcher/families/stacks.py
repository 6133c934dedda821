# SPDX-License-Identifier: Apache-2.0
"""Stacks of layers that can hold adapters, with their names in NeMo's state dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from megatron.core.transformer.transformer_layer import TransformerLayer

from nemo_launcher.families.layer_shape import LayerShape


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of layers of one kind."""

    name: str
    """The stack's name in our model."""
    path: str
    """The path of its layers in NeMo's adapter state dicts."""
    layers: Iterable[TransformerLayer]
    """The layers of this pipeline stage."""
    shape: LayerShape
    """The shape of the layers."""
    method_paths: Mapping[str, str] = field(default_factory=dict)
    """Different paths in NeMo's state dicts, by adapter method."""

    def path_for(self, method: str) -> str:
        """Return the path of the layers in the state dict of an adapter method."""
        return self.method_paths.get(method, self.path)
