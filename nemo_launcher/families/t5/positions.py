# SPDX-License-Identifier: Apache-2.0
"""Relative positions of a T5: a table of biases for all layers of a stack, or in UMT5 for each.

Source: Raffel et al. 2020 (arXiv 1910.10683, section 2.1); for UMT5, Chung et al. 2023 (UniMax, arXiv 2304.09151).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from megatron.core.models.common.embeddings.relative_pos_embedding import RelativePositionEmbedding
from megatron.core.tensor_parallel.mappings import scatter_to_tensor_model_parallel_region
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor, nn

from nemo_launcher.families.t5.shape import RELATIVE, RELATIVE_PER_LAYER, StackShape


def relative_positions(stack: StackShape, *, bidirectional: bool) -> RelativePositionEmbedding:
    """Return a table of relative positions, without values."""
    return RelativePositionEmbedding(
        bidirectional=bidirectional,
        init_method=nn.init.zeros_,
        num_attention_heads=stack.num_attention_heads,
        relative_attention_num_buckets=stack.relative_attention_num_buckets,
        relative_attention_max_distance=stack.relative_attention_max_distance,
    )


def add_positions(
    layers: TransformerBlock, stack: StackShape, *, bidirectional: bool, dtype: torch.dtype
) -> RelativePositionEmbedding | None:
    """Return the table of all layers of a stack; None for other positions and for those of UMT5, which get theirs."""
    if stack.position_embedding_type == RELATIVE_PER_LAYER:
        for layer in layers.layers:
            layer.self_attention.relative_positions = relative_positions(stack, bidirectional=bidirectional).to(dtype)
    if stack.position_embedding_type != RELATIVE:
        return None
    return relative_positions(stack, bidirectional=bidirectional).to(dtype)


class PositionBias:
    """The biases of scores by relative position, [1, heads of this rank, queries, keys].

    shared: those of all layers; None if each layer has its own, which are computed when it asks for them.
    """

    def __init__(
        self,
        tables: RelativePositionEmbedding | Mapping[int, RelativePositionEmbedding],
        queries: int,
        keys: int,
        *,
        causal: bool = False,
    ) -> None:
        self._queries, self._keys, self._causal = queries, keys, causal
        self._tables = tables if isinstance(tables, Mapping) else {}
        self._kept: dict[int, Tensor] = {}
        self.shared = None if isinstance(tables, Mapping) else self._computed(tables)

    def of(self, layer: int) -> Tensor:
        """Return the biases of a layer; its number is Megatron-core's."""
        if self.shared is not None:
            return self.shared
        return self._kept[layer] if layer in self._kept else self._computed(self._tables[layer])

    def keep(self) -> PositionBias:
        """Compute the biases of all layers, for steps that use them again and again; return itself."""
        self._kept = {layer: self._computed(table) for layer, table in self._tables.items()}
        return self

    def _computed(self, table: RelativePositionEmbedding) -> Tensor:
        bias: Tensor = table(self._queries, self._keys)  # [1, heads, queries, keys]
        bias = scatter_to_tensor_model_parallel_region(bias.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        if self._causal:
            above = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
            bias = bias.masked_fill(above, float("-inf"))
        return bias


def position_bias(
    layers: TransformerBlock,
    positions: RelativePositionEmbedding | None,
    queries: int,
    keys: int | None = None,
    *,
    causal: bool = False,
) -> PositionBias | None:
    """Return the biases of a stack's attention; None without relative positions.

    positions: the table of all layers; without it, those of the layers are used if there are any.
    """
    tables = positions or {
        layer.layer_number: layer.self_attention.relative_positions
        for layer in layers.layers
        if hasattr(layer.self_attention, "relative_positions")
    }
    return PositionBias(tables, queries, queries if keys is None else keys, causal=causal) if tables else None
