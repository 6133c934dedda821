# SPDX-License-Identifier: Apache-2.0
"""The order of the samples: by seed and epoch, prefixes together, goes on where it stopped."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import pytest
import torch

from nemo_launcher.data.prefix_tree import PrefixTree, prefix_trees
from nemo_launcher.data.sample_order import PrefixShuffleSampler
from tests.data.batches import paragraphs
from tests.engine import random_tree

pytestmark = pytest.mark.unit


def walk(trees: Sequence[PrefixTree]) -> Iterator[PrefixTree]:
    for tree in trees:
        yield tree
        yield from walk(tree.children)


def sampler(seed: int = 1, epoch: int = 0, **options: Any) -> PrefixShuffleSampler:
    defaults = {"shuffle": True, "share_prefix": True, "seed": seed, "global_batch_size": 8}
    result = PrefixShuffleSampler(random_tree(0, 300, count=20, max_length=100), **defaults | options)
    result.set_epoch(epoch)
    return result


@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_holds_every_sample_once(shuffle: bool, share_prefix: bool) -> None:
    one = sampler(shuffle=shuffle, share_prefix=share_prefix)
    assert sorted(one) == list(range(20))
    assert len(one) == 20


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): list(sampler(seed, epoch)) for seed in (1, 50) for epoch in (0, 1, 2)}
    assert len({tuple(order) for order in orders.values()}) == 6
    torch.manual_seed(7)
    assert all(list(sampler(seed, epoch)) == order for (seed, epoch), order in orders.items())
    one = sampler(1)
    assert list(one) == list(one)  # a second pass of the same epoch is the same


def test_without_shuffle_the_order_is_that_of_the_file() -> None:
    assert list(sampler(shuffle=False)) == list(range(20))


def test_samples_with_a_common_prefix_stay_together() -> None:
    order = list(sampler())
    trees = prefix_trees([sample.input_ids for sample in random_tree(0, 300, count=20, max_length=100)])
    deepest = [tree for tree in walk(trees) if len(tree.members) > 1]
    assert max(len(tree.children) for tree in deepest) > 2
    assert any(tree not in trees for tree in deepest)
    for tree in deepest:
        places = sorted(map(order.index, tree.members))
        assert places == list(range(places[0], places[0] + len(tree.members)))


def test_global_batches_end_between_paragraphs_where_that_is_possible() -> None:
    sizes = random.Random(0).choices(range(1, 9), k=60)
    samples = paragraphs(sizes)
    owners = [paragraph for paragraph, size in enumerate(sizes) for _ in range(size)]
    cut = Counter[int]()
    for seed, size in product(range(10), (20, 10_000)):
        one = PrefixShuffleSampler(samples, shuffle=True, share_prefix=True, seed=seed, global_batch_size=size)
        order = list(one)
        assert sorted(order) == list(range(len(samples)))
        assert Counter(owners[a] != owners[b] for a, b in pairwise(order))[True] == len(sizes) - 1
        cut[size] += sum(owners[order[end - 1]] == owners[order[end]] for end in range(20, len(order), 20))
    assert cut[20] < cut[10_000] / 2


def test_a_paragraph_larger_than_a_global_batch_comes_anywhere() -> None:
    samples = paragraphs([30, *[1] * 30])
    options = {"shuffle": True, "share_prefix": True, "global_batch_size": 8}
    firsts = [list(PrefixShuffleSampler(samples, seed=seed, **options)).index(0) for seed in range(40)]
    assert min(firsts) < 20 < max(firsts)


def test_skip_leaves_out_the_beginning_once() -> None:
    one = sampler()
    whole = list(one)
    one.skip = 8
    assert list(one) == whole[8:]
    assert list(one) == whole
