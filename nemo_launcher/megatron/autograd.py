# SPDX-License-Identifier: Apache-2.0
"""The type of what an autograd.Function keeps between its forward and backward pass."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.function import FunctionCtx


class Context(FunctionCtx):
    """torch's context, with what it has besides; a function's own attributes belong into a subclass."""

    saved_tensors: tuple[Tensor, ...]
    """What `save_for_backward` was given."""
    needs_input_grad: tuple[bool, ...]
    """For each input of the forward pass, whether its gradient is wanted."""
