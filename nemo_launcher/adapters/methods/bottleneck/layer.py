# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters: two small projections with a non-linearity, added to a sub-layer's output.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP" (arXiv:1902.00751), figure 2, without biases, in
the form of NeMo's ParallelLinearAdapter (NeMo 1.20, megatron/adapters/parallel_adapters.py) and LinearAdapter (NeMo
1.20, nemo/collections/common/parts/adapter_modules.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from nemo_launcher.adapters.linear import INIT_METHODS, linear
from nemo_launcher.adapters.methods.bottleneck.config import LinearAdapterSettings, ParallelAdapterSettings
from nemo_launcher.adapters.sites import LayerSizes, Site
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.seeded_dropout import SeededDropout

# What brings activations to weights of which each tensor-parallel rank has a part, and what adds up the results.
_TENSOR_PARALLEL = (copy_to_tensor_model_parallel_region, reduce_from_tensor_model_parallel_region)
_SEQUENCE_PARALLEL = (gather_from_sequence_parallel_region, reduce_scatter_to_sequence_parallel_region)


class ParallelLinearAdapter(nn.Module):
    """norm -> linear_in -> SiLU -> linear_out -> dropout (norm last with `post`); its result is added to its input.

    Weights: linear_in [adapter_dim, hidden], linear_out [hidden, adapter_dim], layer_norm [hidden]; fp32 whatever the
    base's type, computed in the type of the activations. Tensor-parallel ranks share the bottleneck: each holds
    adapter_dim / ranks of it. sequence_parallel: x holds this rank's part of the tokens.
    """

    sequence_parallel = False

    def __init__(self, hidden_size: int, config: ParallelAdapterSettings) -> None:
        super().__init__()
        self.norm_position = config.norm_position
        self.dropout = SeededDropout(config.adapter_dropout)
        # Drawn whole and then cut, so that the initial weights do not depend on the number of ranks.
        whole_in, whole_out = torch.empty(config.adapter_dim, hidden_size), torch.empty(hidden_size, config.adapter_dim)
        INIT_METHODS[config.column_init_method](whole_in)
        INIT_METHODS[config.row_init_method](whole_out)
        self.linear_in = linear(parallel.tensor_part(whole_in, 0))
        self.linear_out = linear(parallel.tensor_part(whole_out, 1))
        if config.has_norm:
            self.layer_norm = nn.LayerNorm(hidden_size, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """x: [s, b, hidden]; returns the same shape, without the residual."""
        hidden = _norm(self.layer_norm, x) if self.norm_position == "pre" else x
        share, join = _SEQUENCE_PARALLEL if self.sequence_parallel else _TENSOR_PARALLEL
        hidden = F.linear(share(hidden), self.linear_in.weight.to(x.dtype))
        hidden = join(F.linear(F.silu(hidden), self.linear_out.weight.to(x.dtype)))
        if self.norm_position == "post":
            hidden = _norm(self.layer_norm, hidden)
        output: Tensor = self.dropout(hidden)
        return output


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Compute a norm with fp32 weights in the type of x, [..., hidden]."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


class LinearAdapter(nn.Module):
    """The same arithmetic with NeMo's LinearAdapter's names (`module.N`) and initial weights.

    It starts as the identity through its last module: a zero linear (`pre`, no norm) or a zero norm (`post`). Initial
    weights cannot be chosen, as in NeMo, which has no form without a norm. Every tensor-parallel rank holds all of it.
    """

    def __init__(self, hidden_size: int, config: LinearAdapterSettings) -> None:
        super().__init__()
        self.dropout = SeededDropout(config.adapter_dropout)
        down = nn.Linear(hidden_size, config.adapter_dim, bias=False)
        up = nn.Linear(config.adapter_dim, hidden_size, bias=False)
        modules: list[nn.Module] = [down, nn.SiLU(), up]
        if config.has_norm:
            norm = nn.LayerNorm(hidden_size, eps=1e-5)
            modules = [norm, *modules] if config.norm_position == "pre" else [*modules, norm]
        self.module = nn.Sequential(*modules)
        for parameter in modules[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """x: [s, b, hidden]; returns the same shape, without the residual."""
        for module in self.module:
            if isinstance(module, nn.Linear):
                x = F.linear(x, module.weight.to(x.dtype))
            else:
                x = _norm(module, x) if isinstance(module, nn.LayerNorm) else module(x)
        output: Tensor = self.dropout(x)
        return output


def parallel_adapter(settings: ParallelAdapterSettings, site: Site, sizes: LayerSizes) -> nn.Module:
    """Return a new adapter."""
    return ParallelLinearAdapter(site.takes.of(sizes), settings)


def linear_adapter(settings: LinearAdapterSettings, site: Site, sizes: LayerSizes) -> nn.Module:
    """Return a new adapter."""
    return LinearAdapter(site.takes.of(sizes), settings)
