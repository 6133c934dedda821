# SPDX-License-Identifier: Apache-2.0
"""Products with frozen weights through oneDNN on a CPU, with weights in its memory layout.

torch computes fp32 products with MKL, which is half as fast as oneDNN on some CPUs. Both convert a weight to their own
layout in every product; a frozen weight needs that once per direction. The operators are those that torch's compiler
uses for frozen weights. Where torch or the dtype lacks them, weights stay unpacked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nemo_launcher.runtime.memory import available_memory

_ROWS = 256  # number of rows that the layout is optimized for; it works with any
_SHARE = 0.25  # of the available memory, the most that packed copies of the weights may take


class PacksWeight:
    """Base class of linear layers whose weight can be packed (use_packed_weights)."""

    weight: Tensor
    """[out, in]; on the meta device, without values, once packed."""
    packs_weight: bool | None = False
    """Whether the first use packs the weight; None: never."""


class PackedWeight:
    """A packed weight, [out, in], for both directions; the backward layout is made on first use."""

    def __init__(self, weight: Tensor) -> None:
        self._forward = _reordered(weight)
        self._backward: Tensor | None = None
        self._lock = threading.Lock()  # micro-batches run concurrently

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
    """Let the frozen linear layers of a model on a CPU pack their weights if memory suffices for both directions."""
    layers = [
        module for module in model.modules() if isinstance(module, PacksWeight) and module.packs_weight is not None
    ]
    room = available_memory()
    fits = room is not None and sum(layer.weight.nbytes for layer in layers) <= _SHARE * room
    for layer in layers:
        layer.packs_weight = fits and _can_be_packed(layer.weight)


def dense_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of a module's parameters, of packed weights too."""
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        packed = getattr(owner, "packed", None)
        if isinstance(packed, PackedWeight) and name.endswith("weight"):
            yield name, packed.dense()
        else:
            yield name, parameter.detach()


def plain_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight.T + bias; x: [n, in]; weight: [out, in], not packed, possibly a transposed view."""
    # oneDNN is slow for other strides, and torch itself uses it for other dtypes
    dense = weight.is_contiguous() or weight.t().is_contiguous()
    if weight.dtype == torch.float32 and dense and _can_be_packed(weight):
        return _product(x.contiguous(), weight, bias)
    return linear(x, weight, bias)


def _can_be_packed(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in _packed_types()


@lru_cache(maxsize=1)
def _packed_types() -> tuple[torch.dtype, ...]:
    """Return the dtypes for which this torch and CPU have the operators."""
    operators = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(operators, name) for name in names):
        return ()
    return (torch.float32, torch.bfloat16) if operators._is_mkldnn_bf16_supported() else (torch.float32,)


def _reordered(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


def any_parameter(module: nn.Module) -> nn.Parameter:
    """Return a parameter with the module's device and dtype; those that were packed are on the meta device."""
    parameters = list(module.parameters())
    return next((parameter for parameter in parameters if not parameter.is_meta), parameters[0])
