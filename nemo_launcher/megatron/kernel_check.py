# SPDX-License-Identifier: Apache-2.0
"""Whether kernels that this machine compiles compute what torch's own operations do, found out with small tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Comparison = tuple[str, Sequence[Tensor], Sequence[Tensor]]
"""The name of a kernel, its results, and those of torch's operations."""
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""The largest difference, relative to the largest value."""


def disagreement(comparisons: Iterable[Comparison], dtype: torch.dtype) -> str | None:
    """Return the reason why the first of some kernels does not work or computes other values; None if all agree."""
    tolerance = _TOLERANCES.get(dtype, 1e-4)
    try:
        for name, found, expected in comparisons:
            for one, other in zip(found, expected, strict=True):
                if not bool((one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1e-6)):
                    return f"{name} computes other values than torch"
    except Exception as error:  # a missing compiler, driver or GPU feature has no common error class
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return None


def with_gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs and the gradients of the inputs, for output gradients that differ from one another."""
    grads = [
        torch.linspace(-1, 1, each.numel(), device=each.device).view(each.shape).to(each.dtype) for each in outputs
    ]
    found = torch.autograd.grad(outputs, inputs, grads)
    return [each.detach() for each in (*outputs, *found)]
