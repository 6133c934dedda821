# SPDX-License-Identifier: Apache-2.0
"""torch.compile for what lies between a layer's products: one pass over the activations where torch makes several.

An option (`model.torch_compile`): compiling takes time, and on a CPU it needs a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nemo_launcher.errors import Problem, UserError


class Compilable:
    """Base of modules whose arithmetic torch.compile may take (set_torch_compile)."""

    compiles = False
    """Whether `forward` runs the compiled function."""


@cache
def compiled(function: Callable[..., object], device: torch.device) -> Callable[..., Any]:
    """Return what torch.compile makes of a function of tensors on `device`; autograd must be able to follow it."""
    # Without it a CPU's kernels keep Python's lock, and micro-batches that run side by side wait for each other.
    options: dict[str, str | int | bool | Callable[..., object]] = {"cpp_wrapper": True} if device.type == "cpu" else {}
    result: Callable[..., Any] = torch.compile(function, options=options)
    return result


def set_torch_compile(model: nn.Module, on: bool) -> None:
    """Choose whether RMSNorms and feed-forward activations are compiled."""
    for module in model.modules():
        if isinstance(module, Compilable):
            module.compiles = on


def check_torch_compile(device: torch.device, key: str) -> None:
    """Raise UserError when torch.compile does not work on this machine; key: the option that asks for it."""
    if reason := why_not_compiled(device):
        fix = f"{key}=False; a CPU needs g++ (CXX names another) and Python's headers, a GPU needs Triton"
        raise UserError(Problem(key, f"torch.compile does not work on this machine: {reason}", fix))


def why_not_compiled(device: torch.device) -> str | None:
    """Return why torch.compile does not work on this machine; None where it does."""
    try:
        compiled(_double, device)(torch.ones(2, device=device))
    except Exception as error:  # the compiler, its headers or Triton may be absent: torch has no common class for that
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return None


def _double(x: Tensor) -> Tensor:
    return x * 2
