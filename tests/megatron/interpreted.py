# SPDX-License-Identifier: Apache-2.0
"""Runs liger-kernel's operators on this CPU in Triton's interpreter and prints what differs from torch.

A program of its own: the interpreter is chosen when Triton is imported. It needs liger-kernel and Triton.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import liger_kernel.ops.fused_add_rms_norm as liger_addition
import liger_kernel.ops.rms_norm as liger_norm
import numpy
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from nemo_launcher.megatron import fused, fused_check

_convert = interpreter._implicit_cvt


def convert(value: object) -> object:
    """Convert floats too: compiled kernels get them as scalars, which the interpreter hands on as Python's."""
    if type(value) is not float:
        return _convert(value)
    return tl.core.tensor(interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), tl.float32), tl.float32)


@triton.jit
def rsqrt(x):  # type: ignore[no-untyped-def]
    """Stand in for CUDA's function, which the interpreter lacks."""
    return 1.0 / tl.sqrt(x)


def main() -> None:
    """Compare all operators in fp32 and fp16; the interpreter cannot add numbers in bf16."""
    interpreter._implicit_cvt = convert
    tl.core.tensor.__index__ = lambda self: int(self.handle.data.reshape(-1)[0])
    for module in (liger_norm, liger_addition):
        module.rsqrt = rsqrt
    for name in fused.KERNELS:
        fused._library.impl(name, getattr(fused, f"_{name}"), "CPU")
    for dtype in (torch.float32, torch.float16):
        print(dtype, fused_check.fused_error(torch.device("cpu"), dtype))


if __name__ == "__main__":
    main()
