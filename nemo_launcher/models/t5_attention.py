"""T5's attention over packed rows, and step by step with caches.

A row holds the samples of a micro-batch one behind the other, a *block* each, without padding. Encoder tokens see their
block, decoder tokens their block up to themselves, and cross-attention lets the i-th decoder block see the i-th encoder
block. In generation a row holds one new token of each sample instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.transformer.attention import CrossAttention
from torch import Tensor

from nemo_launcher.models.attention import KeyValueCache, PackedAttention, ScalesKeysAndValues

# q, k, v [b, heads, tokens, head_dim], a mask or bias or None, is_causal -> [b, heads, tokens, head_dim]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The i-th block of the queries sees the i-th block of the keys, `causal`: up to itself.

    query_lengths, key_lengths: of the blocks, in tokens. bias: added to the scores by position inside the blocks,
    [1, heads, longest query block, longest key block]; with `causal` it holds -inf above the diagonal.
    """

    query_lengths: Sequence[int]
    key_lengths: Sequence[int]
    causal: bool = False
    bias: Tensor | None = None

    def attend(self, layer: int, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value: [tokens, 1, heads, head_dim] of a row; returns [tokens, 1, heads, head_dim]."""
        heads_first = [tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)]
        lengths = [list(self.query_lengths), list(self.key_lengths), list(self.key_lengths)]
        blocks = zip(
            *(tensor.split(sizes, dim=2) for tensor, sizes in zip(heads_first, lengths, strict=True)), strict=True
        )
        outputs = []
        for q, k, v in blocks:
            bias = None if self.bias is None else self.bias[:, :, : q.size(2), : k.size(2)].to(q.dtype)
            outputs.append(attend(q, k, v, bias, self.causal and bias is None))
        return torch.cat(outputs, dim=2).permute(2, 0, 1, 3)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Self-attention of one new decoder token a sample over all its tokens so far.

    cache: the tokens before it, as many in every sample. bias: [1, heads, slots, slots] or None.
    """

    cache: KeyValueCache
    bias: Tensor | None = None

    def attend(self, layer: int, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value: [1, samples, heads, head_dim]; returns [1, samples, heads, head_dim]."""
        keys, values = self.cache.append(layer, key, value)
        place = keys.size(2) - 1
        bias = None if self.bias is None else self.bias[:, :, place : place + 1, : place + 1].to(query.dtype)
        return attend(query.permute(1, 2, 0, 3), keys, values, bias, False).permute(2, 0, 1, 3)


@dataclass(frozen=True, slots=True)
class CrossStepPlan:
    """Cross-attention of one new decoder token a sample.

    mask: which encoder places belong to a sample, [samples, 1, 1, width]; bias: by relative position, [1, heads, slots,
    width] or None; place: the tokens each sample has so far, the row of `bias`.
    """

    mask: Tensor
    bias: Tensor | None = None
    place: int = 0

    def attend(self, layer: int, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query: [1, samples, heads, head_dim], which is returned; key, value: [width, samples, heads, head_dim]."""
        mask = self.mask
        if self.bias is not None:
            row = self.bias[:, :, self.place : self.place + 1].to(query.dtype)
            mask = torch.where(self.mask, row, torch.full_like(row, float("-inf")))
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        return attend(q, k, v, mask, False).permute(2, 0, 1, 3)


@dataclass(slots=True)
class EncodedPrompts:
    """The encoder's output for several prompts; cross-attention computes its keys and values from it once.

    hidden: the encoder's row, [tokens, 1, hidden]; index: each sample's tokens in it, [samples, width]; mask: which of
    them are its own, [samples, 1, 1, width]. Travels through Megatron-core in the place of the context tensor.
    """

    hidden: Tensor
    index: Tensor
    mask: Tensor
    _keys_and_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def keys_and_values(self, layer: int, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, [width, samples, heads, head_dim]; `compute` gives those of the row."""
        if layer not in self._keys_and_values:
            key, value = compute(self.hidden)
            self._keys_and_values[layer] = (key[:, 0][self.index.t()], value[:, 0][self.index.t()])
        return self._keys_and_values[layer]

    def select(self, samples: Tensor) -> None:
        """Keep only the given samples (indices, [kept])."""
        self.index, self.mask = self.index[samples], self.mask[samples]
        for layer, (key, value) in self._keys_and_values.items():
            self._keys_and_values[layer] = (key[:, samples], value[:, samples])


class ScalableCrossAttention(ScalesKeysAndValues, CrossAttention):
    """Megatron-core's cross-attention with modules that scale keys and values, and keys and values computed once."""

    def get_query_key_value_tensors(
        self, hidden_states: Tensor, key_value_states: Tensor | EncodedPrompts, **kwargs: Any
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

    def __init__(self, config: Any, layer_number: int, softmax_scale: float | None = None, **kwargs: Any) -> None:
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
        **_: Any,
    ) -> Tensor:
        """query, key, value [s, b, heads, head_dim]; returns [s, b, heads * head_dim]."""
        return attention_mask.attend(self.layer_number, self._attend_scaled, query, key, value).flatten(2)

    def _attend_scaled(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        if mask is not None and mask.is_floating_point():
            mask = mask * self.coefficient
        return self._attend(q, k, v, mask, is_causal)
