# SPDX-License-Identifier: Apache-2.0
"""Layouts: which concurrency is possible, and what the worker with most to do costs."""

from __future__ import annotations

import pytest

from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.runtime.row_costs import FIXED, RowCosts

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
