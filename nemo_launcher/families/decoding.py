# SPDX-License-Identifier: Apache-2.0
"""What generation asks of a model family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Decoding(Protocol):
    """A family's state of the samples that are being generated; it is made with all samples, none of them running."""

    def step(self, tokens: Sequence[int], joining: Sequence[int]) -> Tensor:
        """Run one new token of each running sample, and the prompts of samples (indices) that join behind them.

        Returns the logits of the next token of each, [running samples, vocabulary].
        """

    def select(self, kept: Sequence[int]) -> None:
        """Go on with some of the running samples (places among them), in this order."""
