# SPDX-License-Identifier: Apache-2.0
"""A feed-forward of several frozen experts, of which each token uses a few.

Sources: Shazeer et al. 2017 (arXiv 1701.06538, section 2.1); megatron-core 0.16, transformer/moe, for the names of the
weights and the settings.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from nemo_launcher.megatron.frozen_mlp import FrozenMLP
from nemo_launcher.megatron.layer_config import LayerConfig


class FrozenExperts(nn.Module):
    """The experts of a layer and the router that chooses and weights them for each token.

    Each tensor-parallel rank has its part of every expert, and the complete router.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        variation = config.variation
        assert variation.experts is not None
        self.per_token = variation.experts_per_token or 1
        self.softmax_first = bool(variation.router_softmax_first)
        self.sequence_parallel = config.sequence_parallel
        whole = copy.copy(config)
        whole.sequence_parallel = False  # an expert's tokens are gathered before
        self.router = Router(variation.experts, config.hidden_size)
        self.experts = nn.ModuleDict(
            {"local_experts": nn.ModuleList(FrozenMLP(whole) for _ in range(variation.experts))}
        )

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        """Return the weighted sum of the chosen experts' outputs, [s, b, hidden], and no bias to add later.

        hidden_states: [s, b, hidden]; under sequence parallelism, s are this rank's tokens.
        """
        if not self.sequence_parallel:
            return self._combined(hidden_states), None
        gathered = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        return scatter_to_sequence_parallel_region(self._combined(gathered)), None

    def _combined(self, hidden_states: Tensor) -> Tensor:
        tokens = hidden_states.flatten(0, 1)  # [n, hidden]
        weights, chosen = self._routed(tokens)
        order = chosen.flatten().argsort(stable=True)
        experts = self.experts["local_experts"].children()
        counts = torch.bincount(chosen.flatten(), minlength=self.router.weight.size(0)).tolist()
        owners = order // self.per_token
        parts = tokens[owners].split(counts)
        outputs = [expert(part[:, None])[0][:, 0] for expert, part in zip(experts, parts, strict=True) if len(part)]
        weighted = torch.cat(outputs) * weights.flatten()[order, None]
        return torch.zeros_like(tokens).index_add(0, owners, weighted).view_as(hidden_states)

    def _routed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights and the numbers of each token's experts, [n, experts of a token]; tokens: [n, hidden].

        The softmax is over all experts, or over the chosen ones, whose weights then add up to 1.
        """
        scores = self.router(tokens).float()
        if self.softmax_first:
            weights, chosen = scores.softmax(-1).topk(self.per_token, dim=-1)
        else:
            values, chosen = scores.topk(self.per_token, dim=-1)
            weights = values.softmax(-1)
        return weights.to(tokens.dtype), chosen


class Router(nn.Module):
    """The scores of the experts."""

    def __init__(self, experts: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, hidden_size), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [n, experts]; tokens: [n, hidden]."""
        return F.linear(tokens, self.weight)
