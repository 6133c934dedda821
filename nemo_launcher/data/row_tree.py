# SPDX-License-Identifier: Apache-2.0
"""A tree of rows for depth-first execution: a row holds what the samples below it share, or several whole branches.

Every token of a row attends to all tokens of the rows above it. So a common prefix is computed once however many rows
continue it, and only one path of rows need be in memory (training.depth_first).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from nemo_launcher.data.prefix_tree import PrefixTree
from nemo_launcher.data.samples import Batch
from nemo_launcher.runtime.row_costs import ROW_OVERHEAD

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The tokens of a row, before they are packed."""

    above: int
    """The number of tokens in the rows that it continues."""
    trees: tuple[PrefixTree, ...]
    """The trees of sequences whose tokens from `above` on are in the row; its children continue all of the tokens."""
    children: tuple[RowPlan, ...] = ()
    """The rows that continue it."""

    def row_tokens(self) -> Iterator[int]:
        """Yield the number of tokens in this row and in each of those below."""
        yield sum(tree.num_tokens(self.above) for tree in self.trees)
        for child in self.children:
            yield from child.row_tokens()


def plan_rows(trees: Sequence[PrefixTree], row_tokens: float, above: int = 0) -> tuple[RowPlan, ...]:
    """Return rows of at most `row_tokens` tokens that hold the trees of sequences.

    A tree that fits is not divided, and neighbours share a row. What the members of a larger tree share is a row of its
    own, of any length, unless it is so short that repeating it costs less. A single sequence that does not fit is a row
    too. above: the number of tokens, common to all trees, that are in other rows; a sequence without further tokens has
    no row.
    """
    rows: list[RowPlan] = []
    waiting: list[PrefixTree] = []
    filled = 0
    for tree in trees:
        tokens = tree.num_tokens(above)
        size = max(tokens, len(tree.members))  # many members may be predicted from one token
        if tokens == 0:
            continue
        if tree.children and size > row_tokens:
            rows += _divided(tree, row_tokens, above)
            continue
        if waiting and filled + size > row_tokens:
            rows.append(RowPlan(above, tuple(waiting)))
            waiting, filled = [], 0
        waiting.append(tree)
        filled += size
    if waiting:
        rows.append(RowPlan(above, tuple(waiting)))
    return tuple(rows)


def _divided(tree: PrefixTree, row_tokens: float, above: int) -> Sequence[RowPlan]:
    """Return the rows of a tree that is too large for one."""
    # Each child may have another label at the prefix's last token: if they are too many for the head, each child
    # repeats this token.
    depth = tree.depth - (len(tree.children) > row_tokens)
    own = depth - above
    is_short = own <= min(ROW_OVERHEAD, row_tokens / 2)
    rows = plan_rows(tree.children, row_tokens - own if is_short else row_tokens, depth)
    if rows and own * (len(rows) - 1) <= ROW_OVERHEAD and (is_short or all(row.children for row in rows)):
        return _repeating(tree.members, depth, rows, above)  # costs less than a row
    return [RowPlan(above, (PrefixTree(depth, tree.members),), rows)]


def _repeating(members: Sequence[int], depth: int, rows: Sequence[RowPlan], above: int) -> list[RowPlan]:
    """Return rows that begin at token `above` instead of `depth`; their sequences share the tokens between.

    members: of all rows, and those without further tokens, which are added to the first row.
    """
    in_rows = {member for row in rows for tree in row.trees for member in tree.members}
    ending = [PrefixTree(depth, (member,)) for member in members if member not in in_rows]
    longer = []
    for row in rows:
        children, ending = (*row.trees, *ending), []
        together = tuple(member for child in children for member in child.members)
        longer.append(RowPlan(above, (PrefixTree(depth, together, children),), row.children))
    return longer


@dataclass(frozen=True, slots=True)
class RowTree:
    """A row and the rows that continue it."""

    row: Batch
    """The row, packed by the model's family."""
    children: tuple[RowTree, ...] = ()
    """The rows that continue it."""

    def rows(self) -> Iterator[Batch]:
        """Yield this row and the rows below."""
        yield self.row
        for child in self.children:
            yield from child.rows()

    def changed(self, change: Callable[[Batch], Batch]) -> RowTree:
        """Return the tree with `change` of each row."""
        return RowTree(change(self.row), tuple(child.changed(change) for child in self.children))


@dataclass(frozen=True)
class RowForest:
    """One micro-batch that is executed depth-first."""

    roots: tuple[RowTree, ...]
    """The rows that continue no other."""

    def rows(self) -> Iterator[Batch]:
        """Yield all rows in the order of their execution."""
        for root in self.roots:
            yield from root.rows()

    @property
    def num_computed_tokens(self) -> int:
        """The number of tokens in all rows."""
        return sum(row.num_computed_tokens for row in self.rows())

    @cached_property
    def labels(self) -> Tensor:
        """The tokens in the loss of all rows, [n]."""
        return _joined([row.labels for row in self.rows()])

    @cached_property
    def label_samples(self) -> Tensor:
        """The index in the micro-batch of the first sample with each label, [n]."""
        return _joined([row.label_samples for row in self.rows()])

    @cached_property
    def label_counts(self) -> Tensor:
        """The number of samples with each label, [n]."""
        return _joined([row.label_counts for row in self.rows() if row.label_counts is not None])

    @property
    def choices(self) -> None:
        """There are no answer choices: they are never divided among rows."""

    def changed(self, change: Callable[[Batch], Batch]) -> RowForest:
        """Return the micro-batch with `change` of each row."""
        return replace(self, roots=tuple(root.changed(change) for root in self.roots))

    def to(self, device: torch.device) -> RowForest:
        """Return the rows with their tensors on `device`."""
        return self.changed(lambda row: row.to(device))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(parts))
