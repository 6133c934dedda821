# SPDX-License-Identifier: Apache-2.0
"""Keys and values of texts that are being generated, in rows that come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Index = tuple[Tensor, Tensor, Tensor]  # rows, slots and tokens, [n] each


@dataclass(slots=True)
class Places:
    """Where the tokens of a forward pass go in a cache: token `tokens[i]` to slot `slots[i]` of row `rows[i]`."""

    rows: list[int] = field(default_factory=list)
    """Rows of the cache."""
    slots: list[int] = field(default_factory=list)
    """Places in the rows."""
    tokens: list[int] = field(default_factory=list)
    """Indices into the tokens of the forward pass."""

    def add(self, row: int, first_slot: int, tokens: Sequence[int]) -> None:
        """Put tokens into neighbouring slots."""
        self.rows += [row] * len(tokens)
        self.slots += range(first_slot, first_slot + len(tokens))
        self.tokens += tokens

    def index(self, device: torch.device) -> Index:
        """Return the three lists as tensors."""
        rows, slots, tokens = torch.tensor([self.rows, self.slots, self.tokens], device=device)
        return rows, slots, tokens


class KeyValueCache:
    """Keys and values by layer number, each [rows, groups, slots, head_dim].

    lengths: filled slots of each row; 0: nobody's. The tensors grow to the most rows and slots that were reserved. What
    no row fills holds finite numbers, so that a mask can hide it.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._rows = self._slots = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for this many rows and slots a row."""
        self._rows, self._slots = max(self._rows, rows), max(self._slots, slots)

    def write(self, layer: int, key: Tensor, value: Tensor, index: Index) -> None:
        """Store tokens of key and value, [s, groups, head_dim], where `index` says (Places.index)."""
        rows, slots, tokens = index
        old = self._layers.get(layer) or tuple(
            part.new_zeros(0, part.size(1), 0, part.size(2)) for part in (key, value)
        )
        keys, values = self._layers[layer] = self._with_room(old[0]), self._with_room(old[1])
        keys[rows, :, slots] = key[tokens]
        values[rows, :, slots] = value[tokens]

    def _with_room(self, old: Tensor) -> Tensor:
        rows, groups, slots, width = old.shape
        if rows >= self._rows and slots >= self._slots:
            return old
        new = old.new_zeros(self._rows, groups, self._slots, width)
        new[:rows, :, :slots] = old
        return new

    def read(self, layer: int, rows: slice, slots: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of some rows' first slots, [rows, groups, slots, head_dim]."""
        keys, values = self._layers[layer]
        return keys[rows, :, :slots], values[rows, :, :slots]

    def copy(self, source: int, target: int, slots: int) -> None:
        """Copy the first slots of a row into another row."""
        for layer, tensors in self._layers.items():
            keys, values = self._layers[layer] = self._with_room(tensors[0]), self._with_room(tensors[1])
            for tensor in (keys, values):
                tensor[target, :, :slots] = tensor[source, :, :slots]

    def select(self, kept: Sequence[int]) -> None:
        """Keep only the given rows, in this order; rows that stay where they are cost nothing."""
        moved = [(new, old) for new, old in enumerate(kept) if new != old]
        self.lengths = [self.lengths[row] for row in kept]
        if not moved:
            return
        for tensors in self._layers.values():
            for tensor in tensors:
                targets, sources = torch.tensor(moved, device=tensor.device).unbind(1)
                tensor[targets] = tensor[sources]

    @property
    def num_elements(self) -> int:
        """Numbers held, of all layers' keys and values."""
        return sum(tensor.numel() for tensors in self._layers.values() for tensor in tensors)
