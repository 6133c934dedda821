# SPDX-License-Identifier: Apache-2.0
"""Block attention compared with torch's attention under the complete mask, in random trees."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.block_attention import attention_in_blocks, block_length

pytestmark = pytest.mark.unit

BLOCK = block_length(torch.float64)


def random_group(seed: int) -> Group:
    """Return a group of short and long segments, in a random tree or with all segments at its root."""
    generator = random.Random(seed)
    lengths, parents = [generator.choice([5, BLOCK - 1, BLOCK, BLOCK + 1, 200])], [-1]
    longest = generator.choice([5, 40, 150])
    for _ in range(generator.randint(0, 12)):
        last = len(parents) - 1  # the new segment continues the last one or one of its ancestors
        while parents[last] >= 0 and generator.random() < 0.6:
            last = parents[last]
        lengths.append(generator.randint(1, longest))
        parents.append(last)
    return Group(0, tuple(lengths), tuple(parents))


def random_tensors(length: int, seed: int, keys: int = 2) -> list[Tensor]:
    """Return query, key and value of a row in fp64; three heads share a key."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((length, heads, 8) for heads in (3 * keys, keys, keys))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("seed", range(40))
def test_output_and_gradients_are_torchs(seed: int) -> None:
    group = random_group(seed)
    plan, tensors = AttentionPlan([group]), random_tensors(group.stop, seed)
    heads_first = (tensor.permute(1, 0, 2)[None] for tensor in tensors)
    mask = plan.group_mask(0, torch.device("cpu"))
    wanted = scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=0.3, enable_gqa=True)[0].permute(1, 0, 2)
    found = attention_in_blocks(*tensors, blocks=plan.blocks(0, 1, tensors[0]), scale=0.3)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    gradients = (torch.autograd.grad(output, tensors, grad) for output in (found, wanted))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("keys", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_a_row_of_groups_is_each_of_them_alone(seed: int, keys: int) -> None:
    groups: list[Group] = []
    for number in range(3):
        group = random_group(100 * seed + number)
        groups.append(Group(groups[-1].stop if groups else 0, group.lengths, group.parents))
    plan, tensors = AttentionPlan(groups), random_tensors(groups[-1].stop, seed, keys)
    row = attention_in_blocks(*tensors, blocks=plan.blocks(0, 3, tensors[0]), scale=0.3)
    parts = []
    for number, group in enumerate(groups):
        own = [tensor[group.start : group.stop] for tensor in tensors]
        parts.append(attention_in_blocks(*own, blocks=plan.blocks(number, number + 1, own[0]), scale=0.3))
    alone = torch.cat(parts)
    torch.testing.assert_close(row, alone)
    grad = torch.randn_like(alone)
    gradients = (torch.autograd.grad(output, tensors, grad) for output in (row, alone))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("seed", range(40))
def test_blocks_hold_each_token_once_and_meet_few_hidden_keys(seed: int) -> None:
    group = random_group(seed)
    blocks = AttentionPlan([group]).blocks(0, 1, torch.zeros(1, dtype=torch.float64))
    assert [token for block in blocks for token in range(block.start, block.stop)] == list(range(group.stop))
    for block in blocks:
        assert block.stop - block.start <= BLOCK
        hidden = (block.bias == float("-inf")).sum(-1)
        assert int(hidden.max()) < BLOCK
