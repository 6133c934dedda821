"""Attention inside one group of a row, on a CPU: queries in blocks, each against the keys that it can see at all.

torch's scaled_dot_product_attention computes on a CPU what the mask then hides, and is slow in bf16. Here a block's
scores are one matrix product for all heads that share a key, and the backward pass computes the probabilities again
instead of keeping them, so that memory grows with the tokens and not with their square. Source of the backward
formulas: Dao et al. 2022, "FlashAttention" (arXiv:2205.14135), appendix B.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

# How many bytes one number of each query of a block takes. Longer blocks are fewer operations, but compute more of what
# the mask hides: that pays in bf16, where products are faster.
_BLOCK_BYTES = 256


def block_length(dtype: torch.dtype) -> int:
    """Return how many queries a block has at most: 64 in fp32, 128 in bf16."""
    return _BLOCK_BYTES // dtype.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """The queries `start` to `stop` of a group, and the keys they meet.

    seen: where the keys lie, ranges in their order; the last of them ends with the block itself. bias: what is added to
    the scores with the block's own keys, [stop - start, stop - start]: 0 or minus infinity.
    """

    start: int
    stop: int
    seen: tuple[tuple[int, int], ...]
    bias: Tensor

    def keys(self, tokens: Tensor, dim: int) -> Tensor:
        """Return what lies at the block's keys, along one dimension of a group's tokens."""
        parts = [tokens.narrow(dim, first, last - first) for first, last in self.seen]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add to a group's tokens, [groups, s, head_dim], what the block's keys contribute."""
        place = 0
        for first, last in self.seen:
            total[:, first:last] += part[:, place : place + last - first]
            place += last - first


def cut_into_blocks(lengths: Sequence[int], parents: Sequence[int], like: Tensor) -> list[Block]:
    """Cut a group, segments and the segment that each goes on from, into blocks; biases have the type and device of
    `like`.

    A block holds whole neighbours that go on from the same segment, or a part of one: so it meets few keys that it may
    not see.
    """
    blocks: list[Block] = []
    seen: dict[int, tuple[tuple[int, int], ...]] = {-1: ()}  # what those who go on from a segment see
    start = 0
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
    return Block(start, start + count, _joined(seen, (start, start + count)), bias)


def group_attention(query: Tensor, key: Tensor, value: Tensor, *, blocks: Sequence[Block], scale: float) -> Tensor:
    """Return the attention's output, [s, heads, head_dim].

    query: [s, heads, head_dim]; key, value: [s, groups, head_dim]; blocks: of all the tokens (cut_into_blocks).
    """
    output: Tensor = _GroupAttention.apply(query, key, value, blocks, scale)
    return output


class _Rows:
    """Queries by the key heads they share, token by token: a block's are one matrix, and no copy of them is made.

    query: [groups, s * heads a group, head_dim], scaled; key: [groups, s, head_dim].
    """

    def __init__(self, query: Tensor, key: Tensor, heads: int) -> None:
        self.query, self.key, self.heads = query, key, heads

    def of(self, block: Block) -> slice:
        """Return where the rows of a block's queries are."""
        return slice(block.start * self.heads, block.stop * self.heads)

    def probabilities(self, block: Block) -> Tensor:
        """Return a block's attention probabilities, [groups, queries * heads, the block's keys]."""
        scores = torch.bmm(self.query[:, self.of(block)], block.keys(self.key, 1).transpose(1, 2))
        count = block.stop - block.start
        own = scores.view(len(scores), count, self.heads, -1)[..., -count:]
        own.add_(block.bias[:, None])
        return torch.softmax(scores, -1)


def _to_rows(tokens: Tensor, groups: int, scale: float = 1.0) -> Tensor:
    """Return [s, heads, head_dim] as [groups, s * heads a group, head_dim], multiplied by `scale`."""
    parts = tokens.view(len(tokens), groups, -1, tokens.size(-1)).transpose(0, 1)
    rows = tokens.new_empty(parts.shape)
    torch.mul(parts, scale, out=rows)
    return rows.flatten(1, 2)


def _to_tokens(rows: Tensor, count: int, scale: float = 1.0) -> Tensor:
    """Undo _to_rows for `count` tokens."""
    parts = rows.view(len(rows), count, -1, rows.size(-1)).transpose(0, 1)
    tokens = rows.new_empty(parts.shape)
    torch.mul(parts, scale, out=tokens)
    return tokens.flatten(1, 2)


class _GroupAttention(torch.autograd.Function):
    """See group_attention."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float) -> Tensor:
        """Return the output; keep it, the keys and values, and the queries by rows."""
        groups = key.size(1)
        rows = _Rows(_to_rows(query, groups, scale), key.transpose(0, 1), query.size(1) // groups)
        values, output = value.transpose(0, 1), torch.empty_like(rows.query)
        for block in blocks:
            torch.bmm(rows.probabilities(block), block.keys(values, 1), out=output[:, rows.of(block)])
        ctx.save_for_backward(rows.query, key, value, output)
        ctx.blocks, ctx.scale = blocks, scale
        return _to_tokens(output, len(query))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """grad: [s, heads, head_dim]."""
        query, key, value, output = ctx.saved_tensors
        keys, values = key.transpose(0, 1), value.transpose(0, 1)
        rows = _Rows(query, keys, query.size(1) // len(key))
        grads = _to_rows(grad, len(keys))
        shares = torch.linalg.vecdot(grads, output).unsqueeze(-1)
        query_grad = torch.empty_like(query)
        key_grad = key.new_zeros(keys.shape, dtype=torch.promote_types(key.dtype, torch.float32))
        value_grad = torch.zeros_like(key_grad)
        for block in ctx.blocks:
            own = rows.of(block)
            probabilities = rows.probabilities(block)
            block.add(value_grad, torch.bmm(probabilities.transpose(1, 2), grads[:, own]))
            scores_grad = torch.bmm(grads[:, own], block.keys(values, 1).transpose(1, 2))
            scores_grad.sub_(shares[:, own]).mul_(probabilities)
            torch.bmm(scores_grad, block.keys(keys, 1), out=query_grad[:, own])
            block.add(key_grad, torch.bmm(scores_grad.transpose(1, 2), query[:, own]))
        sums = (total.transpose(0, 1).to(key.dtype) for total in (key_grad, value_grad))
        return _to_tokens(query_grad, len(key), ctx.scale), *sums, None, None
