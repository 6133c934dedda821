# SPDX-License-Identifier: Apache-2.0
"""How the ranks of a job wait for each other and end: rank 0 holds the store that the others still read from."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event

import pytest
import torch.distributed as dist
from torch.distributed import DistStoreError, HashStore

from nemo_launcher.megatron import parallel
from nemo_launcher.runtime import ranks

pytestmark = pytest.mark.unit


class Store(HashStore):
    """A store that tells when somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = Event()

    def wait(self, *arguments: object) -> None:
        self.asked.set()
        super().wait(*arguments)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of a world of three."""
    store = Store()
    monkeypatch.setattr(ranks, "_store", store)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    return store


def test_rank_zero_leaves_after_the_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LEAVE_SECONDS", 600)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ranks.leave_together)
        assert store.asked.wait(60)
        monkeypatch.setenv("RANK", "2")
        ranks.leave_together()
        assert not first.done()
        monkeypatch.setenv("RANK", "1")
        ranks.leave_together()
        first.result(60)


def test_rank_zero_does_not_wait_for_long(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LEAVE_SECONDS", 0.01)
    ranks.leave_together()
    assert store.asked.is_set()


def test_a_rank_leaves_though_the_store_has_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise DistStoreError("closed by peer")

    monkeypatch.setattr(store, "set", gone)
    monkeypatch.setenv("RANK", "1")
    ranks.leave_together()


@pytest.mark.parametrize("on_gpus", [True, False])
def test_ranks_wait_for_each_other_longer_than_nccl_and_gloo_do(
    on_gpus: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas may end an evaluation, and rank 0 its figures, hours apart."""
    made: list[dict[str, object]] = []
    waited: list[object] = []
    rendezvous: Iterator[tuple[Store, int, int]] = iter([(store, 0, 3)])
    monkeypatch.setattr(ranks, "_patient", None)
    monkeypatch.setattr(ranks, "uses_gpu", lambda: on_gpus)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "rendezvous", lambda _: rendezvous)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: made.append({"backend": backend}))
    monkeypatch.setattr(dist, "new_group", lambda **options: made.append(options) or "patient")
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: waited.append((tensor.device.type, group)))
    monkeypatch.setattr(dist, "all_gather_object", lambda values, mine, group: waited.append(group))
    monkeypatch.setattr(dist, "broadcast_object_list", lambda values, src, group: waited.append(group))
    ranks.init_process_group()
    assert made == [
        {"backend": "cpu:gloo,cuda:nccl" if on_gpus else "gloo"},
        {"backend": "gloo", "timeout": timedelta(days=7)},
    ]

    ranks.barrier()
    ranks.gather_objects(1)
    ranks.broadcast_from_rank_zero(lambda: 1)
    monkeypatch.setattr(parallel, "_merged", lambda state, group: state)
    monkeypatch.setattr(parallel.parallel_state, "get_data_parallel_group", lambda: "replicas")
    assert parallel.merge_replicas({1: 2}) == {1: 2}
    assert waited == [("cpu", "patient"), "patient", "patient", ("cpu", "patient")]


def test_the_answer_of_rank_zero_is_waited_for_as_long(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[timedelta] = []
    monkeypatch.setattr(store, "wait", lambda keys, limit: limits.append(limit))
    monkeypatch.setattr(store, "get", lambda key: b'{"value": 3}')
    monkeypatch.setenv("RANK", "1")
    assert ranks.decide_on_rank_zero(lambda: 0) == 3
    assert limits == [ranks.PATIENCE]
