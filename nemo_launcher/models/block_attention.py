"""Attention inside one group of a row, on a CPU: queries in blocks, each against the keys that it can see at all.

torch's scaled_dot_product_attention computes on a CPU what the mask then hides, and is slow in bf16. Here a block's
scores are one matrix product for all heads that share a key, and the backward pass computes the probabilities again
instead of keeping them, so that memory grows with the tokens and not with their square. Source of the backward
formulas: Dao et al. 2022, "FlashAttention" (arXiv:2205.14135), appendix B.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 64  # queries a block


def group_attention(
    query: Tensor, key: Tensor, value: Tensor, *, prefix: int, branch_bias: Tensor, scale: float
) -> Tensor:
    """Return the attention's output, [s, heads, head_dim].

    query: [s, heads, head_dim]; key, value: [s, groups, head_dim]. The first `prefix` tokens see those up to
    themselves; the n others see the prefix and, of each other, what branch_bias allows ([n, n]: 0 or minus infinity).
    """
    output: Tensor = _GroupAttention.apply(query, key, value, prefix, branch_bias, scale)
    return output


class _Shared:
    """Queries by the key heads they share, and the blocks they are cut into."""

    def __init__(self, query: Tensor, key: Tensor, prefix: int, branch_bias: Tensor, scale: float) -> None:
        (tokens, heads, width), groups = query.shape, key.size(1)
        self.shape = (groups, heads // groups, tokens, width)
        self.query = self.split(query)
        self.key = key.permute(1, 2, 0).contiguous()  # [groups, head_dim, s]
        self.prefix, self.branch_bias, self.scale = prefix, branch_bias, scale
        self.sum_dtype = torch.promote_types(query.dtype, torch.float32)
        self.causal_bias = query.new_full((BLOCK, BLOCK), float("-inf")).triu_(1)

    def split(self, rows: Tensor) -> Tensor:
        """Return [s, heads, head_dim] as [groups, heads a group, s, head_dim]."""
        groups, heads, tokens, width = self.shape
        return rows.view(tokens, groups, heads, width).permute(1, 2, 0, 3)

    def joined(self, parts: Tensor) -> Tensor:
        """Return [groups, heads a group, s, head_dim] as [s, heads, head_dim]."""
        return parts.permute(2, 0, 1, 3).flatten(1, 2)

    def blocks(self) -> Iterator[slice]:
        """Return the blocks of queries; none lies across the end of the prefix."""
        for first, last in ((0, self.prefix), (self.prefix, self.shape[2])):
            for start in range(first, last, BLOCK):
                yield slice(start, min(start + BLOCK, last))

    def rows(self, parts: Tensor, block: slice) -> Tensor:
        """Return a block of [groups, heads a group, s, head_dim] as [groups, heads * queries, head_dim]."""
        return parts[:, :, block].flatten(1, 2)

    def probabilities(self, block: slice) -> Tensor:
        """Return a block's attention probabilities, [groups, heads * queries, keys up to the block's end]."""
        scores = torch.bmm(self.rows(self.query, block), self.key[:, :, : block.stop]).mul_(self.scale)
        count = block.stop - block.start
        in_prefix = block.stop <= self.prefix
        first = block.start if in_prefix else self.prefix  # the keys before are seen by all
        bias = (
            self.causal_bias[:count, :count]
            if in_prefix
            else self.branch_bias[block.start - first : block.stop - first, : block.stop - first]
        )
        scores.view(*self.shape[:2], count, block.stop)[..., first:].add_(bias)
        return torch.softmax(scores, -1, dtype=self.sum_dtype).to(scores.dtype)


class _GroupAttention(torch.autograd.Function):
    """See group_attention."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, prefix: int, branch_bias: Tensor, scale: float
    ) -> Tensor:
        """Return the output; keep it and the arguments."""
        shared = _Shared(query, key, prefix, branch_bias, scale)
        values = value.transpose(0, 1).contiguous()  # [groups, s, head_dim]
        output = query.new_empty(shared.shape)
        for block in shared.blocks():
            part = torch.bmm(shared.probabilities(block), values[:, : block.stop])
            output[:, :, block] = part.view(output[:, :, block].shape)
        ctx.save_for_backward(query, key, value, branch_bias, output)
        ctx.prefix, ctx.scale = prefix, scale
        return shared.joined(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """grad: [s, heads, head_dim]."""
        query, key, value, branch_bias, output = ctx.saved_tensors
        shared = _Shared(query, key, ctx.prefix, branch_bias, ctx.scale)
        grads, keys, values = shared.split(grad), key.transpose(0, 1), value.permute(1, 2, 0)
        query_grad = torch.empty_like(output)
        key_grad = key.new_zeros(keys.shape, dtype=shared.sum_dtype)
        value_grad = torch.zeros_like(key_grad)
        for block in shared.blocks():
            past = slice(0, block.stop)
            probabilities, rows = shared.probabilities(block), shared.rows(grads, block)
            value_grad[:, past] += torch.bmm(probabilities.transpose(1, 2), rows)
            scores_grad = torch.bmm(rows, values[:, :, past])
            scores_grad -= (rows * shared.rows(output, block)).sum(-1, keepdim=True)
            scores_grad *= probabilities.mul_(ctx.scale)
            query_grad[:, :, block] = torch.bmm(scores_grad, keys[:, past]).view(query_grad[:, :, block].shape)
            key_grad[:, past] += torch.bmm(scores_grad.transpose(1, 2), shared.rows(shared.query, block))
        sums = (total.transpose(0, 1).to(key.dtype) for total in (key_grad, value_grad))
        return shared.joined(query_grad), *sums, None, None, None
