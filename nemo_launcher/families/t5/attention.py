# SPDX-License-Identifier: Apache-2.0
"""T5 attention over packed rows, and step by step with caches.

A row holds the samples of a micro-batch one after the other without padding, each as a *block*. Encoder tokens attend
to their block, decoder tokens causally to their block, and the i-th decoder block cross-attends to the i-th encoder
block. In generation a row holds one new token of each sample instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from megatron.core.transformer.attention import CrossAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_launcher.families.t5.positions import PositionBias
from nemo_launcher.megatron.attention import PackedAttention
from nemo_launcher.megatron.flex_attention import Places, biased_by_position, mask_of_texts, row_attention
from nemo_launcher.megatron.key_value_cache import Index, KeyValueCache
from nemo_launcher.megatron.self_attention import KeyValueScaling
from nemo_launcher.megatron.transfer import on_device

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# q, k, v [b, heads, tokens, head_dim], a mask or bias or None, is_causal -> [b, heads, tokens, head_dim]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


@dataclass(frozen=True, slots=True)
class _FlexRow:
    """A row for FlexAttention (megatron.flex_attention)."""

    queries: Places
    """The key block that each query belongs to, and its place in its own block."""
    keys: Places
    """The block of each key, and its place there."""
    mask: BlockMask
    """Which keys each query attends to."""


def _places(owners: Sequence[int], lengths: Sequence[int], device: torch.device) -> Places:
    each = torch.tensor(list(owners)).repeat_interleave(torch.tensor(list(lengths)))
    depths = torch.cat([torch.arange(length) for length in lengths])
    return Places(*on_device(torch.stack((each, depths)), device))


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Attention of each query block to its key block, by default of the i-th to the i-th."""

    query_lengths: Sequence[int]
    """The number of tokens in each query block."""
    key_lengths: Sequence[int]
    """The number of tokens in each key block."""
    causal: bool = False
    """Whether queries attend only to keys up to their own position."""
    bias: PositionBias | None = None
    """The bias of scores by position in the block, [1, heads, longest query block, longest key block].

    With `causal` it is -inf above the diagonal.
    """
    key_blocks: Sequence[int] | None = None
    """The key block of each query block; None for the i-th of the i-th. Several query blocks may have the same one."""

    _rows: dict[torch.device, _FlexRow] = field(default_factory=dict)
    """What FlexAttention needs, computed once for all layers."""

    def flex_row(self, device: torch.device) -> _FlexRow:
        """Return the mask and places for attention of the whole row in one kernel."""
        if device not in self._rows:
            owners = range(len(self.query_lengths)) if self.key_blocks is None else self.key_blocks
            queries = _places(owners, self.query_lengths, device)
            keys = _places(range(len(self.key_lengths)), self.key_lengths, device)
            self._rows[device] = _FlexRow(queries, keys, mask_of_texts(queries, keys, causal=self.causal))
        return self._rows[device]

    def attend(self, layer: int, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return [tokens, 1, heads, head_dim]; query, key, value: [tokens, 1, heads, head_dim] of a row."""
        # Split and concatenated along tokens, which is the memory order of the row: no copy is needed.
        queries = query.split(list(self.query_lengths))
        keys, values = (row.split(list(self.key_lengths)) for row in (key, value))
        if self.key_blocks is not None:
            keys, values = ([blocks[place] for place in self.key_blocks] for blocks in (keys, values))
        blocks = zip(queries, keys, values, strict=True)
        biases = None if self.bias is None else self.bias.of(layer)
        outputs = []
        for block in blocks:
            q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in block)
            bias = None if biases is None else biases[:, :, : q.size(2), : k.size(2)].to(q.dtype)
            outputs.append(attend(q, k, v, bias, self.causal and bias is None).permute(2, 0, 1, 3))
        return torch.cat(outputs)


class StepMask:
    """The mask of a StepPlan or CrossStepPlan.

    lengths: valid slots of each sample, up to `width`; bias: [1, heads, decoder tokens, width or more] or None; places:
    the position of the new token among each sample's decoder tokens.
    """

    def __init__(self, lengths: Tensor, width: int, bias: PositionBias | None, places: Tensor) -> None:
        self._seen = (torch.arange(width, device=lengths.device) < lengths[:, None])[:, None, None]
        self._bias, self._places = bias, places
        self._shared = self._seen if bias is None else None if bias.shared is None else self._masked(bias.shared)

    def of(self, layer: int) -> Tensor:
        """Return the valid slots, [samples, 1, 1, width], or their bias, [samples, heads, 1, width], and else -inf."""
        if self._shared is not None:
            return self._shared
        assert self._bias is not None  # without a bias, all layers share the mask
        return self._masked(self._bias.of(layer))

    def _masked(self, bias: Tensor) -> Tensor:
        rows = bias[0, :, self._places, : self._seen.size(-1)].transpose(0, 1)[:, :, None]
        return rows.masked_fill(~self._seen, float("-inf"))


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Self-attention of one new decoder token per sample to all its tokens so far."""

    cache: KeyValueCache
    """Keys and values of those tokens, including the new ones."""
    index: Index
    """The slots of the new tokens."""
    mask: StepMask
    """The slots of each sample."""

    def attend(self, layer: int, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return [1, samples, heads, head_dim]; query, key, value: [1, samples, heads, head_dim]."""
        self.cache.write(layer, key[0], value[0], self.index)
        mask = self.mask.of(layer)
        keys, values = self.cache.read(layer, slice(query.size(1)), mask.size(-1))
        return attend(query.permute(1, 2, 0, 3), keys, values, mask, False).permute(2, 0, 1, 3)


@dataclass(frozen=True, slots=True)
class CrossStepPlan:
    """Cross-attention of one new decoder token per sample."""

    mask: StepMask
    """The encoder tokens of each sample."""

    def attend(self, layer: int, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return [1, samples, heads, head_dim], like query; key, value: [width, samples, heads, head_dim]."""
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        return attend(q, k, v, self.mask.of(layer), False).permute(2, 0, 1, 3)


@dataclass(slots=True)
class EncodedPrompts:
    """The encoder's output for the running samples, whose cross-attention keys and values are computed once.

    It is passed through Megatron-core as the context tensor.
    """

    cache: KeyValueCache
    """Those keys and values, one row per sample."""
    hidden: Tensor | None
    """The encoder's output for samples that just joined, [tokens, 1, hidden]; None without any."""
    index: Index | None
    """The slots of their tokens."""

    def keys_and_values(self, layer: int, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, [width, samples, heads, head_dim].

        compute: projects the encoder's output to keys and values.
        """
        if self.hidden is not None and self.index is not None:
            key, value = compute(self.hidden)
            self.cache.write(layer, key[:, 0], value[:, 0], self.index)
        lengths = self.cache.lengths
        keys, values = self.cache.read(layer, slice(len(lengths)), max(lengths))
        return keys.permute(2, 0, 1, 3), values.permute(2, 0, 1, 3)


class ScalableCrossAttention(KeyValueScaling, CrossAttention):
    """Megatron-core's cross-attention with modules that scale keys and values, which are computed once."""

    def get_query_key_value_tensors(
        self, hidden_states: Tensor, key_value_states: Tensor | EncodedPrompts, **kwargs: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each [s, b, heads, head_dim], with scaled keys and values."""
        if not isinstance(key_value_states, EncodedPrompts):
            return super().get_query_key_value_tensors(hidden_states, key_value_states, **kwargs)

        def compute(row: Tensor) -> tuple[Tensor, Tensor]:
            # The queries of this call are not used, so one token is enough.
            _, key, value = super(ScalableCrossAttention, self).get_query_key_value_tensors(
                hidden_states[:, :1], row, **kwargs
            )
            return key, value

        key, value = key_value_states.keys_and_values(self.layer_number, compute)
        query, _ = self.linear_q(hidden_states)
        return query.view(*query.shape[:-1], -1, self.hidden_size_per_attention_head), key, value


class BlockAttention(PackedAttention):
    """Core attention for a BlockPlan, StepPlan or CrossStepPlan.

    With apply_query_key_layer_scaling NeMo divides the scores by the layer's number and multiplies them again before
    the softmax (NeMo 1.20, megatron/attention.py, CoreAttention). The bias, and scores without normalization, are
    affected only by the multiplication and so grow with the layer's number; normalized scores are unchanged.
    """

    adds_biases = True

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
        """Return [s, b, heads * head_dim]; query, key, value: [s, b, heads, head_dim]."""
        plan = attention_mask
        if isinstance(plan, BlockPlan) and self.runs_whole_rows():
            return self._row_of(plan, query, key, value).flatten(2)
        return plan.attend(self.layer_number, self._attend_scaled, query, key, value).flatten(2)

    def _row_of(self, plan: BlockPlan, *row: Tensor) -> Tensor:
        """Return the output of a whole row in one kernel; row: its query, key and value."""
        flex, change = plan.flex_row(row[0].device), None
        if plan.bias is not None:
            bias = plan.bias.of(self.layer_number)[0]
            bias = bias * self.coefficient if self.coefficient != 1 else bias
            change = biased_by_position(bias, flex.queries, flex.keys)
        return row_attention(*row, mask=flex.mask, scale=self._scale(row[0]), change=change)

    def _attend_scaled(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        if mask is not None and mask.is_floating_point() and self.coefficient != 1:
            mask = mask * self.coefficient
        return self._attend(q, k, v, mask, is_causal)
