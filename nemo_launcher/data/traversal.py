# SPDX-License-Identifier: Apache-2.0
"""Which micro-batches of a global batch are executed depth-first, and how long their rows are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_launcher.config.traversal import PREFIX_MEMORY, Traversal
from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.data.prefix_tree import PrefixTree, prefix_trees
from nemo_launcher.data.row_tree import plan_rows
from nemo_launcher.data.samples import Sample


@dataclass(frozen=True, slots=True)
class DepthRule:
    """The rule for one global batch. It depends on its samples and on settings that all ranks share."""

    row_tokens: float
    """The maximum number of tokens in a row of a tree."""
    limit: float
    """Micro-batches with more tokens, or more tokens in the loss, are executed depth-first."""

    @classmethod
    def of(cls, samples: Sequence[Sample], layout: Layout, concurrency: Concurrency, traversal: Traversal) -> DepthRule:
        """Return the rule for the samples of a global batch.

        A path of rows needs no more memory than the largest micro-batch (Layout.most_tokens), and a row has no more
        than `layout.row_tokens`. With `depth` every tree that is longer than a row and than the longest
        sample is executed depth-first; with `auto` only trees that would not fit into such a micro-batch.
        """
        if traversal == "breadth":
            return cls(math.inf, math.inf)
        longest = max(len(sample.input_ids) for sample in samples)
        most = layout.most_tokens(concurrency.size, longest)
        beside_prefix = most - PREFIX_MEMORY * longest
        row_tokens = max(1.0, min(beside_prefix, layout.row_tokens or beside_prefix))
        return cls(row_tokens, max(row_tokens, longest) if traversal == "depth" else most)

    def applies(self, samples: Sequence[Sample]) -> bool:
        """Return whether a micro-batch of these samples is executed depth-first."""
        if sum(sample.num_input_tokens for sample in samples) <= self.limit:
            return False  # the common case, without looking for prefixes
        trained = sum(sample.num_trained_tokens for sample in samples)
        return max(trained, sum(tree.num_tokens() for tree in _trees(samples))) > self.limit

    def rows(self, samples: Sequence[Sample]) -> list[int]:
        """Return the number of tokens in each row of a micro-batch of these samples."""
        trees = _trees(samples)
        if not self.applies(samples):
            return [sum(tree.num_tokens() for tree in trees)]
        return [tokens for plan in plan_rows(trees, self.row_tokens) for tokens in plan.row_tokens()]

    def limits(self, trees: Sequence[PrefixTree], samples: Sequence[Sample], shares: int) -> list[tuple[float, float]]:
        """Return candidate limits for the tokens of a micro-batch: of one tree, and of several.

        Trees stay whole, or the largest one is cut for the shares of the work; each part then repeats its prefix.
        """
        largest = max(trees, key=PrefixTree.num_tokens)
        own, total = largest.num_tokens() - largest.depth, sum(map(PrefixTree.num_tokens, trees))
        longest = max(len(sample.input_ids) for sample in samples)
        pairs = [(math.inf, self.row_tokens)]
        for parts in (shares, 2 * shares) if shares > 1 else ():
            pairs.append((math.inf, min(self.row_tokens, total / parts + longest / 2)))
            pairs.append((max(self.limit, largest.depth + own / parts), self.row_tokens))
        return pairs


def _trees(samples: Sequence[Sample]) -> list[PrefixTree]:
    return prefix_trees([sample.input_ids for sample in samples])
