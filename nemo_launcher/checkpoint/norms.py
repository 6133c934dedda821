# SPDX-License-Identifier: Apache-2.0
"""Zero-centered norms: NeMo's `layernorm1p` computes with 1 + weight, so that weight decay pulls to the identity."""

from __future__ import annotations

from torch import Tensor

from nemo_launcher.files.values import Section, below


def norm_weight(weight: Tensor, name: str, config: Section) -> Tensor:
    """Return a stored weight with 1 added if it is that of a zero-centered norm.

    name: ours. config: the checkpoint's; the `encoder` and `decoder` sections of a T5 apply to their stacks.
    """
    if not name.endswith("layernorm.weight"):
        return weight
    section = {**config, **below(config, name.partition(".")[0])}
    return weight.float() + 1.0 if is_zero_centered(section) else weight


def is_zero_centered(section: Section) -> bool:
    """Return whether the norms of a stack's section store their weights minus 1."""
    return section.get("normalization") == "layernorm1p" or bool(section.get("layernorm_zero_centered_gamma"))
