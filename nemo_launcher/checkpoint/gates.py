"""Gated linear units: NeMo's legacy layout stores gate and up-projection apart, Megatron-core one behind the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# The layouts give the second matrix of NeMo's MLP (dense_h_to_4h_2) this name until it is joined to the first.
UP_PROJECTION = "mlp.linear_fc1_up."
_JOINED = "mlp.linear_fc1."


def join_gates(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with each gate and its up-projection as one matrix, the gate first: [2 * ffn, hidden]."""
    joined = {name: weight for name, weight in weights.items() if UP_PROJECTION not in name}
    for name, up in weights.items():
        if UP_PROJECTION in name:
            gate = name.replace(UP_PROJECTION, _JOINED)
            joined[gate] = torch.cat((weights[gate], up)) if gate in weights else up
    return joined


def split_gates(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with each joined matrix as gate and up-projection: the reverse of `join_gates`."""
    split: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if _JOINED in name:
            split[name], split[name.replace(_JOINED, UP_PROJECTION)] = weight.chunk(2)
        else:
            split[name] = weight
    return split
