# SPDX-License-Identifier: Apache-2.0
"""The stacks of layers that adapters go into, under the names NeMo's state dicts give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from megatron.core.transformer.transformer_layer import TransformerLayer

from nemo_launcher.families.layer_shape import LayerShape


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers of one kind."""

    name: str
    """Of the stack in our model."""
    path: str
    """Of the layers in NeMo's state dicts of adapters."""
    layers: Iterable[TransformerLayer]
    """The layers of this pipeline stage."""
    shape: LayerShape
    """The layers' sizes."""
    method_paths: Mapping[str, str] = field(default_factory=dict)
    """Paths of methods that have their own in NeMo's state dicts."""

    def path_for(self, method: str) -> str:
        """Return the path of the layers in the state dict of an adapter method."""
        return self.method_paths.get(method, self.path)
