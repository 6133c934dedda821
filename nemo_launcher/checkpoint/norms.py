# SPDX-License-Identifier: Apache-2.0
"""Norms about zero: NeMo's `layernorm1p` computes with 1 + weight, so that weight decay pulls towards the identity."""

from __future__ import annotations

from torch import Tensor

from nemo_launcher.files.values import Section, below


def norm_weight(weight: Tensor, name: str, config: Section) -> Tensor:
    """Return a stored weight as the model computes with it: 1 is added to that of a norm about zero.

    name: ours. config: the checkpoint's; a T5's `encoder` and `decoder` sections count for their stacks.
    """
    if not name.endswith("layernorm.weight"):
        return weight
    section = {**config, **below(config, name.partition(".")[0])}
    return weight.float() + 1.0 if is_about_zero(section) else weight


def is_about_zero(section: Section) -> bool:
    """Return whether the section of a stack says that its norms' weights are stored minus 1."""
    return section.get("normalization") == "layernorm1p" or bool(section.get("layernorm_zero_centered_gamma"))
