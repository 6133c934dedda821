# SPDX-License-Identifier: Apache-2.0
"""Attention of a row that continues others, compared with torch's under the complete mask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nemo_launcher.megatron.attention import PackedAttention
from nemo_launcher.megatron.attention_path import AttentionPath
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group

pytestmark = pytest.mark.unit

GROUPS = {
    "one segment": Group(0, (7,), (-1,), 25),
    "longer than a block": Group(0, (90,), (-1,), 130),
    "siblings": Group(0, (3, 1, 9, 70, 2), (-1,) * 5, 25),
    "trees": Group(0, (4, 3, 2, 5, 8), (-1, 0, 1, 0, -1), 25),
}


def attention() -> PackedAttention:
    return PackedAttention(SimpleNamespace(), 3, softmax_scale=0.3)  # type: ignore[arg-type]


def random_row(tokens: int, heads: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 1, heads, 8, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("name", GROUPS)
def test_output_and_gradients_are_torchs(name: str, in_blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    group = GROUPS[name]
    query, key, value = (random_row(group.stop, heads, seed) for seed, heads in enumerate((6, 2, 2)))
    above = [(random_row(n, 2, n), random_row(n, 2, n + 1)) for n in (5, group.cached - 5)]
    path = AttentionPath([{3: row} for row in above])
    plan = AttentionPlan([group], path=path)
    inputs = [query, key, value, *(tensor for row in above for tensor in row)]
    layer = attention()
    if not in_blocks:
        monkeypatch.setattr(layer, "_uses_blocks", lambda _: False)
    found = layer(query, key, value, plan)
    assert path.own[3][0] is key
    assert path.own[3][1] is value

    whole = [torch.cat([*rows, own]) for rows, own in zip(zip(*above, strict=True), (key, value), strict=True)]
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, *whole))
    mask = plan.group_mask(0, torch.device("cpu"))
    assert mask.shape == (group.stop, group.cached + group.stop)
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    wanted = wanted.permute(2, 0, 1, 3).flatten(2)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    gradients = (torch.autograd.grad(output, inputs, grad) for output in (found, wanted))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_learned_prefixes_come_before_the_path() -> None:
    """An adapter's keys and values are visible to all tokens of all rows."""
    group, keys = Group(0, (4, 3), (-1, -1), 6), random_row(2, 2, 9)
    query, key, value = (random_row(group.stop, heads, seed) for seed, heads in enumerate((6, 2, 2)))
    above = (random_row(6, 2, 3), random_row(6, 2, 4))
    layer, plan = attention(), AttentionPlan([group], path=AttentionPath([{3: above}]))
    layer.prefixes = [lambda: (keys[:, 0], keys[:, 0])]  # type: ignore[list-item]
    found = layer(query, key, value, plan)
    q, k, v = (
        x.permute(1, 2, 0, 3) for x in (query, torch.cat([keys, above[0], key]), torch.cat([keys, above[1], value]))
    )
    mask = torch.nn.functional.pad(plan.group_mask(0, torch.device("cpu")), (2, 0), value=True)
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, wanted.permute(2, 0, 1, 3).flatten(2))


def test_a_second_call_stores_nothing() -> None:
    """A recomputed layer must not replace the tensors through which gradients arrive."""
    path: Any = AttentionPath()
    first, second = ((random_row(4, 2, seed), random_row(4, 2, seed)) for seed in (1, 2))
    path.extend(1, *first)
    assert path.extend(1, *second) == second
    assert path.own == {1: first}
