# SPDX-License-Identifier: Apache-2.0
"""Attention within the groups of a row, on a CPU: blocks of queries, each with only the keys visible to it.

On a CPU, torch's scaled_dot_product_attention also computes masked scores, and is slow in bf16. Here the scores of a
block are one matrix product for all heads that share a key. The backward pass recomputes the probabilities, so memory
grows linearly with the number of tokens. Source of the backward formulas: Dao et al. 2022, "FlashAttention"
(arXiv:2205.14135), appendix B.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from nemo_launcher.megatron.alibi import Alibi
from nemo_launcher.megatron.autograd import Context

# Bytes of one number per query of a block. Longer blocks need fewer operations, but compute more masked scores: worth
# it in bf16, where products are faster.
_BLOCK_BYTES = 256


def block_length(dtype: torch.dtype) -> int:
    """Return the maximum number of queries in a block: 64 in fp32, 128 in bf16."""
    return _BLOCK_BYTES // dtype.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """A block of queries of a row, and the keys that they attend to."""

    start: int
    """The first query."""
    stop: int
    """The end of the queries (exclusive)."""
    seen: tuple[tuple[int, int], ...]
    """The ranges with its keys, in order; the last range ends with the block itself."""
    bias: Tensor
    """Added to the scores of the last n keys, [stop - start, 1, n]: 0 or minus infinity.

    These are the block's own keys, or all of its keys if attention has a window.
    """
    places: tuple[Tensor, Tensor] | None = None
    """The places of the queries and of the keys in their own texts, [stop - start] and [n]; None without ALiBi."""

    def keys(self, tokens: Tensor) -> Tensor:
        """Return the entries at the block's keys; tokens: of the row, [groups, s, head_dim]."""
        parts = [tokens.narrow(1, first, last - first) for first, last in self.seen]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add the contribution of the block's keys to a row's tokens, [groups, s, head_dim]."""
        parts = (part,) if len(self.seen) == 1 else part.split([last - first for first, last in self.seen], 1)
        for (first, last), share in zip(self.seen, parts, strict=True):
            total.narrow(1, first, last - first).add_(share)

    def probabilities(
        self, query: Tensor, keys: Tensor, softcap: float | None, alibi: Alibi | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention probabilities, [groups, queries * heads per group, keys of the block].

        The second result is tanh(scores / softcap), of the same shape, or None without a softcap. query: of the block
        (_to_rows), [groups, queries * heads per group, head_dim]; keys: those of the block.
        """
        scores = torch.bmm(query, keys.transpose(1, 2))
        capped = None
        if softcap is not None:
            capped = torch.tanh(scores / softcap)
            scores = capped * softcap
        seen, masked = keys.size(1), self.bias.size(-1)
        view = scores.view(len(scores), self.stop - self.start, -1, seen)
        if alibi is not None and self.places is not None:
            view.add_(alibi.between(*self.places).unflatten(0, (len(scores), -1)).transpose(1, 2))
        view.narrow(-1, seen - masked, masked).add_(self.bias)
        return torch.softmax(scores, -1), capped

    def within(self, window: int, depths: Tensor) -> Block:
        """Return the block with the keys of a window alone; depths: of the row's tokens in their own texts, [s]."""
        own = depths[self.start : self.stop]
        first_depth = int(own.min()) - window + 1
        seen = []
        for first, last in self.seen:
            skipped = max(0, first_depth - int(depths[first]))
            if first + skipped < min(last, self.start) or last > self.start:
                seen.append((min(first + skipped, max(first, self.start)), last))
        keys = torch.cat([depths[first:last] for first, last in seen])
        outside = (own[:, None] - keys >= window).to(self.bias.device)
        bias = self.bias.new_zeros(outside.shape).masked_fill_(outside, float("-inf"))
        count = self.stop - self.start
        bias[:, -count:] += self.bias[:, 0]
        return Block(self.start, self.stop, tuple(seen), bias[:, None])

    def placed(self, depths: Tensor) -> Block:
        """Return the block with its places; depths: of the row's tokens in their own texts, [s]."""
        keys = torch.cat([depths[first:last] for first, last in self.seen])
        own = depths[self.start : self.stop]
        return replace(self, places=(own.to(self.bias.device), keys.to(self.bias.device)))


def cut_into_blocks(
    lengths: Sequence[int],
    parents: Sequence[int],
    like: Tensor,
    start: int = 0,
    cached: int = 0,
) -> list[Block]:
    """Cut a group, given its segments and their parents, into blocks; start: the group's first token in the row.

    Biases have the dtype and device of `like`. A block holds consecutive segments with the same parent, or a part of
    one segment, and so few keys that must be masked. cached: the number of keys before the row's own that all tokens
    attend to (megatron.attention_path); positions count from the first of them.
    """
    blocks: list[Block] = []
    # the ranges visible to a segment's children
    seen: dict[int, tuple[tuple[int, int], ...]] = {-1: ((0, cached),) if cached else ()}
    start += cached
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
    """Cut consecutive segments from `start` on into blocks; each segment sees itself and the ranges `seen`."""
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
    """Return a block of consecutive segments."""
    count = sum(lengths)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    hidden = (sequence[:, None] != sequence).logical_or_(torch.ones(count, count).triu(1).bool())
    bias = like.new_zeros(count, count).masked_fill_(hidden.to(like.device), float("-inf"))
    return Block(start, start + count, _joined(seen, (start, start + count)), bias[:, None])


def attention_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    blocks: Sequence[Block],
    scale: float,
    softcap: float | None = None,
    alibi: Alibi | None = None,
) -> Tensor:
    """Return the attention output, [s, heads, head_dim].

    query: [s, heads, head_dim]; key, value: [cached + s, groups, head_dim]; blocks: of all tokens (cut_into_blocks);
    softcap: scores x become softcap * tanh(x / softcap); alibi: the biases of scores, for blocks with places.
    """
    output: Tensor = _BlockAttention.apply(query, key, value, blocks, scale, softcap, alibi)
    return output


def _to_rows(tokens: Tensor, groups: int, scale: float = 1.0) -> Tensor:
    """Return [s, heads, head_dim] as [groups, s * heads per group, head_dim], multiplied by `scale`.

    Rows are in token order: those of a block are adjacent, and one product combines them with the keys of their group.
    """
    return _merge_heads(tokens.view(len(tokens), groups, -1, tokens.size(-1)).transpose(0, 1), scale)


def _to_tokens(rows: Tensor, count: int, scale: float = 1.0) -> Tensor:
    """Invert _to_rows for `count` tokens."""
    return _merge_heads(rows.view(len(rows), count, -1, rows.size(-1)).transpose(0, 1), scale)


def _merge_heads(parts: Tensor, scale: float) -> Tensor:
    """Return contiguous parts * scale with the middle two dimensions merged; without a scale it is only copied."""
    if scale == 1.0:
        return parts.contiguous().flatten(1, 2)
    scaled = parts.new_empty(parts.shape)
    torch.mul(parts, scale, out=scaled)
    return scaled.flatten(1, 2)


class _BlocksContext(Context):
    count: int
    sizes: list[int]
    blocks: Sequence[Block]
    scale: float
    softcap: float | None
    alibi: Alibi | None


class _BlockAttention(torch.autograd.Function):
    """The autograd function of attention_in_blocks. Splits tensors once to save Python overhead."""

    @staticmethod
    def forward(
        ctx: _BlocksContext,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Sequence[Block],
        scale: float,
        softcap: float | None,
        alibi: Alibi | None,
    ) -> Tensor:
        """Return the output; save it, the keys and values, and the queries by rows."""
        groups = key.size(1)
        rows = _to_rows(query, groups, scale)
        keys, values, output = key.transpose(0, 1), value.transpose(0, 1), torch.empty_like(rows)
        ctx.sizes = [(block.stop - block.start) * (query.size(1) // groups) for block in blocks]
        for block, own, out in zip(blocks, *_split(ctx.sizes, rows, output), strict=True):
            torch.bmm(block.probabilities(own, block.keys(keys), softcap, alibi)[0], block.keys(values), out=out)
        ctx.save_for_backward(rows, key, value, output)
        ctx.count, ctx.blocks, ctx.scale, ctx.softcap, ctx.alibi = len(query), blocks, scale, softcap, alibi
        return _to_tokens(output, len(query))

    @staticmethod
    def backward(ctx: _BlocksContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value; grad: [s, heads, head_dim]."""
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
            probabilities, capped = block.probabilities(own, block_keys, ctx.softcap, ctx.alibi)
            block.add(value_grad, torch.bmm(probabilities.transpose(1, 2), own_grad))
            scores_grad = torch.bmm(own_grad, block.keys(values).transpose(1, 2))
            scores_grad.sub_(share).mul_(probabilities)
            if capped is not None:
                scores_grad.mul_(1 - capped.square())
            torch.bmm(scores_grad, block_keys, out=own_query_grad)
            block.add(key_grad, torch.bmm(scores_grad.transpose(1, 2), own))
        sums = (total.transpose(0, 1).to(key.dtype) for total in (key_grad, value_grad))
        return _to_tokens(query_grad, ctx.count, ctx.scale), *sums, None, None, None, None


def _split(sizes: Sequence[int], *rows: Tensor) -> Iterator[Sequence[Tensor]]:
    """Yield the blocks of each tensor, [groups, sum of sizes, ...]."""
    return (tensor.split(sizes, 1) for tensor in rows)
