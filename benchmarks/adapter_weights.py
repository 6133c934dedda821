# SPDX-License-Identifier: Apache-2.0
"""Equal weights of bottleneck adapters on both sides of benchmarks/training.py, so that gradients can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from zlib import crc32

import torch
from torch import Tensor, nn

# Place (`<layer>.attention` or `<layer>.mlp`) and parts: down [dim, hidden], up [hidden, dim], norm_weight, norm_bias
# [hidden].
Bottlenecks = Iterable[tuple[str, Mapping[str, nn.Parameter]]]


def start_alike(adapters: Bottlenecks) -> None:
    """Set the projections of each adapter to small random weights that depend only on its place."""
    for place, parts in adapters:
        generator = torch.Generator().manual_seed(crc32(place.encode()))
        with torch.no_grad():
            for name in ("down", "up"):
                parts[name].copy_(0.02 * torch.randn(parts[name].shape, generator=generator))


def gradients_of(adapters: Bottlenecks) -> dict[str, Tensor]:
    """Return the gradients by place and part."""
    found = {}
    for place, parts in adapters:
        for name, parameter in parts.items():
            assert parameter.grad is not None
            found[f"{place}.{name}"] = parameter.grad.float()
    return found
