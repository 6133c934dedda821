# SPDX-License-Identifier: Apache-2.0
"""Attention of samples that share prefixes: the product of each sample with its own prefix."""

from __future__ import annotations

import random

import pytest
import torch

from nemo_launcher.megatron.decoding import MAX_PADDING, Sharing
from nemo_launcher.megatron.key_value_cache import KeyValueCache, Places

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "rows",
    [
        [0],
        [0, 1, 2],  # each alone, in order
        [2, 0, 1],
        [1, 1, 1, 4, 4],  # rows without samples at the start, between others and at the end
        [3, 0, 3, 0, 3, 5],
        [0] * 40 + [1, 2, 3, 4, 5],  # uneven: more than one product
        [5] * 40 + [0, 1, 2, 3, 4],
        [random.Random(1).randrange(6) for _ in range(30)],
    ],
)
def test_each_sample_meets_its_own_prefix(rows: list[int]) -> None:
    torch.manual_seed(0)
    prefixes = torch.randn(6, 2, 5, 7, dtype=torch.float64)
    operands = torch.randn(len(rows), 2, 3, 5, dtype=torch.float64)
    sharing = Sharing(rows, [5] * 6, 2, torch.device("cpu"))
    wanted = torch.stack([operands[sample] @ prefixes[row] for sample, row in enumerate(rows)])
    torch.testing.assert_close(sharing.multiply(operands, prefixes), wanted)
    computed = sum(queries.numel() for _, queries in sharing._parts)
    assert computed <= MAX_PADDING * operands[:, :, 0, 0].numel()


def test_rows_of_a_cache_stay_themselves_while_it_grows_and_shrinks() -> None:
    cache = KeyValueCache()
    written: dict[int, torch.Tensor] = {}

    def write(row: int, length: int) -> None:
        places = Places()
        places.add(row, 0, range(length))
        cache.lengths[row:] = [length]
        cache.reserve(row + 1, length)
        written[row] = torch.randn(length, 2, 3)
        cache.write(1, written[row], -written[row], places.index(torch.device("cpu")))

    for row, length in enumerate((4, 2, 7, 5)):
        write(row, length)
    cache.select([0, 3, 2])
    for row, origin in enumerate((0, 3, 2)):
        tokens = written[origin].transpose(0, 1)
        keys, values = cache.read(1, slice(row, row + 1), cache.lengths[row])
        assert torch.equal(keys[0], tokens)
        assert torch.equal(values[0], -tokens)
