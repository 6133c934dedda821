# SPDX-License-Identifier: Apache-2.0
"""Packing of samples into a row, in which prompts share prefixes as a tree with a branch for each prompt.

The layout does not change results: loss and gradients equal those of one padded row per sample (megatron.attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nemo_launcher.data.choice_labels import ChoiceLabels
from nemo_launcher.data.hidden_file import HiddenRows
from nemo_launcher.data.prefix_tree import PrefixTree, prefix_trees
from nemo_launcher.families.gpt.logit_rows import LogitRows
from nemo_launcher.families.gpt.samples import GPTChoices, GPTSample
from nemo_launcher.megatron.attention_plan import Group
from nemo_launcher.megatron.transfer import on_device


@dataclass(slots=True)
class Row:
    """One row of tokens."""

    tokens: list[int] = field(default_factory=list)
    """The tokens."""
    positions: list[int] = field(default_factory=list)
    """The position of each token in its own text."""
    groups: list[Group] = field(default_factory=list)
    """The groups of the tokens."""

    def put(self, tokens: Sequence[int], position: int) -> range:
        """Append tokens; return their row indices. position: of the first token in its text."""
        start = len(self.tokens)
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        return range(start, len(self.tokens))

    def put_tree(
        self, tree: PrefixTree, sequences: Sequence[Sequence[int]], *, cached: int = 0
    ) -> dict[int, list[int]]:
        """Append a tree of sequences as a group; return the row indices of each member's tokens.

        sequences: without the `cached` tokens that precede each of them and are stored elsewhere.
        """
        return self.put_trees((tree,), sequences, cached=cached)

    def put_trees(
        self, trees: Sequence[PrefixTree], sequences: Sequence[Sequence[int]], *, above: int = 0, cached: int = 0
    ) -> dict[int, list[int]]:
        """Append trees of sequences as one group, in which trees do not attend to each other, like `put_tree`.

        above: the number of tokens of each sequence that all of them share and that other rows hold.
        """
        places: dict[int, list[int]] = {member: [] for tree in trees for member in tree.members}
        start = len(self.tokens)
        lengths: list[int] = []
        parents: list[int] = []

        def put(part: PrefixTree, above: int, parent: int) -> None:
            own = self.put(sequences[part.members[0]][above : part.depth], cached + above)
            for member in part.members:
                places[member] += own
            if own:  # a sample that is a prefix of another has no tokens of its own
                lengths.append(len(own))
                parents.append(parent)
                parent = len(lengths) - 1
            for child in part.children:
                put(child, part.depth, parent)

        for tree in trees:
            put(tree, above, -1)
        self.groups.append(Group(start, tuple(lengths), tuple(parents), cached + above))
        return places


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch as a single row."""

    tokens: Tensor
    """[1, s]."""
    position_ids: Tensor
    """The position of each token in its own text, [1, s]."""
    groups: tuple[Group, ...]
    """The row's groups, in order."""
    logits: LogitRows
    """The row positions whose next token is in the loss, n of them."""
    labels: Tensor
    """Those next tokens, [n]."""
    label_samples: Tensor
    """The index in the micro-batch of each label's sample, [n]."""
    cache_index: Tensor
    """The row positions of each sample's tokens, padded with 0, [samples, width]; empty in a tree of rows."""
    lengths: Tensor
    """The number of tokens in each sample, [samples]; empty in a tree of rows."""
    label_counts: Tensor | None = None
    """The number of samples that have each label at its position, [n]; None for one each."""
    token_samples: Tensor | None = None
    """The index in the micro-batch of a sample with each token, [s]; None where cache_index tells."""
    hidden: HiddenRows | None = None
    """The stored hidden states of the row (model.data.cache_hidden)."""
    choices: ChoiceLabels | None = None
    """The answer choices of the samples; None if each has one answer."""

    @property
    def num_computed_tokens(self) -> int:
        """The number of tokens in the row."""
        return self.tokens.numel()

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch with its tensors on `device`."""
        moved: dict[str, Any] = {name: on_device(getattr(self, name), device) for name in _TENSORS}
        if self.label_counts is not None:
            moved["label_counts"] = on_device(self.label_counts, device)
        choices = None if self.choices is None else self.choices.to(device)
        return replace(self, **moved, logits=self.logits.to(device), choices=choices)

    def owners(self) -> tuple[Tensor, Tensor]:
        """Return for each token a sample that has it, as an index in the micro-batch, and its place there, [s] each."""
        samples = self.token_samples
        if samples is None:
            samples = torch.empty(self.tokens.numel(), dtype=torch.long)
            for index, (row, length) in enumerate(zip(self.cache_index, self.lengths.tolist(), strict=True)):
                samples[row[:length]] = index
        return samples, self.position_ids[0]

    def with_hidden(self, hidden: HiddenRows) -> PackedBatch:
        """Return the batch with stored hidden states."""
        return replace(self, hidden=hidden)


_TENSORS = (
    "tokens",
    "position_ids",
    "labels",
    "label_samples",
    "cache_index",
    "lengths",
)


def pack(samples: Sequence[GPTSample], *, share_prefix: bool = True) -> PackedBatch:
    """Return the samples packed into one row.

    Each token from `answer_start` on is a label, except the skipped ones. A sample's last token is only a label and
    not in the row. Each answer choice of a GPTChoices is a branch of its own.
    """
    if isinstance(samples[0], GPTChoices):
        return _pack_choices([sample for sample in samples if isinstance(sample, GPTChoices)], share_prefix)
    inputs = [sample.input_ids[:-1] for sample in samples]
    alone = [PrefixTree(len(ids), (index,)) for index, ids in enumerate(inputs)]
    row = Row()
    found: dict[int, list[int]] = {}
    for tree in prefix_trees(inputs) if share_prefix else alone:
        found |= row.put_tree(tree, inputs)
    places = [found[index] for index in range(len(inputs))]
    rows, labels, owners = _labels(samples, places)
    width = max(len(place) for place in places)
    return PackedBatch(
        tokens=torch.tensor([row.tokens]),
        position_ids=torch.tensor([row.positions]),
        groups=tuple(row.groups),
        logits=LogitRows.of(torch.tensor(rows)),
        labels=torch.tensor(labels),
        label_samples=torch.tensor(owners),
        cache_index=torch.tensor([place + [0] * (width - len(place)) for place in places]),
        lengths=torch.tensor([len(place) for place in places]),
    )


def _pack_choices(samples: Sequence[GPTChoices], share_prefix: bool) -> PackedBatch:
    each = [sample.sequences() for sample in samples]
    batch = pack([choice for choices in each for choice in choices], share_prefix=share_prefix)
    counts, right = [len(choices) for choices in each], [sample.right for sample in samples]
    labels = ChoiceLabels.of(counts, right, batch.label_samples, torch.ones_like(batch.labels, dtype=torch.bool))
    return replace(batch, choices=labels)


def _labels(samples: Sequence[GPTSample], places: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
    """Return the row positions to predict from, the tokens to predict, and the sample of each."""
    rows: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    for index, (sample, place) in enumerate(zip(samples, places, strict=True)):
        first = max(1, sample.answer_start)  # the first token is never predicted
        kept = sorted(set(range(first, len(sample.input_ids))).difference(sample.skipped))
        rows += (place[token - 1] for token in kept)
        labels += (sample.input_ids[token] for token in kept)
        owners += [index] * len(kept)
    return rows, labels, owners
