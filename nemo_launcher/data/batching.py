"""From samples to rows: prompts that share a prefix are laid out once, with a branch for each of them.

The layout changes no result: loss and gradients are those of one padded row a sample (models.attention).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from nemo_launcher.data.cache_file import SampleCache
from nemo_launcher.data.dealing import deal_out
from nemo_launcher.data.grouping import GroupOrder, PrefixGroup, group_by_prefix
from nemo_launcher.data.prompts import Sample
from nemo_launcher.models.attention import Group


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch as a single row.

    tokens, position_ids: [1, s]. groups: the row's groups in order. logit_positions: row positions whose next token
    counts in the loss, [n]; labels: that next token, [n]; label_samples: the sample each label belongs to, as its index
    in the micro-batch, [n]. cache_index: each sample's tokens as row positions, [samples, width], padded with 0.
    lengths: tokens a sample, [samples].
    """

    tokens: Tensor
    position_ids: Tensor
    groups: tuple[Group, ...]
    logit_positions: Tensor
    labels: Tensor
    label_samples: Tensor
    cache_index: Tensor
    lengths: Tensor

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


def pack(samples: Sequence[Sample], *, share_prefix: bool = True) -> PackedBatch:
    """Lay samples out in one row.

    Each token after `answer_start` is a label; a sample's own last token needs no place in the row.
    """
    inputs = [sample.input_ids[:-1] for sample in samples]
    groups = group_by_prefix(inputs) if share_prefix else [PrefixGroup((index,), 0) for index in range(len(inputs))]
    tokens: list[int] = []
    positions: list[int] = []
    places: list[list[int]] = [[] for _ in samples]  # each sample's tokens as row positions
    laid_out = []
    for group in groups:
        start = len(tokens)
        prefix_places = list(range(start, start + group.prefix))
        tokens += inputs[group.members[0]][: group.prefix]
        positions += range(group.prefix)
        for member in group.members:
            branch_start = len(tokens)
            tokens += inputs[member][group.prefix :]
            positions += range(group.prefix, len(inputs[member]))
            places[member] = prefix_places + list(range(branch_start, len(tokens)))
        branches = tuple(len(inputs[member]) - group.prefix for member in group.members)
        laid_out.append(Group(start, group.prefix, branches))
    rows, labels, owners = _labels(samples, places)
    width = max(len(place) for place in places)
    return PackedBatch(
        tokens=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        groups=tuple(laid_out),
        logit_positions=torch.tensor(rows),
        labels=torch.tensor(labels),
        label_samples=torch.tensor(owners),
        cache_index=torch.tensor([place + [0] * (width - len(place)) for place in places]),
        lengths=torch.tensor([len(place) for place in places]),
    )


def _labels(samples: Sequence[Sample], places: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
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


class PrefixShuffleSampler(Sampler[int]):
    """The order of the samples in an epoch: groups that share a prefix stay together, their order is shuffled.

    Each sample is drawn once an epoch and a group's place is uniform, so a global batch holds what it would hold in
    expectation under a plain shuffle. The order depends on the seed and the epoch alone. `skip` samples are left out at
    the start of the next pass: a resumed run goes on where the interrupted one stopped.
    """

    def __init__(self, samples: Sequence[Any], *, shuffle: bool, share_prefix: bool, seed: int) -> None:
        self.groups = _groups_of(samples) if shuffle and share_prefix else GroupOrder.of_each_alone(len(samples))
        self.num_samples = len(samples)
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0-based) whose order comes next; Lightning calls it."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Return the epoch's order, nothing skipped."""
        if not self.shuffle:
            return list(range(self.num_samples))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = map(self.groups.__getitem__, torch.randperm(len(self.groups), generator=generator).tolist())
        return [
            members[place] for members in order for place in torch.randperm(len(members), generator=generator).tolist()
        ]

    def __iter__(self) -> Iterator[int]:
        order, self.skip = self.order()[self.skip :], 0
        return iter(order)

    def __len__(self) -> int:
        return self.num_samples


def _groups_of(samples: Sequence[Any]) -> GroupOrder:
    """Return the groups of samples that share a prefix; a cache has them ready."""
    if isinstance(samples, SampleCache) and samples.groups is not None:
        return samples.groups
    return GroupOrder.of(group_by_prefix([sample.input_ids for sample in samples]))


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """One rank's share of a global batch, and what it must know of the whole.

    micro_batches: this rank's, as the model's family packs them. The numbers are those of the whole global batch, over
    all ranks: num_micro_batches, num_samples, answer_tokens (tokens in the loss), sample_tokens (tokens of all samples,
    none shared).
    """

    micro_batches: list[Any]
    num_micro_batches: int
    num_samples: int
    answer_tokens: int
    sample_tokens: int

    @property
    def computed_tokens(self) -> int:
        """Tokens in this rank's rows."""
        return sum(micro.num_computed_tokens for micro in self.micro_batches)

    def to(self, device: torch.device) -> GlobalBatch:
        """Return the batch with its tensors on `device`."""
        return replace(self, micro_batches=[micro.to(device) for micro in self.micro_batches])


@dataclass(frozen=True, slots=True)
class Collate:
    """Turns the samples of a global batch into one rank's share of it (picklable, for data-loading workers).

    share_prefix: lay common prefixes out once; keep_groups: and keep the samples that share one in one micro-batch
    (cut_by_groups). Micro-batches are dealt out to the `ranks` model replicas, the largest first, each to the replica
    with the fewest tokens so far. pack: the model family's.
    """

    micro_batch_size: int
    share_prefix: bool
    rank: int = 0
    ranks: int = 1
    pack: Callable[..., Any] = pack
    keep_groups: bool = False

    def __call__(self, samples: Sequence[Any]) -> GlobalBatch:
        if self.keep_groups and self.share_prefix:
            cut = cut_by_groups(samples, self.micro_batch_size, ranks=self.ranks)
        else:
            cut = cut_by_prefix(samples, self.micro_batch_size, share_prefix=self.share_prefix)
        mine = [[samples[index] for index in micro] for micro in self._dealt_out(cut, samples)]
        return GlobalBatch(
            micro_batches=[self.pack(micro, share_prefix=self.share_prefix) for micro in mine],
            num_micro_batches=len(cut),
            num_samples=len(samples),
            answer_tokens=sum(sample.num_trained_tokens for sample in samples),
            sample_tokens=sum(sample.num_input_tokens for sample in samples),
        )

    def _dealt_out(self, cut: list[list[int]], samples: Sequence[Any]) -> list[list[int]]:
        if self.ranks == 1 or not self.keep_groups:
            return cut[self.rank :: self.ranks]
        rows = [[samples[index].input_ids for index in micro] for micro in cut]
        costs = [_num_tokens(row, group_by_prefix(row) if self.share_prefix else []) for row in rows]
        return [cut[place] for place in sorted(deal_out(costs, self.ranks)[self.rank])]


def cut_by_prefix(samples: Sequence[Any], size: int, *, share_prefix: bool = True) -> list[list[int]]:
    """Cut samples (indices) into micro-batches of at most `size`, neighbours in prefix together."""
    order = list(range(len(samples)))
    if share_prefix:
        groups = group_by_prefix([sample.input_ids for sample in samples])
        order = [index for group in groups for index in group.members]
    return [order[start : start + size] for start in range(0, len(order), size)]


def cut_by_groups(samples: Sequence[Any], size: int, *, ranks: int = 1) -> list[list[int]]:
    """Cut samples (indices) into micro-batches of at most `size` and no prefix that is computed in two of them.

    A group of more samples stays whole as long as it has no more tokens, and no more tokens in the loss, than `size`
    of the longest samples, and no more than one of `ranks` replicas' share of all.
    """
    sequences = [sample.input_ids for sample in samples]
    groups, longest = group_by_prefix(sequences), max(map(len, sequences))
    share = math.ceil(_num_tokens(sequences, groups) / ranks)
    budget = size * longest if ranks == 1 else min(size * longest, max(longest, share))
    cut: list[list[int]] = [[]]
    for group in groups:
        for part in _parts(group, samples, budget):
            if cut[-1] and len(cut[-1]) + len(part) > size:
                cut.append([])
            cut[-1] += part
    return cut


def _parts(group: PrefixGroup, samples: Sequence[Any], budget: int) -> Iterator[list[int]]:
    """Cut a group into parts that hold at most `budget` tokens, and as many in the loss."""
    part: list[int] = []
    tokens = trained = 0
    for member in group.members:
        sample = samples[member]
        own = len(sample.input_ids) - group.prefix
        if part and max(group.prefix + tokens + own, trained + sample.num_trained_tokens) > budget:
            yield part
            part, tokens, trained = [], 0, 0
        part.append(member)
        tokens += own
        trained += sample.num_trained_tokens
    yield part


def _num_tokens(sequences: Sequence[list[int]], groups: Sequence[PrefixGroup]) -> int:
    """Return how many tokens a row of these sequences has, the prefixes of its groups laid out once."""
    return sum(map(len, sequences)) - sum(group.prefix * (len(group.members) - 1) for group in groups)
