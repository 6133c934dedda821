# SPDX-License-Identifier: Apache-2.0
"""Sequence parallelism: outside attention and feed-forward each tensor-parallel rank has a part of the tokens.

Source: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198),
section 4.2.2. Megatron-core implements it in the layers; this module pads rows and gathers tokens before the head.
"""

from __future__ import annotations

import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from nemo_launcher.megatron import parallel


def padding(tokens: Tensor) -> int:
    """Return the number of tokens to add to a row, [1, s], so that tensor-parallel ranks can split it evenly."""
    return -tokens.size(1) % parallel.tensor_size()


def pad(row: Tensor, count: int) -> Tensor:
    """Return the row, [1, s], with `count` zeros appended."""
    return F.pad(row, (0, count))


def gather_sequence(hidden: Tensor) -> Tensor:
    """Return all tokens, [s, b, h], gathered from the ranks; further computation is replicated on all ranks."""
    gathered: Tensor = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
    return gathered
