"""Norms about zero: NeMo's `layernorm1p` computes with 1 + weight, so that weight decay pulls towards the identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def norm_weight(weight: Tensor, name: str, config: Mapping[str, Any]) -> Tensor:
    """Return a stored weight as the model computes with it: 1 is added to that of a norm about zero.

    name: ours. config: the checkpoint's; a T5's `encoder` and `decoder` sections count for their stacks.
    """
    section = {**config, **(config.get(name.partition(".")[0]) or {})}
    about_zero = section.get("normalization") == "layernorm1p" or section.get("layernorm_zero_centered_gamma")
    return weight.float() + 1.0 if about_zero and name.endswith("layernorm.weight") else weight
