# SPDX-License-Identifier: Apache-2.0
"""IA3: learned vectors that scale keys, values and the feed-forward activations.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning"
(arXiv:2205.05638), section 3.3, in the form of NeMo's InfusedAdapter (NeMo 1.20, parallel_adapters.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nemo_launcher.adapters.registry import AdapterMethod, Placement, register
from nemo_launcher.adapters.sites import Site
from nemo_launcher.families.layer_shape import LayerShape
from nemo_launcher.megatron import parallel


class InfusedAdapter(nn.Module):
    """A vector of ones that learns to scale the last dimension. `scalers`: [width], fp32.

    Tensor-parallel ranks hold the part that belongs to their heads or feed-forward columns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scalers = nn.Parameter(parallel.tensor_part(torch.ones(width), 0))

    def forward(self, x: Tensor) -> Tensor:
        """x: [s, b, width]; returns the same shape."""
        return x * self.scalers.to(x.dtype)


def _build(block: Mapping[str, Any], site: Site, shape: LayerShape) -> nn.Module:
    return InfusedAdapter(
        shape.ffn_hidden_size if site is Site.MLP_ACTIVATION else shape.num_query_groups * shape.kv_channels
    )


register(
    AdapterMethod(
        name="ia3",
        placements=(
            Placement("key_infused_adapter", Site.KEY),
            Placement("value_infused_adapter", Site.VALUE),
            Placement("key_infused_adapter", Site.CROSS_KEY),
            Placement("value_infused_adapter", Site.CROSS_VALUE),
            Placement("mlp_infused_adapter", Site.MLP_ACTIVATION),
        ),
        build=_build,
        split_dimensions={"scalers": 0},
    )
)
