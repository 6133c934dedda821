# SPDX-License-Identifier: Apache-2.0
"""Key-value cache for generation, with rows that are added and removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nemo_launcher.megatron.transfer import on_device

Index = tuple[Tensor, Tensor, Tensor]  # rows, slots and tokens, [n] each


@dataclass(slots=True)
class Places:
    """The cache slots of a forward pass: token `tokens[i]` goes to slot `slots[i]` of row `rows[i]`."""

    rows: list[int] = field(default_factory=list)
    """Rows of the cache."""
    slots: list[int] = field(default_factory=list)
    """Slots within the rows."""
    tokens: list[int] = field(default_factory=list)
    """Indices into the tokens of the forward pass."""

    def add(self, row: int, first_slot: int, tokens: Sequence[int]) -> None:
        """Assign tokens to consecutive slots of a row."""
        self.rows += [row] * len(tokens)
        self.slots += range(first_slot, first_slot + len(tokens))
        self.tokens += tokens

    def index(self, device: torch.device) -> Index:
        """Return the three lists as tensors."""
        rows, slots, tokens = on_device(torch.tensor([self.rows, self.slots, self.tokens]), device)
        return rows, slots, tokens


class KeyValueCache:
    """Keys and values by layer number, each [rows, groups, slots, head_dim].

    lengths: filled slots of each row; 0 for a free row. The tensors grow to the reserved numbers of rows and slots.
    Unused slots hold finite numbers, so that a mask can hide them.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._rows = self._slots = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, rows: int, slots: int) -> None:
        """Reserve at least this many rows, and slots per row."""
        self._rows, self._slots = max(self._rows, rows), max(self._slots, slots)

    def write(self, layer: int, key: Tensor, value: Tensor, index: Index) -> None:
        """Store tokens of key and value, [s, groups, head_dim], at the slots in `index` (Places.index)."""
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
        """Return keys and values in the first slots of some rows, [rows, groups, slots, head_dim]."""
        keys, values = self._layers[layer]
        return keys[rows, :, :slots], values[rows, :, :slots]

    def copy(self, source: int, target: int, slots: int) -> None:
        """Copy the first slots of a row to another row."""
        for layer, tensors in self._layers.items():
            keys, values = self._layers[layer] = self._with_room(tensors[0]), self._with_room(tensors[1])
            for tensor in (keys, values):
                tensor[target, :, :slots] = tensor[source, :, :slots]

    def select(self, kept: Sequence[int]) -> None:
        """Keep only the given rows, in this order; rows that do not move are not copied."""
        moved = [(new, old) for new, old in enumerate(kept) if new != old]
        self.lengths = [self.lengths[row] for row in kept]
        if not moved:
            return
        indices: dict[torch.device, Tensor] = {}
        for tensor in (tensor for of_layer in self._layers.values() for tensor in of_layer):
            if tensor.device not in indices:
                indices[tensor.device] = on_device(torch.tensor(moved), tensor.device)
            targets, sources = indices[tensor.device].unbind(1)
            tensor[targets] = tensor[sources]

    @property
    def num_elements(self) -> int:
        """The number of elements in all layers' keys and values."""
        return sum(tensor.numel() for tensors in self._layers.values() for tensor in tensors)
