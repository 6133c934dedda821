# SPDX-License-Identifier: Apache-2.0
"""Tokenized records of a T5 model; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_launcher.data.choices import Branches
from nemo_launcher.data.samples import Part


@dataclass(frozen=True, slots=True)
class T5Sample:
    """One tokenized record."""

    input_ids: list[int]
    """The encoder's token ids."""
    decoder_ids: list[int]
    """The decoder's token ids: all after the first are labels; for inference only the first."""
    record: dict[str, object]
    """The record's fields."""
    source: str
    """`file:line` of the record."""
    num_cut: int = 0
    """The number of tokens cut from the start of a prompt without truncate_field."""
    num_shortened: int = 0
    """The number of tokens cut from the end of truncate_field."""

    @property
    def num_trained_tokens(self) -> int:
        """The number of tokens in the loss."""
        return len(self.decoder_ids) - 1

    @property
    def num_wrong_tokens(self) -> int:
        """There are no answer choices."""
        return 0

    @property
    def num_input_tokens(self) -> int:
        """The number of input tokens in training: the encoder's, and all but the last of the decoder's."""
        return len(self.input_ids) + len(self.decoder_ids) - 1

    @property
    def parts(self) -> list[Part]:
        """The prompt, the decoder's first token, and the labels."""
        first, labels = self.decoder_ids[:1], self.decoder_ids[1:]
        return [Part(self.input_ids, False, "encoder"), Part(first, False, "decoder"), Part(labels, True, "decoder")]


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Choices(T5Sample):
    """One tokenized record with several answer choices; decoder_ids are those of the longest."""

    num_shared: int
    """The number of decoder tokens before a choice: its start and, with a sentinel in the input, the sentinel."""
    choice_ids: list[int]
    """The tokens of each choice and its end, choice by choice."""
    choice_owners: list[int]
    """The choice of each of these tokens."""
    right: int
    """The choice that is the right answer."""

    @property
    def num_trained_tokens(self) -> int:
        """The number of tokens in the loss of the right choice, with the sentinel."""
        return self.num_shared - 1 + self.choice_owners.count(self.right)

    @property
    def num_wrong_tokens(self) -> int:
        """The number of tokens of the other choices, without the sentinel."""
        return len(self.choice_owners) - self.choice_owners.count(self.right)

    @property
    def num_input_tokens(self) -> int:
        """The number of input tokens in training: the encoder's, and the decoder's of each choice."""
        each = self.num_shared - 1
        return len(self.input_ids) + len(self.choice_ids) + each * (max(self.choice_owners) + 1)

    def sequences(self) -> list[T5Sample]:
        """Return a sample for each choice."""
        rests = Branches(self.num_shared, self.choice_ids, self.choice_owners).rests()
        start = self.decoder_ids[: self.num_shared]
        return [T5Sample(self.input_ids, start + rest, self.record, self.source) for rest in rests]
