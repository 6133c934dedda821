# SPDX-License-Identifier: Apache-2.0
"""Splitting and gathering of adapter tensors over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nemo_launcher.adapters.settings import Split
from nemo_launcher.megatron import parallel


def part(tensor: Tensor, split: Split, *, gated: bool) -> Tensor:
    """Return this rank's part of a complete tensor; gated: whether the model has a gated feed-forward.

    Raises UserError if the ranks cannot split the dimension evenly.
    """
    return _by_halves(tensor, split, gated, lambda half: parallel.tensor_part(half, split.dimension))


def gather(tensor: Tensor, split: Split, *, gated: bool) -> Tensor:
    """Return the complete tensor, gathered from all ranks, which must all call this."""
    return _by_halves(tensor, split, gated, lambda half: parallel.gather_tensor_parts(half, split.dimension))


def join(parts: Sequence[Tensor], split: Split, *, gated: bool) -> Tensor:
    """Return the complete tensor, from the parts of all ranks in rank order."""
    if not (split.has_gate and gated):
        return torch.cat(list(parts), split.dimension)
    halves = zip(*(tensor.chunk(2, split.dimension) for tensor in parts), strict=True)
    return torch.cat([half for of_ranks in halves for half in of_ranks], split.dimension)


def _by_halves(tensor: Tensor, split: Split, gated: bool, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to the tensor, or to gate and up separately if the tensor holds both."""
    if not (split.has_gate and gated):
        return function(tensor)
    return torch.cat([function(half) for half in tensor.chunk(2, split.dimension)], split.dimension)
