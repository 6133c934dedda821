# SPDX-License-Identifier: Apache-2.0
"""Tensors of adapters that tensor-parallel ranks share: a rank's part, and the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nemo_launcher.adapters.settings import Split
from nemo_launcher.megatron import parallel


def part(tensor: Tensor, split: Split, *, gated: bool) -> Tensor:
    """Return this rank's part of a whole tensor. gated: does the feed-forward have a gate?

    Raises UserError when the dimension does not divide over the ranks.
    """
    return _by_halves(tensor, split, gated, lambda half: parallel.tensor_part(half, split.dimension))


def gather(tensor: Tensor, split: Split, *, gated: bool) -> Tensor:
    """Return the whole tensor of which every rank holds a part; all of them must call it."""
    return _by_halves(tensor, split, gated, lambda half: parallel.gather_tensor_parts(half, split.dimension))


def join(parts: Sequence[Tensor], split: Split, *, gated: bool) -> Tensor:
    """Return the whole tensor from the parts of all ranks, in their order."""
    if not (split.has_gate and gated):
        return torch.cat(list(parts), split.dimension)
    halves = zip(*(tensor.chunk(2, split.dimension) for tensor in parts), strict=True)
    return torch.cat([half for of_ranks in halves for half in of_ranks], split.dimension)


def _by_halves(tensor: Tensor, split: Split, gated: bool, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to the tensor; to gate and up each, where they lie beside each other."""
    if not (split.has_gate and gated):
        return function(tensor)
    return torch.cat([function(half) for half in tensor.chunk(2, split.dimension)], split.dimension)
