# SPDX-License-Identifier: Apache-2.0
"""From samples to a row: what prompts share is laid out once, as a tree of prefixes with a branch for each prompt.

The layout changes no result: loss and gradients are those of one padded row a sample (megatron.attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nemo_launcher.data.prefix_tree import PrefixTree, prefix_trees
from nemo_launcher.families.gpt.prompts import GPTSample
from nemo_launcher.megatron.attention import Group


@dataclass(slots=True)
class Row:
    """One row of tokens."""

    tokens: list[int] = field(default_factory=list)
    """The tokens."""
    positions: list[int] = field(default_factory=list)
    """Each token's position in its own text."""
    groups: list[Group] = field(default_factory=list)
    """The groups that the tokens form."""

    def put(self, tokens: Sequence[int], position: int) -> range:
        """Put tokens behind the others; return where they lie. position: of the first one in its text."""
        start = len(self.tokens)
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        return range(start, len(self.tokens))

    def put_tree(
        self, tree: PrefixTree, sequences: Sequence[Sequence[int]], *, cached: int = 0
    ) -> dict[int, list[int]]:
        """Put a tree of sequences behind the others, as a group; return where the tokens of each of its members lie.

        sequences: without the `cached` tokens that come before each of them and lie elsewhere.
        """
        places: dict[int, list[int]] = {member: [] for member in tree.members}
        start = len(self.tokens)
        lengths: list[int] = []
        parents: list[int] = []

        def put(part: PrefixTree, above: int, parent: int) -> None:
            own = self.put(sequences[part.members[0]][above : part.depth], cached + above)
            for member in part.members:
                places[member] += own
            if own:  # a sample that another one goes on from has no tokens of its own
                lengths.append(len(own))
                parents.append(parent)
            segment = len(lengths) - 1
            for child in part.children:
                put(child, part.depth, segment)

        put(tree, 0, -1)
        self.groups.append(Group(start, tuple(lengths), tuple(parents), cached))
        return places


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch as a single row."""

    tokens: Tensor
    """[1, s]."""
    position_ids: Tensor
    """Each token's position in its own text, [1, s]."""
    groups: tuple[Group, ...]
    """The row's groups, in order."""
    logit_positions: Tensor
    """Row positions whose next token is in the loss, [n]."""
    labels: Tensor
    """That next token, [n]."""
    label_samples: Tensor
    """The sample of each label, as its index in the micro-batch, [n]."""
    cache_index: Tensor
    """Each sample's tokens as row positions, padded with 0, [samples, width]."""
    lengths: Tensor
    """Tokens of each sample, [samples]."""

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the row."""
        return self.tokens.numel()

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return PackedBatch(groups=self.groups, **moved)


_TENSORS = (
    "tokens",
    "position_ids",
    "logit_positions",
    "labels",
    "label_samples",
    "cache_index",
    "lengths",
)


def pack(samples: Sequence[GPTSample], *, share_prefix: bool = True) -> PackedBatch:
    """Lay samples out in one row.

    Each token after `answer_start` is a label; a sample's own last token needs no place in the row.
    """
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
        logit_positions=torch.tensor(rows),
        labels=torch.tensor(labels),
        label_samples=torch.tensor(owners),
        cache_index=torch.tensor([place + [0] * (width - len(place)) for place in places]),
        lengths=torch.tensor([len(place) for place in places]),
    )


def _labels(samples: Sequence[GPTSample], places: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
    """Return row positions to predict from, the tokens to predict, and the sample of each."""
    rows: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    for index, (sample, place) in enumerate(zip(samples, places, strict=True)):
        first = max(1, sample.answer_start)  # nothing predicts a row's first token
        rows += place[first - 1 :]
        labels += sample.input_ids[first:]
        owners += [index] * (len(sample.input_ids) - first)
    return rows, labels, owners
