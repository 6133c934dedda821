# SPDX-License-Identifier: Apache-2.0
"""Lets Megatron-core 0.16 run its collectives and pipeline schedules on a CPU.

Three assumptions stand in the way: buffers are made on `torch.cuda.current_device()`, exchanges between stages end with
`torch.cuda.synchronize()`, and the schedules count tokens in a tensor with `device="cuda"`. The modules that make them
get a `torch` of their own, which answers with the CPU; torch itself stays as it is. Without it a model that is cut over
ranks does not run on a CPU at all; a whole one needs none of it.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.pipeline_parallel import p2p_communication, schedules
from megatron.core.tensor_parallel import layers, mappings
from megatron.core.tensor_parallel import utils as tensor_utils

MODULES = (layers, mappings, tensor_utils, p2p_communication, schedules)
"""What exchanges tensors between ranks."""


class _CudaOnCpu:
    """`torch.cuda` with a CPU as its device."""

    def __getattr__(self, name: str) -> object:
        return getattr(torch.cuda, name)

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def synchronize(self) -> None:
        pass


class _TorchOnCpu:
    """`torch` as those modules see it: what they make on "cuda" is made on the CPU."""

    cuda = _CudaOnCpu()

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def zeros(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return torch.zeros(*args, **kwargs)


def exchange_on_cpu() -> None:
    """Take effect for this process. Only where the model is cut over ranks that compute on CPUs."""
    for module in MODULES:
        module.torch = _TorchOnCpu()
