"""Megatron-core's parallel linear layers for weights that never train.

Megatron-core 0.16 multiplies a gradient [s, b, out] by the weight as it comes out of attention; where its strides do
not fold into a matrix, torch falls back to `s` products of one row each, which costs more than all the rest on a CPU.
Here both directions are one matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
)
from torch import Tensor
from torch.nn.functional import linear

from nemo_launcher.models.frozen_mlp import FrozenMLP


class _FrozenLinear(torch.autograd.Function):
    """x @ weight.T + bias, without a gradient for weight and bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup | None) -> Tensor:
        """x: [..., in]; weight: [out, in]; group: over which the gradient of x is summed, None: not at all."""
        ctx.weight, ctx.group = weight, group
        return linear(x.reshape(-1, x.size(-1)), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """grad: [..., out]."""
        result = grad.reshape(-1, grad.size(-1)).mm(ctx.weight).view(*grad.shape[:-1], -1)
        if ctx.group is not None:
            dist.all_reduce(result, group=ctx.group)
        return result, None, None, None


class _Frozen:
    """What the column- and row-parallel layers share: how they multiply."""

    def _forward_impl(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient_accumulation_fusion: bool,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: dist.ProcessGroup | None = None,
        **_: Any,
    ) -> Tensor:
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True)
        output: Tensor = _FrozenLinear.apply(input, weight, bias, tp_group if allreduce_dgrad else None)
        return output


class FrozenColumnParallelLinear(_Frozen, ColumnParallelLinear):
    """Weight [out / ranks, in] on each tensor-parallel rank."""


class FrozenRowParallelLinear(_Frozen, RowParallelLinear):
    """Weight [out, in / ranks] on each tensor-parallel rank."""


def use_frozen_linears(layer_submodules: Any) -> None:
    """Let a Megatron-core TransformerLayerSubmodules' attentions and feed-forward consist of these layers."""
    layer_submodules.mlp.module = FrozenMLP
    attentions = (layer_submodules.self_attention, layer_submodules.cross_attention)
    for part in (*attentions, layer_submodules.mlp):
        submodules = getattr(part, "submodules", None)
        for name in ("linear_qkv", "linear_q", "linear_kv", "linear_fc1"):
            if getattr(submodules, name, None) is ColumnParallelLinear:
                setattr(submodules, name, FrozenColumnParallelLinear)
        for name in ("linear_proj", "linear_fc2"):
            if getattr(submodules, name, None) is RowParallelLinear:
                setattr(submodules, name, FrozenRowParallelLinear)
