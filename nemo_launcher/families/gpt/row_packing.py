# SPDX-License-Identifier: Apache-2.0
"""Packing of samples into a tree of rows, for depth-first execution (data.row_tree)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nemo_launcher.data.prefix_tree import prefix_trees
from nemo_launcher.data.row_tree import RowForest, RowPlan, RowTree, plan_rows
from nemo_launcher.families.gpt.logit_rows import LogitRows
from nemo_launcher.families.gpt.packing import PackedBatch, Row
from nemo_launcher.families.gpt.samples import GPTSample


def pack_rows(samples: Sequence[GPTSample], row_tokens: float) -> RowForest:
    """Return the samples packed into rows of at most `row_tokens` tokens, unless one sample's or a prefix is longer.

    Labels are those of families.gpt.packing.pack; one that several samples have at the same token stands once, with
    their number.
    """
    inputs = [sample.input_ids[:-1] for sample in samples]
    trees = (_packed(plan, samples, inputs) for plan in plan_rows(prefix_trees(inputs), row_tokens))
    return RowForest(tuple(tree for tree in trees if tree is not None))


def _packed(plan: RowPlan, samples: Sequence[GPTSample], inputs: Sequence[list[int]]) -> RowTree | None:
    """Return a row and those below it; None if no label is in them."""
    below = (_packed(child, samples, inputs) for child in plan.children)
    children = tuple(child for child in below if child is not None)
    row = Row()
    places = row.put_trees(plan.trees, inputs, above=plan.above)
    positions, labels, owners, counts = _labels(samples, places, plan.above)
    if not (children or labels.numel()):
        return None
    empty = torch.zeros(0, dtype=torch.long)
    token_samples = torch.empty(len(row.tokens), dtype=torch.long)
    for index, place in places.items():
        token_samples[place] = index
    batch = PackedBatch(
        tokens=torch.tensor([row.tokens]),
        position_ids=torch.tensor([row.positions]),
        groups=tuple(row.groups),
        logits=LogitRows.of(positions),
        labels=labels,
        label_samples=owners,
        cache_index=empty[:, None],
        lengths=empty,
        label_counts=counts,
        token_samples=token_samples,
    )
    return RowTree(batch, children)


def _labels(
    samples: Sequence[GPTSample], places: dict[int, list[int]], above: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the row positions to predict from, the labels, the first sample with each, and the number of samples.

    places: the row positions of each sample's tokens, of which the first is token `above` of the sample. Each of the
    results is [n].
    """
    rows: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    for index, place in places.items():
        first = max(above, samples[index].answer_start - 1, 0)  # the first token is never predicted
        kept = sorted(set(range(first, above + len(place))).difference(skip - 1 for skip in samples[index].skipped))
        rows += (place[token - above] for token in kept)
        labels += (samples[index].input_ids[token + 1] for token in kept)
        owners += [index] * len(kept)
    pairs = torch.tensor([rows, labels], dtype=torch.long)
    (unique_rows, unique_labels), inverse, counts = pairs.unique(dim=1, return_inverse=True, return_counts=True)
    first_owners = torch.full_like(counts, len(samples)).scatter_reduce(
        0, inverse, torch.tensor(owners, dtype=torch.long), "amin"
    )
    return unique_rows, unique_labels, first_owners, counts
