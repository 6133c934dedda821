# SPDX-License-Identifier: Apache-2.0
"""Training and validation as on a GPU, on the meta device: one device, no waits, few kernels, little traffic."""

from __future__ import annotations

import pytest

from tests.meta import kernels_a_layer
from tests.meta_models import ROWS, MetaModel, batch_of, samples
from tests.methods import METHODS, at_other_sites, with_setting

pytestmark = pytest.mark.unit

# The kernels of one more layer (for a T5, of one more in each stack), forward, backward and clipping, of the method
# without a block, of bottlenecks, and of low-rank updates. They may fall, not rise.
MOST = {
    ("llama", False): (95, 118, 132),
    ("llama", True): (47, 71, 85),
    ("gpt3", False): (43, 57, 71),
    ("gpt3", True): (43, 57, 71),
    ("t5", False): (214, 248.5, 319),
    ("t5", True): (120, 154.5, 225),
}
LARGE_GB = (98.2, 71, 101.5)
"""Gigabytes of a step of the 1.7B shape, of the same methods."""
COPIES = 14


def column(method: str) -> int:
    """Return the method's place in a row of MOST."""
    if method in with_setting("target_modules"):
        return 2
    return 1 if method in with_setting("adapter_dim") else 0


@pytest.mark.parametrize("fused", [False, True], ids=["torch", "fused"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "gpt3", "t5"])
def test_meta_training_has_few_kernels_and_no_waits(kind: str, method: str, rows: str, fused: bool) -> None:
    batch = batch_of(samples(kind, rows))
    records = {layers: MetaModel(kind, method, layers, fused=fused).train(batch) for layers in (2, 4)}
    for record in records.values():
        assert not record.mixed
        assert record.copies <= COPIES
    assert records[2].copies == records[4].copies
    assert kernels_a_layer(records.__getitem__) <= MOST[kind, fused][column(method)]


@pytest.mark.parametrize("rows", ["unrelated", "shared"])
@pytest.mark.parametrize("kind", ["llama", "gpt3", "t5"])
def test_meta_groups_of_their_own_cost_kernels(kind: str, rows: str) -> None:
    """Otherwise these tests would not see what one kernel for a row saves."""
    batch = batch_of(samples(kind, rows))
    whole, apart = (MetaModel(kind, METHODS[0], 2, flex=flex).train(batch).total() for flex in (True, False))
    assert apart > 1.2 * whole


@pytest.mark.parametrize("method", at_other_sites())
@pytest.mark.parametrize("kind", ["llama", "gpt3", "t5"])
def test_meta_validation_has_no_waits(kind: str, method: str) -> None:
    record = MetaModel(kind, method, 2).train(batch_of(samples(kind, "shared")), backward=False)
    assert not record.mixed
    assert record.copies <= COPIES


@pytest.mark.parametrize("method", at_other_sites())
def test_meta_traffic_of_a_large_model_is_small(method: str) -> None:
    batch = batch_of(samples("llama-1.7b", "unrelated"))
    few, many = (MetaModel("llama-1.7b", method, layers).train(batch).traffic for layers in (2, 4))
    assert few + (many - few) / 2 * 22 <= 1e9 * LARGE_GB[column(method)]
