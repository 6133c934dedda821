"""Sequence parallelism: outside attention and feed-forward each tensor-parallel rank has a part of the tokens.

Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198), section
4.2.2. Megatron-core does it in the layers; here is what lies between them and the head, and the padding of rows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemo_launcher.models import parallel


class FrozenNorm:
    """Megatron-core's norm on torch. It refuses sequence parallelism, where only a norm that trains needs more."""

    def __new__(cls, config: TransformerConfig, **kwargs: Any) -> nn.Module:
        """Return torch's norm of the kind that the configuration names."""
        plain = copy.copy(config)
        plain.sequence_parallel = False
        return WrappedTorchNorm(plain, **kwargs)


def padding(tokens: Tensor) -> int:
    """Return how many tokens a row, [1, s], lacks to divide over the tensor-parallel ranks."""
    return -tokens.size(1) % parallel.tensor_size()


def pad(row: Tensor, count: int) -> Tensor:
    """Return the row, [1, s], with `count` zeros behind it."""
    return F.pad(row, (0, count))


def whole(hidden: Tensor) -> Tensor:
    """Return all tokens, [s, b, h], of which each rank has a part; what follows is computed alike on all ranks."""
    return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)


def take_whole_tokens(layer: Any) -> None:
    """Let a ColumnParallelLinear expect all tokens, as without sequence parallelism."""
    layer.sequence_parallel, layer.allreduce_dgrad = False, True
