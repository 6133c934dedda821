# SPDX-License-Identifier: Apache-2.0
"""Depth-first execution: the loss and gradients of one packed row and of separate samples, in bounded memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.row_tree import RowForest
from nemo_launcher.errors import UserError
from nemo_launcher.families.family import AnyFamily
from nemo_launcher.families.gpt.family import GPT
from nemo_launcher.families.gpt.row_packing import pack_rows
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.families.t5.family import T5
from nemo_launcher.megatron.frozen_layer import recompute_layers
from nemo_launcher.training.depth_first import _SharedRow
from nemo_launcher.training.gradient_sums import GradientSums
from nemo_launcher.training.loading import make_collate
from nemo_launcher.training.step import forward_backward
from tests import gpt
from tests.engine import BOTTLENECK, adapted, logits_of, random_tree
from tests.jobs import job_config, loaded
from tests.methods import METHODS, model_section, with_setting
from tests.training.trees import Result, branches, in_rows, peak_saved_bytes, plain, run, whole

pytestmark = pytest.mark.unit

GPT3 = gpt.CONFIG | {
    "normalization": "layernorm",
    "activation": "gelu",
    "bias": True,
    "position_embedding_type": "learned_absolute",
    "share_embeddings_and_output_weights": True,
    "max_position_embeddings": 160,
    "encoder_seq_length": 160,
}


@pytest.fixture(scope="module")
def bases(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gpt3")
    made = gpt.write_gpt(folder / "gpt.nemo", GPT3, {"model_weights.ckpt": gpt.random_weights(GPT3)})
    return {"llama": tiny_base, "gpt3": made}


def assert_same(found: Result, wanted: Result, relative: float = 1e-6) -> None:
    """Compare losses, and gradients relative to the largest."""
    assert found[0] == pytest.approx(wanted[0], rel=relative)
    assert found[1].keys() == wanted[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted[1].values())
    for key, gradient in wanted[1].items():
        assert float((found[1][key] - gradient).abs().max()) <= relative * largest, key


def depth(forest: RowForest) -> int:
    def below(tree: object) -> int:
        return 1 + max(map(below, tree.children), default=0)  # type: ignore[attr-defined]

    return max(map(below, forest.roots))


def awkward() -> list[GPTSample]:
    """Return prefixes within prefixes, a sample that continues another, equal ones, and one alone."""
    generator = random.Random(3)

    def draw(count: int) -> list[int]:
        return [generator.randrange(3, 300) for _ in range(count)]

    trunk, twig, other = draw(30), draw(20), draw(25)
    texts = [
        trunk,
        trunk + twig,
        trunk + twig + draw(4),
        trunk + twig + draw(9),
        trunk + twig + draw(17) + draw(3),
        trunk + draw(6),
        trunk + other,
        trunk + other,
        trunk + other + draw(1),
        draw(12),
    ]
    return [GPTSample(ids, generator.randint(0, len(ids) - 1), {}, "") for ids in texts]


@pytest.mark.parametrize("row_tokens", [1, 20, 70])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", ["llama", "gpt3"])
def test_loss_and_gradients_are_those_of_breadth_and_of_separate_samples(
    shape: str, name: str, row_tokens: int, bases: dict[str, Path]
) -> None:
    base, adapters = adapted(bases[shape], model_section(name), torch.float64)
    samples = awkward()
    assert depth(pack_rows(samples, row_tokens)) == {1: 3, 20: 3, 70: 2}[row_tokens]
    found = run(base, adapters, in_rows(samples, row_tokens))
    assert_same(found, run(base, adapters, whole(samples)))
    assert_same(found, run(base, adapters, plain(samples)))


def test_skipped_tokens_are_in_no_loss_in_any_layout(bases: dict[str, Path]) -> None:
    base, adapters = adapted(bases["llama"], model_section("parallel_adapter"), torch.float64)
    samples = random_tree(5, base.shape.vocab_size, max_length=40)
    skipping = []
    for number, sample in enumerate(samples):
        after = range(max(1, sample.answer_start) + 1, len(sample.input_ids))
        skipping.append(replace(sample, skipped=[place for place in after if (place + number) % 3 == 0]))
    assert sum(sample.num_trained_tokens for sample in skipping) < sum(sample.num_trained_tokens for sample in samples)
    wanted, total = 0.0, 0
    for sample in skipping:  # torch's own loss, one sample after the other
        ids = torch.tensor([sample.input_ids])
        losses = torch.nn.functional.cross_entropy(logits_of(base, ids)[0, :-1], ids[0, 1:], reduction="none")
        kept = [p - 1 for p in range(max(1, sample.answer_start), ids.shape[1]) if p not in sample.skipped]
        wanted, total = wanted + float(losses[kept].sum()), total + len(kept)
    separate = run(base, adapters, plain(skipping))
    assert separate[0] == pytest.approx(wanted / total, rel=1e-6)
    assert_same(run(base, adapters, whole(skipping)), separate)
    for row_tokens in (0, 8, 1000):
        assert_same(run(base, adapters, in_rows(skipping, row_tokens)), separate)


@pytest.mark.parametrize("seed", range(25))
def test_random_trees_are_exact(seed: int, bases: dict[str, Path]) -> None:
    generator = random.Random(seed)
    name, shape = METHODS[seed % len(METHODS)], ("llama", "gpt3")[seed % 2]
    base, adapters = adapted(bases[shape], model_section(name), torch.float64)
    samples = random_tree(seed, 300, generator.randint(1, 14), max_length=generator.choice((40, 100)))
    if seed % 3 == 0:  # labels in all shared parts
        samples = [GPTSample(sample.input_ids, 0, {}, "") for sample in samples]
    found = run(base, adapters, in_rows(samples, generator.choice((1, 12, 30, 60))))
    assert_same(found, run(base, adapters, whole(samples)))
    assert_same(found, run(base, adapters, plain(samples)))


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("name", METHODS)
def test_rounding_is_that_of_the_dtype(name: str, dtype: torch.dtype, relative: float, bases: dict[str, Path]) -> None:
    """Depth differs from fp64 by no more than breadth does."""
    samples = awkward()
    wanted = run(*adapted(bases["gpt3"], model_section(name), torch.float64), plain(samples))
    base, adapters = adapted(bases["gpt3"], model_section(name), dtype)
    for batch in (in_rows(samples, 20), whole(samples)):
        assert_same(run(base, adapters, batch), wanted, relative)


def test_gradients_of_a_shared_rows_keys_are_summed_in_fp32() -> None:
    """In bf16, a small gradient would vanish beside the sum of many others; and a sum holds no larger tensor alive."""
    keys = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    sums = _SharedRow({1: (keys, keys.detach())}).sums
    whole = torch.ones(2, 3, dtype=torch.bfloat16)
    sums.add([whole[0]])
    for _ in range(8):
        sums.add([torch.full((3,), 2.0**-9, dtype=torch.bfloat16)])
    (total,) = sums.totals
    assert total is not None
    assert total.tolist() == [1 + 2.0**-6] * 3
    fp32 = GradientSums([keys], at_least=torch.float32)
    part = torch.ones(2, 3)[0]
    fp32.add([part])
    assert fp32.totals[0] is not None
    assert fp32.totals[0].data_ptr() != part.data_ptr()


def test_one_token_answers_under_a_long_prefix(bases: dict[str, Path]) -> None:
    """The answers' labels all lie at the prefix's last token, which has no row of its own below it."""
    base, adapters = adapted(bases["llama"], model_section("ia3"), torch.float64)
    prefix = branches(1, prefix=150)[0].input_ids[:150]
    samples = [GPTSample([*prefix, 3 + number % 20], 150, {}, "") for number in range(40)]
    for row_tokens in (8, 200):  # fewer and more than the answers
        forest = in_rows(samples, row_tokens)
        assert max(row.labels.numel() for row in forest.micro_batches[0].rows()) <= max(row_tokens, 20)  # type: ignore[attr-defined]
        assert_same(run(base, adapters, forest), run(base, adapters, plain(samples)))


@pytest.mark.parametrize("samples", [branches(1), [branches(1)[0]] * 5, branches(2, own=1, trained=1)])
def test_few_or_equal_samples(samples: Sequence[GPTSample], bases: dict[str, Path]) -> None:
    base, adapters = adapted(bases["llama"], model_section("ia3"), torch.float64)
    assert_same(run(base, adapters, in_rows(samples, 20)), run(base, adapters, plain(samples)))


def test_a_prefix_is_computed_once_for_any_number_of_branches() -> None:
    for count in (4, 64):
        forest = pack_rows(branches(count, prefix=70, own=12), 64)
        assert forest.num_computed_tokens == 70 + count * 11
        assert max(row.num_computed_tokens for row in forest.rows()) == 70


def test_memory_does_not_depend_on_the_number_of_branches(bases: dict[str, Path]) -> None:
    base, adapters = adapted(bases["llama"], model_section("ia3"))
    kept = {}
    for count in (4, 16, 64):
        samples = branches(count, own=17)
        depth_first, breadth = in_rows(samples, 64), whole(samples)  # 4 branches in a row, all in one
        kept[count] = [peak_saved_bytes(lambda b=batch: run(base, adapters, b)) for batch in (depth_first, breadth)]
    assert kept[64][0] == kept[16][0] == kept[4][0]
    assert kept[64][1] > 4 * kept[4][1]
    assert kept[64][0] < kept[64][1] / 4


def test_without_gradients_nothing_is_kept(bases: dict[str, Path]) -> None:
    base, adapters = adapted(bases["llama"], model_section("ia3"), torch.float64)
    samples = awkward()
    batch = in_rows(samples, 20)
    losses: list[float] = []
    kept = peak_saved_bytes(lambda: losses.append(float(forward_backward(base.model, batch, backward=False))))
    assert kept == 0
    assert losses[0] == pytest.approx(run(base, adapters, plain(samples))[0], rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_recomputed_layers_give_the_same_gradients(name: str, bases: dict[str, Path]) -> None:
    base, adapters = adapted(bases["llama"], model_section(name), torch.float64)
    batch = in_rows(awkward(), 20)
    wanted = run(base, adapters, batch)
    recompute_layers(base.model.decoder.layers, "full", "uniform", None)
    assert_same(run(base, adapters, batch), wanted)


@pytest.mark.parametrize("name", with_setting("adapter_dropout"))
def test_dropout_depends_on_the_seed_alone(name: str, bases: dict[str, Path]) -> None:
    base, adapters = adapted(bases["llama"], model_section(name, adapter_dropout=0.5))
    adapters.train()
    batch = in_rows(awkward(), 20)
    first, again, other = (run(base, adapters, batch, seed=seed) for seed in (5, 5, 6))
    assert first[0] == again[0] != other[0]
    assert all(torch.equal(first[1][key], again[1][key]) for key in first[1])


def test_rows_draw_different_masks(bases: dict[str, Path]) -> None:
    """Equal branches of a prefix lose different activations."""
    base, adapters = adapted(bases["llama"], {"adapter_tuning": BOTTLENECK | {"adapter_dropout": 0.5}})
    adapters.train()
    seen: list[torch.Tensor] = []
    adapter = next(iter(adapters.adapters.values()))
    adapter.dropout.register_forward_hook(lambda _, inputs, output: seen.append(output[:11] == 0))
    run(base, adapters, in_rows(branches(3), 11), seed=1)
    assert len(seen) == 4
    assert not torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])


def test_workers_change_no_result(bases: dict[str, Path]) -> None:
    base, adapters = adapted(bases["llama"], model_section("ia3"), torch.float64)
    parts = [awkward(), branches(9), random_tree(4, 300, 8)]
    batches = [in_rows(samples, 20) for samples in parts]
    total = sum(batch.answer_tokens for batch in batches)
    forests = [batch.micro_batches[0] for batch in batches]
    joined = GlobalBatch(forests, 3, 27, total, 0, costs=[forest.num_computed_tokens for forest in forests])
    wanted = run(base, adapters, joined)
    for workers in (2, 3):
        assert_same(run(base, adapters, replace(joined, workers=workers)), wanted)
    assert_same(wanted, run(base, adapters, plain([sample for samples in parts for sample in samples])))


@pytest.mark.parametrize(
    ("changes", "family", "wanted"),
    [
        ({}, GPT, "auto"),
        ({"model.data.traversal": "depth"}, GPT, "depth"),
        ({"model.data.traversal": "breadth"}, GPT, "breadth"),
        ({"model.data.share_prefix": False}, GPT, "breadth"),
        ({"model.nemo_compat": True}, GPT, "breadth"),
        ({}, T5, "breadth"),
    ],
)
def test_a_training_uses_the_traversal_that_its_settings_allow(
    changes: dict[str, Any], family: AnyFamily, wanted: str
) -> None:
    model = loaded(job_config(Path("/base.nemo"), Path("/data"), Path("/results"), changes)).section.model
    assert make_collate(model, family, Layout.one_after_the_other(4)).traversal == wanted


def test_depth_is_refused_for_a_t5() -> None:
    changes = {"model.data.traversal": "depth"}
    model = loaded(job_config(Path("/base.nemo"), Path("/data"), Path("/results"), changes)).section.model
    with pytest.raises(UserError, match=r"model\.data\.traversal: depth is impossible for a T5 model"):
        make_collate(model, T5, Layout.one_after_the_other(4))
