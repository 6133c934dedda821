# SPDX-License-Identifier: Apache-2.0
"""A tiny configuration of an architecture of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@dataclass(frozen=True)
class Tiny:
    """One configuration of a family."""

    prefix: str
    """The name of its classes in transformers."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Arguments of the configuration beyond SHAPE."""
    form: str = ""
    """How its weights are saved (multi_modal_models.write)."""


def of(prefix: str, **variations: dict[str, Any]) -> dict[str, Tiny]:
    """Return the variations of an architecture by their names."""
    name = prefix.lower().removesuffix("text")
    return {f"{name}-{variation}": Tiny(prefix, changes) for variation, changes in variations.items()}
