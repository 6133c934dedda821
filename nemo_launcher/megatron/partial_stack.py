# SPDX-License-Identifier: Apache-2.0
"""Part of the layers of a stack: those below one layer, or the rest from stored hidden states on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nemo_launcher.megatron.frozen_layer import FrozenLayer


@dataclass(frozen=True, slots=True)
class LayerInput:
    """The hidden states that enter one layer of a stack."""

    layer: int
    """The layer, counted from 0; the number of layers stands for the output of the whole stack."""
    hidden: Tensor
    """[s, b, hidden]."""


def run_below(block: TransformerBlock, hidden: Tensor, layer: int, **inputs: object) -> Tensor:
    """Return the hidden states, [s, b, hidden], that enter `layer`: a LayerInput's.

    block: a stack in one piece; hidden: the embeddings; inputs: of each layer (attention_mask, ...).
    """
    if layer == len(block.layers):
        output: Tensor = block(hidden_states=hidden, **inputs)
        return output
    return _run(block.layers[:layer], hidden, inputs)


def run_from(block: TransformerBlock, start: LayerInput, **inputs: object) -> Tensor:
    """Return the stack's output, [s, b, hidden], from the hidden states of `start` on; inputs: of each layer."""
    if start.layer == len(block.layers):
        return start.hidden
    hidden = _run(block.layers[start.layer :], start.hidden, inputs)
    return hidden if block.final_layernorm is None else block.final_layernorm(hidden)


def first_adapted_layer(layers: Iterable[TransformerLayer]) -> int:
    """Return the lowest layer with an adapter, counted from 0; the number of layers if none has one."""
    is_adapted = [isinstance(layer, FrozenLayer) and layer.has_adapters for layer in layers]
    return is_adapted.index(True) if True in is_adapted else len(is_adapted)


def _run(layers: Iterable[TransformerLayer], hidden: Tensor, inputs: dict[str, object]) -> Tensor:
    for layer in layers:
        hidden, _ = layer(hidden_states=hidden, **inputs)
    return hidden
