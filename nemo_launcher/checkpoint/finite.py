# SPDX-License-Identifier: Apache-2.0
"""Whether weights are numbers to compute with."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_launcher.errors import Problem


def is_finite(tensor: Tensor) -> bool:
    """Return whether no number of a tensor is NaN or infinite: one pass, nothing allocated."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)  # NaN comes through
    return bool(torch.isfinite(low) and torch.isfinite(high))


def not_finite(tensor: Tensor, where: str, fix: str) -> list[Problem]:
    """Return what is wrong with the numbers of a weight; [] when all are finite."""
    if not tensor.is_floating_point():
        what = f"has numbers of type {str(tensor.dtype).removeprefix('torch.')}, as quantised weights have"
        return [Problem(where, what, "use weights of floating-point numbers")]
    if is_finite(tensor):
        return []
    count = tensor.numel() - int(torch.isfinite(tensor).sum())
    return [Problem(where, f"{count:,} of {tensor.numel():,} numbers are NaN or infinite", fix)]
