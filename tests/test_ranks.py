# SPDX-License-Identifier: Apache-2.0
"""How the ranks of a job end: rank 0 holds the store that the others still read from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from torch.distributed import DistStoreError, HashStore

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
