# SPDX-License-Identifier: Apache-2.0
"""Packing and cutting do not change results: loss and gradients equal those of one row per sample."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import (
    Collate,
    GlobalBatch,
    cut_by_prefix,
    cut_by_prefix_trees,
    cut_evenly,
)
from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.data.prefix_tree import MIN_SHARED_TOKENS
from nemo_launcher.families.base import Base
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.runtime.row_costs import FIXED, RowCosts
from tests.data.batches import paragraphs
from tests.engine import BOTTLENECK, adapted, gradients_of, random_tree, tiny_gpt_nemo
from tests.methods import at_other_sites, model_section

pytestmark = pytest.mark.unit

CONFIGS: dict[str, dict[str, Any]] = {method: model_section(method) for method in at_other_sites()}

CONFIGS["post_norm"] = {"adapter_tuning": BOTTLENECK | {"norm_position": "post"}}


def layout(size: int, *, workers: int = 1, row_tokens: int | None = None, costs: RowCosts = FIXED) -> Layout:
    return Layout((Concurrency(workers, size),), row_tokens, costs)


TOLERANCES = {torch.float32: 5e-5, torch.float64: 1e-6}  # of gradients; fp32 rounding alone causes 1.2e-5


@pytest.fixture(scope="module")
def well_conditioned_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with small weights: large ones change some gradients by more than the tolerance through rounding."""
    return tiny_gpt_nemo(tmp_path_factory.mktemp("base") / "base.nemo", initializer_range=0.1)


@dataclass(frozen=True, slots=True)
class Model:
    base: Base
    adapters: AdapterSet
    tolerance: float

    def gradients(self, samples: Sequence[GPTSample], **options: Any) -> tuple[float, dict, GlobalBatch]:
        return gradients_of(self.base, self.adapters, samples, **options)

    def assert_same(self, actual: tuple, wanted: tuple) -> None:
        """Check losses to 1e-6 and gradients to the tolerance, relative to each tensor's largest element."""
        assert actual[0] == pytest.approx(wanted[0], rel=1e-6)
        assert actual[1].keys() == wanted[1].keys()
        for name, gradient in wanted[1].items():
            scale = float(gradient.abs().max())
            assert scale > 0, name
            assert float((actual[1][name] - gradient).abs().max()) <= self.tolerance * scale, name


@pytest.fixture(scope="module", params=[(name, dtype) for name in CONFIGS for dtype in TOLERANCES], ids=str)
def model(request: pytest.FixtureRequest, well_conditioned_base: Path) -> Model:
    """A base with random adapters of each method, in fp32 and in fp64, which reduces rounding."""
    method, dtype = request.param
    base, adapters = adapted(well_conditioned_base, CONFIGS[method], dtype)
    return Model(base, adapters, TOLERANCES[dtype])


# --- packing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_shared_prefixes_change_neither_loss_nor_gradients(seed: int, model: Model) -> None:
    samples = random_tree(seed, model.base.tokenizer.vocab_size, max_length=100)
    one_row_each = model.gradients(samples, micro_batch_size=1, share_prefix=False)
    shared = model.gradients(samples, micro_batch_size=len(samples))
    assert shared[2].computed_tokens < one_row_each[2].computed_tokens
    assert shared[2].sample_tokens == one_row_each[2].sample_tokens
    model.assert_same(shared, one_row_each)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share_prefix", [False, True])
def test_results_do_not_depend_on_the_micro_batch_size(share_prefix: bool, seed: int, model: Model) -> None:
    samples = random_tree(seed + 100, model.base.tokenizer.vocab_size, count=8, max_length=100)
    wanted = model.gradients(samples, micro_batch_size=1, share_prefix=False)
    for size in (1, 2, 3, 8):
        for keep_groups in (False, True):
            options = {"share_prefix": share_prefix, "keep_groups": keep_groups}
            model.assert_same(model.gradients(samples, micro_batch_size=size, **options), wanted)


def test_nemo_compat_weights_micro_batches_alike(model: Model) -> None:
    samples = random_tree(3, model.base.tokenizer.vocab_size, count=5)
    options: dict[str, Any] = {"micro_batch_size": 2, "share_prefix": False}
    loss, gradients, _ = model.gradients(samples, nemo_compat=True, **options)
    parts = [model.gradients(samples[i : i + 2], **options) for i in (0, 2, 4)]
    mean = {name: sum(part[1][name] for part in parts) / 3 for name in gradients}
    model.assert_same((loss, gradients), (sum(part[0] for part in parts) / 3, mean))


def test_a_wrong_mask_would_be_seen(model: Model) -> None:
    """The comparison can fail: a branch that attends to its neighbor changes the loss."""
    prefix = list(range(10, 10 + MIN_SHARED_TOKENS))
    branches = [GPTSample([*prefix, *branch], len(prefix), {}, "") for branch in ([7, 8, 9], [17, 18, 19])]
    wanted, _, figures = model.gradients(branches, micro_batch_size=2)
    assert figures.computed_tokens == len(prefix) + 4
    seen = GPTSample([*prefix, 7, 8, 17, 18, 19], len(prefix) + 2, {}, "")
    parts = [model.gradients([sample], micro_batch_size=1)[0] for sample in (branches[0], seen)]
    assert wanted != pytest.approx(sum(parts) / 2, rel=1e-3)


@pytest.mark.parametrize("seed", range(30))
def test_sharing_never_computes_more_tokens(seed: int) -> None:
    samples = random_tree(seed, 300, count=random.Random(seed).randint(1, 25), max_length=100)
    shared, plain = pack(samples), pack(samples, share_prefix=False)
    assert shared.tokens.numel() <= plain.tokens.numel() == int(plain.lengths.sum())
    assert torch.equal(shared.lengths, plain.lengths)
    assert shared.labels.tolist() == plain.labels.tolist()


@pytest.mark.parametrize("seed", range(10))
def test_every_sample_lies_whole_in_the_row(seed: int) -> None:
    samples = random_tree(seed, 300, max_length=100)
    batch = pack(samples)
    for index, sample in enumerate(samples):
        ids = sample.input_ids[:-1]
        places = batch.cache_index[index, : batch.lengths[index]]
        assert batch.tokens[0, places].tolist() == ids
        assert batch.position_ids[0, places].tolist() == list(range(len(ids)))
        mine = batch.label_samples == index
        first = max(1, sample.answer_start)
        assert batch.labels[mine].tolist() == sample.input_ids[first:]
        assert batch.logits.positions[mine].tolist() == places[first - 1 :].tolist()
    assert [group.start for group in batch.groups][1:] == [group.stop for group in batch.groups][:-1]
    assert batch.groups[-1].stop == batch.tokens.numel()


def test_prompts_that_differ_in_the_last_token_alone_share_everything() -> None:
    prompt = list(range(10, 10 + MIN_SHARED_TOKENS))
    batch = pack([GPTSample([*prompt, 5], len(prompt), {}, ""), GPTSample([*prompt, 6], len(prompt), {}, "")])
    assert batch.tokens.tolist() == [prompt]
    assert batch.logits.positions.tolist() == [len(prompt) - 1] * 2
    assert batch.labels.tolist() == [5, 6]


def test_a_prompt_that_is_the_beginning_of_another_gives_the_same_gradients(model: Model) -> None:
    """Empty branches: the shorter prompt's last token is in the prefix."""
    prompt = list(range(10, 12 + MIN_SHARED_TOKENS))
    samples = [GPTSample([*prompt, *answer], len(prompt), {}, "") for answer in ([5], [6], [5, 6, 7], [5, 6, 8])]
    wanted = model.gradients(samples, micro_batch_size=1, share_prefix=False)
    model.assert_same(model.gradients(samples, micro_batch_size=4), wanted)


# --- cutting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8, 20])
def test_micro_batches_hold_every_sample_once(size: int) -> None:
    samples = random_tree(0, 300, count=17)
    cut = cut_by_prefix(samples, size)
    assert sorted(index for micro in cut for index in micro) == list(range(17))
    assert all(len(micro) == size for micro in cut[:-1])
    assert 1 <= len(cut[-1]) <= size
    plain = cut_by_prefix(samples, size, share_prefix=False)
    assert [index for micro in plain for index in micro] == list(range(17))


@pytest.mark.parametrize("seed", range(20))
def test_no_prefix_is_computed_in_two_micro_batches(seed: int) -> None:
    sizes = random.Random(seed).choices(range(1, 12), k=9)
    samples = paragraphs(sizes)
    for row_tokens in (0, 200, None):
        cut = cut_by_prefix_trees(samples, layout(8, row_tokens=row_tokens))
        assert sorted(index for micro in cut for index in micro) == list(range(len(samples)))
        rows = [pack([samples[index] for index in micro]) for micro in cut]
        assert sum(row.num_computed_tokens for row in rows) == pack(samples).num_computed_tokens
        filled = 8 * 40 if row_tokens is None else row_tokens
        for micro, row in zip(cut, rows, strict=True):
            assert len(micro) <= max(sizes) or row.num_computed_tokens <= filled


def test_small_groups_fill_a_row_up_to_a_number_of_tokens() -> None:
    samples = paragraphs([3] * 12)  # of 60 tokens each
    rows = {
        limit: len(cut_by_prefix_trees(samples, layout(4, row_tokens=limit))) for limit in (0, 119, 120, 1000, None)
    }
    assert rows == {0: 12, 119: 12, 120: 6, 1000: 6, None: 6}  # four of the longest samples have 160 tokens


def unshared(lengths: Sequence[int]) -> list[GPTSample]:
    return [GPTSample([5] * (length + 1), 1, {}, "") for length in lengths]


def test_rows_that_share_nothing_are_no_longer_than_a_number_of_tokens() -> None:
    generator = random.Random(0)
    for shares in (1, 2, 3):
        samples = unshared([generator.randint(10, 90) for _ in range(40)] + [300])
        rows = cut_evenly(samples, 100, shares)
        assert sorted(index for row in rows for index in row) == list(range(41))
        assert [40] in rows  # longer than a row
        assert all(sum(samples[index].num_input_tokens for index in row) <= 100 for row in rows if row != [40])
        assert len(rows) % shares == 0
    assert cut_evenly(unshared([60] * 3), 100, 2) == [[0], [1], [2]]
    for keep, wanted in ((True, 4), (False, 3)):
        batch = Collate(layout(3, row_tokens=100), False, pack=pack, keep_groups=keep)(unshared([40] * 8))
        assert len(batch.micro_batches) == wanted


@pytest.mark.parametrize("ranks", [1, 2])
def test_rows_that_share_nothing_give_each_worker_the_same_work(ranks: int) -> None:
    """Full rows of four samples would be five, for two or four workers."""
    collate = Collate(layout(4, workers=2, row_tokens=400), False, ranks=ranks, pack=pack, keep_groups=True)
    batch = collate(unshared([100] * 20))
    assert (
        sorted(micro.num_computed_tokens for micro in batch.micro_batches)
        == {
            1: [300, 300, 300, 300, 400, 400],
            2: [200, 200, 300, 300],
        }[ranks]
    )


def test_a_few_short_samples_that_share_nothing_stay_in_one_row() -> None:
    collate = Collate(layout(8, workers=2, row_tokens=512), False, pack=pack, keep_groups=True)
    assert len(collate(unshared([10] * 3)).micro_batches) == 1


def test_a_large_group_takes_no_more_memory_than_a_padded_batch() -> None:
    samples = paragraphs([100, 3])
    cut = cut_by_prefix_trees(samples, layout(8))
    assert max(pack([samples[index] for index in micro]).num_computed_tokens for micro in cut) <= 8 * 40
    assert len(cut) == 4  # 29 of the 100 per row of 320 tokens; the 3 fill the last row
    every_token_trains = [GPTSample(sample.input_ids, 0, {}, "") for sample in samples]
    assert max(map(len, cut_by_prefix_trees(every_token_trains, layout(8)))) == 8


def test_a_subtree_with_many_labels_takes_no_more_memory_than_a_padded_batch() -> None:
    """Each sample has labels in the prefixes too, where they cost logits but no tokens."""
    trunk, twigs = list(range(3, 43)), (range(50, 70), range(80, 100))
    samples = [GPTSample([*trunk, *twig, number], 0, {}, "") for twig in twigs for number in range(100, 150)]
    cut = cut_by_prefix_trees(samples, layout(8))
    assert sorted(index for micro in cut for index in micro) == list(range(100))
    assert max(pack([samples[index] for index in micro]).labels.numel() for micro in cut) <= 8 * 61


def test_an_instruction_is_computed_no_more_often_than_replicas_need_it() -> None:
    instruction = list(range(1000, 1300))
    samples = [
        replace(sample, input_ids=instruction + sample.input_ids, answer_start=338) for sample in paragraphs([4] * 8)
    ]
    for shares in (1, 2, 4):
        cut = cut_by_prefix_trees(samples, layout(16), ranks=shares)
        assert sorted(index for micro in cut for index in micro) == list(range(32))
        tokens = [pack([samples[index] for index in micro]).num_computed_tokens for micro in cut]
        assert tokens == [300 + 8 // shares * (30 + 4 * 9)] * shares


def test_short_samples_behind_a_short_prefix_fill_the_rows_of_the_workers() -> None:
    """One row per sample would be balanced better, but each row has a fixed cost."""
    generator = random.Random(0)
    lengths = [generator.randint(40, 56) for _ in range(16)]
    texts = [[generator.randrange(3, 300) for _ in range(length)] for length in lengths]
    samples = [GPTSample([1, 2, 3, *text], len(text) + 1, {}, "") for text in texts]
    rows = {}
    for overhead in (0, 32):
        costs = RowCosts((1, 2), {1: (overhead + 1.0, overhead + 2.0)})
        cut = cut_by_prefix_trees(samples, layout(8, workers=2, row_tokens=512, costs=costs))
        assert sorted(index for micro in cut for index in micro) == list(range(16))
        rows[overhead] = len(cut)
    assert rows[0] > 4
    assert rows[32] == 2
    collate = Collate(layout(8, workers=2, row_tokens=512), True, pack=pack, keep_groups=True)
    assert len(collate(samples).micro_batches) == 2


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_replicas_share_the_samples(ranks: int) -> None:
    samples = paragraphs([5, 20, 3, 1, 9, 5, 5])
    shares = [Collate(layout(8), True, rank, ranks, pack=pack, keep_groups=True)(samples) for rank in range(ranks)]
    assert sum(micro.lengths.numel() for share in shares for micro in share.micro_batches) == len(samples)
    assert len({share.num_micro_batches for share in shares}) == 1
    tokens = [share.computed_tokens for share in shares]
    assert max(tokens) <= 2 * sum(tokens) / ranks
