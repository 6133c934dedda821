# SPDX-License-Identifier: Apache-2.0
"""Sums of the gradients of several backward passes, kept apart from the tensors' `grad`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GradientSums:
    """The sums of the gradients of `inputs`, in at least the dtype `at_least` (None: in their own)."""

    def __init__(self, inputs: Sequence[Tensor], at_least: torch.dtype | None = None) -> None:
        self.inputs = list(inputs)
        self.totals: list[Tensor | None] = [None] * len(self.inputs)
        """The sum of each input's gradients; None before the first."""
        self._at_least = at_least

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients of one backward pass; None for an input that was not used."""
        for place, gradient in enumerate(gradients):
            if gradient is None:
                continue
            total = self.totals[place]
            if total is not None:
                total.add_(gradient)
            elif self._at_least is None:
                self.totals[place] = gradient
            else:  # a copy: the gradient of a part keeps that of the whole in memory
                dtype = torch.promote_types(gradient.dtype, self._at_least)
                self.totals[place] = gradient.to(dtype, copy=True)
