# SPDX-License-Identifier: Apache-2.0
"""Megatron-core's feed-forward for frozen weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_launcher.megatron.autograd import Context
from nemo_launcher.megatron.compilation import Compilable, compiled
from nemo_launcher.megatron.frozen_linear import FrozenColumnParallelLinear, FrozenRowParallelLinear
from nemo_launcher.megatron.fused import Fusable, swiglu, swiglu_backward
from nemo_launcher.megatron.recompute import recomputed


class FrozenMLP(Fusable, Compilable, MLP):
    """Keeps only the output of its first projection for the backward pass: recomputing the activation is cheaper.

    scalings: "activation" names an optional module applied before the second projection. If it has `scalers`, [ffn],
    they are multiplied in directly instead of calling it.
    """

    def __init__(self, config: TransformerConfig) -> None:
        parts = MLPSubmodules(linear_fc1=FrozenColumnParallelLinear, linear_fc2=FrozenRowParallelLinear)
        super().__init__(config, parts)
        self.scalings: dict[str, nn.Module] = {}  # a plain dict, so as not to register the modules

    def forward(self, hidden_states: Tensor, per_token_scale: None = None, **_: object) -> tuple[Tensor, Tensor | None]:
        """Return the output, [s, b, hidden], and the bias to add later; hidden_states: [s, b, hidden]."""
        projected, bias = self.linear_fc1(hidden_states)
        scaling = self.scalings.get("activation")
        scalers: Tensor | None = getattr(scaling, "scalers", None)
        if scaling is None or scalers is not None:
            activated = self._activated(projected, bias, scalers)
        else:
            activated = recomputed(lambda projected: scaling(self._activated(projected, bias, None)), projected)
        output: tuple[Tensor, Tensor | None] = self.linear_fc2(activated)
        return output

    def _activated(self, projected: Tensor, bias: Tensor | None, scalers: Tensor | None) -> Tensor:
        gated = self.config.gated_linear_unit
        if self.fuses and bias is None and gated and self.activation_func is F.silu:
            return _swiglu(projected, scalers)
        activate = compiled(_activated, projected.device) if self.compiles else _Activated.apply
        activated: Tensor = activate(projected, bias, scalers, self.activation_func, gated)
        return activated


def _swiglu(projected: Tensor, scalers: Tensor | None) -> Tensor:
    activated: Tensor = _FusedSwiGLU.apply(projected, scalers)
    return activated


class _SwiGLUContext(Context):
    scalers: Tensor | None


class _FusedSwiGLU(torch.autograd.Function):
    """silu(gate) * value * scalers by fused operators, with only `projected` saved for the backward pass."""

    @staticmethod
    def forward(ctx: _SwiGLUContext, projected: Tensor, scalers: Tensor | None) -> Tensor:
        """Return [..., ffn]; see the function _activated."""
        ctx.save_for_backward(projected)
        ctx.scalers = scalers
        output = swiglu(projected)
        return output if scalers is None else output.mul_(scalers.to(output.dtype))

    @staticmethod
    def backward(ctx: _SwiGLUContext, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of `projected` and `scalers`; grad: [..., ffn]."""
        (projected,), scalers = ctx.saved_tensors, ctx.scalers
        result = swiglu_backward(grad, projected)
        if scalers is None:
            return result, None
        # The gradient of the value, times the value, is that of the output, times the output before scaling.
        value, value_grad = (each.chunk(2, dim=-1)[1] for each in (projected, result))
        product = (value_grad * value).flatten(0, -2).sum(0, dtype=scalers.dtype)
        result.unflatten(-1, (2, -1)).mul_(scalers.to(result.dtype))  # gradients are linear in `grad`
        return result, product


class _ActivatedContext(Context):
    bias: Tensor | None
    scalers: Tensor | None
    activation: Callable[[Tensor], Tensor]
    gated: bool


class _Activated(torch.autograd.Function):
    """activation(gate) * value * scalers, with only `projected` saved for the backward pass."""

    @staticmethod
    def forward(
        ctx: _ActivatedContext,
        projected: Tensor,
        bias: Tensor | None,
        scalers: Tensor | None,
        activation: Callable[[Tensor], Tensor],
        gated: bool,
    ) -> Tensor:
        """Return [..., ffn]; see the function _activated."""
        ctx.save_for_backward(projected)
        ctx.bias, ctx.scalers, ctx.activation, ctx.gated = bias, scalers, activation, gated
        return _activated(projected, bias, scalers, activation, gated)

    @staticmethod
    def backward(ctx: _ActivatedContext, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None, None]:
        """Return the gradients of `projected` and `scalers`; grad: [..., ffn]."""
        (projected,), scalers = ctx.saved_tensors, ctx.scalers
        factor = None if scalers is None else scalers.to(grad.dtype)
        result = torch.empty_like(projected)
        gate, value = _parts(projected, ctx.bias, ctx.gated)
        product = _activated_backward(ctx.activation, gate, value, factor, grad, _halves(result, ctx.gated))
        return result, None, None if scalers is None or product is None else product.to(scalers.dtype), None, None


def _activated_backward(
    activation: Callable[[Tensor], Tensor],
    gate: Tensor,
    value: Tensor | None,
    scalers: Tensor | None,
    grad: Tensor,
    result: tuple[Tensor, Tensor | None],
) -> Tensor | None:
    """Write the gradients of gate and value to `result`; return that of `scalers`, [ffn], in fp32 or wider.

    All tensors but `scalers` are [..., ffn].
    """
    gate_grad, value_grad = result
    if activation is F.silu:
        activated = F.silu(gate)
    else:
        gate = gate.detach().requires_grad_()
        with torch.enable_grad():
            traced = activation(gate)
        activated = traced.detach()
    inner = grad if value is None else grad * value
    product = None
    if scalers is not None:
        product = (inner * activated).flatten(0, -2).sum(0, dtype=torch.promote_types(inner.dtype, torch.float32))
        inner = inner * scalers
    if value_grad is not None:
        torch.mul(grad, activated, out=value_grad)
        if scalers is not None:
            value_grad.mul_(scalers)
    if activation is F.silu:
        torch.ops.aten.silu_backward.grad_input(inner, gate, grad_input=gate_grad)
    else:
        gate_grad.copy_(torch.autograd.grad(traced, gate, inner)[0])
    return product


def _activated(
    projected: Tensor, bias: Tensor | None, scalers: Tensor | None, activation: Callable[[Tensor], Tensor], gated: bool
) -> Tensor:
    """Return activation(gate) * value * scalers, [..., ffn].

    projected: gate and value, [..., 2 * ffn], or without value [..., ffn]; bias: alike, added first; scalers: [ffn].
    """
    gate, value = _parts(projected, bias, gated)
    output = activation(gate)
    for factor in (value, scalers):
        if factor is not None:
            factor = factor.to(output.dtype)
            output = output * factor if torch.is_grad_enabled() else output.mul_(factor)
    return output


def _parts(projected: Tensor, bias: Tensor | None, gated: bool) -> tuple[Tensor, Tensor | None]:
    return _halves(projected if bias is None else projected + bias, gated)


def _halves(tensor: Tensor, gated: bool) -> tuple[Tensor, Tensor | None]:
    """Return gate and value, which a gated activation stores side by side."""
    if not gated:
        return tensor, None
    gate, value = tensor.chunk(2, dim=-1)
    return gate, value
