# SPDX-License-Identifier: Apache-2.0
"""Packing of T5 samples into rows, one after the other without padding.

A bidirectional encoder cannot share the computation of a common prefix, so each sample is stored in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemo_launcher.data.hidden_file import HiddenRows
from nemo_launcher.families.t5.model import Row
from nemo_launcher.families.t5.prompts import T5Sample


@dataclass(frozen=True, slots=True)
class T5Batch:
    """One micro-batch."""

    encoder_row: Row
    """The prompts."""
    decoder_row: Row
    """The decoder sequences without their last tokens."""
    labels: Tensor
    """The token after each decoder token, [decoder tokens]."""
    label_samples: Tensor
    """The index in the micro-batch of each label's sample, [decoder tokens]."""
    lengths: Tensor
    """The number of encoder and decoder tokens in each sample, [samples]."""
    hidden: HiddenRows | None = None
    """The encoder's stored hidden states (model.data.cache_hidden)."""

    @property
    def label_counts(self) -> None:
        """Each label belongs to one sample."""

    @property
    def num_computed_tokens(self) -> int:
        """The number of tokens in both rows."""
        return self.encoder_row.tokens.numel() + self.decoder_row.tokens.numel()

    def to(self, device: torch.device) -> T5Batch:
        """Return the batch with its tensors on `device`."""
        return replace(
            self,
            encoder_row=Row(self.encoder_row.tokens.to(device), self.encoder_row.lengths),
            decoder_row=Row(self.decoder_row.tokens.to(device), self.decoder_row.lengths),
            labels=self.labels.to(device),
            label_samples=self.label_samples.to(device),
            lengths=self.lengths.to(device),
        )

    def encoder_owners(self) -> tuple[Tensor, Tensor]:
        """Return for each encoder token its sample, as an index in the micro-batch, and its place there, [s] each."""
        lengths = torch.tensor(self.encoder_row.lengths)
        return torch.arange(len(lengths)).repeat_interleave(lengths), self.encoder_row.position_ids()[0]

    def with_hidden(self, hidden: HiddenRows) -> T5Batch:
        """Return the batch with stored hidden states of the encoder."""
        return replace(self, hidden=hidden)


def pack(samples: Sequence[T5Sample], *, share_prefix: bool = False) -> T5Batch:
    """Return the samples packed into an encoder row and a decoder row; share_prefix has no effect here."""
    decoder_row = row([sample.decoder_ids[:-1] for sample in samples])
    labels = [token for sample in samples for token in sample.decoder_ids[1:]]
    owners = [index for index, sample in enumerate(samples) for _ in sample.decoder_ids[1:]]
    encoder_row = row([sample.input_ids for sample in samples])
    lengths = [sum(pair) for pair in zip(encoder_row.lengths, decoder_row.lengths, strict=True)]
    return T5Batch(encoder_row, decoder_row, torch.tensor(labels), torch.tensor(owners), torch.tensor(lengths))


def row(sequences: Sequence[Sequence[int]]) -> Row:
    """Return sequences of tokens as one row."""
    return Row(
        torch.tensor([[token for sequence in sequences for token in sequence]]), [len(tokens) for tokens in sequences]
    )
