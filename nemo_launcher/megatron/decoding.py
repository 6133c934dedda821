# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token per sample to a cached prefix, shared with other samples, and to its own tokens.

The prefix of several samples is cached once, and one matrix product combines their queries with it. A single softmax
covers both parts, so each sample gets the same result as on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nemo_launcher.megatron.alibi import Alibi
from nemo_launcher.megatron.key_value_cache import Index, KeyValueCache, Places
from nemo_launcher.megatron.transfer import on_device

# Products over several prefixes are padded to the largest number of samples, up to this multiple of the queries.
MAX_PADDING = 4


class Sharing:
    """The prefix of each sample, as indices for matrix products.

    rows: of the prefix cache, one per sample; lengths: of the prefixes, one per row; heads: key heads of this rank.
    """

    def __init__(self, rows: Sequence[int], lengths: Sequence[int], heads: int, device: torch.device) -> None:
        self.width = max(lengths[row] for row in rows)
        self.lengths = on_device(torch.tensor([lengths[row] for row in rows]), device)
        # One sample per row, in order: no query has to be moved.
        self._alone = (
            slice(rows[0], rows[0] + len(rows)) if list(rows) == [*range(rows[0], rows[0] + len(rows))] else None
        )
        self._parts: list[tuple[slice, Tensor]] = []  # rows of the cache; their queries, [rows, heads, max. samples]
        results = torch.empty(len(rows), heads, dtype=torch.long)  # index of each sample's results
        samples: list[list[int]] = [[] for _ in lengths]
        for sample, row in enumerate(rows):
            samples[row].append(sample)
        start = 0
        for part in _parts([len(of_row) for of_row in samples]):
            most = max(map(len, samples[part]))
            padded = torch.tensor([of_row + [-1] * (most - len(of_row)) for of_row in samples[part]])
            queries = padded.clamp(min=0)[:, None] * heads + torch.arange(heads)[:, None]
            places = torch.arange(start, start + queries.numel()).view_as(queries).transpose(1, 2)
            results[padded[padded >= 0]] = places[padded >= 0]
            self._parts.append((part, on_device(queries, device)))
            start += queries.numel()
        self._results = on_device(results.flatten(), device)

    def multiply(self, operands: Tensor, prefixes: Tensor) -> Tensor:
        """Return the product of each sample's operands with its prefix's matrices, [samples, heads, each, m].

        operands: [samples, heads, each, k or more]; prefixes: of all rows, [rows, heads, k, m].
        """
        if self._alone is not None:
            return operands[..., : prefixes.size(2)] @ prefixes[self._alone]
        each, columns = operands.shape[2:]
        flat = operands.reshape(-1, each * columns)
        products = []
        for rows, queries in self._parts:
            spread = flat.index_select(0, queries.flatten()).view(*queries.shape[:2], -1, columns)
            product = spread[..., : prefixes.size(2)] @ prefixes[rows]
            products.append(product.view(queries.numel(), -1))
        together = products[0] if len(products) == 1 else torch.cat(products)
        return together.index_select(0, self._results).view(*operands.shape[:3], -1)


def _parts(counts: Sequence[int]) -> Iterator[slice]:
    """Cut rows into consecutive parts, one product each; counts: samples per row. Rows without samples end a part."""
    start = 0
    for row, count in enumerate(counts):
        inside = counts[start : row + 1]
        if count and len(inside) * max(inside) <= MAX_PADDING * sum(inside):
            continue
        if row > start:
            yield slice(start, row)
        start = row if count else row + 1
    if start < len(counts):
        yield slice(start, len(counts))


@dataclass(slots=True)
class DecodingPlan:
    """The key-value caches and shared prefixes of one forward pass in generation.

    The row begins with one token of each running sample.
    """

    own: KeyValueCache
    """The caches of each sample's own tokens."""
    prefixes: KeyValueCache
    """The caches of shared prefixes."""
    running: int
    """The number of running samples."""
    sharing: Sharing | None = None
    """The prefixes of the running samples."""
    own_places: Places = field(default_factory=Places)
    """The slots of the row's tokens in `own`."""
    prefix_places: Places = field(default_factory=Places)
    """The slots of the row's tokens in `prefixes`."""
    continued: dict[int, int] = field(default_factory=dict)
    """Index of a group in the row -> the row of `prefixes` that it continues."""
    _index: list[tuple[KeyValueCache, Index]] = field(default_factory=list)
    """The slots as tensors, computed once for all layers."""
    _biases: dict[int | None, Tensor] = field(default_factory=dict)
    """The mask of prefixes and own tokens for each window, computed once for all layers."""

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write the row's keys and values, [s, heads, head_dim], to the caches."""
        if not self._index:
            places = ((self.prefixes, self.prefix_places), (self.own, self.own_places))
            self._index = [(cache, new.index(key.device)) for cache, new in places if new.tokens]
        for cache, index in self._index:
            cache.write(layer, key, value, index)

    def prefix_of(self, layer: int, group: int, length: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the prefix that a group continues, [1, heads, length, head_dim]."""
        row = self.continued[group]
        return self.prefixes.read(layer, slice(row, row + 1), length)

    def attend(
        self,
        layer: int,
        query: Tensor,
        scale: float,
        learned_prefix: tuple[Tensor, Tensor] | None = None,
        *,
        window: int | None = None,
        softcap: float | None = None,
        alibi: Alibi | None = None,
    ) -> Tensor:
        """Return the attention output of the running samples, [running, heads, head_dim].

        query: of all tokens. learned_prefix: additional keys and values that all samples attend to, each [groups, n,
        head_dim], and that precede their texts. window: the number of tokens, the own one included, that a token
        attends to; None for all. softcap: scores x become softcap * tanh(x / softcap). alibi: the biases of scores.
        """
        sharing = self.sharing
        if sharing is None:
            return query[:0]
        own_keys, own_values = self.own.read(layer, slice(self.running), self._own_width)
        keys, values = self.prefixes.read(layer, slice(None), sharing.width)
        queries = (query[: self.running] * scale).view(self.running, keys.size(1), -1, query.size(-1))
        scores = torch.cat(
            (sharing.multiply(queries, keys.transpose(2, 3)), queries @ own_keys.transpose(2, 3)), dim=-1
        )
        learned = None if learned_prefix is None else queries @ learned_prefix[0].transpose(1, 2)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
            learned = None if learned is None else torch.tanh(learned / softcap) * softcap
        if self.running > 1 or window is not None or alibi is not None:
            if window not in self._biases:
                self._biases[window] = self._bias(sharing, scores, window, alibi)
            scores += self._biases[window]
            if learned is not None and alibi is not None:
                before = torch.arange(-learned.size(-1), 0, device=learned.device).expand(self.running, -1)
                learned += _by_group(alibi, self._last(sharing), before, learned)
        if learned is not None:
            scores = torch.cat((scores, learned), dim=-1)
        wide = torch.promote_types(query.dtype, torch.float32)
        probabilities = torch.softmax(scores, -1, dtype=wide).to(query.dtype)
        own = probabilities[..., sharing.width :][..., : own_values.size(2)]
        output = sharing.multiply(probabilities, values) + own @ own_values
        if learned_prefix is not None:
            output = output + probabilities[..., -learned_prefix[1].size(1) :] @ learned_prefix[1]
        return output.view(self.running, -1, query.size(-1))

    def _bias(self, sharing: Sharing, like: Tensor, window: int | None, alibi: Alibi | None) -> Tensor:
        """Return the bias of all scores, [samples, 1 or groups, 1 or heads / groups, width of prefixes and own tokens].

        It is that of ALiBi, or 0, and -inf for other samples' tokens and those outside the window.
        """
        before, own = (torch.arange(width, device=like.device) for width in (sharing.width, self._own_width))
        prefixes, last = sharing.lengths[:, None], self._last(sharing)
        places = torch.cat((before.expand(self.running, -1), prefixes + own), dim=1)
        hidden = torch.cat((before >= prefixes, prefixes + own > last), dim=1)
        if window is not None:
            hidden |= last - places >= window
        bias = like.new_zeros(1) if alibi is None else _by_group(alibi, last, places, like)
        return torch.where(hidden[:, None, None], bias.new_tensor(float("-inf")), bias)

    def _last(self, sharing: Sharing) -> Tensor:
        """Return the place of the new token of each sample in its own text, [samples, 1]."""
        lengths = on_device(torch.tensor(self.own.lengths[: self.running]), sharing.lengths.device)
        return (sharing.lengths + lengths - 1)[:, None]

    @property
    def _own_width(self) -> int:
        return max(self.own.lengths[: self.running])


def _by_group(alibi: Alibi, queries: Tensor, keys: Tensor, like: Tensor) -> Tensor:
    """Return ALiBi's biases in the shape and dtype of scores, [samples, groups, heads / groups, keys].

    queries, keys: the places of one query and of the keys of each sample, [samples, 1] and [samples, keys]; like: the
    scores.
    """
    biases = alibi.between(queries, keys).squeeze(2)  # [heads, samples, keys]
    return biases.transpose(0, 1).reshape(keys.size(0), like.size(1), -1, keys.size(1)).to(like.dtype)
