# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters: two small projections with a non-linearity, added to a sub-layer's output.

Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP" (arXiv:1902.00751), figure 2, without
biases, as implemented in NeMo's ParallelLinearAdapter (NeMo 1.20, megatron/adapters/parallel_adapters.py) and
LinearAdapter (NeMo 1.20, nemo/collections/common/parts/adapter_modules.py).
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
from nemo_launcher.adapters.sites import Site
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.seeded_dropout import SeededDropout
from nemo_launcher.megatron.sizes import LayerSizes

# Communication before the first split projection, and the reduction after the second.
_TENSOR_PARALLEL = (copy_to_tensor_model_parallel_region, reduce_from_tensor_model_parallel_region)
_SEQUENCE_PARALLEL = (gather_from_sequence_parallel_region, reduce_scatter_to_sequence_parallel_region)


class ParallelLinearAdapter(nn.Module):
    """norm -> linear_in -> SiLU -> linear_out -> dropout (norm after linear_out with `post`), added to the input.

    Weights: linear_in [adapter_dim, hidden], linear_out [hidden, adapter_dim], layer_norm [hidden]. They are fp32 for
    any base and cast to the dtype of the activations. Each tensor-parallel rank holds adapter_dim / ranks of the
    bottleneck. sequence_parallel: x holds this rank's part of the tokens.
    """

    sequence_parallel = False

    def __init__(self, hidden_size: int, config: ParallelAdapterSettings) -> None:
        super().__init__()
        self.norm_position = config.norm_position
        self.dropout = SeededDropout(config.adapter_dropout)
        # Initialized before splitting, so that the weights do not depend on the number of ranks.
        whole_in, whole_out = torch.empty(config.adapter_dim, hidden_size), torch.empty(hidden_size, config.adapter_dim)
        INIT_METHODS[config.column_init_method](whole_in)
        INIT_METHODS[config.row_init_method](whole_out)
        self.linear_in = linear(parallel.tensor_part(whole_in, 0))
        self.linear_out = linear(parallel.tensor_part(whole_out, 1))
        if config.has_norm:
            self.layer_norm = nn.LayerNorm(hidden_size, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapter's output without the residual, [s, b, hidden], for x of the same shape."""
        hidden = _norm(self.layer_norm, x) if self.norm_position == "pre" else x
        share, join = _SEQUENCE_PARALLEL if self.sequence_parallel else _TENSOR_PARALLEL
        hidden = F.linear(share(hidden), self.linear_in.weight.to(x.dtype))
        hidden = join(F.linear(F.silu(hidden), self.linear_out.weight.to(x.dtype)))
        if self.norm_position == "post":
            hidden = _norm(self.layer_norm, hidden)
        output: Tensor = self.dropout(hidden)
        return output


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Apply a layer norm with fp32 weights in the dtype of x, [..., hidden]."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


class LinearAdapter(nn.Module):
    """The same computation with the parameter names (`module.N`) and initialization of NeMo's LinearAdapter.

    Its last module starts at zero: a linear layer (`pre`, no norm) or a norm (`post`), so the adapter adds nothing at
    first. As in NeMo, the initialization is fixed; NeMo has no variant without a norm. Every tensor-parallel rank holds
    the complete adapter.
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
        """Return the adapter's output without the residual, [s, b, hidden], for x of the same shape."""
        for module in self.module:
            if isinstance(module, nn.Linear):
                x = F.linear(x, module.weight.to(x.dtype))
            else:
                x = _norm(module, x) if isinstance(module, nn.LayerNorm) else module(x)
        output: Tensor = self.dropout(x)
        return output


def parallel_adapter(settings: ParallelAdapterSettings, site: Site, sizes: LayerSizes) -> nn.Module:
    """Return a new adapter for a site."""
    return ParallelLinearAdapter(site.takes.of(sizes), settings)


def linear_adapter(settings: LinearAdapterSettings, site: Site, sizes: LayerSizes) -> nn.Module:
    """Return a new adapter for a site."""
    return LinearAdapter(site.takes.of(sizes), settings)
