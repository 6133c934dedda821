# SPDX-License-Identifier: Apache-2.0
"""What differs between families where hidden states below the first adapted layer are computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from nemo_launcher.data.hidden_file import HiddenRows
from nemo_launcher.data.samples import Batch
from nemo_launcher.families.frozen_model import FrozenModel

M = TypeVar("M", bound=FrozenModel)
B = TypeVar("B", bound=Batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenStates(Generic[M, B]):
    """The stack of a family whose hidden states can be stored: the one that reads `input_ids`."""

    stack: str
    """The name of the stack (families.stacks)."""
    is_causal: bool
    """Whether a token's hidden state depends only on the tokens before it; then the last token does not run."""
    owners: Callable[[B], tuple[Tensor, Tensor]]
    """Returns for each token of the stack's row a sample of the batch that has it, and its place there, [s] each."""
    compute: Callable[[M, B, int], Tensor]
    """Returns the hidden states of a batch that enter a layer (from 0), [s, 1, hidden]."""
    attach: Callable[[B, HiddenRows], B]
    """Returns the batch with stored hidden states, from which `Family.run` starts."""
