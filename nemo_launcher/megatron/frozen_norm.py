# SPDX-License-Identifier: Apache-2.0
"""Megatron-core's norms for frozen weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_launcher.megatron.autograd import Context
from nemo_launcher.megatron.compilation import Compilable, compiled
from nemo_launcher.megatron.fused import Fusable, rms_norm


class FrozenNorm:
    """Factory for the norm in the configuration, with the parameters of torch's norms.

    Megatron-core's wrapper of torch's norms refuses sequence parallelism, which matters only for norms that train.
    """

    def __new__(cls, config: TransformerConfig, **kwargs: Any) -> nn.Module:  # type: ignore[misc]
        """Return the norm's module."""
        if config.normalization == "RMSNorm":
            return FrozenRMSNorm(kwargs["hidden_size"], eps=kwargs.get("eps", 1e-5))
        plain = copy.copy(config)
        plain.sequence_parallel = False
        norm: nn.Module = WrappedTorchNorm(plain, **kwargs)
        return norm


class FrozenRMSNorm(Fusable, Compilable, nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight. torch's implementation keeps two more tensors of the size of x."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized x, [..., hidden]."""
        if self.fuses and self.eps is not None:
            return rms_norm(x, self.weight, self.eps)
        if self.compiles:
            normalized: Tensor = compiled(_normalized, x.device)(x, self.weight, self.eps)[0]
            return normalized
        if not torch.is_grad_enabled():
            return _normalized(x, self.weight, self.eps)[0]
        output: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
        return output


class _RMSNorm(torch.autograd.Function):
    """The autograd function of FrozenRMSNorm: computes in fp32 or wider, without a gradient for the weight."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return [..., hidden]; x: [..., hidden]; weight: [hidden]."""
        output, scale = _normalized(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return output

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        """With y = x s w and s = (mean(x^2) + eps)^-1/2: dx = s (w dy) - x s^3 mean(x w dy)."""
        x, weight, scale = ctx.saved_tensors
        wide, weighted = to_fp32(x), to_fp32(grad) * to_fp32(weight)
        share = (wide * weighted).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(-x.size(-1))
        return weighted.mul_(scale).addcmul_(wide, share).to(x.dtype), None, None


def to_fp32(x: Tensor) -> Tensor:
    """Return x in fp32, or in its own type if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalized(x: Tensor, weight: Tensor, eps: float | None) -> tuple[Tensor, Tensor]:
    """Return the norm's output, and 1 / sqrt(mean(x^2) + eps), [..., 1]."""
    wide = to_fp32(x)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = (norm.square() / x.size(-1) + eps).rsqrt()
    return (wide * scale).mul_(weight).to(x.dtype), scale
