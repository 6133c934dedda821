# SPDX-License-Identifier: Apache-2.0
"""Functions whose intermediate results are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return function(*inputs), of which only the inputs are kept; it runs a second time in the backward pass.

    No random state is kept: all that is drawn inside must depend on a seed alone (megatron.seeded_dropout).
    """
    output: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return output
