# SPDX-License-Identifier: Apache-2.0
"""Common prefixes of samples: trees of true prefixes, equal for lists and for the array of a cache."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from nemo_launcher.data.prefix_tree import (
    MIN_SHARED_TOKENS,
    PrefixOrder,
    PrefixTree,
    common_prefix,
    prefix_groups,
    prefix_trees,
)
from tests.engine import random_tree

pytestmark = pytest.mark.unit


def assert_same_order(sequences: list[list[int]]) -> None:
    bounds = np.cumsum([0, *map(len, sequences)])
    tokens = np.array([token for sequence in sequences for token in sequence], dtype=np.int32)
    found, wanted = PrefixOrder.of_array(tokens, bounds[:-1], bounds[1:]), PrefixOrder.of(sequences)
    assert found.members.tolist() == wanted.members.tolist()
    assert found.shared.tolist() == wanted.shared.tolist()


@pytest.mark.parametrize(
    "vocab_size", [2, 3, 300, 2**31 - 1]
)  # small vocabularies give many equal prefixes, with zeros in them
def test_the_order_of_an_array_is_that_of_lists(vocab_size: int) -> None:
    for seed in range(100):
        generator = random.Random(seed)
        count, max_length = generator.randint(1, 60), generator.choice([20, 70])
        samples = random_tree(seed, 300, count=count, max_length=max_length)
        factor = vocab_size // 300 or 1
        sequences = [[token * factor % vocab_size for token in sample.input_ids] for sample in samples]
        sequences += generator.choices(sequences, k=5)  # duplicates
        sequences += [sequence[: generator.randint(1, len(sequence))] for sequence in sequences[:5]]
        generator.shuffle(sequences)
        assert_same_order(sequences)


def test_order_where_sequences_end_at_chunks_and_tokens_have_zero_bytes() -> None:
    common = [256] * 32
    assert_same_order([common, common[:16], [*common, 0], [*common, 256], common, common[:31], [0] * 16, [0] * 17])
    assert_same_order([[1]])
    assert_same_order([])


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([], [1], 0), ([2], [1], 0), ([1] * 9 + [2], [1] * 12, 9)],
)
def test_common_prefix(first: list[int], second: list[int], shared: int) -> None:
    assert common_prefix(first, second) == common_prefix(second, first) == shared


def assert_tree(tree: PrefixTree, sequences: list[list[int]], above: int) -> None:
    """Check that a tree's samples share exactly its depth, and its children MIN_SHARED_TOKENS more."""
    own = [sequences[member] for member in tree.members]
    assert len({tuple(sequence[: tree.depth]) for sequence in own}) == 1
    if len(own) == 1:
        assert (tree.depth, tree.children) == (len(own[0]), ())
        return
    assert tree.depth >= above + MIN_SHARED_TOKENS
    assert len({tuple(sequence[: tree.depth + 1]) for sequence in own}) > 1 or len({*map(tuple, own)}) == 1
    assert [member for child in tree.children for member in child.members] == list(tree.members)
    beginnings = [tuple(sequences[child.members[0]][: tree.depth + MIN_SHARED_TOKENS]) for child in tree.children]
    assert len({*beginnings}) == len(beginnings) or min(map(len, beginnings)) < tree.depth + MIN_SHARED_TOKENS
    for child in tree.children:
        assert_tree(child, sequences, tree.depth)


@pytest.mark.parametrize("seed", range(20))
def test_trees_are_a_partition_with_true_prefixes(seed: int) -> None:
    sequences = [sample.input_ids for sample in random_tree(seed, 300, count=20, max_length=100)]
    trees = prefix_trees(sequences)
    assert sorted(member for tree in trees for member in tree.members) == list(range(20))
    assert [tree.members[0] for tree in trees] == sorted(tree.members[0] for tree in trees)
    for tree in trees:
        assert_tree(tree, sequences, 0)


def test_a_short_common_beginning_is_no_shared_prefix() -> None:
    common = list(range(MIN_SHARED_TOKENS - 1))
    assert [tree.depth for tree in prefix_trees([[*common, 90], [*common, 91]])] == [MIN_SHARED_TOKENS] * 2
    (tree,) = prefix_trees([[*common, 90, 1], [*common, 90, 2]])
    assert (tree.depth, tree.num_tokens()) == (MIN_SHARED_TOKENS, MIN_SHARED_TOKENS + 2)


def with_instruction(contexts: int = 3, questions: int = 4) -> list[list[int]]:
    """Return an instruction of 100 tokens, followed by contexts of 50 with several questions of 5 tokens each."""
    generator = random.Random(0)

    def draw(count: int) -> list[int]:
        return [generator.randrange(3, 30_000) for _ in range(count)]

    instruction = draw(100)
    texts = [instruction + draw(50) for _ in range(contexts)]
    return [text + draw(5) for text in texts for _ in range(questions)]


def test_an_instruction_ahead_of_all_contexts_is_counted_once() -> None:
    (tree,) = prefix_trees(with_instruction())
    assert tree.num_tokens() == 100 + 3 * (50 + 4 * 5)
    assert [len(child.members) for child in tree.children] == [4, 4, 4]


def test_groups_are_those_with_the_fewest_tokens() -> None:
    (tree,) = prefix_trees(with_instruction(contexts=3, questions=4))
    assert [group.prefix for group in prefix_groups(tree)] == [150] * 3  # saves 3 x 150 each, the instruction 1100
    (tree,) = prefix_trees(with_instruction(contexts=8, questions=1))
    assert [(group.prefix, len(group.members)) for group in prefix_groups(tree)] == [(100, 8)]


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_samples_of_a_tree_stay_together_and_come_in_any_order(seed: int) -> None:
    sequences = with_instruction(contexts=3, questions=3)
    order = PrefixOrder.of(sequences).shuffled(torch.Generator().manual_seed(seed), 9)
    assert sorted(order) == list(range(9))
    assert [len({member // 3 for member in order[first : first + 3]}) for first in (0, 3, 6)] == [1, 1, 1]


def test_each_place_of_a_shuffled_order_is_equally_likely() -> None:
    order, counts = PrefixOrder.of(with_instruction(contexts=2, questions=2)), np.zeros((4, 4))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4000):
        counts[range(4), order.shuffled(generator, 4)] += 1
    assert np.abs(counts / 4000 - 0.25).max() < 0.03
