# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the rows that a row continues, for depth-first execution (training.depth_first)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

KeyValues = dict[int, tuple[Tensor, Tensor]]
"""Keys and values of a row's tokens by layer number, each [s, b, groups, head_dim], after rotary positions."""


@dataclass(slots=True)
class AttentionPath:
    """The rows that a row continues, and the row's own keys and values."""

    above: Sequence[KeyValues] = ()
    """Of the rows on the path, from the root on; all tokens of the row attend to all of their tokens."""
    own: KeyValues = field(default_factory=dict)
    """Of the row itself; a forward pass fills it."""

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values of the row, [s, b, groups, head_dim]; return them behind the path's.

        A recomputed layer (megatron.recompute) calls this a second time, which stores nothing.
        """
        self.own.setdefault(layer, (key, value))
        if not self.above:
            return key, value
        keys, values = zip(*(row[layer] for row in self.above), (key, value), strict=True)
        return torch.cat(keys), torch.cat(values)
