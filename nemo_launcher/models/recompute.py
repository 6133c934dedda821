"""Functions whose intermediate results are computed again in the backward pass instead of being kept.

Other than torch.utils.checkpoint it works inside `torch.autograd.grad`, and keeps no random state: all that is drawn
inside depends on a seed alone (adapters.dropout).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[Tensor] = ()) -> Tensor:
    """Return function(x), of which only x is kept. parameters: all others that the function reads and that train."""
    output: Tensor = _Recomputed.apply(function, x, *parameters)
    return output


class _Recomputed(torch.autograd.Function):
    """See recomputed."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
        """The parameters are arguments so that the result depends on them."""
        ctx.function, ctx.parameters = function, parameters
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """grad: as the output."""
        needed = ctx.needs_input_grad[1]
        x = ctx.saved_tensors[0].detach().requires_grad_(needed)
        with torch.enable_grad():
            output = ctx.function(x)
        inputs = [x, *ctx.parameters] if needed else list(ctx.parameters)
        found = torch.autograd.grad(output, inputs, grad, allow_unused=True)
        return None, *(found if needed else (None, *found))
