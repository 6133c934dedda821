# SPDX-License-Identifier: Apache-2.0
"""Concurrent micro-batches: the same loss, gradients and dropout as in sequence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate
from nemo_launcher.data.job_distribution import distribute_jobs
from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.families.base import Base
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.training.step import forward_backward
from nemo_launcher.training.workers import layout_for, run_concurrently
from tests.engine import BOTTLENECK, adapted, named_gradients, random_tree
from tests.methods import METHODS, model_section, with_setting

pytestmark = pytest.mark.unit


def gradients(base: Base, adapters: AdapterSet, count: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of micro-batches with two samples, run by `count` workers."""
    for parameter in adapters.parameters():
        parameter.grad = None
    collate = Collate(Layout((Concurrency(count, 2),)), True, pack=pack)
    batch = collate(random_tree(3, base.shape.vocab_size, count=11))
    loss = forward_backward(base.model, batch, backward=True, seed=5)
    return float(loss), named_gradients(adapters)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_number_of_workers_changes_no_result(name: str, dropout: float, tiny_base: Path) -> None:
    if dropout and name not in with_setting("adapter_dropout"):
        pytest.skip(f"{name} has no dropout")
    section = model_section(name, **({"adapter_dropout": dropout} if dropout else {}))
    base, adapters = adapted(tiny_base, section, torch.float64)
    adapters.train()
    loss, wanted = gradients(base, adapters, 1)
    for count in (2, 3):
        again, found = gradients(base, adapters, count)
        assert again == pytest.approx(loss, rel=1e-6)
        for key, gradient in wanted.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-7)


def test_results_do_not_depend_on_who_is_faster(tiny_base: Path) -> None:
    base, adapters = adapted(tiny_base, {"adapter_tuning": BOTTLENECK | {"adapter_dropout": 0.1}})
    adapters.train()
    first, second = (gradients(base, adapters, 3) for _ in range(2))
    assert first[0] == second[0]
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])


def test_dropout_differs_between_seeds_and_micro_batches(tiny_base: Path) -> None:
    base, adapters = adapted(tiny_base, {"adapter_tuning": BOTTLENECK | {"adapter_dropout": 0.5}})
    adapters.train()
    samples = random_tree(3, base.shape.vocab_size, count=1)
    collate = Collate(Layout.one_after_the_other(1), True, pack=pack)
    one, two = collate(samples), collate(samples * 2)
    losses = {float(forward_backward(base.model, one, backward=False, seed=seed)) for seed in (1, 2, 3)}
    assert len(losses) == 3
    assert float(forward_backward(base.model, two, backward=False, seed=1)) not in losses


def test_side_by_side_takes_no_more_samples_than_one_micro_batch() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        cpu = {size: layout_for(size, torch.device("cpu"), torch.float32, 1) for size in (1, 7, 8, 9, 64)}
    finally:
        torch.set_num_threads(before)
    assert cpu[1] == Layout((Concurrency(1, 1, 4),), 512)
    assert cpu[7] == Layout((Concurrency(1, 7, 4),), 512)
    assert cpu[8] == Layout((Concurrency(2, 4, 2),), 512)
    assert cpu[9] == Layout((Concurrency(2, 5, 2),), 512)
    assert cpu[64] == Layout((Concurrency(4, 16, 1),), 512)
    assert layout_for(1, torch.device("cpu"), torch.bfloat16, 1).row_tokens == 1024
    assert layout_for(1, torch.device("cpu"), torch.float32, 2).row_tokens == 1024
    assert layout_for(64, torch.device("cuda"), torch.bfloat16, 1) == Layout((Concurrency(1, 64),))


def test_the_threads_of_others_stay_as_they_are() -> None:
    before = torch.get_num_threads()
    inside = run_concurrently(lambda jobs: torch.get_num_threads(), [1.0, 1.0], 2)
    assert inside == [max(1, before // 2)] * 2
    assert torch.get_num_threads() == before
    assert run_concurrently(lambda jobs: torch.get_num_threads(), [1.0], 2) == [before]  # a single job gets all threads


def test_a_mistake_in_a_worker_is_told() -> None:
    def work(jobs: list[int]) -> None:
        raise ValueError(f"job {jobs[0]}")

    with pytest.raises(ValueError, match="job 0"):
        run_concurrently(work, [2.0, 1.0], 2)


@pytest.mark.parametrize(
    ("costs", "loads"),
    [
        ([5, 9, 1, 4, 3, 8], [15, 15]),
        ([532, 454, 439, 253, 239], [971, 946]),  # largest first without swaps: 1024 and 893
        ([7], [7, 0]),
        ([], [0, 0]),
    ],
)
def test_jobs_are_distributed_evenly_and_completely(costs: list[float], loads: list[float]) -> None:
    dealt = distribute_jobs(costs, 2)
    assert sorted(dealt[0] + dealt[1]) == list(range(len(costs)))
    assert sorted((sum(costs[job] for job in jobs) for jobs in dealt), reverse=True) == loads
