# SPDX-License-Identifier: Apache-2.0
"""Type of the context that an autograd.Function keeps between its forward and backward pass."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.function import FunctionCtx


class Context(FunctionCtx):
    """torch's context with its dynamic attributes; a function declares its own in a subclass."""

    saved_tensors: tuple[Tensor, ...]
    """The tensors passed to `save_for_backward`."""
    needs_input_grad: tuple[bool, ...]
    """For each input of the forward pass, whether its gradient is required."""
