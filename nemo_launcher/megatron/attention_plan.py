# SPDX-License-Identifier: Apache-2.0
"""The attention pattern of a packed row: groups of segments, as trees of shared prefixes.

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
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from nemo_launcher.megatron.alibi import Alibi
from nemo_launcher.megatron.attention_path import AttentionPath
from nemo_launcher.megatron.block_attention import Block, cut_into_blocks
from nemo_launcher.megatron.decoding import DecodingPlan
from nemo_launcher.megatron.flex_attention import block_mask
from nemo_launcher.megatron.rotary import Rotation
from nemo_launcher.megatron.transfer import on_device

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

    def depths(self) -> Tensor:
        """Return the place of each token in its own text, counted from 0, [length]."""
        ends: list[int] = []
        parts = []
        for length, parent in zip(self.lengths, self.parents, strict=True):
            start = ends[parent] if parent >= 0 else self.cached
            ends.append(start + length)
            parts.append(torch.arange(start, start + length))
        return torch.cat(parts)


@dataclass(slots=True)
class AttentionPlan:
    """The attention pattern of one forward pass, passed through Megatron-core as its attention mask."""

    groups: Sequence[Group] = ()
    """The groups of the row."""
    decoding: DecodingPlan | None = None
    """In generation: the samples with one token each, before the groups, and the key-value caches."""
    path: AttentionPath | None = None
    """In depth-first execution: the rows that this row continues. The row is then a single group."""
    rotations: dict[str, Rotation] = field(default_factory=dict)
    """The rotary positions of queries and keys, by the name that a layer has for them. Set by the model."""
    alibi: Alibi | None = None
    """ALiBi's biases of this rank's heads; None for a model without it. Set by the model."""
    last_rows: Tensor | None = None
    """The tokens that the last layer (megatron.last_layer) keeps after attention, [n]; None for all.

    The model sets it.
    """
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    """The mask of each group and window, computed once for all layers."""
    _blocks: dict[tuple[int, int, int | None], list[Block]] = field(default_factory=dict)
    """The blocks of each range of groups and window, computed once for all layers."""
    _row_masks: dict[int | None, BlockMask] = field(default_factory=dict)
    """FlexAttention's mask of the row for each window, computed once for all layers."""
    _biases: dict[tuple[int, int | None, int], Tensor] = field(default_factory=dict)
    """ALiBi's biases of each group, window and number of learned keys, computed once for all layers."""
    _depths: Tensor | None = None
    """The place of each token of the row in its own text."""
    _longest: int | None = None
    """The number of tokens of the longest text in the row."""

    def needed(self, window: int | None) -> int | None:
        """Return `window` if a text in the row is longer than it, and None otherwise."""
        if window is None:
            return None
        if self._longest is None:
            self._longest = max((int(group.depths().max()) + 1 for group in self.groups), default=0)
        return window if self._longest > window else None

    def row_mask(self, device: torch.device, window: int | None = None) -> BlockMask:
        """Return the mask of the whole row, for FlexAttention (megatron.flex_attention)."""
        if window not in self._row_masks:
            until = on_device(torch.cat([group.visible_until() + group.start for group in self.groups]), device)
            self._row_masks[window] = block_mask(until, None if window is None else (window, self.row_depths(device)))
        return self._row_masks[window]

    def blocks(self, first: int, last: int, like: Tensor, window: int | None = None) -> list[Block]:
        """Return the blocks for the groups `first` up to `last` (megatron.block_attention).

        Positions count from the first group's start. like: a tensor with the dtype and device of the scores.
        """
        if (first, last, window) not in self._blocks:
            groups = self.groups[first:last]
            cut = [cut_into_blocks(g.lengths, g.parents, like, g.start - groups[0].start, g.cached) for g in groups]
            blocks = [block for of_group in cut for block in of_group]
            if window is not None or self.alibi is not None:
                depths = torch.cat([torch.arange(groups[0].cached), *(group.depths() for group in groups)])
                blocks = blocks if window is None else [block.within(window, depths) for block in blocks]
                blocks = blocks if self.alibi is None else [block.placed(depths) for block in blocks]
            self._blocks[first, last, window] = blocks
        return self._blocks[first, last, window]

    def row_depths(self, device: torch.device) -> Tensor:
        """Return the place of each token of the row in its own text, [s], for FlexAttention with ALiBi."""
        if self._depths is None:
            self._depths = on_device(torch.cat([group.depths() for group in self.groups]), device)
        return self._depths

    def group_bias(self, index: int, like: Tensor, window: int | None = None, learned: int = 0) -> Tensor:
        """Return ALiBi's biases of a group, [heads, length, learned + cached + length]; -inf where attention is not.

        like: a tensor with the dtype and device of the scores. learned: the number of keys that are no tokens
        (megatron.attention.PackedAttention.prefixes), which precede the text.
        """
        assert self.alibi is not None
        if (index, window, learned) not in self._biases:
            group, allowed = self.groups[index], self.group_mask(index, like.device, window)
            own = on_device(group.depths(), like.device)
            keys = torch.cat((torch.arange(-learned, group.cached, device=like.device), own))
            bias = self.alibi.between(own, keys)
            hidden = ~pad(allowed, (learned, 0), value=True)
            self._biases[index, window, learned] = bias.masked_fill_(hidden, float("-inf")).to(like.dtype)
        return self._biases[index, window, learned]

    def group_mask(self, index: int, device: torch.device, window: int | None = None) -> Tensor:
        """Return the mask of a group, [length, cached + length], True where attention is allowed."""
        if (index, window) not in self._masks:
            group = self.groups[index]
            until = on_device(group.visible_until(), device)
            tokens = torch.arange(len(until), device=device)
            allowed = (tokens[:, None] >= tokens) & (tokens[:, None] < until)
            allowed = pad(allowed, (group.cached, 0), value=True)
            if window is not None:
                own = on_device(group.depths(), device)
                allowed &= own[:, None] - torch.cat((torch.arange(group.cached, device=device), own)) < window
            self._masks[index, window] = allowed
        return self._masks[index, window]
