# SPDX-License-Identifier: Apache-2.0
"""Tokenized records of a GPT model; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

from nemo_launcher.data.choices import Branches
from nemo_launcher.data.samples import Part


@dataclass(frozen=True, slots=True)
class GPTSample:
    """One tokenized record."""

    input_ids: list[int]
    """The token ids."""
    answer_start: int
    """The first position of input_ids that is in the loss; 0 if all tokens are."""
    record: dict[str, object]
    """The record's fields."""
    source: str
    """`file:line` of the record."""
    num_shortened: int = 0
    """The number of tokens cut from the end of truncate_field."""
    skipped: list[int] = field(default_factory=list)
    """The positions after answer_start that are not in the loss, ascending: in a chat, what others say."""

    @property
    def num_trained_tokens(self) -> int:
        """The number of tokens in the loss; the first token of a sequence is never predicted."""
        return max(0, len(self.input_ids) - max(1, self.answer_start) - len(self.skipped))

    @property
    def num_wrong_tokens(self) -> int:
        """There are no answer choices."""
        return 0

    @property
    def num_input_tokens(self) -> int:
        """The number of input tokens in training: all but the last."""
        return len(self.input_ids) - 1

    @property
    def parts(self) -> list[Part]:
        """The prompt, and what is in the loss; in a chat, the turns."""
        start, skipped = max(1, self.answer_start), set(self.skipped)
        runs = groupby(range(start, len(self.input_ids)), key=lambda place: place not in skipped)
        turns = [Part([self.input_ids[place] for place in places], trained) for trained, places in runs]
        return [Part(self.input_ids[:start], False), *(turns or [Part([], True)])]


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTChoices(GPTSample):
    """One tokenized record with several answer choices; input_ids and answer_start are those of the longest."""

    num_shared: int
    """The number of first tokens that all choices have, at most up to the first answer token of each."""
    choice_ids: list[int]
    """The tokens of each choice behind the shared ones, choice by choice."""
    choice_owners: list[int]
    """The choice of each of these tokens."""
    unlearnt: list[int]
    """The number of these tokens of each choice that are still part of the prompt."""
    right: int
    """The choice that is the right answer."""

    @property
    def num_trained_tokens(self) -> int:
        """The number of tokens in the loss of the right choice."""
        return self._answer_lengths()[self.right]

    @property
    def num_wrong_tokens(self) -> int:
        """The number of tokens of the other choices."""
        return sum(self._answer_lengths()) - self.num_trained_tokens

    @property
    def num_input_tokens(self) -> int:
        """The number of input tokens in training: the shared ones once, and all but the last of each choice."""
        return self.num_shared + len(self.choice_ids) - len(self.unlearnt)

    def sequences(self) -> list[GPTSample]:
        """Return a sample for each choice."""
        rests = Branches(self.num_shared, self.choice_ids, self.choice_owners).rests()
        prompt = self.input_ids[: self.num_shared]
        starts = [self.num_shared + count for count in self.unlearnt]
        return [
            GPTSample(prompt + rest, start, self.record, self.source) for rest, start in zip(rests, starts, strict=True)
        ]

    def _answer_lengths(self) -> list[int]:
        # the first token of a sequence is never predicted
        return [len(sample.input_ids) - max(1, sample.answer_start) for sample in self.sequences()]
