# SPDX-License-Identifier: Apache-2.0
"""Lets Megatron-core 0.16 run its collectives and pipeline schedules on machines without CUDA.

Three assumptions stand in the way: buffers are made on `torch.cuda.current_device()`, exchanges between stages end with
`torch.cuda.synchronize()`, and the schedules count tokens in a tensor with `device="cuda"`. All are answered with the
CPU here, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.pipeline_parallel import schedules


class _TorchOnCpu:
    """`torch` as the schedules see it: what they make on "cuda" is made on the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return torch.zeros(*args, **kwargs)


def run_on_cpu() -> None:
    """Take effect for this process. Only for machines without CUDA, where what is replaced here would raise."""
    vars(torch.cuda).update(current_device=lambda: torch.device("cpu"), synchronize=lambda: None)
    schedules.torch = _TorchOnCpu()
