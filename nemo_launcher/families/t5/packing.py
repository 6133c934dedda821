# SPDX-License-Identifier: Apache-2.0
"""Packing of T5 samples into rows, one after the other without padding.

A bidirectional encoder cannot share the computation of a common prefix, so each sample is stored in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemo_launcher.data.choice_labels import ChoiceLabels
from nemo_launcher.data.hidden_file import HiddenRows
from nemo_launcher.families.t5.model import Row
from nemo_launcher.families.t5.samples import T5Choices, T5Sample
from nemo_launcher.megatron.transfer import on_device


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
    choices: ChoiceLabels | None = None
    """The answer choices of the samples, each a sequence of the decoder row; None if each sample has one answer."""

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
            encoder_row=self.encoder_row.to(device),
            decoder_row=self.decoder_row.to(device),
            labels=on_device(self.labels, device),
            label_samples=on_device(self.label_samples, device),
            lengths=on_device(self.lengths, device),
            choices=None if self.choices is None else self.choices.to(device),
        )

    def encoder_owners(self) -> tuple[Tensor, Tensor]:
        """Return for each encoder token its sample, as an index in the micro-batch, and its place there, [s] each."""
        lengths = torch.tensor(self.encoder_row.lengths)
        return torch.arange(len(lengths)).repeat_interleave(lengths), self.encoder_row.position_ids()[0]

    def with_hidden(self, hidden: HiddenRows) -> T5Batch:
        """Return the batch with stored hidden states of the encoder."""
        return replace(self, hidden=hidden)


def pack(samples: Sequence[T5Sample], *, share_prefix: bool = False) -> T5Batch:
    """Return the samples packed into an encoder row and a decoder row; share_prefix has no effect here.

    The encoder runs once for all answer choices of a T5Choices.
    """
    if isinstance(samples[0], T5Choices):
        return _pack_choices([sample for sample in samples if isinstance(sample, T5Choices)])
    decoder_row = row([sample.decoder_ids[:-1] for sample in samples])
    labels = [token for sample in samples for token in sample.decoder_ids[1:]]
    owners = [index for index, sample in enumerate(samples) for _ in sample.decoder_ids[1:]]
    encoder_row = row([sample.input_ids for sample in samples])
    lengths = [sum(pair) for pair in zip(encoder_row.lengths, decoder_row.lengths, strict=True)]
    return T5Batch(encoder_row, decoder_row, torch.tensor(labels), torch.tensor(owners), torch.tensor(lengths))


def _pack_choices(samples: Sequence[T5Choices]) -> T5Batch:
    each = [sample.sequences() for sample in samples]
    prompts = [record for record, choices in enumerate(each) for _ in choices]
    decoder = pack([choice for choices in each for choice in choices])
    encoder_row = row([sample.input_ids for sample in samples])
    places = torch.cat([torch.arange(length) for length in decoder.decoder_row.lengths])
    first = torch.tensor([samples[record].num_shared - 1 for record in prompts])  # labels before it: the sentinel
    counts, right = [len(choices) for choices in each], [sample.right for sample in samples]
    owners = decoder.label_samples
    return replace(
        decoder,
        encoder_row=encoder_row,
        decoder_row=replace(decoder.decoder_row, prompts=prompts),
        lengths=torch.tensor([sample.num_input_tokens for sample in samples]),
        choices=ChoiceLabels.of(counts, right, owners, places >= first[owners]),
    )


def row(sequences: Sequence[Sequence[int]]) -> Row:
    """Return sequences of tokens as one row."""
    return Row(
        torch.tensor([[token for sequence in sequences for token in sequence]]), [len(tokens) for tokens in sequences]
    )
