# SPDX-License-Identifier: Apache-2.0
"""Fused GPU operators of liger-kernel: one pass over memory where torch's operations take several.

Each is an operator of torch with an implementation for CUDA, and for meta tensors, which have shapes only. liger-kernel
is optional (the extra `gpu`); set_fused uses it where it works. Sources: Hsu et al. 2024, "Liger Kernel: Efficient
Triton Kernels for LLM Training" (arXiv:2410.10989), and the functions of liger_kernel.ops 0.8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nemo_launcher.megatron.autograd import Context

KERNELS = {
    "rms_norm": 1,
    "rms_norm_backward": 2,
    "add_rms_norm": 1,
    "add_rms_norm_backward": 1,
    "rotate": 3,
    "swiglu": 1,
    "swiglu_backward": 1,
}
"""The number of kernels that each operator launches on a GPU: rms_norm_backward clears its result first, and rotate
copies queries and keys, which it rotates in place."""

_IN_FP32 = 1  # liger-kernel's casting mode "gemma": norms are computed in fp32 throughout
_library = torch.library.Library("nemo_launcher", "DEF")


class Fusable:
    """Base class of modules that can use fused operators (set_fused)."""

    fuses = False
    """Whether `forward` uses them."""


def set_fused(model: nn.Module, on: bool) -> None:
    """Let the modules of a model use fused operators, or torch's."""
    for module in model.modules():
        if isinstance(module, Fusable):
            module.fuses = on


def is_fused(model: nn.Module) -> bool:
    """Return whether modules of a model use fused operators."""
    return any(isinstance(module, Fusable) and module.fuses for module in model.modules())


def _define(signature: str, on_cuda: Callable[..., object], shapes: Callable[..., object]) -> None:
    """Define an operator: its signature, its implementation, and one that only allocates the results."""
    _library.define(signature)
    name = signature.partition("(")[0]
    _library.impl(name, on_cuda, "CUDA")
    _library.impl(name, shapes, "Meta")


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from liger_kernel.ops.rms_norm import rms_norm_forward

    output, _, scale, *_ = rms_norm_forward(x.contiguous(), weight, eps, 0.0, _IN_FP32, None)
    return output, scale


def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    from liger_kernel.ops.rms_norm import rms_norm_backward
    from liger_kernel.ops.utils import calculate_settings

    width = x.size(-1)
    result: Tensor = rms_norm_backward(
        *(grad.contiguous(), x.reshape(-1, width), weight, scale, 0.0, _IN_FP32, *calculate_settings(width)),
        in_place=False,
        row_mode=None,
        needs_dw=False,
    )[0]
    return result


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_forward

    output, total, scale, *_ = fused_add_rms_norm_forward(
        x.contiguous(), residual.contiguous(), weight, eps, 0.0, _IN_FP32
    )
    return output, total, scale


def _add_rms_norm_backward(grad: Tensor, total_grad: Tensor, total: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_backward
    from liger_kernel.ops.utils import calculate_settings

    settings = calculate_settings(total.size(-1))
    result: Tensor = fused_add_rms_norm_backward(
        *(grad.contiguous(), total_grad.contiguous(), total, weight, scale, 0.0, _IN_FP32, *settings, 2),
        in_place=False,
        needs_dw=False,
    )[0]
    return result


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    from liger_kernel.ops.rope import rope_backward, rope_forward

    # liger-kernel rotates in place, and negates the sine in its own forward pass, where it is negated here already.
    turn = rope_forward if backward else rope_backward
    copies = (tensor.clone(memory_format=torch.contiguous_format).permute(1, 2, 0, 3) for tensor in (query, key))
    angles = (tensor[:, :, 0].transpose(0, 1) for tensor in (cos, sin))
    query, key = (tensor.permute(2, 0, 1, 3) for tensor in turn(*copies, *angles)[:2])
    return query, key


def _swiglu(projected: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import swiglu_fused_gate_up_forward

    result: Tensor = swiglu_fused_gate_up_forward(projected.contiguous())[1]
    return result


def _swiglu_backward(grad: Tensor, projected: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import swiglu_fused_gate_up_backward

    result: Tensor = swiglu_fused_gate_up_backward(projected.contiguous(), grad.contiguous())
    return result.view_as(projected)


def _scale_of(x: Tensor) -> Tensor:
    """Return an empty tensor for 1 / sqrt(mean(x^2) + eps), [tokens]."""
    return x.new_empty(x.numel() // x.size(-1), dtype=torch.float32)


def _gated_half(projected: Tensor) -> Tensor:
    return projected.new_empty(*projected.shape[:-1], projected.size(-1) // 2)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


_define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    _rms_norm,
    lambda x, weight, eps: (_like(x), _scale_of(x)),
)
_define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor scale) -> Tensor",
    _rms_norm_backward,
    lambda grad, x, weight, scale: _like(x),
)
_define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    _add_rms_norm,
    lambda x, residual, weight, eps: (_like(x), _like(x), _scale_of(x)),
)
_define(
    "add_rms_norm_backward(Tensor grad, Tensor total_grad, Tensor total, Tensor weight, Tensor scale) -> Tensor",
    _add_rms_norm_backward,
    lambda grad, total_grad, total, weight, scale: _like(total),
)
_define(
    "rotate(Tensor query, Tensor key, Tensor cos, Tensor sin, bool backward) -> (Tensor, Tensor)",
    _rotate,
    lambda query, key, cos, sin, backward: (_like(query), _like(key)),
)
_define("swiglu(Tensor projected) -> Tensor", _swiglu, _gated_half)
_define("swiglu_backward(Tensor grad, Tensor projected) -> Tensor", _swiglu_backward, lambda grad, x: _like(x))


# --- with gradients ---------------------------------------------------------------------------------------------


class _RMSNorm(torch.autograd.Function):
    """The norm of x, [..., hidden], with a gradient for x alone."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        output: Tensor
        output, scale = torch.ops.nemo_launcher.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return output

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        result: Tensor = torch.ops.nemo_launcher.rms_norm_backward(grad, *ctx.saved_tensors)
        return result, None, None


class _AddRMSNorm(torch.autograd.Function):
    """The norm of x + residual, and that sum, [..., hidden] each, without a gradient for the weight."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        output, total, scale = torch.ops.nemo_launcher.add_rms_norm(x, residual, weight, eps)
        ctx.save_for_backward(total, weight, scale)
        return output, total

    @staticmethod
    def backward(ctx: Context, grad: Tensor, total_grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        result = torch.ops.nemo_launcher.add_rms_norm_backward(grad, total_grad, *ctx.saved_tensors)
        return result, result, None, None


class _Rotate(torch.autograd.Function):
    """Rotated queries and keys; their gradient is the opposite rotation."""

    @staticmethod
    def forward(ctx: Context, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        rotated: tuple[Tensor, Tensor] = torch.ops.nemo_launcher.rotate(query, key, cos, sin, False)
        return rotated

    @staticmethod
    def backward(ctx: Context, query_grad: Tensor, key_grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *torch.ops.nemo_launcher.rotate(query_grad, key_grad, *ctx.saved_tensors, True), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight, computed in fp32, without a gradient for the weight.

    x: [..., hidden]; weight: [hidden].
    """
    output: Tensor = _RMSNorm.apply(x, weight, eps)
    return output


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of x + residual, and the sum itself; all are [..., hidden]."""
    output: tuple[Tensor, Tensor] = _AddRMSNorm.apply(x, residual, weight, eps)
    return output


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotated queries, [s, b, heads, head_dim], and keys, [s, b, groups, head_dim].

    cos, sin: [s, b, 1, rotary_dim], with the sine's first half negated (megatron.rotary.Rotation).
    """
    output: tuple[Tensor, Tensor] = _Rotate.apply(query, key, cos, sin)
    return output


def swiglu(projected: Tensor) -> Tensor:
    """Return silu(gate) * value, [..., ffn], without a gradient; projected: gate and value, [..., 2 * ffn]."""
    output: Tensor = torch.ops.nemo_launcher.swiglu(projected)
    return output


def swiglu_backward(grad: Tensor, projected: Tensor) -> Tensor:
    """Return the gradient of `projected`, [..., 2 * ffn]; grad: that of swiglu's output, [..., ffn]."""
    output: Tensor = torch.ops.nemo_launcher.swiglu_backward(grad, projected)
    return output
