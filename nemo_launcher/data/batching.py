# SPDX-License-Identifier: Apache-2.0
"""Division of the samples of a global batch into micro-batches.

It changes no result: samples with a common prefix are brought together, so that it is computed once
(families.gpt.packing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from nemo_launcher.config.traversal import Traversal
from nemo_launcher.data.job_distribution import distribute_jobs
from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.data.prefix_tree import PrefixTree, prefix_trees
from nemo_launcher.data.row_tree import RowForest
from nemo_launcher.data.samples import Batch, Sample
from nemo_launcher.data.traversal import DepthRule

Numbered = Sequence[tuple[int, Sample]]
"""Samples with their numbers in the data set."""


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """One rank's share of a global batch, with counts of the whole batch over all ranks."""

    micro_batches: list[Batch]
    """This rank's micro-batches, packed by the model's family."""
    num_micro_batches: int
    """The number of micro-batches in the whole global batch."""
    num_samples: int
    """The number of samples in the whole global batch."""
    answer_tokens: int
    """The number of tokens in the loss of the whole global batch; of right answers only, if there are choices."""
    sample_tokens: int
    """The number of tokens in all samples of the whole global batch, without sharing."""
    wrong_tokens: int = 0
    """The number of tokens of wrong answer choices in the whole global batch."""
    workers: int = 1
    """The number of this rank's micro-batches that run concurrently (training.workers)."""
    costs: Sequence[float] = ()
    """The cost of each of this rank's micro-batches (runtime.row_costs)."""
    members: Sequence[Sequence[int]] = ()
    """The samples of each of this rank's micro-batches: their numbers in the data set (CollateNumbered)."""

    @property
    def computed_tokens(self) -> int:
        """The number of tokens in this rank's rows."""
        return sum(micro.num_computed_tokens for micro in self.micro_batches)

    def to(self, device: torch.device) -> GlobalBatch:
        """Return the batch with its tensors on `device`."""
        return replace(self, micro_batches=[micro.to(device) for micro in self.micro_batches])


@dataclass(frozen=True, slots=True)
class Collate:
    """Collates the samples of a global batch into one rank's share (picklable, for DataLoader workers).

    Micro-batches are distributed over the model replicas by size, the largest first, each to the replica with the
    fewest tokens.
    """

    layout: Layout
    """How samples are cut into micro-batches."""
    share_prefix: bool
    """Whether common prefixes are stored once."""
    rank: int = 0
    """This process's rank among the model replicas."""
    ranks: int = 1
    """The number of model replicas."""
    pack: Callable[..., Batch] = field(kw_only=True)
    """The model family's function that packs samples."""
    keep_groups: bool = False
    """Whether samples with a common prefix stay in one micro-batch (cut_by_prefix_trees)."""
    traversal: Traversal = "breadth"
    """How trees of common prefixes are executed; not `breadth` only with share_prefix and keep_groups."""
    pack_rows: Callable[..., Batch] | None = None
    """The model family's function that packs samples into a tree of rows; required unless `breadth`."""

    def __call__(self, samples: Sequence[Sample]) -> GlobalBatch:
        cut, rows, concurrency = self._fastest_cut(samples)
        costs = concurrency.costs_of(rows, self.layout.costs)
        mine = self._own_share(costs)
        micro_batches = [[samples[index] for index in cut[place]] for place in mine]
        rule = DepthRule.of(samples, self.layout, concurrency, self.traversal)
        return GlobalBatch(
            micro_batches=[self._packed(micro, rule) for micro in micro_batches],
            num_micro_batches=len(cut),
            num_samples=len(samples),
            answer_tokens=sum(sample.num_trained_tokens for sample in samples),
            sample_tokens=sum(sample.num_input_tokens for sample in samples),
            wrong_tokens=sum(sample.num_wrong_tokens for sample in samples),
            workers=concurrency.workers,
            costs=[costs[place] for place in mine],
            members=[cut[place] for place in mine],
        )

    def packed_again(self, samples: Sequence[Sample], like: Batch, tokens: float) -> Batch:
        """Return some samples of the micro-batch `like`; if it is a tree, in rows of at most `tokens` tokens."""
        if self.pack_rows is not None and isinstance(like, RowForest):
            return self.pack_rows(samples, tokens)
        return self.pack(samples, share_prefix=self.share_prefix)

    def _packed(self, samples: Sequence[Sample], rule: DepthRule) -> Batch:
        if self.pack_rows is not None and rule.applies(samples):
            return self.pack_rows(samples, rule.row_tokens)
        return self.pack(samples, share_prefix=self.share_prefix)

    def _fastest_cut(self, samples: Sequence[Sample]) -> tuple[list[list[int]], list[list[int]], Concurrency]:
        """Return the micro-batches (indices of samples), the tokens of their rows, and how many run concurrently."""
        default, *others = self.layout.choices
        cut = self._cut(samples, default)
        best = cut, self._rows(cut, samples, default), default
        for other in others:
            cut = self._cut(samples, other)
            rows = self._rows(cut, samples, other)
            if self._expected(rows, other) < (1 - _MIN_GAIN) * self._expected(*best[1:]):
                best = cut, rows, other
        return best

    def _cut(self, samples: Sequence[Sample], concurrency: Concurrency) -> list[list[int]]:
        if self.keep_groups and self.share_prefix:
            return cut_by_prefix_trees(samples, self.layout, concurrency, self.ranks, self.traversal)
        if self.keep_groups and (self.layout.row_tokens or self.layout.costs.fitting_tokens) is not None:
            longest = max(sample.num_input_tokens for sample in samples)
            limit = min(self.layout.row_tokens or math.inf, self.layout.most_tokens(concurrency.size, longest))
            cuts = [cut_evenly(samples, limit, shares) for shares in {1, self.ranks * concurrency.workers}]
            return min(cuts, key=lambda cut: self._expected(self._rows(cut, samples, concurrency), concurrency))
        return cut_by_prefix(samples, concurrency.size, share_prefix=self.share_prefix)

    def _expected(self, rows: Sequence[Sequence[int]], concurrency: Concurrency) -> float:
        """Return the cost of the worker with most to do."""
        return concurrency.largest_share(rows, self.ranks, self.layout.costs)

    def _rows(
        self, cut: Sequence[Sequence[int]], samples: Sequence[Sample], concurrency: Concurrency
    ) -> list[list[int]]:
        """Return the number of tokens in each row of each micro-batch."""
        micro_batches = [[samples[index] for index in micro] for micro in cut]
        if self.share_prefix:
            rule = DepthRule.of(samples, self.layout, concurrency, self.traversal)
            return [rule.rows(micro) for micro in micro_batches]
        return [[sum(sample.num_input_tokens for sample in micro)] for micro in micro_batches]

    def _own_share(self, costs: Sequence[float]) -> list[int]:
        """Return this rank's micro-batches, as indices."""
        if self.ranks == 1 or not self.keep_groups:
            return list(range(len(costs)))[self.rank :: self.ranks]
        return sorted(distribute_jobs(costs, self.ranks)[self.rank])


@dataclass(frozen=True, slots=True)
class CollateNumbered:
    """Collates samples that come with their numbers in the data set, so that they can be found again (picklable)."""

    collate: Collate
    """Collates samples."""

    def __call__(self, numbered: Numbered) -> GlobalBatch:
        batch = self.collate([sample for _, sample in numbered])
        return replace(batch, members=[[numbered[place][0] for place in places] for places in batch.members])

    def packed_again(self, numbered: Numbered, like: Batch, tokens: float) -> Batch:
        """Return Collate.packed_again."""
        return self.collate.packed_again([sample for _, sample in numbered], like, tokens)


# Another number of workers than the default, or depth instead of breadth, must be predicted to save at least this
# share of the time.
_MIN_GAIN = 0.1


def cut_by_prefix(samples: Sequence[Sample], size: int, *, share_prefix: bool = True) -> list[list[int]]:
    """Cut samples (indices) into micro-batches of at most `size`, ordered by common prefixes."""
    order = list(range(len(samples)))
    if share_prefix:
        trees = prefix_trees([sample.input_ids for sample in samples])
        order = [index for tree in trees for index in tree.members]
    return [order[start : start + size] for start in range(0, len(order), size)]


def cut_evenly(samples: Sequence[Sample], row_tokens: float, shares: int) -> list[list[int]]:
    """Cut samples (indices) without sharing into rows of about as many tokens each, at most `row_tokens`.

    The number of rows is a multiple of `shares`, unless each sample has a row of its own. Longer samples stay whole.
    """
    lengths = [sample.num_input_tokens for sample in samples]
    for count in range(shares * math.ceil(sum(lengths) / row_tokens / shares), len(samples), shares):
        rows = distribute_jobs(lengths, count)
        if all(len(row) <= 1 or sum(lengths[index] for index in row) <= row_tokens for row in rows):
            return [sorted(row) for row in rows]
    return [[index] for index in range(len(samples))]


def cut_by_prefix_trees(
    samples: Sequence[Sample],
    layout: Layout,
    concurrency: Concurrency | None = None,
    ranks: int = 1,
    traversal: Traversal = "breadth",
) -> list[list[int]]:
    """Cut samples (indices) into micro-batches that repeat as few prefixes as balanced workers allow.

    Samples of a tree stay together unless they have more tokens, or more tokens in the loss, than Layout.most_tokens.
    Samples without a common prefix are combined up to `layout.row_tokens` tokens (None: as many as a tree may have).
    Trees are cut further if that reduces the cost of the worker with most to do. concurrency: by default the first
    choice of the layout. traversal: depth leaves trees whole, or cuts them once for each worker; auto does so if it is
    predicted to be faster.
    """
    concurrency = concurrency or layout.choices[0]
    trees = prefix_trees([sample.input_ids for sample in samples])
    fill = float("inf") if layout.row_tokens is None else layout.row_tokens
    shares = ranks * concurrency.workers
    rule = DepthRule.of(samples, layout, concurrency, traversal)

    def largest_share(cut: Sequence[_Part]) -> float:
        deep = [part.size > rule.limit and [samples[member] for member in part.members] for part in cut]
        rows = [rule.rows(inside) if inside else [part.tokens] for part, inside in zip(cut, deep, strict=True)]
        return concurrency.largest_share(rows, ranks, layout.costs)

    limits = _limits(trees, samples, layout, concurrency.size, shares)
    best = min((_cut(trees, samples, limit, min(limit, fill)) for limit in limits), key=largest_share)
    if any(tree.num_tokens() > rule.limit for tree in trees) or traversal == "depth":
        deep = min((_cut(trees, samples, *pair) for pair in rule.limits(trees, samples, shares)), key=largest_share)
        if traversal == "depth" or largest_share(deep) < (1 - _MIN_GAIN) * largest_share(best):
            best = deep
    return [part.members for part in best]


def _limits(
    trees: Sequence[PrefixTree], samples: Sequence[Sample], layout: Layout, size: int, shares: int
) -> list[float]:
    """Return candidate limits for the tokens of a part: what fits into memory, and less if the work is shared."""
    longest = max(len(sample.input_ids) for sample in samples)
    limits = [layout.most_tokens(size, longest)]
    if shares > 1:
        while limits[-1] / 2 >= longest:
            limits.append(limits[-1] / 2)
        largest = max(trees, key=PrefixTree.num_tokens)
        own = largest.num_tokens() - largest.depth
        total = sum(map(PrefixTree.num_tokens, trees))
        for parts in (shares, 2 * shares):
            limits.append(largest.depth + own / parts)
            limits.append(total / parts + longest / 2)  # samples do not fill equal parts exactly
    return [limit for limit in limits if limit <= limits[0]]


@dataclass(slots=True)
class _Part:
    """The samples of one micro-batch."""

    members: list[int]
    """The indices of the samples."""
    tokens: int
    """The number of tokens in their row."""
    trained: int = 0
    """The number of tokens in the loss."""

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.members + other.members, self.tokens + other.tokens, self.trained + other.trained)

    @property
    def size(self) -> int:
        """The number of tokens to compare with a limit."""
        return max(self.tokens, self.trained)


def _cut(trees: Sequence[PrefixTree], samples: Sequence[Sample], limit: float, fill: float) -> list[_Part]:
    """Cut trees into parts of at most `limit` tokens; parts of different trees are combined up to `fill` tokens."""
    cut: list[_Part] = []
    for tree in trees:
        for number, part in enumerate(_parts(tree, samples, limit)):
            if cut and number == 0 and (both := cut[-1] + part).size <= fill:
                cut[-1] = both
            else:
                cut.append(part)
    return cut


def _parts(tree: PrefixTree, samples: Sequence[Sample], limit: float) -> Iterator[_Part]:
    """Cut a tree into parts with at most `limit` tokens, and as many in the loss; single samples stay whole."""
    part = _Part([], tree.depth)
    for child in tree.children or (tree,):
        trained = sum(samples[member].num_trained_tokens for member in child.members)
        own = _Part(list(child.members), child.num_tokens(tree.depth), trained)
        if child.children and max(tree.depth + own.tokens, trained) > limit:
            yield from _parts(child, samples, limit)
            continue
        if part.members and (part + own).size > limit:
            yield part
            part = _Part([], tree.depth)
        part += own
    if part.members:
        yield part
