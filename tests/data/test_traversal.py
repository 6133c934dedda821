# SPDX-License-Identifier: Apache-2.0
"""Which trees are executed depth-first, and in which rows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from nemo_launcher.config.traversal import Traversal
from nemo_launcher.data.batching import Collate, GlobalBatch
from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.data.row_tree import RowForest, RowTree
from nemo_launcher.families.gpt.packing import PackedBatch, pack
from nemo_launcher.families.gpt.row_packing import pack_rows
from nemo_launcher.families.gpt.samples import GPTSample
from tests.data.batches import paragraphs
from tests.engine import random_tree
from tests.training.trees import branches

pytestmark = pytest.mark.unit


def collated(
    samples: Sequence[GPTSample],
    traversal: Traversal,
    *,
    size: int = 4,
    workers: int = 1,
    row_tokens: int | None = 512,
    **places: Any,
) -> GlobalBatch:
    layout = Layout((Concurrency(workers, size, 1),), row_tokens=row_tokens)
    options: dict[str, Any] = {"pack": pack, "pack_rows": pack_rows, "keep_groups": True}
    return Collate(layout, True, traversal=traversal, **options, **places)(samples)


def forests(batch: GlobalBatch) -> list[RowForest]:
    return [micro for micro in batch.micro_batches if isinstance(micro, RowForest)]


def paths(trees: Sequence[RowTree], above: int = 0) -> Iterator[int]:
    """Yield the number of tokens in each row and the rows that it continues."""
    for tree in trees:
        tokens = above + tree.row.num_computed_tokens
        yield tokens
        yield from paths(tree.children, tokens)


def labels(batch: GlobalBatch) -> int:
    """Return the number of labels; one in a row of a tree may stand for several samples."""
    found = 0
    for micro in batch.micro_batches:
        found += int(micro.label_counts.sum()) if micro.label_counts is not None else micro.labels.numel()
    return found


@pytest.mark.parametrize("traversal", ["auto", "breadth", "depth"])
@pytest.mark.parametrize("seed", range(12))
def test_every_label_occurs_once_on_one_rank(seed: int, traversal: Traversal) -> None:
    generator = random.Random(seed)
    samples = random_tree(seed, 300, generator.randint(1, 30), max_length=100)
    size, ranks = generator.choice((1, 2, 8)), generator.choice((1, 2, 3))
    options: dict[str, Any] = {"workers": generator.choice((1, 2)), "row_tokens": generator.choice((40, None))}
    shares = [collated(samples, traversal, size=size, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    assert sum(map(labels, shares)) == shares[0].answer_tokens == sum(s.num_trained_tokens for s in samples)
    for share in shares:
        assert len(share.costs) == len(share.micro_batches)
        assert (traversal == "breadth") <= (not forests(share))
        for micro in share.micro_batches:
            tokens = max(paths(micro.roots)) if isinstance(micro, RowForest) else micro.num_computed_tokens
            assert tokens <= size * max(len(sample.input_ids) for sample in samples)


def test_auto_is_breadth_where_a_tree_fits_into_a_micro_batch() -> None:
    for samples in (paragraphs([3, 5, 1]), branches(4), branches(1)):
        batch = collated(samples, "auto")
        assert not forests(batch)
        assert batch.costs == collated(samples, "breadth").costs


def test_many_labels_of_few_tokens_are_executed_depth_first() -> None:
    """Identical samples have the tokens of one, but a label of each, whose logits take memory."""
    text = random.Random(0).choices(range(3, 300), k=60)
    for count, expected in ((2, 0), (64, 1)):
        batch = collated([GPTSample(text, 0, {}, "")] * count, "depth")
        assert len(forests(batch)) == expected
        assert labels(batch) == count * 59


def test_auto_is_depth_where_breadth_would_repeat_a_long_prefix() -> None:
    samples = branches(128, prefix=400, own=60)
    batch, breadth = collated(samples, "auto"), collated(samples, "breadth")
    assert len(breadth.micro_batches) > 3
    (forest,) = forests(batch)
    assert batch.computed_tokens == 400 + 128 * 59 < breadth.computed_tokens - 3 * 400
    assert sum(batch.costs) < 0.9 * sum(breadth.costs)
    assert max(paths(forest.roots)) <= 4 * 460


@pytest.mark.parametrize("prefix", [20, 60])  # depth would save nothing, and 9%
def test_auto_stays_with_breadth_where_depth_would_save_little(prefix: int) -> None:
    samples = branches(128, prefix=prefix, own=60)
    saved = 1 - sum(collated(samples, "depth").costs) / sum(collated(samples, "breadth").costs)
    assert (saved > 0.05) == (prefix == 60)
    assert len(collated(samples, "breadth").micro_batches) > 10
    assert not forests(collated(samples, "auto"))


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_auto_is_never_expected_to_be_slower(seed: int, workers: int) -> None:
    generator = random.Random(seed)
    prefix, own, count = generator.choice((30, 300, 1000)), generator.choice((2, 20, 100)), generator.choice((5, 60))
    samples = branches(count, prefix=prefix, own=own, trained=1) + paragraphs([3, 9])
    layout = Layout((Concurrency(workers, 2, 1),), row_tokens=512)
    expected = {}
    for traversal in ("auto", "breadth"):
        collate = Collate(layout, True, traversal=traversal, pack=pack, pack_rows=pack_rows, keep_groups=True)
        _, rows, concurrency = collate._fastest_cut(samples)
        expected[traversal] = collate._expected(rows, concurrency)
    assert expected["auto"] <= expected["breadth"]


def test_depth_computes_each_prefix_once_however_small_the_micro_batches() -> None:
    samples = branches(40, prefix=100, own=30) + paragraphs([6])
    for size in (2, 8):
        batch = collated(samples, "depth", size=size)
        assert batch.computed_tokens == 100 + 40 * 29 + 30 + 6 * 9
    assert collated(samples, "breadth", size=2).computed_tokens > 1.5 * batch.computed_tokens


def test_workers_share_a_tree_that_would_keep_one_of_them_busy() -> None:
    samples = branches(64, prefix=50, own=60)
    batch = collated(samples, "depth", workers=2)
    assert batch.workers == 2
    assert max(batch.costs) < 0.7 * sum(batch.costs)


def test_a_short_prefix_is_repeated_rather_than_given_a_row() -> None:
    """A row has a fixed cost."""
    samples = branches(6, prefix=18, own=100)
    rows = list(pack_rows(samples, 350).rows())
    assert [row.num_computed_tokens for row in rows] == [18 + 3 * 99] * 2
    rows = list(pack_rows(branches(6, prefix=50, own=100), 350).rows())
    assert [row.num_computed_tokens for row in rows] == [50, 3 * 99, 3 * 99]


def test_texts_that_grow_by_little_are_planned_quickly() -> None:
    """Each level of such a tree has a sample that ends there, as the turns of a chat."""
    text = random.Random(0).choices(range(3, 300), k=1700)
    turns = [GPTSample(text[:end], end - 5, {}, "") for end in range(40, 1700, 20)]
    forest = pack_rows(turns, 64)
    assert forest.num_computed_tokens == pack(turns).num_computed_tokens
    assert max(paths(forest.roots)) == len(text) - 21


def test_rows_of_one_sample_have_a_group_each() -> None:
    (row,) = pack_rows(branches(1), 5).rows()
    assert isinstance(row, PackedBatch)
    assert row.groups == pack(branches(1)).groups
    assert row.labels.tolist() == pack(branches(1)).labels.tolist()
