"""Attention over rows that hold several prompts: shared prefixes, branches and a key/value cache.

A row is a sequence of *groups*. A group is a prefix that several samples share, followed by one branch a sample; a
sample that shares nothing is a group with an empty prefix and one branch. Inside a group a token sees the prefix up to
itself and its own branch up to itself; between groups nothing is seen. So every token attends to exactly the tokens it
would attend to in a row of its own, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nemo_launcher.models.block_attention import Block, cut_into_blocks, group_attention


@dataclass(frozen=True, slots=True)
class Group:
    """Where one group lies in a row: `start`, the length of its prefix, the lengths of its branches (in tokens)."""

    start: int
    prefix: int
    branches: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.prefix + sum(self.branches)


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of the tokens so far, one slot a sample.

    keys, values: per layer number, [samples, groups, slots, head_dim]; lengths: filled slots a sample, [samples].
    """

    samples: int
    slots: int
    lengths: Tensor
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def select(self, samples: Tensor) -> None:
        """Keep only the given samples (indices, [kept])."""
        self.samples = int(samples.numel())
        self.lengths = self.lengths[samples]
        for store in (self.keys, self.values):
            for layer, tensor in store.items():
                store[layer] = tensor[samples]

    def _buffers(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.keys:
            shape = (self.samples, like.size(2), self.slots, like.size(3))
            self.keys[layer] = like.new_zeros(shape)
            self.values[layer] = like.new_zeros(shape)
        return self.keys[layer], self.values[layer]

    def fill(self, layer: int, key: Tensor, value: Tensor, index: Tensor) -> None:
        """Store a row's keys and values, [s, 1, groups, head_dim]; `index`: each sample's tokens, [samples, width]."""
        keys, values = self._buffers(layer, key)
        width = index.size(1)
        keys[:, :, :width] = key[:, 0][index].transpose(1, 2)
        values[:, :, :width] = value[:, 0][index].transpose(1, 2)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store one new token a sample ([1, samples, groups, head_dim]) behind its last one; return all so far."""
        keys, values = self._buffers(layer, key)
        rows = torch.arange(self.samples, device=key.device)
        keys[rows, :, self.lengths] = key[0]
        values[rows, :, self.lengths] = value[0]
        used = int(self.lengths.max()) + 1
        return keys[:, :, :used], values[:, :, :used]


@dataclass(slots=True)
class AttentionPlan:
    """What one forward pass attends to. Travels through Megatron-core in the place of its attention mask.

    groups: the groups of the single row of a training or prefill batch; empty when one token a sample is decoded.
    cache: filled by a prefill (`cache_index` [samples, width] says from where), read and extended by decoding.
    last_rows: what the last layer goes on with after attention, [n]; None: all (models.last_layer).
    """

    groups: Sequence[Group] = ()
    cache: KeyValueCache | None = None
    cache_index: Tensor | None = None
    last_rows: Tensor | None = None
    _masks: dict[int, Tensor] = field(default_factory=dict)
    _blocks: dict[int, list[Block]] = field(default_factory=dict)

    def blocks(self, index: int, like: Tensor) -> list[Block]:
        """Return the blocks in which a group attends on a CPU (models.block_attention); a lone branch is a prefix."""
        if index not in self._blocks:
            group = self.groups[index]
            alone = len(group.branches) == 1
            lengths = (group.stop - group.start, ()) if alone else (group.prefix, group.branches)
            self._blocks[index] = cut_into_blocks(*lengths, like)
        return self._blocks[index]

    def branch_mask(self, index: int, device: torch.device) -> Tensor:
        """Return which of a group's tokens see which: [length, length], True where attention is allowed."""
        if index not in self._masks:
            group = self.groups[index]
            branch = torch.repeat_interleave(
                torch.arange(len(group.branches) + 1), torch.tensor([group.prefix, *group.branches])
            )
            allowed = (branch[:, None] == branch[None, :]) | (branch[None, :] == 0)
            self._masks[index] = allowed.tril().to(device)
        return self._masks[index]


class ScalesKeysAndValues:
    """What self- and cross-attention share: an optional module that scales the keys and one that scales the values."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scalings: dict[str, nn.Module] = {}  # "key", "value"; a plain dict: the modules are owned elsewhere

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each [s, b, heads or groups, head_dim], before rotary positions."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)  # type: ignore[misc]
        return query, self._scaled("key", key), self._scaled("value", value)

    def _scaled(self, name: str, tensor: Tensor) -> Tensor:
        scaling = self.scalings.get(name)
        return tensor if scaling is None else scaling(tensor.flatten(2)).view_as(tensor)


class ScalableSelfAttention(ScalesKeysAndValues, SelfAttention):
    """Megatron-core's self-attention with modules that scale keys and values."""


class PackedAttention(MegatronModule):
    """Megatron-core's core attention on torch's scaled_dot_product_attention, following an AttentionPlan.

    Takes the constructor arguments of megatron-core 0.16's DotProductAttention, so that a ModuleSpec can name it.
    """

    def __init__(self, config: Any, layer_number: int, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.is_last = False  # of the model's layers
        self.dropout = 0.0  # of attention probabilities, in train mode (training.base_dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: AttentionPlan, **_: Any) -> Tensor:
        """query [s, b, heads, head_dim]; key, value [s, b, groups, head_dim]; returns [s, b, heads * head_dim]."""
        plan = attention_mask
        if plan.groups:
            if plan.cache is not None and plan.cache_index is not None:
                plan.cache.fill(self.layer_number, key, value, plan.cache_index)
            parts = [self._group(plan, index, query, key, value) for index in range(len(plan.groups))]
            output = parts[0] if len(parts) == 1 else torch.cat(parts)
            if self.is_last and plan.last_rows is not None:
                output = output[plan.last_rows]
        else:
            output = self._decode(plan, query, key, value)
        return output.flatten(2)

    def _group(self, plan: AttentionPlan, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        group = plan.groups[index]
        inside = slice(group.start, group.stop)
        if query.device.type == "cpu" and query.size(1) == 1 and not (self.training and self.dropout):
            return self._in_blocks(plan, index, query[inside], key[inside], value[inside])
        q, k, v = (x[inside].permute(1, 2, 0, 3) for x in (query, key, value))
        plain = len(group.branches) == 1
        mask = None if plain else plan.branch_mask(index, query.device)
        return self._attend(q, k, v, mask, is_causal=plain).permute(2, 0, 1, 3)

    def _in_blocks(self, plan: AttentionPlan, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = self.softmax_scale or query.size(-1) ** -0.5
        blocks = plan.blocks(index, query)
        return group_attention(query[:, 0], key[:, 0], value[:, 0], blocks=blocks, scale=scale)[:, None]

    def _decode(self, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache = plan.cache
        if cache is None:
            raise ValueError("an attention plan needs groups or a cache")
        keys, values = cache.append(self.layer_number, key, value)
        slots = torch.arange(keys.size(2), device=query.device)
        mask = (slots[None, :] <= cache.lengths[:, None])[:, None, None, :]
        return self._attend(query.permute(1, 2, 0, 3), keys, values, mask).permute(2, 0, 1, 3)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
        grouped = q.size(1) != k.size(1)
        return scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            scale=self.softmax_scale,
            enable_gqa=grouped,
        )
