"""Attention inside one group of a row, on a CPU: queries in blocks, each against the keys that it can see at all.

torch's scaled_dot_product_attention computes on a CPU what the mask then hides, and is slow in bf16. Here a block's
scores are one matrix product for all heads that share a key, and the backward pass computes the probabilities again
instead of keeping them, so that memory grows with the tokens and not with their square. Source of the backward
formulas: Dao et al. 2022, "FlashAttention" (arXiv:2205.14135), appendix B.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 64  # queries a block


@dataclass(frozen=True, slots=True)
class Block:
    """The queries `start` to `stop` of a group, and the keys they meet: the first `seen`, and `first` to `stop`.

    bias: what is added to the scores with the latter, [stop - start, stop - first]: 0 or minus infinity.
    """

    start: int
    stop: int
    seen: int
    first: int
    bias: Tensor

    def keys(self, tokens: Tensor, dim: int) -> Tensor:
        """Return what lies at the block's keys, along one dimension of a group's tokens."""
        own = tokens.narrow(dim, self.first, self.stop - self.first)
        if self.first == self.seen:
            return tokens.narrow(dim, 0, self.stop)
        return torch.cat((tokens.narrow(dim, 0, self.seen), own), dim)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add to a group's tokens, [groups, s, head_dim], what the block's keys contribute."""
        total[:, : self.seen] += part[:, : self.seen]
        total[:, self.first : self.stop] += part[:, self.seen :]


def cut_into_blocks(prefix: int, branches: Sequence[int], like: Tensor) -> list[Block]:
    """Cut a group, a prefix and branches behind it, into blocks; biases have the type and device of `like`.

    A block of branches holds whole ones, or a part of one: so it meets few keys that it may not see.
    """
    blocks = list(_blocks(0, [prefix], 0, like))
    return blocks + list(_blocks(prefix, branches, prefix, like))


def _blocks(start: int, lengths: Sequence[int], seen: int, like: Tensor) -> Iterator[Block]:
    """Cut tokens from `start` on, which do not see beyond their own length; all see the first `seen` tokens."""
    own: list[int] = []
    for length in [*lengths, BLOCK]:
        if own and sum(own) + length > BLOCK:
            yield _block(start, start, own, seen, like)
            start, own = start + sum(own), []
        if length <= BLOCK:
            own.append(length)
            continue
        for place in range(start, start + length, BLOCK):
            yield _block(place, start, [min(BLOCK, start + length - place)], seen, like)
        start += length


def _block(start: int, first: int, lengths: Sequence[int], seen: int, like: Tensor) -> Block:
    """Return a block of sequences one behind the other; `first`: where the first of them begins."""
    if first == seen:  # no gap: all before the block is seen by all of it
        first = seen = start
    count = sum(lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    hidden = (sequence[:, None] != sequence).logical_or_(torch.ones(count, count).triu(1).bool())
    bias = like.new_zeros(count, start - first + count)
    bias[:, start - first :].masked_fill_(hidden.to(like.device), float("-inf"))
    return Block(start, start + count, seen, first, bias)


def group_attention(query: Tensor, key: Tensor, value: Tensor, *, blocks: Sequence[Block], scale: float) -> Tensor:
    """Return the attention's output, [s, heads, head_dim].

    query: [s, heads, head_dim]; key, value: [s, groups, head_dim]; blocks: of all the tokens (cut_into_blocks).
    """
    output: Tensor = _GroupAttention.apply(query, key, value, blocks, scale)
    return output


class _Shared:
    """Queries by the key heads they share."""

    def __init__(self, query: Tensor, key: Tensor, scale: float) -> None:
        (tokens, heads, width), groups = query.shape, key.size(1)
        self.shape = (groups, heads // groups, tokens, width)
        self.query = self.split(query)
        self.key = key.permute(1, 2, 0).contiguous()  # [groups, head_dim, s]
        self.scale = scale
        self.sum_dtype = torch.promote_types(query.dtype, torch.float32)

    def split(self, rows: Tensor) -> Tensor:
        """Return [s, heads, head_dim] as [groups, heads a group, s, head_dim]."""
        groups, heads, tokens, width = self.shape
        return rows.view(tokens, groups, heads, width).permute(1, 2, 0, 3)

    def joined(self, parts: Tensor) -> Tensor:
        """Return [groups, heads a group, s, head_dim] as [s, heads, head_dim]."""
        return parts.permute(2, 0, 1, 3).flatten(1, 2)

    def rows(self, parts: Tensor, block: Block) -> Tensor:
        """Return a block of [groups, heads a group, s, head_dim] as [groups, heads * queries, head_dim]."""
        return parts[:, :, block.start : block.stop].flatten(1, 2)

    def probabilities(self, block: Block) -> Tensor:
        """Return a block's attention probabilities, [groups, heads * queries, the block's keys]."""
        scores = torch.bmm(self.rows(self.query, block), block.keys(self.key, 2)).mul_(self.scale)
        own = scores.view(*self.shape[:2], block.stop - block.start, -1)[..., block.seen :]
        own.add_(block.bias)
        return torch.softmax(scores, -1, dtype=self.sum_dtype).to(scores.dtype)


class _GroupAttention(torch.autograd.Function):
    """See group_attention."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float) -> Tensor:
        """Return the output; keep it and the arguments."""
        shared = _Shared(query, key, scale)
        values = value.transpose(0, 1).contiguous()  # [groups, s, head_dim]
        output = query.new_empty(shared.shape)
        for block in blocks:
            part = torch.bmm(shared.probabilities(block), block.keys(values, 1))
            rows = output[:, :, block.start : block.stop]
            rows.copy_(part.view(rows.shape))
        ctx.save_for_backward(query, key, value, output)
        ctx.blocks, ctx.scale = blocks, scale
        return shared.joined(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """grad: [s, heads, head_dim]."""
        query, key, value, output = ctx.saved_tensors
        shared = _Shared(query, key, ctx.scale)
        grads, keys, values = shared.split(grad), key.transpose(0, 1), value.permute(1, 2, 0)
        query_grad = torch.empty_like(output)
        key_grad = key.new_zeros(keys.shape, dtype=shared.sum_dtype)
        value_grad = torch.zeros_like(key_grad)
        for block in ctx.blocks:
            probabilities, rows = shared.probabilities(block), shared.rows(grads, block)
            block.add(value_grad, torch.bmm(probabilities.transpose(1, 2), rows))
            scores_grad = torch.bmm(rows, block.keys(values, 2))
            scores_grad -= (rows * shared.rows(output, block)).sum(-1, keepdim=True)
            scores_grad *= probabilities.mul_(ctx.scale)
            part = query_grad[:, :, block.start : block.stop]
            part.copy_(torch.bmm(scores_grad, block.keys(keys, 1)).view(part.shape))
            block.add(key_grad, torch.bmm(scores_grad.transpose(1, 2), shared.rows(shared.query, block)))
        sums = (total.transpose(0, 1).to(key.dtype) for total in (key_grad, value_grad))
        return shared.joined(query_grad), *sums, None, None
