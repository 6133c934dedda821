# SPDX-License-Identifier: Apache-2.0
"""Sequence parallelism: outside attention and feed-forward each tensor-parallel rank has a part of the tokens.

Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198), section
4.2.2. Megatron-core does it in the layers; here is what lies between them and the head, and the padding of rows.
"""

from __future__ import annotations

import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from nemo_launcher.megatron import parallel


def padding(tokens: Tensor) -> int:
    """Return how many tokens a row, [1, s], lacks to divide over the tensor-parallel ranks."""
    return -tokens.size(1) % parallel.tensor_size()


def pad(row: Tensor, count: int) -> Tensor:
    """Return the row, [1, s], with `count` zeros behind it."""
    return F.pad(row, (0, count))


def gather_sequence(hidden: Tensor) -> Tensor:
    """Return all tokens, [s, b, h], of which each rank has a part; what follows is computed alike on all ranks."""
    gathered: Tensor = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
    return gathered
