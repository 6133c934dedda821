# SPDX-License-Identifier: Apache-2.0
"""Layouts: which concurrency is possible, and what the worker with most to do costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_launcher.config.traversal import Traversal
from nemo_launcher.data.batching import Collate, GlobalBatch, cut_by_prefix_trees
from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.data.row_tree import RowForest
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.families.gpt.row_packing import pack_rows
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.runtime.row_costs import FIXED, RowCosts
from tests.data.batches import paragraphs

pytestmark = pytest.mark.unit

# A token costs a second with one thread, and half of it with two.
COSTS = RowCosts((1, 2), {1: (1.0, 2.0), 2: (0.5, 1.0)})
ONE_THREAD = RowCosts((1, 2), {1: (1.0, 2.0)})


def test_the_worker_with_most_to_do_decides() -> None:
    workers = Concurrency(2, 4, 1)
    assert workers.costs_of([[10, 20], [40]], COSTS) == [30, 40]
    assert workers.largest_share([[10, 20], [40]], 1, COSTS) == 40
    assert workers.largest_share([[10], [20], [40], [30]], 1, COSTS) == 50
    assert workers.largest_share([[10], [20], [40], [30]], 2, COSTS) == 40  # four workers on two ranks
    assert Concurrency(1, 4, 2).largest_share([[10], [20]], 1, COSTS) == 15


def test_a_single_micro_batch_gets_all_threads() -> None:
    """That is so on one rank; with several, the others have nothing to do meanwhile."""
    workers = Concurrency(2, 4, 1)
    assert workers.largest_share([[40]], 1, COSTS) == 20
    assert workers.largest_share([[40]], 2, COSTS) == 40
    assert workers.largest_share([[40]], 1, ONE_THREAD) == 40  # two threads were not measured
    assert workers.largest_share([[40]], 1, FIXED) == FIXED.cost(40, 2)
    assert workers.largest_share([[40], [1]], 1, FIXED) == FIXED.cost(40, 1)


def test_fewer_workers_hold_all_samples_and_threads() -> None:
    layout = Layout((Concurrency(5, 2, 2),))
    assert layout.possible() == [Concurrency(5, 2, 2), Concurrency(2, 5, 5), Concurrency(1, 10, 10)]
    assert Layout((Concurrency(3, 5, 1),)).possible() == [Concurrency(3, 5, 1), Concurrency(1, 15, 3)]
    assert Layout((Concurrency(5, 1, 1),)).possible()[1:] == [Concurrency(2, 3, 2), Concurrency(1, 5, 5)]


def test_measured_concurrency_becomes_a_choice() -> None:
    layout = Layout((Concurrency(2, 4, 1),), row_tokens=512)
    calibrated = layout.calibrated(COSTS)
    assert calibrated == Layout((Concurrency(2, 4, 1), Concurrency(1, 8, 2)), 512, COSTS)
    assert layout.calibrated(ONE_THREAD).choices == layout.choices
    assert layout.calibrated(FIXED) == layout


def test_costs_of_other_numbers_of_threads_are_not_used() -> None:
    layout = Layout((Concurrency(2, 4, 3),))
    assert layout.calibrated(COSTS) == layout


# --- the concurrency that is chosen -----------------------------------------------------------------------------

# Two threads are four times as fast as one: a single worker is chosen.
ONE_IS_FASTER = RowCosts((16, 64), {1: (0.016, 0.064), 2: (0.004, 0.016)})


@pytest.mark.parametrize("traversal", ["breadth", "depth"])
def test_the_chosen_concurrency_cuts_as_if_it_were_the_only_one(traversal: Traversal) -> None:
    samples = paragraphs([40, 40])
    layout = Layout((Concurrency(2, 4, 1),), costs=ONE_IS_FASTER)
    choices = layout.calibrated(ONE_IS_FASTER).choices
    chosen, only = (
        Collate(
            replace(layout, choices=found), True, pack=pack, pack_rows=pack_rows, keep_groups=True, traversal=traversal
        )(samples)
        for found in (choices, choices[1:])
    )
    assert chosen.workers == only.workers == 1
    assert chosen.costs == only.costs
    assert rows_of(chosen) == rows_of(only)


def rows_of(batch: GlobalBatch) -> list[list[int]]:
    """Return the tokens in each row of each micro-batch."""
    return [
        [row.num_computed_tokens for row in (micro.rows() if isinstance(micro, RowForest) else [micro])]
        for micro in batch.micro_batches
    ]


@pytest.mark.parametrize(
    ("traversal", "count", "length", "workers", "size", "largest"),
    [("breadth", 6, 60, 2, 4, 3), ("breadth", 5, 20, 4, 4, 2), ("depth", 6, 60, 2, 8, 3)],
)
def test_samples_without_a_common_prefix_are_shared_out_evenly(
    traversal: Traversal, count: int, length: int, workers: int, size: int, largest: int
) -> None:
    """More of them would fit into a row."""
    samples = [GPTSample([1000 * number + token for token in range(length)], 1, {}, "") for number in range(count)]
    layout = Layout((Concurrency(workers, size),), row_tokens=512)
    cut = cut_by_prefix_trees(samples, layout, traversal=traversal)
    assert sorted(index for micro in cut for index in micro) == list(range(count))
    assert max(map(len, cut)) == largest


def test_each_rank_has_the_costs_of_its_own_micro_batches() -> None:
    samples = [GPTSample([5] * length, 1, {}, "") for length in (40, 90, 20, 60, 10, 70)]
    layout = Layout((Concurrency(1, 1, 2),), row_tokens=50, costs=ONE_IS_FASTER)
    for rank in range(2):
        batch = Collate(layout, False, rank, 2, pack=pack, keep_groups=True)(samples)
        wanted = [ONE_IS_FASTER.cost(micro.num_computed_tokens, 2) for micro in batch.micro_batches]
        assert list(batch.costs) == wanted
