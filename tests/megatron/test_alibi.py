# SPDX-License-Identifier: Apache-2.0
"""ALiBi: transformers' biases, the same in every way to compute a row, and exact at any distance in 16-bit types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom_biases
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon_biases

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.conversion.convert import convert
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron import flex_attention
from nemo_launcher.megatron.alibi import BIASES, Alibi
from nemo_launcher.megatron.attention import PackedAttention
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.block_attention import attention_in_blocks
from nemo_launcher.megatron.decoding import DecodingPlan, Sharing
from nemo_launcher.megatron.key_value_cache import KeyValueCache, Places
from tests.conformance.families.models import FAMILIES, save
from tests.engine import gradients_of, logits_of, random_tree, randomize
from tests.megatron.test_block_attention import random_group
from tests.megatron.test_flex_attention import reference as reference
from tests.megatron.test_windows import path_of
from tests.methods import model_section

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
HEADS = 6


def alibi(kind: str, heads: int = HEADS, rank: int = 0, ranks: int = 1) -> Alibi:
    return Alibi.of_rank(kind, heads, softmax_scale=0.3, rank=rank, ranks=ranks, device=CPU)


def plain(query: Tensor, key: Tensor, value: Tensor, group: Group, biases: Alibi) -> Tensor:
    """Return the attention output of a group, [s, heads, head_dim], token by token."""
    each = query.size(1) // key.size(1)
    outputs = []
    for token in range(len(query)):
        seen = path_of(group, token)
        keys, values = (part[seen].repeat_interleave(each, 1) for part in (key, value))
        scores = torch.einsum("hd,khd->hk", query[token], keys) * 0.3 + biases.heights(torch.arange(len(seen)))
        outputs.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values))
    return torch.stack(outputs)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 12, 16, 25, 71, 112])
def test_biases_are_transformers(heads: int) -> None:
    mask, places = torch.ones(1, 3000, dtype=torch.long), torch.arange(3000)
    wanted = bloom_biases(mask, heads, torch.float32).squeeze(1)
    torch.testing.assert_close(alibi("exact", heads).heights(places), wanted, rtol=1e-6, atol=0)
    assert alibi("scaled_bf16", heads).heights(places).equal(falcon_biases(mask, heads, torch.float32)[:, 0] * 0.3)


@pytest.mark.parametrize("kind", BIASES)
def test_a_rank_has_the_biases_of_its_heads(kind: str) -> None:
    places = torch.arange(9)
    parts = [alibi(kind, 12, rank, 4).between(places, places) for rank in range(4)]
    assert torch.cat(parts).equal(alibi(kind, 12).between(places, places))


def test_near_keys_far_into_a_text_keep_their_biases_in_bf16() -> None:
    near, far = (torch.arange(start, start + 20) for start in (0, 60_000))
    assert alibi("exact").between(far, far).bfloat16().equal(alibi("exact").between(near, near).bfloat16())


@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_a_plain_softmax(seed: int, kind: str) -> None:
    group, biases = random_group(seed), alibi(kind)
    torch.manual_seed(seed)
    shapes = ((group.stop, heads, 8) for heads in (HEADS, 2, 2))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    blocks = AttentionPlan([group], alibi=biases).blocks(0, 1, tensors[0])
    found = attention_in_blocks(*tensors, blocks=blocks, scale=0.3, alibi=biases)
    wanted = plain(*tensors, group, biases)
    weights = torch.randn_like(wanted)
    mine, theirs = (torch.autograd.grad((output * weights).sum(), tensors) for output in (found, wanted))
    torch.testing.assert_close((found, *mine), (wanted, *theirs), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("learned", [0, 3])
def test_a_new_token_attends_as_in_a_row(kind: str, learned: int) -> None:
    """Two samples of one prefix, of other lengths, each with a last token that is decoded."""
    torch.manual_seed(0)
    lengths, prefix = (5, 2), 7
    group = Group(0, (prefix, *lengths), (-1, 0, 0))
    query, key, value = (torch.randn(group.stop, 1, heads, 8) for heads in (HEADS, 2, 2))
    layer = PackedAttention(SimpleNamespace(), 1, softmax_scale=0.3)  # type: ignore[arg-type]
    keys = torch.randn(learned, 2, 8)
    layer.prefixes = [lambda: (keys, keys)] if learned else []  # type: ignore[list-item]
    wanted = layer(query, key, value, AttentionPlan([group], alibi=alibi(kind)))

    last = [prefix + lengths[0] - 1, group.stop - 1]
    own, prefixes = KeyValueCache(), KeyValueCache()
    own.lengths, prefixes.lengths = list(lengths), [prefix]
    own.reserve(2, max(lengths))
    prefixes.reserve(1, prefix)
    held, places = Places(), Places()
    held.add(0, 0, range(prefix))
    places.add(0, 0, range(prefix, last[0]))
    places.add(1, 0, range(last[0] + 1, last[1]))
    DecodingPlan(own, prefixes, 0, own_places=places, prefix_places=held).store(1, key[:, 0], value[:, 0])
    new = Places()
    new.add(0, lengths[0] - 1, [0])
    new.add(1, lengths[1] - 1, [1])
    decoding = DecodingPlan(own, prefixes, 2, Sharing([0, 0], [prefix], 2, CPU), new)
    found = layer(query[last], key[last], value[last], AttentionPlan(decoding=decoding, alibi=alibi(kind)))
    torch.testing.assert_close(found, wanted[last], rtol=0, atol=1e-5)


def test_learned_keys_precede_the_text() -> None:
    """As with PEFT's prefix tuning, whose keys are the first ones."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(9, 1, heads, 8) for heads in (HEADS, 2, 2))
    layer = PackedAttention(SimpleNamespace(), 1, softmax_scale=0.3)  # type: ignore[arg-type]
    whole = layer(query, key, value, AttentionPlan([Group(0, (9,))], alibi=alibi("exact")))
    layer.prefixes = [lambda: (key[:4, 0], value[:4, 0])]  # type: ignore[list-item]
    found = layer(*(row[4:] for row in (query, key, value)), AttentionPlan([Group(0, (5,))], alibi=alibi("exact")))
    torch.testing.assert_close(found, whole[4:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bloom-heads", "falcon-alibi"])
def test_a_whole_row_and_transformers_padding(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention gives what blocks give, and transformers with padding on the left gives the same logits."""
    theirs = save(tmp_path / "hf", FAMILIES[name])
    convert(tmp_path / "hf", tmp_path / "base.nemo")
    base = load_base(tmp_path / "base.nemo")
    ids = torch.randint(3, 300, (1, 30))
    padded, mask = torch.nn.functional.pad(ids, (6, 0)), torch.nn.functional.pad(torch.ones_like(ids), (6, 0))
    with torch.no_grad():
        wanted = theirs(padded, attention_mask=mask).logits[:, 6:]
    torch.testing.assert_close(logits_of(base, ids)[..., : wanted.size(-1)], wanted, rtol=0, atol=1e-5)
    adapters = AdapterSet(base.model, base.shape, model_section("ia3"))
    randomize(adapters)
    samples = random_tree(1, 300, max_length=60)
    run: Callable[[], tuple[object, ...]] = lambda: gradients_of(base, adapters, samples, micro_batch_size=9)[:2]  # noqa: E731
    in_blocks = run()
    request.getfixturevalue("reference")
    calls = []
    kernel = flex_attention._kernel()
    monkeypatch.setattr(flex_attention, "_kernel", lambda: calls.append(1) or kernel)
    for module in base.model.modules():
        if isinstance(module, PackedAttention):
            module.uses_flex = True
    torch.testing.assert_close(run(), in_blocks, rtol=0, atol=1e-5)
    assert calls
