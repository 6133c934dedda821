# SPDX-License-Identifier: Apache-2.0
"""Gated linear units: NeMo's legacy layout stores gate and up-projection separately, Megatron-core joined."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# The name that layouts give the second matrix of NeMo's MLP (dense_h_to_4h_2); the model joins it to the first.
_JOINED, _UP = "linear_fc1.", "linear_fc1_up."
UP_PROJECTION = f"mlp.{_UP}"


def up_projection_of(name: str) -> str:
    """Return the name of a gate's up-projection; other names are returned unchanged."""
    return name.replace(_JOINED, _UP)


def split_gates(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with each joined matrix, [2 * ffn, hidden], split into gate and up-projection."""
    split: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if _JOINED in name:
            split[name], split[up_projection_of(name)] = weight.chunk(2)
        else:
            split[name] = weight
    return split
