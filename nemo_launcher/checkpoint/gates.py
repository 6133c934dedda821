# SPDX-License-Identifier: Apache-2.0
"""Gated linear units: NeMo's legacy layout stores gate and up-projection apart, Megatron-core one behind the other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# The layouts give the second matrix of NeMo's MLP (dense_h_to_4h_2) this name; in the model it lies behind the first.
UP_PROJECTION = "mlp.linear_fc1_up."
_JOINED = "mlp.linear_fc1."


def up_projection_of(name: str) -> str:
    """Return the name of the up-projection that belongs to a gate; another weight's name stays as it is."""
    return name.replace(_JOINED, UP_PROJECTION)


def split_gates(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with each joined matrix, the gate first ([2 * ffn, hidden]), as gate and up-projection."""
    split: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if _JOINED in name:
            split[name], split[up_projection_of(name)] = weight.chunk(2)
        else:
            split[name] = weight
    return split
