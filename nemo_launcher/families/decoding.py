# SPDX-License-Identifier: Apache-2.0
"""The interface of model families for generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Decoding(Protocol):
    """A family's state of the samples in generation, created with all samples before any of them runs."""

    def step(self, tokens: Sequence[int], joining: Sequence[int]) -> Tensor:
        """Run one new token of each running sample, and the prompts of samples (indices) that join after them.

        Returns the logits of each sample's next token, [running samples, vocabulary].
        """

    def select(self, kept: Sequence[int]) -> None:
        """Keep only some of the running samples (indices into them), in this order."""
