# SPDX-License-Identifier: Apache-2.0
"""The positions of a row that have logits; several samples may need those of one position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_launcher.megatron.transfer import on_device


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Positions of a row whose next token is predicted.

    They are sorted out in main memory, because a GPU would wait for the number of different ones.
    """

    positions: Tensor
    """The position of each label, [n]."""
    rows: Tensor
    """The different positions in ascending order, [m]."""
    places: Tensor
    """The place of each label's position in `rows`, [n]."""

    @classmethod
    def of(cls, positions: Tensor) -> LogitRows:
        """Return the rows of these positions, [n], in main memory."""
        rows, places = positions.unique(return_inverse=True)
        return cls(positions, rows, places)

    def to(self, device: torch.device) -> LogitRows:
        """Return the positions on `device`."""
        return LogitRows(*(on_device(each, device) for each in (self.positions, self.rows, self.places)))
