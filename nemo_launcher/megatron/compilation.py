# SPDX-License-Identifier: Apache-2.0
"""torch.compile for element-wise operations between a layer's matrix products, which it fuses into one pass.

Optional (`model.torch_compile`): compiling takes time, and on a CPU it needs a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nemo_launcher.errors import Problem, UserError


class Compilable:
    """Base class of modules whose arithmetic can run under torch.compile (set_torch_compile)."""

    compiles = False
    """Whether `forward` runs the compiled function."""


@cache
def compiled(function: Callable[..., object], device: torch.device) -> Callable[..., Any]:
    """Return a function of tensors on `device`, compiled by torch.compile; it must support autograd."""
    # Without cpp_wrapper, CPU kernels hold Python's global lock and serialize concurrent micro-batches.
    options: dict[str, str | int | bool | Callable[..., object]] = {"cpp_wrapper": True} if device.type == "cpu" else {}
    result: Callable[..., Any] = torch.compile(function, options=options)
    return result


def set_torch_compile(model: nn.Module, on: bool) -> None:
    """Enable or disable compilation of RMSNorms and feed-forward activations."""
    for module in model.modules():
        if isinstance(module, Compilable):
            module.compiles = on


def check_torch_compile(device: torch.device, key: str) -> None:
    """Raise UserError if torch.compile does not work on this machine; key: the option that enables it."""
    if reason := compile_error(device):
        fix = f"{key}=False; a CPU needs g++ (CXX names another) and Python's headers, a GPU needs Triton"
        raise UserError(Problem(key, f"torch.compile does not work on this machine: {reason}", fix))


def compile_error(device: torch.device) -> str | None:
    """Return torch.compile's error on this machine, or None if it works."""
    try:
        compiled(_double, device)(torch.ones(2, device=device))
    except Exception as error:  # the compiler, its headers or Triton may be missing, without a common error class
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return None


def _double(x: Tensor) -> Tensor:
    return x * 2
