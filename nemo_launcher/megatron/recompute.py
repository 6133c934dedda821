# SPDX-License-Identifier: Apache-2.0
"""Recomputation: intermediate results are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return function(*inputs), keeping only the inputs; the backward pass runs the function again.

    No random state is saved: everything random inside must depend on a seed (megatron.seeded_dropout).
    """
    output: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return output
