# SPDX-License-Identifier: Apache-2.0
"""Which labels of a micro-batch belong to which answer choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_launcher.megatron.transfer import on_device


@dataclass(frozen=True, slots=True)
class ChoiceLabels:
    """The choices in a micro-batch, record by record; all choices of a record are in the same micro-batch."""

    records: Tensor
    """The record of each choice, as an index in the micro-batch, [choices]."""
    is_right: Tensor
    """Whether each choice is the right answer, [choices]."""
    is_counted: Tensor
    """Whether each label is a token of a choice: not a T5's sentinel, [n]."""

    @classmethod
    def of(cls, counts: Sequence[int], right: Sequence[int], is_counted: Tensor) -> ChoiceLabels:
        """Return the labels of records with `counts` choices, of which `right` are the right ones."""
        records = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        flags = [place == answer for count, answer in zip(counts, right, strict=True) for place in range(count)]
        return cls(records, torch.tensor(flags), is_counted)

    def to(self, device: torch.device) -> ChoiceLabels:
        """Return the labels with their tensors on `device`."""
        return ChoiceLabels(*(on_device(each, device) for each in (self.records, self.is_right, self.is_counted)))
