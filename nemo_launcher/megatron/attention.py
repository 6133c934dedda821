# SPDX-License-Identifier: Apache-2.0
"""Attention over packed rows that hold several prompts as trees of shared prefixes.

A row is a sequence of *groups*. A group is a tree of *segments*: a prefix that several samples share, then longer
prefixes shared by fewer samples, down to one branch per sample; a sample that shares nothing is a group of one segment.
A token attends to the segments on the path from the root to its own segment, and causally within its own. Groups do not
attend to each other. So every token attends to exactly the tokens it would attend to in its own row, and shared
prefixes are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from nemo_launcher.megatron.attention_path import AttentionPath
from nemo_launcher.megatron.block_attention import Block, attention_in_blocks, cut_into_blocks
from nemo_launcher.megatron.compilation import compile_error
from nemo_launcher.megatron.decoding import DecodingPlan
from nemo_launcher.megatron.flex_attention import block_mask, row_attention
from nemo_launcher.megatron.rotary import Rotation

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, slots=True)
class Group:
    """A group of consecutive segments in a row.

    Segments are in depth-first order: a segment is followed by all segments that continue it.
    """

    start: int
    """The group's first token in the row."""
    lengths: tuple[int, ...]
    """The number of tokens in each segment."""
    parents: tuple[int, ...] = (-1,)
    """For each segment, the index of the segment that it continues; -1 for none."""
    cached: int = 0
    """The number of tokens before all segments that are not in the row: in a cache (generation) or on its path."""

    @property
    def stop(self) -> int:
        return self.start + sum(self.lengths)

    def visible_until(self) -> Tensor:
        """Return for each token the end of the segments that continue its own, [length].

        Positions count from the group's start. Token k is visible to the tokens from k up to that end.
        """
        ends = list(accumulate(self.lengths))
        for segment in reversed(range(len(ends))):
            if (parent := self.parents[segment]) >= 0:
                ends[parent] = max(ends[parent], ends[segment])
        return torch.repeat_interleave(torch.tensor(ends), torch.tensor(self.lengths))


@dataclass(slots=True)
class AttentionPlan:
    """The attention pattern of one forward pass, passed through Megatron-core as its attention mask."""

    groups: Sequence[Group] = ()
    """The groups of the row."""
    decoding: DecodingPlan | None = None
    """In generation: the samples with one token each, before the groups, and the key-value caches."""
    path: AttentionPath | None = None
    """In depth-first execution: the rows that this row continues. The row is then a single group."""
    rotation: Rotation | None = None
    """The rotary positions of queries and keys, or None. Set by the model."""
    last_rows: Tensor | None = None
    """The tokens that the last layer (megatron.last_layer) keeps after attention, [n]; None for all.

    The model sets it.
    """
    _masks: dict[int, Tensor] = field(default_factory=dict)
    """The mask of each group, computed once for all layers."""
    _blocks: dict[tuple[int, int], list[Block]] = field(default_factory=dict)
    """The blocks of each range of groups, computed once for all layers."""
    _row_mask: BlockMask | None = None
    """FlexAttention's mask of the row, computed once for all layers."""

    def row_mask(self, device: torch.device) -> BlockMask:
        """Return the mask of the whole row, for FlexAttention (megatron.flex_attention)."""
        if self._row_mask is None:
            until = torch.cat([group.visible_until() + group.start for group in self.groups])
            self._row_mask = block_mask(until.to(device))
        return self._row_mask

    def blocks(self, first: int, last: int, like: Tensor) -> list[Block]:
        """Return the blocks for the groups `first` up to `last` (megatron.block_attention).

        Positions count from the first group's start. like: a tensor with the dtype and device of the scores.
        """
        if (first, last) not in self._blocks:
            groups = self.groups[first:last]
            cut = [cut_into_blocks(g.lengths, g.parents, like, g.start - groups[0].start, g.cached) for g in groups]
            self._blocks[first, last] = [block for blocks in cut for block in blocks]
        return self._blocks[first, last]

    def group_mask(self, index: int, device: torch.device) -> Tensor:
        """Return the mask of a group, [length, cached + length], True where attention is allowed."""
        if index not in self._masks:
            group = self.groups[index]
            until = group.visible_until()
            tokens = torch.arange(len(until))
            allowed = (tokens[:, None] >= tokens) & (tokens[:, None] < until)
            self._masks[index] = pad(allowed, (group.cached, 0), value=True).to(device)
        return self._masks[index]


class KeyValueScaling:
    """Mixin for self- and cross-attention: optional modules that scale the keys and the values."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.scalings: dict[str, nn.Module] = {}  # "key", "value"; a plain dict, so as not to register the modules

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each [s, b, heads or groups, head_dim], before rotary positions."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)  # type: ignore[misc]
        return query, self._scaled("key", key), self._scaled("value", value)

    def _scaled(self, name: str, tensor: Tensor) -> Tensor:
        scaling = self.scalings.get(name)
        return tensor if scaling is None else scaling(tensor.flatten(2)).view_as(tensor)


class ScalableSelfAttention(KeyValueScaling, SelfAttention):
    """Megatron-core's self-attention with modules that scale keys and values."""


class PackedAttention(MegatronModule):
    """Megatron-core's core attention for packed rows, on torch's scaled_dot_product_attention.

    Takes the constructor arguments of DotProductAttention in megatron-core 0.16, so that a ModuleSpec can name it.
    """

    def __init__(self, config: object, layer_number: int, softmax_scale: float | None = None, **_: object) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.is_last = False  # whether this is the model's last layer
        self.dropout = 0.0  # of attention probabilities, in train mode (training.base_dropout)
        self.uses_flex = False  # set_attention_backend
        # Each returns keys and values that all tokens attend to, [n, groups, head_dim]; a plain list, so as not to
        # register them.
        self.prefixes: list[nn.Module] = []

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: AttentionPlan, **_: object) -> Tensor:
        """Return the attention output, [s, b, heads * head_dim].

        query: [s, b, heads, head_dim]; key, value: [s, b, groups, head_dim].
        """
        plan = attention_mask
        if plan.rotation is not None:
            query, key = plan.rotation.apply_rotary(query), plan.rotation.apply_rotary(key)
        if plan.path is not None:
            key, value = plan.path.extend(self.layer_number, key, value)
        continues = len(key) > len(query)
        parts = []
        if plan.decoding is not None:
            plan.decoding.store(self.layer_number, key[:, 0], value[:, 0])
            prefix = self._prefix(key.dtype) if self.prefixes else None
            parts = [plan.decoding.attend(self.layer_number, query[:, 0], self._scale(query), prefix)[:, None]]
        if self.uses_flex and plan.decoding is None and not (continues or self._has_dropout() or self.prefixes):
            parts = [row_attention(query, key, value, mask=plan.row_mask(query.device), scale=self._scale(query))]
        elif plan.decoding is None and self._uses_blocks(query):
            parts = [self._in_blocks(plan, 0, len(plan.groups), query, key, value)]
        elif continues:
            parts = [self._masked(plan, 0, *(x.permute(1, 2, 0, 3) for x in (query, key, value)))]
        else:
            parts += self._groups(plan, query, key, value)
        output = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.is_last and plan.last_rows is not None:
            output = output[plan.last_rows]
        return output.flatten(2)

    def _groups(self, plan: AttentionPlan, *row: Tensor) -> list[Tensor]:
        """Return the output of each group; row: query, key and value of the whole row."""
        if not plan.groups:
            return []
        # A single split: the gradient of each slice would be as large as the row, with three slices per group.
        before = plan.groups[0].start  # tokens of decoding samples
        sizes = [before, *(group.stop - group.start for group in plan.groups)]
        _, *insides = zip(*(tensor.split(sizes) for tensor in row), strict=True)
        return [self._group(plan, index, *inside) for index, inside in enumerate(insides)]

    def _group(self, plan: AttentionPlan, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return a group's output; query, key and value are those of its tokens."""
        group = plan.groups[index]
        if group.cached and plan.decoding is not None:
            return self._attend_to_cache(plan, index, query, key, value)
        if self._uses_blocks(query):
            return self._in_blocks(plan, index, index + 1, query, key, value)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        plain = len(group.lengths) == 1
        mask = None if plain else plan.group_mask(index, query.device)
        return self._attend(q, k, v, mask, is_causal=plain).permute(2, 0, 1, 3)

    def _has_dropout(self) -> bool:
        return self.training and self.dropout > 0.0

    def _uses_blocks(self, query: Tensor) -> bool:
        return query.device.type == "cpu" and query.size(1) == 1 and not self._has_dropout() and not self.prefixes

    def _prefix(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the keys and values that all tokens attend to, each [groups, n, head_dim]."""
        keys, values = zip(*(prefix() for prefix in self.prefixes), strict=True)
        return torch.cat(keys).transpose(0, 1).to(dtype), torch.cat(values).transpose(0, 1).to(dtype)

    def _prepend_prefix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys and values, [b, groups, n + tokens, head_dim], and mask, extended by the prefix."""
        if mask is None and is_causal:
            mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
        keys, values = (part.expand(k.size(0), -1, -1, -1) for part in self._prefix(k.dtype))
        if mask is not None:
            mask = pad(mask, (keys.size(2), 0), value=True if mask.dtype == torch.bool else 0.0)
        return torch.cat((keys, k), 2), torch.cat((values, v), 2), mask

    def _in_blocks(
        self, plan: AttentionPlan, first: int, last: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Return the output of the groups `first` up to `last`; query, key and value are those of their tokens."""
        rows = (x.squeeze(1) for x in (query, key, value))
        blocks = plan.blocks(first, last, query)
        return attention_in_blocks(*rows, blocks=blocks, scale=self._scale(query)).unsqueeze(1)

    def _attend_to_cache(self, plan: AttentionPlan, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the output of a group with a cached prefix; query, key and value: of its tokens in the row."""
        assert plan.decoding is not None
        prefix = plan.decoding.prefix_of(self.layer_number, index, plan.groups[index].cached)
        q, *own = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        k, v = (torch.cat(parts, dim=2) for parts in zip(prefix, own, strict=True))
        return self._masked(plan, index, q, k, v)

    def _masked(self, plan: AttentionPlan, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output of a group, [s, b, heads, head_dim]; k, v: behind those of the tokens that it continues."""
        return self._attend(q, k, v, plan.group_mask(index, q.device)).permute(2, 0, 1, 3)

    def _scale(self, query: Tensor) -> float:
        return self.softmax_scale or query.size(-1) ** -0.5

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
        if self.prefixes:
            k, v, mask = self._prepend_prefix(q, k, v, mask, is_causal)
            is_causal = False
        grouped = q.size(1) != k.size(1)
        if grouped and mask is not None and q.is_cuda:
            # Of torch's kernels only cuDNN's supports a mask with grouped queries, and it builds a plan for each new
            # length.
            k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
            grouped = False
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


def set_attention_backend(model: nn.Module, backend: str) -> None:
    """Select the GPU kernel for a GPT's attention: `sdpa`, called for each group, or `flex`, for the whole row.

    `auto` selects flex where it is known to be faster (_flex_is_faster) and torch.compile works. On a CPU this has no
    effect: megatron.block_attention is used there.
    """
    modules = [module for module in model.modules() if isinstance(module, PackedAttention)]
    weight = next(model.parameters())
    uses_flex = weight.is_cuda and backend != "sdpa"
    if uses_flex and backend == "auto":
        uses_flex = _flex_is_faster(modules, weight.dtype) and compile_error(weight.device) is None
    for module in modules:
        module.uses_flex = uses_flex


def _flex_is_faster(modules: Sequence[PackedAttention], dtype: torch.dtype) -> bool:
    """Return whether FlexAttention was measured to be faster: 16-bit dtypes, common head sizes."""
    return dtype.itemsize == 2 and all(16 <= module.config.kv_channels <= 128 for module in modules)
