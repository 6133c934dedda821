# SPDX-License-Identifier: Apache-2.0
"""IA3: learned vectors that scale keys, values and feed-forward activations.

Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning"
(arXiv:2205.05638), section 3.3, as implemented in NeMo's InfusedAdapter (NeMo 1.20, parallel_adapters.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nemo_launcher.adapters.methods.ia3.config import Ia3Settings
from nemo_launcher.adapters.sites import Site
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.sizes import LayerSizes


class InfusedAdapter(nn.Module):
    """A learned vector that scales the last dimension and starts as ones. `scalers`: [width], fp32.

    Each tensor-parallel rank holds the part for its heads or feed-forward columns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scalers = nn.Parameter(parallel.tensor_part(torch.ones(width), 0))

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [s, b, width], scaled."""
        return x * self.scalers.to(x.dtype)


def infused_adapter(settings: Ia3Settings, site: Site, sizes: LayerSizes) -> nn.Module:
    """Return a new vector for a site."""
    return InfusedAdapter(site.takes.of(sizes))
