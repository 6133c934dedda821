# SPDX-License-Identifier: Apache-2.0
"""Copies of what the host prepares to a GPU, for which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device. A copy to a GPU is ordered before the kernels that follow; the host goes on.

    The copy reads from pinned memory, which torch keeps until the copy has ended.
    """
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
