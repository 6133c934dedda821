# SPDX-License-Identifier: Apache-2.0
"""Patch that lets Megatron-core 0.16 run its collectives and pipeline schedules on a CPU.

Megatron-core allocates buffers on `torch.cuda.current_device()`, ends exchanges between stages with
`torch.cuda.synchronize()`, and counts tokens in a tensor with `device="cuda"`. The modules that do so get a stand-in
for `torch` that uses the CPU; torch itself is unchanged. A model that is split over ranks cannot run on a CPU without
this patch; a complete one does not need it.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.pipeline_parallel import p2p_communication, schedules
from megatron.core.tensor_parallel import layers, mappings
from megatron.core.tensor_parallel import utils as tensor_utils

MODULES = (layers, mappings, tensor_utils, p2p_communication, schedules)
"""The modules that exchange tensors between ranks."""


class _CudaOnCpu:
    """A stand-in for `torch.cuda` whose device is the CPU."""

    def __getattr__(self, name: str) -> object:
        return getattr(torch.cuda, name)

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def synchronize(self) -> None:
        pass


class _TorchOnCpu:
    """A stand-in for `torch` that allocates on the CPU instead of "cuda"."""

    cuda = _CudaOnCpu()

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def zeros(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return torch.zeros(*args, **kwargs)


def patch_megatron_for_cpu() -> None:
    """Patch Megatron-core in this process; only for a model that is split over ranks on CPUs."""
    for module in MODULES:
        module.torch = _TorchOnCpu()
