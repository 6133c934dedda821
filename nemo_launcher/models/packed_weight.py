"""Frozen weights in the order in which oneDNN multiplies by them, on a CPU.

A matrix product otherwise brings its weight into that order each time; a weight that never changes needs it once for
each direction. The operators are those that torch's compiler uses for frozen weights; where torch lacks them, and for
types without them, weights stay as they are.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from nemo_launcher.memory import available_memory

_ROWS = 256  # for which the order is chosen; it serves any number
_SHARE = 0.25  # of the memory that is left, which a model's weights may take once more


class PackedWeight:
    """A weight, [out, in], for products from both sides; that for the backward pass is made when first needed."""

    def __init__(self, weight: Tensor) -> None:
        self._forward = _reordered(weight)
        self._backward: Tensor | None = None
        self._lock = threading.Lock()  # micro-batches run side by side

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x @ weight.T + bias; x: [n, in]."""
        return _product(x, self._forward, bias)

    def backward(self, grad: Tensor) -> Tensor:
        """Return grad @ weight; grad: [n, out]."""
        with self._lock:
            if self._backward is None:
                self._backward = _reordered(self.dense().t().contiguous())
        return _product(grad, self._backward, None)

    def dense(self) -> Tensor:
        """Return the weight as an ordinary tensor, [out, in]."""
        return self._forward.to_dense()


def use_packed_weights(model: nn.Module) -> None:
    """Let the frozen linear layers of a model on the CPU pack their weights, if there is memory for both directions."""
    layers = [module for module in model.modules() if hasattr(module, "packs_weight")]
    room = available_memory()
    fits = room is not None and sum(layer.weight.nbytes for layer in layers) <= _SHARE * room
    for layer in layers:
        layer.packs_weight = fits and _can_be_packed(layer.weight)


def _can_be_packed(weight: Tensor) -> bool:
    operators: Any = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(operators, "_reorder_linear_weight") or not hasattr(operators, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(operators._is_mkldnn_bf16_supported())
    )


def _reordered(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return output
