# SPDX-License-Identifier: Apache-2.0
"""Whether the fused operators work on this machine, found out with small tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_launcher.config.sections.common import Kernels
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.megatron import fused
from nemo_launcher.megatron.kernel_check import Comparison, disagreement, with_gradients
from nemo_launcher.megatron.rotary import Rotation
from nemo_launcher.runtime import ranks

_TOKENS, _HIDDEN, _HEAD = 5, 48, 16


def uses_fused(choice: Kernels, key: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether to use the fused operators, and print which are used to stderr.

    All ranks must call this and get the same answer. key: the configuration key of the choice. Raises UserError if they
    are asked for and do not work. On a CPU they are never used.
    """
    if choice == "torch" or device.type == "cpu":
        return False
    reasons = [reason for _, reason in ranks.gather_objects(fused_error(device, dtype))]
    reason = next(filter(None, reasons), None)
    if reason is None:
        if ranks.rank() == 0:
            print(f"{key}: liger-kernel's operators", file=sys.stderr)
        return True
    if choice == "liger":
        fix = f"pip install 'nemo-adapter-launcher[gpu]', or {key}=torch"
        raise UserError(Problem(key, f"liger-kernel does not work here: {reason}", fix))
    if ranks.rank() == 0:
        print(f"{key}: torch's operators, because liger-kernel does not work: {reason}", file=sys.stderr)
    return False


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this process can use the fused operators; False on a CPU."""
    return device.type != "cpu" and fused_error(device, dtype) is None


def fused_error(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the fused operators cannot be used, or None if they compute what torch's operators do."""
    if find_spec("liger_kernel") is None:
        return "it is not installed (pip install 'nemo-adapter-launcher[gpu]')"
    return disagreement(_comparisons(device, dtype), dtype)


def _comparisons(device: torch.device, dtype: torch.dtype) -> Iterator[Comparison]:
    """Yield the name of each operator with its results and gradients, and those of torch."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

    x, residual = drawn(_TOKENS, 1, _HIDDEN), drawn(_TOKENS, 1, _HIDDEN)
    weight = (1 + 0.1 * drawn(_HIDDEN)).detach()
    plain = F.rms_norm(x, (_HIDDEN,), weight, 1e-5)
    yield "rms_norm", with_gradients([fused.rms_norm(x, weight, 1e-5)], [x]), with_gradients([plain], [x])

    total = x + residual
    outputs = list(fused.add_rms_norm(x, residual, weight, 1e-5))
    expected = [F.rms_norm(total, (_HIDDEN,), weight, 1e-5), total]
    yield "add_rms_norm", with_gradients(outputs, [x, residual]), with_gradients(expected, [x, residual])

    query, key = drawn(_TOKENS, 1, 6, _HEAD), drawn(_TOKENS, 1, 2, _HEAD)
    angles = torch.rand(_TOKENS, 1, 1, _HEAD // 2, generator=generator).repeat(1, 1, 1, 2).to(device)
    rotation = Rotation.from_angles(angles, dtype)
    outputs = list(fused.rotate(query, key, rotation.cos, rotation.sin))
    expected = [rotation.apply_rotary(query), rotation.apply_rotary(key)]
    yield "rotate", with_gradients(outputs, [query, key]), with_gradients(expected, [query, key])

    partial = Rotation.from_angles(angles[..., : _HEAD // 4].repeat(1, 1, 1, 2), dtype)
    outputs = list(fused.rotate(query, key, partial.cos, partial.sin))
    expected = [partial.apply_rotary(query), partial.apply_rotary(key)]
    yield "rotate", with_gradients(outputs, [query, key]), with_gradients(expected, [query, key])

    projected, grad = drawn(_TOKENS, 1, 2 * _HIDDEN), drawn(_TOKENS, 1, _HIDDEN).detach()
    gate, value = projected.chunk(2, -1)
    product = F.silu(gate) * value
    outputs = [fused.swiglu(projected.detach()), fused.swiglu_backward(grad, projected.detach())]
    yield "swiglu", outputs, [product.detach(), torch.autograd.grad(product, projected, grad)[0]]
