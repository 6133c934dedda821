# SPDX-License-Identifier: Apache-2.0
"""Checks for infinite and NaN values in weights."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_launcher.errors import Problem


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values of a tensor are finite, in one pass without allocation."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)  # propagates NaN
    return bool(torch.isfinite(low) and torch.isfinite(high))


def not_finite(tensor: Tensor, where: str, fix: str) -> list[Problem]:
    """Return the problems of a weight's values; [] if all are finite."""
    if not tensor.is_floating_point():
        what = f"has numbers of type {str(tensor.dtype).removeprefix('torch.')}, perhaps from quantized weights"
        return [Problem(where, what, "use floating-point weights")]
    if is_finite(tensor):
        return []
    count = tensor.numel() - int(torch.isfinite(tensor).sum())
    return [Problem(where, f"{count:,} of {tensor.numel():,} values are NaN or infinite", fix)]
