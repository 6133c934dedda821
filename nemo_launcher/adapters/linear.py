# SPDX-License-Identifier: Apache-2.0
"""Linear layers of adapters, and their initialization."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

# NeMo's names for initialization methods; its `normal` has a standard deviation of 0.2.
INIT_METHODS: dict[str, Callable[[Tensor], object]] = {
    "xavier": nn.init.xavier_normal_,
    "normal": lambda weight: nn.init.normal_(weight, mean=0.0, std=0.2),
    "zero": nn.init.zeros_,
}


def linear(weight: Tensor) -> nn.Linear:
    """Return a linear layer without bias that uses `weight`, [out, in], as its parameter."""
    layer = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
    layer.weight = nn.Parameter(weight)
    return layer
