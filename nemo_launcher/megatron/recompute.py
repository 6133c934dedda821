# SPDX-License-Identifier: Apache-2.0
"""Functions whose intermediate results are computed again in the backward pass instead of being kept.

Other than torch.utils.checkpoint it works inside `torch.autograd.grad`, and keeps no random state: all that is drawn
inside depends on a seed alone (megatron.seeded_dropout).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def recomputed(function: Callable[..., Tensor], *inputs: Tensor, parameters: Iterable[Tensor] = ()) -> Tensor:
    """Return function(*inputs), of which only the inputs are kept.

    parameters: all others that the function reads and that train. It runs a second time in the backward pass.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    output: Tensor = _Recomputed.apply(function, len(inputs), *inputs, *parameters)
    return output


class _Recomputed(torch.autograd.Function):
    """See recomputed."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], count: int, *tensors: Tensor) -> Tensor:
        """The parameters are arguments so that the result depends on them."""
        ctx.function, ctx.parameters = function, tensors[count:]
        ctx.save_for_backward(*tensors[:count])
        return function(*tensors[:count])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """grad: as the output."""
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(saved, needed, strict=False)]
        with torch.enable_grad():
            output = ctx.function(*inputs)
        wanted = [tensor for tensor in (*inputs, *ctx.parameters) if tensor.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, grad, allow_unused=True))
        return None, None, *(next(found) if need else None for need in needed)
