"""Groups of samples that share a prefix, found in the one array of a cache as in lists."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nemo_launcher.data.grouping import group_array_by_prefix, group_by_prefix
from tests.engine import random_tree

pytestmark = pytest.mark.unit


def assert_same_groups(sequences: list[list[int]]) -> None:
    bounds = np.cumsum([0, *map(len, sequences)])
    tokens = np.array([token for sequence in sequences for token in sequence], dtype=np.int32)
    assert group_array_by_prefix(tokens, bounds[:-1], bounds[1:]) == group_by_prefix(sequences)


@pytest.mark.parametrize("vocab_size", [2, 3, 300, 2**31 - 1])  # few tokens: many equal beginnings, zeros among them
def test_groups_of_an_array_are_those_of_lists(vocab_size: int) -> None:
    for seed in range(100):
        generator = random.Random(seed)
        count, max_length = generator.randint(1, 60), generator.choice([20, 70])
        samples = random_tree(seed, 300, count=count, max_length=max_length)
        factor = vocab_size // 300 or 1
        sequences = [[token * factor % vocab_size for token in sample.input_ids] for sample in samples]
        sequences += generator.choices(sequences, k=5)  # equal ones
        sequences += [sequence[: generator.randint(1, len(sequence))] for sequence in sequences[:5]]
        generator.shuffle(sequences)
        assert_same_groups(sequences)


def test_groups_where_sequences_end_at_chunks_and_tokens_have_zero_bytes() -> None:
    common = [256] * 32
    assert_same_groups([common, common[:16], [*common, 0], [*common, 256], common, common[:31], [0] * 16, [0] * 17])
    assert_same_groups([[1]])
    assert_same_groups([])
