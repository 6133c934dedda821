# SPDX-License-Identifier: Apache-2.0
"""The stacks of layers that adapters go into, under the names NeMo's state dicts give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from megatron.core.transformer.transformer_layer import TransformerLayer

from nemo_launcher.families.layer_shape import LayerShape


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers of one kind.

    name: of the stack in our model; path: of the layers in NeMo's state dicts of adapters; method_paths: of methods
    that have a path of their own there. layers: those of this pipeline stage; shape: of the whole stack.
    """

    name: str
    path: str
    layers: Iterable[TransformerLayer]
    shape: LayerShape
    method_paths: Mapping[str, str] = field(default_factory=dict)

    def path_for(self, method: str) -> str:
        """Return the path of the layers in the state dict of an adapter method."""
        return self.method_paths.get(method, self.path)
