# SPDX-License-Identifier: Apache-2.0
"""Which labels of a micro-batch belong to which answer choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nemo_launcher.megatron.transfer import on_device


@dataclass(frozen=True, slots=True)
class ChoiceLabels:
    """The choices in a micro-batch, record by record; all choices of a record are in the same micro-batch.

    Labels are selected by indices, which are made in main memory: a GPU would wait for the number of selected ones.
    """

    records: Tensor
    """The record of each choice, as an index in the micro-batch, [choices]."""
    answers: Tensor
    """The right choice of each record, as an index among all choices, [records]."""
    right: Tensor
    """The labels of right choices, as indices, [m]; a T5's sentinel is among them."""
    counted: Tensor
    """The labels that are tokens of a choice, as indices: not a T5's sentinel."""
    wrong: Tensor
    """Those of them that belong to wrong choices."""
    lengths: Tensor
    """The number of tokens of each choice, [choices]."""

    @classmethod
    def of(cls, counts: Sequence[int], right: Sequence[int], owners: Tensor, is_counted: Tensor) -> ChoiceLabels:
        """Return the labels of records with `counts` choices, of which `right` are the right ones.

        owners: the choice of each label, [n]; is_counted: whether each label is a token of a choice, [n].
        """
        answers = torch.tensor(right) + torch.tensor([0, *counts[:-1]]).cumsum(0)
        is_right = torch.isin(owners, answers)
        return cls(
            records=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
            answers=answers,
            right=is_right.nonzero()[:, 0],
            counted=is_counted.nonzero()[:, 0],
            wrong=(is_counted & ~is_right).nonzero()[:, 0],
            lengths=torch.bincount(owners[is_counted], minlength=sum(counts)),
        )

    def to(self, device: torch.device) -> ChoiceLabels:
        """Return the labels with their tensors on `device`."""
        return ChoiceLabels(**{each.name: on_device(getattr(self, each.name), device) for each in fields(self)})
