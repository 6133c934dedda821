# SPDX-License-Identifier: Apache-2.0
"""Micro-batches that fit into the memory of a GPU: one that does not is cut in two, with the same loss and gradients.

A step whose memory runs out is repeated, without the gradients of the failed attempt. Later steps do not try again what
has not fitted. A replica cuts its own micro-batches without the others, which wait only at the end of the step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import TypeVar

from nemo_launcher.data.batching import CollateNumbered, GlobalBatch
from nemo_launcher.data.row_tree import RowForest, RowTree
from nemo_launcher.data.samples import Batch, Sample
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.megatron import parallel
from nemo_launcher.runtime.gpu_memory import free_cached, gpu_size, is_out_of_memory
from nemo_launcher.runtime.row_costs import RowCosts
from nemo_launcher.training.hidden_states import CollateStored

KEY = "model.micro_batch_size"
Result = TypeVar("Result")
Part = tuple[Batch, Sequence[int]]
"""A micro-batch and the numbers of its samples."""


class DoesNotFitError(RuntimeError):
    """The memory of the GPU ran out in a micro-batch."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index
        """The index of the micro-batch."""


@contextmanager
def fits(index: int) -> Iterator[None]:
    """Raise DoesNotFitError if the memory of the GPU runs out in the body; index: of the micro-batch."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(index, str(error)) from error


class Fitting:
    """Runs steps with micro-batches that fit.

    samples: the data set of the batches' numbers. collate: has packed them. may_cut: whether the result does not depend
    on the micro-batches. fills: whether rows are as long as was measured to fit.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        collate: CollateNumbered | CollateStored,
        *,
        may_cut: bool = True,
        fills: bool = False,
    ) -> None:
        self._samples, self._collate, self._may_cut = samples, collate, may_cut
        self._advice = f"model.data.layout=fixed with a lower {KEY}" if fills else f"a lower {KEY}"
        self._limit = inf  # tokens of a micro-batch

    def kept(self, costs: RowCosts) -> RowCosts:
        """Return the costs of rows for a checkpoint: a training that resumes does not try again what has not fitted."""
        if costs.fitting_tokens is None or self._limit == inf:
            return costs
        return replace(costs, fitting_tokens=min(costs.fitting_tokens, max(1, int(self._limit))))

    def run(self, step: Callable[[GlobalBatch], Result], batch: GlobalBatch) -> Result:
        """Return the result of a step that raises DoesNotFitError if a micro-batch does not fit.

        Raises UserError if one sample does not fit, or if the micro-batches must stay as they are.
        """
        before, cut = self._limit, self._fitted(batch)
        while True:
            try:
                result = step(cut)
                break
            except DoesNotFitError as error:
                failed = error.index
            free_cached()  # behind the handler: the error holds the tensors of the failed attempt
            self._lower(cut, failed)
            cut = self._fitted(batch)
        if self._limit < before:
            what = f"the memory of the GPU ran out: micro-batches have at most {self._limit:,.0f} tokens from now on"
            same = "with the same loss and gradients but for masks of dropout"
            print(f"{what}, {same}; {self._advice} avoids failed attempts", file=sys.stderr, flush=True)
        return result

    def _lower(self, batch: GlobalBatch, failed: int) -> None:
        """Lower the limit to the larger half of the micro-batch that has failed."""
        micro, numbers = batch.micro_batches[failed], batch.members[failed]
        if not self._may_cut or parallel.tensor_size() > 1:
            what = f"a micro-batch of {len(numbers)} samples does not fit into {gpu_size()}"
            why = "nemo_compat depends on it" if not self._may_cut else "the ranks that share a layer have to agree"
            raise UserError(Problem(KEY, f"{what}, and it is not cut: {why}", f"lower {KEY}, or {_SMALLER}"))
        tokens = _size(micro)
        smaller = max(_size(part) for part, _ in self._halves(micro, numbers, tokens / 2))
        if smaller >= tokens:
            longest = max((self._samples[number] for number in numbers), key=lambda sample: sample.num_input_tokens)
            what = f"a sample of {longest.num_input_tokens:,} tokens does not fit into {gpu_size()}"
            raise UserError(Problem(longest.source or KEY, what, f"lower model.data.max_seq_length, or {_SMALLER}"))
        self._limit = min(self._limit, smaller)

    def _fitted(self, batch: GlobalBatch) -> GlobalBatch:
        """Return a batch whose micro-batches keep the limit.

        Further parts come last, so that the others keep their place, which is part of the seed of dropout.
        """
        if self._limit == inf:
            return batch
        cut = [self._cut(*part) for part in zip(batch.micro_batches, batch.members, strict=True)]
        places = [(place, 0) for place in range(len(cut))]
        places += [(place, number) for place, parts in enumerate(cut) for number in range(1, len(parts))]
        return replace(
            batch,
            micro_batches=[cut[place][number][0] for place, number in places],
            members=[cut[place][number][1] for place, number in places],
            costs=[batch.costs[place] / len(cut[place]) for place, _ in places],
        )

    def _cut(self, micro: Batch, numbers: Sequence[int]) -> list[Part]:
        """Return parts of a micro-batch that keep the limit, as far as samples allow."""
        if _size(micro) <= self._limit:
            return [(micro, numbers)]
        halves = self._halves(micro, numbers, self._limit)
        if len(halves) == 1:
            return halves
        return [part for half in halves for part in self._cut(*half)]

    def _halves(self, micro: Batch, numbers: Sequence[int], tokens: float) -> list[Part]:
        """Return the halves of a micro-batch. A tree stays whole, in rows of at most `tokens` tokens.

        Only one path of a tree's rows is in memory, and its halves would repeat their common prefix.
        """
        middle = len(numbers) // 2
        parts = [numbers] if isinstance(micro, RowForest) or not middle else [numbers[:middle], numbers[middle:]]
        return [(self._packed(part, micro, tokens), part) for part in parts]

    def _packed(self, numbers: Sequence[int], like: Batch, tokens: float) -> Batch:
        numbered = [(number, self._samples[number]) for number in numbers]
        return self._collate.packed_again(numbered, like, tokens).to(parallel.local_device())


_SMALLER = (
    "set model.activations_checkpoint_granularity=full and model.activations_checkpoint_method=uniform; "
    "trainer.precision=bf16 takes half of 32's memory"
)


def _size(micro: Batch) -> float:
    """Return the number of tokens that a limit can lower: of a tree, those of the longest row that ends its path."""
    if isinstance(micro, RowForest):
        return max(row.num_computed_tokens for root in micro.roots for row in _last_rows(root))
    return micro.num_computed_tokens


def _last_rows(tree: RowTree) -> Iterator[Batch]:
    if not tree.children:
        yield tree.row
    for child in tree.children:
        yield from _last_rows(child)
