# SPDX-License-Identifier: Apache-2.0
"""Attention windows, capped scores and ALiBi: every way to compute a row gives what a plain softmax gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.conversion.convert import convert
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.megatron import flex_attention
from nemo_launcher.megatron.attention import PackedAttention
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.block_attention import attention_in_blocks
from tests.conformance.families.models import FAMILIES, save
from tests.engine import gradients_of, random_tree, randomize
from tests.megatron.test_block_attention import random_group
from tests.methods import model_section
from tests.training.trees import in_rows, run

pytestmark = pytest.mark.unit

WINDOW = 9


def path_of(group: Group, token: int) -> list[int]:
    """Return the tokens that a token attends to without a window, in the order of its text."""
    owner = [segment for segment, length in enumerate(group.lengths) for _ in range(length)]
    starts = [owner.index(segment) for segment in range(len(group.lengths))]
    path = list(range(starts[owner[token]], token + 1))
    segment = group.parents[owner[token]]
    while segment >= 0:
        path = [*range(starts[segment], starts[segment] + group.lengths[segment]), *path]
        segment = group.parents[segment]
    return path


def plain(query: Tensor, key: Tensor, value: Tensor, group: Group, softcap: float | None) -> Tensor:
    """Return the attention output of a group, [s, heads, head_dim], token by token."""
    each = query.size(1) // key.size(1)
    outputs = []
    for token in range(len(query)):
        seen = path_of(group, token)[-WINDOW:]
        keys, values = (part[seen].repeat_interleave(each, 1) for part in (key, value))
        scores = torch.einsum("hd,khd->hk", query[token], keys) * query.size(-1) ** -0.5
        scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
        outputs.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values))
    return torch.stack(outputs)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_a_plain_softmax(seed: int, softcap: float | None) -> None:
    group = random_group(seed)
    count = group.stop - group.start
    torch.manual_seed(seed)
    query, key, value = (torch.randn(count, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    blocks = AttentionPlan([group]).blocks(0, 1, query, WINDOW)
    found = attention_in_blocks(query, key, value, blocks=blocks, scale=8**-0.5, softcap=softcap)
    wanted = plain(query, key, value, group, softcap)
    weights = torch.randn_like(wanted)
    mine = torch.autograd.grad((found * weights).sum(), (query, key, value))
    theirs = torch.autograd.grad((wanted * weights).sum(), (query, key, value))
    torch.testing.assert_close((found, *mine), (wanted, *theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_masks_hold_the_last_tokens_of_each_path(seed: int) -> None:
    group = random_group(seed)
    count = group.stop - group.start
    wanted = torch.zeros(count, count, dtype=torch.bool)
    for token in range(count):
        wanted[token, path_of(group, token)[-WINDOW:]] = True
    plan = AttentionPlan([group])
    assert plan.group_mask(0, torch.device("cpu"), WINDOW).equal(wanted)
    depths = group.depths()
    places = torch.arange(count)
    row = flex_attention.block_mask(group.visible_until(), (WINDOW, depths)).mask_mod
    assert row(0, 0, places[:, None], places).equal(wanted)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["gemma2-plain", "gemma3-plain", "bloom-heads", "falcon-alibi"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder: Path = tmp_path_factory.mktemp(request.param)
    save(folder / "hf", FAMILIES[request.param])
    convert(folder / "hf", folder / "base.nemo")
    return load_base(folder / "base.nemo")


@pytest.fixture
def adapters(base: Base) -> AdapterSet:
    made = AdapterSet(base.model, base.shape, model_section("ia3"))
    randomize(made)
    return made


def test_torchs_kernels_give_what_blocks_give(
    base: Base, adapters: AdapterSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = random_tree(1, 300, max_length=60)
    wanted = gradients_of(base, adapters, samples, micro_batch_size=9)[:2]
    monkeypatch.setattr(PackedAttention, "_uses_blocks", lambda *_: False)
    found = gradients_of(base, adapters, samples, micro_batch_size=9)[:2]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    adapters.detach()


def test_depth_first_execution_gives_what_one_row_gives(base: Base, adapters: AdapterSet) -> None:
    samples = random_tree(2, 300, max_length=60)
    wanted = gradients_of(base, adapters, samples, micro_batch_size=9)[:2]
    found = run(base, adapters, in_rows(samples, 20))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    adapters.detach()
