# SPDX-License-Identifier: Apache-2.0
"""T5's attention over packed rows, and step by step with caches.

A row holds the samples of a micro-batch one behind the other, a *block* each, without padding. Encoder tokens see their
block, decoder tokens their block up to themselves, and cross-attention lets the i-th decoder block see the i-th encoder
block. In generation a row holds one new token of each sample instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from megatron.core.transformer.attention import CrossAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_launcher.megatron.attention import PackedAttention, ScalesKeysAndValues
from nemo_launcher.megatron.key_value_cache import Index, KeyValueCache

# q, k, v [b, heads, tokens, head_dim], a mask or bias or None, is_causal -> [b, heads, tokens, head_dim]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The i-th block of the queries attends to the i-th block of the keys."""

    query_lengths: Sequence[int]
    """Tokens of the query blocks."""
    key_lengths: Sequence[int]
    """Tokens of the key blocks."""
    causal: bool = False
    """Whether a query attends to keys up to its own place only."""
    bias: Tensor | None = None
    """Added to the scores by position inside the blocks, [1, heads, longest query block, longest key block]; with
    `causal` it holds -inf above the diagonal."""

    def attend(self, layer: int, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value: [tokens, 1, heads, head_dim] of a row; returns [tokens, 1, heads, head_dim]."""
        # cut and joined token by token, as the row lies in memory: nothing has to be copied into another order
        rows, lengths = (query, key, value), (self.query_lengths, self.key_lengths, self.key_lengths)
        blocks = zip(*(row.split(list(sizes)) for row, sizes in zip(rows, lengths, strict=True)), strict=True)
        outputs = []
        for block in blocks:
            q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in block)
            bias = None if self.bias is None else self.bias[:, :, : q.size(2), : k.size(2)].to(q.dtype)
            outputs.append(attend(q, k, v, bias, self.causal and bias is None).permute(2, 0, 1, 3))
        return torch.cat(outputs)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Self-attention of one new decoder token a sample over all its tokens so far."""

    cache: KeyValueCache
    """Keys and values of those tokens, the new ones included."""
    index: Index
    """Where the new ones go."""
    mask: Tensor
    """Slots that belong to a sample, [samples, 1, 1, slots], or its bias by relative position, [samples, heads, 1,
    slots], -inf elsewhere."""

    def attend(self, layer: int, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value: [1, samples, heads, head_dim]; returns [1, samples, heads, head_dim]."""
        self.cache.write(layer, key[0], value[0], self.index)
        keys, values = self.cache.read(layer, slice(query.size(1)), self.mask.size(-1))
        return attend(query.permute(1, 2, 0, 3), keys, values, self.mask, False).permute(2, 0, 1, 3)


@dataclass(frozen=True, slots=True)
class CrossStepPlan:
    """Cross-attention of one new decoder token a sample."""

    mask: Tensor
    """Encoder tokens that belong to a sample, [samples, 1, 1, width], or its bias by relative position, [samples,
    heads, 1, width], -inf elsewhere."""

    def attend(self, layer: int, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query: [1, samples, heads, head_dim], which is returned; key, value: [width, samples, heads, head_dim]."""
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        return attend(q, k, v, self.mask, False).permute(2, 0, 1, 3)


def step_mask(lengths: Tensor, width: int, bias: Tensor | None, places: Tensor) -> Tensor:
    """Return what StepPlan and CrossStepPlan take as mask.

    lengths: slots of each sample that count, of `width`; bias: [1, heads, decoder tokens, width or more] or None;
    places: of the new token in each sample's decoder tokens.
    """
    seen = (torch.arange(width, device=lengths.device) < lengths[:, None])[:, None, None]
    if bias is None:
        return seen
    return bias[0, :, places, :width].transpose(0, 1)[:, :, None].masked_fill(~seen, float("-inf"))


@dataclass(slots=True)
class EncodedPrompts:
    """The encoder's output for the running samples; cross-attention computes their keys and values once.

    Travels through Megatron-core in the place of the context tensor.
    """

    cache: KeyValueCache
    """Those keys and values, a row a sample."""
    hidden: Tensor | None
    """The encoder's output for the samples that have just joined, [tokens, 1, hidden]; None: none have."""
    index: Index | None
    """Where their tokens go."""

    def keys_and_values(self, layer: int, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, [width, samples, heads, head_dim]; `compute` gives those of the row."""
        if self.hidden is not None and self.index is not None:
            key, value = compute(self.hidden)
            self.cache.write(layer, key[:, 0], value[:, 0], self.index)
        lengths = self.cache.lengths
        keys, values = self.cache.read(layer, slice(len(lengths)), max(lengths))
        return keys.permute(2, 0, 1, 3), values.permute(2, 0, 1, 3)


class ScalableCrossAttention(ScalesKeysAndValues, CrossAttention):
    """Megatron-core's cross-attention with modules that scale keys and values, and keys and values computed once."""

    def get_query_key_value_tensors(
        self, hidden_states: Tensor, key_value_states: Tensor | EncodedPrompts, **kwargs: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each [s, b, heads, head_dim], keys and values scaled."""
        if not isinstance(key_value_states, EncodedPrompts):
            return super().get_query_key_value_tensors(hidden_states, key_value_states, **kwargs)

        def compute(row: Tensor) -> tuple[Tensor, Tensor]:
            # the queries of this call are not needed: one token is enough to ask for keys and values
            _, key, value = super(ScalableCrossAttention, self).get_query_key_value_tensors(
                hidden_states[:, :1], row, **kwargs
            )
            return key, value

        key, value = key_value_states.keys_and_values(self.layer_number, compute)
        query, _ = self.linear_q(hidden_states)
        return query.view(*query.shape[:-1], -1, self.hidden_size_per_attention_head), key, value


class BlockAttention(PackedAttention):
    """Core attention that follows a BlockPlan, StepPlan or CrossStepPlan.

    With apply_query_key_layer_scaling NeMo divides the scores by the layer's number and multiplies them again before
    the softmax (NeMo 1.20, megatron/attention.py, CoreAttention). The bias and scores without normalisation meet the
    second step alone, so that they grow with the layer's number; scores with normalisation stay as they are.
    """

    def __init__(
        self, config: TransformerConfig, layer_number: int, softmax_scale: float | None = None, **kwargs: object
    ) -> None:
        super().__init__(config, layer_number, softmax_scale, **kwargs)
        self.coefficient = layer_number if config.apply_query_key_layer_scaling else 1
        if softmax_scale is not None:
            self.softmax_scale = softmax_scale * self.coefficient

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: BlockPlan | StepPlan | CrossStepPlan,  # type: ignore[override]
        **_: object,
    ) -> Tensor:
        """query, key, value [s, b, heads, head_dim]; returns [s, b, heads * head_dim]."""
        return attention_mask.attend(self.layer_number, self._attend_scaled, query, key, value).flatten(2)

    def _attend_scaled(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        if mask is not None and mask.is_floating_point() and self.coefficient != 1:
            mask = mask * self.coefficient
        return self._attend(q, k, v, mask, is_causal)
