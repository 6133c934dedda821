# SPDX-License-Identifier: Apache-2.0
"""Attention inside the groups of a row, on a CPU: queries in blocks, each against the keys that it can see at all.

torch's scaled_dot_product_attention computes on a CPU what the mask then hides, and is slow in bf16. Here a block's
scores are one matrix product for all heads that share a key, and the backward pass computes the probabilities again
instead of keeping them, so that memory grows with the tokens and not with their square. Source of the backward
formulas: Dao et al. 2022, "FlashAttention" (arXiv:2205.14135), appendix B.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from nemo_launcher.megatron.autograd import Context

# How many bytes one number of each query of a block takes. Longer blocks are fewer operations, but compute more of what
# the mask hides: that pays in bf16, where products are faster.
_BLOCK_BYTES = 256


def block_length(dtype: torch.dtype) -> int:
    """Return how many queries a block has at most: 64 in fp32, 128 in bf16."""
    return _BLOCK_BYTES // dtype.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a row's queries, and the keys that they attend to."""

    start: int
    """The first query."""
    stop: int
    """The query behind the last."""
    seen: tuple[tuple[int, int], ...]
    """Ranges of the row that hold the keys, in order; the last ends with the block itself."""
    bias: Tensor
    """Added to the scores with the block's own keys, [stop - start, 1, stop - start]: 0 or minus infinity."""

    def keys(self, tokens: Tensor) -> Tensor:
        """Return what lies at the block's keys; tokens: of the row, [groups, s, head_dim]."""
        parts = [tokens.narrow(1, first, last - first) for first, last in self.seen]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add to a row's tokens, [groups, s, head_dim], what the block's keys contribute."""
        parts = (part,) if len(self.seen) == 1 else part.split([last - first for first, last in self.seen], 1)
        for (first, last), share in zip(self.seen, parts, strict=True):
            total.narrow(1, first, last - first).add_(share)

    def probabilities(self, query: Tensor, keys: Tensor) -> Tensor:
        """Return the attention probabilities, [groups, queries * heads a group, the block's keys].

        query: of the block (_to_rows), [groups, queries * heads a group, head_dim]; keys: at the block's keys.
        """
        scores = torch.bmm(query, keys.transpose(1, 2))
        count, seen = self.stop - self.start, keys.size(1)
        scores.view(len(scores), count, -1, seen).narrow(-1, seen - count, count).add_(self.bias)
        return torch.softmax(scores, -1)


def cut_into_blocks(lengths: Sequence[int], parents: Sequence[int], like: Tensor, start: int = 0) -> list[Block]:
    """Cut a group, segments and the segment that each goes on from, into blocks; start: of the group in the row.

    Biases have the type and device of `like`. A block holds whole neighbours that go on from the same segment, or a
    part of one: so it meets few keys that it may not see.
    """
    blocks: list[Block] = []
    seen: dict[int, tuple[tuple[int, int], ...]] = {-1: ()}  # what those who go on from a segment see
    for parent, run in groupby(range(len(lengths)), parents.__getitem__):
        segments = list(run)
        blocks += _blocks(start, [lengths[segment] for segment in segments], seen[parent], like)
        for segment in segments:
            seen[segment] = _joined(seen[parent], (start, start + lengths[segment]))
            start += lengths[segment]
    return blocks


def _joined(ranges: tuple[tuple[int, int], ...], last: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    if ranges and ranges[-1][1] == last[0]:
        return (*ranges[:-1], (ranges[-1][0], last[1]))
    return (*ranges, last)


def _blocks(start: int, lengths: Sequence[int], seen: tuple[tuple[int, int], ...], like: Tensor) -> Iterator[Block]:
    """Cut segments from `start` on, which do not see beyond their own length; all see the ranges `seen`."""
    own: list[int] = []
    limit = block_length(like.dtype)
    for length in [*lengths, limit]:
        if own and sum(own) + length > limit:
            yield _block(start, own, seen, like)
            start, own = start + sum(own), []
        if length <= limit:
            own.append(length)
            continue
        for place in range(start, start + length, limit):
            before = _joined(seen, (start, place)) if place > start else seen
            yield _block(place, [min(limit, start + length - place)], before, like)
        start += length


def _block(start: int, lengths: Sequence[int], seen: tuple[tuple[int, int], ...], like: Tensor) -> Block:
    """Return a block of sequences one behind the other."""
    count = sum(lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    hidden = (sequence[:, None] != sequence).logical_or_(torch.ones(count, count).triu(1).bool())
    bias = like.new_zeros(count, count).masked_fill_(hidden.to(like.device), float("-inf"))
    return Block(start, start + count, _joined(seen, (start, start + count)), bias[:, None])


def attention_in_blocks(query: Tensor, key: Tensor, value: Tensor, *, blocks: Sequence[Block], scale: float) -> Tensor:
    """Return the attention's output, [s, heads, head_dim].

    query: [s, heads, head_dim]; key, value: [s, groups, head_dim]; blocks: of all the tokens (cut_into_blocks).
    """
    output: Tensor = _InBlocks.apply(query, key, value, blocks, scale)
    return output


def _to_rows(tokens: Tensor, groups: int, scale: float = 1.0) -> Tensor:
    """Return [s, heads, head_dim] as [groups, s * heads a group, head_dim], multiplied by `scale`.

    Token by token: a block's rows lie together, and meet the keys that its heads share in one product.
    """
    return _laid_out(tokens.view(len(tokens), groups, -1, tokens.size(-1)).transpose(0, 1), scale)


def _to_tokens(rows: Tensor, count: int, scale: float = 1.0) -> Tensor:
    """Undo _to_rows for `count` tokens."""
    return _laid_out(rows.view(len(rows), count, -1, rows.size(-1)).transpose(0, 1), scale)


def _laid_out(parts: Tensor, scale: float) -> Tensor:
    """Return parts * scale in their order, the middle two dimensions as one; a product takes longer than a copy."""
    if scale == 1.0:
        return parts.contiguous().flatten(1, 2)
    scaled = parts.new_empty(parts.shape)
    torch.mul(parts, scale, out=scaled)
    return scaled.flatten(1, 2)


class _BlocksContext(Context):
    sizes: list[int]
    blocks: Sequence[Block]
    scale: float


class _InBlocks(torch.autograd.Function):
    """See attention_in_blocks. Cuts tensors into blocks once: each operation more is one more that waits for Python."""

    @staticmethod
    def forward(
        ctx: _BlocksContext, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float
    ) -> Tensor:
        """Return the output; keep it, the keys and values, and the queries by rows."""
        groups = key.size(1)
        rows = _to_rows(query, groups, scale)
        keys, values, output = key.transpose(0, 1), value.transpose(0, 1), torch.empty_like(rows)
        ctx.sizes = [(block.stop - block.start) * (query.size(1) // groups) for block in blocks]
        for block, own, out in zip(blocks, *_split(ctx.sizes, rows, output), strict=True):
            torch.bmm(block.probabilities(own, block.keys(keys)), block.keys(values), out=out)
        ctx.save_for_backward(rows, key, value, output)
        ctx.blocks, ctx.scale = blocks, scale
        return _to_tokens(output, len(query))

    @staticmethod
    def backward(ctx: _BlocksContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        """grad: [s, heads, head_dim]."""
        query, key, value, output = ctx.saved_tensors
        keys, values = key.transpose(0, 1), value.transpose(0, 1)
        grads = _to_rows(grad, len(keys))
        shares = torch.linalg.vecdot(grads, output).unsqueeze(-1)
        query_grad = torch.empty_like(query)
        key_grad = key.new_zeros(keys.shape, dtype=torch.promote_types(key.dtype, torch.float32))
        value_grad = torch.zeros_like(key_grad)
        cut = _split(ctx.sizes, query, grads, shares, query_grad)
        for block, own, own_grad, share, own_query_grad in zip(ctx.blocks, *cut, strict=True):
            block_keys = block.keys(keys)
            probabilities = block.probabilities(own, block_keys)
            block.add(value_grad, torch.bmm(probabilities.transpose(1, 2), own_grad))
            scores_grad = torch.bmm(own_grad, block.keys(values).transpose(1, 2))
            scores_grad.sub_(share).mul_(probabilities)
            torch.bmm(scores_grad, block_keys, out=own_query_grad)
            block.add(key_grad, torch.bmm(scores_grad.transpose(1, 2), own))
        sums = (total.transpose(0, 1).to(key.dtype) for total in (key_grad, value_grad))
        return _to_tokens(query_grad, len(key), ctx.scale), *sums, None, None


def _split(sizes: Sequence[int], *rows: Tensor) -> Iterator[Sequence[Tensor]]:
    """Yield the blocks of each tensor, [groups, sum of sizes, ...]."""
    return (tensor.split(sizes, 1) for tensor in rows)
