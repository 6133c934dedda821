# SPDX-License-Identifier: Apache-2.0
"""Megatron-core's self-attention up to its core: modules that scale keys and values, and norms of queries and keys."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import all_gather_last_dim_from_tensor_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.frozen_norm import FrozenRMSNorm, to_fp32


class KeyValueScaling:
    """Mixin for self- and cross-attention: optional modules that scale the keys and the values."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.scalings: dict[str, nn.Module] = {}  # "key", "value"; a plain dict, so as not to register the modules

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each [s, b, heads or groups, head_dim], before rotary positions."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)  # type: ignore[misc]
        return query, self.scaled("key", key), self.scaled("value", value)

    def scaled(self, name: str, tensor: Tensor) -> Tensor:
        """Return the `key` or `value`, [s, b, groups, head_dim], scaled by its module if there is one.

        If it has `scalers`, [groups * head_dim], they are multiplied in directly: joining the heads would be a copy.
        """
        scaling = self.scalings.get(name)
        scalers: Tensor | None = getattr(scaling, "scalers", None)
        if scalers is not None:
            return tensor * scalers.to(tensor.dtype).view(tensor.shape[2:])
        return tensor if scaling is None else scaling(tensor.flatten(2)).view_as(tensor)


class ScalableSelfAttention(KeyValueScaling, SelfAttention):
    """Megatron-core's self-attention with modules that scale keys and values."""


class NormedSelfAttention(ScalableSelfAttention):
    """Self-attention with norms of queries and keys, which act after the modules that scale keys and values.

    Megatron-core normalizes before they could act. IA3's vectors belong to the projections, as in PEFT.
    """

    q_layernorm: nn.Module
    k_layernorm: nn.Module

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each [s, b, heads or groups, head_dim], before rotary positions."""
        mixed, sizes = SelfAttention.get_query_key_value_tensors(self, *args, **{**kwargs, "split_qkv": False})
        query, key, value = mixed.split(sizes, dim=3)  # [s, b, groups, ...]
        query = query.reshape(*query.shape[:2], -1, value.size(-1))
        key, value = self.scaled("key", key), self.scaled("value", value)
        return self.q_layernorm(query), self.k_layernorm(key), value


class AllHeadsNorm(FrozenRMSNorm):
    """The norm over all heads together; it computes with the heads of all tensor-parallel ranks."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized heads; x: those of this rank, [s, b, heads, head_dim]."""
        flat = x.flatten(2)
        if parallel.tensor_size() == 1:
            return super().forward(flat).view_as(x)
        normalized = super().forward(all_gather_last_dim_from_tensor_parallel_region(flat))
        return normalized.chunk(parallel.tensor_size(), -1)[parallel.tensor_rank()].view_as(x)


class QueryNorm(AllHeadsNorm):
    """The norm over all query heads; its arguments are those of Megatron-core's module specifications."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(config.num_attention_heads * hidden_size, eps=eps)


class KeyNorm(AllHeadsNorm):
    """The norm over all key heads; its arguments are those of Megatron-core's module specifications."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        assert config.num_query_groups is not None
        super().__init__(config.num_query_groups * hidden_size, eps=eps)


class EachHeadNorm(nn.Module):
    """LayerNorm over each head with weights of its own, as in StableLM 2; every rank has the weights of all heads."""

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim, self.eps = head_dim, eps
        self.weight = nn.Parameter(torch.ones(heads * head_dim), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(heads * head_dim), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized heads; x: those of this rank, [s, b, heads, head_dim]."""
        size, rank = parallel.tensor_size(), parallel.tensor_rank()
        weight, bias = (each.view(-1, self.head_dim).chunk(size)[rank] for each in (self.weight, self.bias))
        normalized = F.layer_norm(to_fp32(x), (self.head_dim,), eps=self.eps)
        return (normalized * weight + bias).to(x.dtype)


class QueryHeadNorms(EachHeadNorm):
    """The norms of each query head; the arguments are those of Megatron-core's module specifications."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(config.num_attention_heads, hidden_size, eps)


class KeyHeadNorms(EachHeadNorm):
    """The norms of each key head; the arguments are those of Megatron-core's module specifications."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        assert config.num_query_groups is not None
        super().__init__(config.num_query_groups, hidden_size, eps)
