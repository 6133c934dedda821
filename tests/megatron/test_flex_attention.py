# SPDX-License-Identifier: Apache-2.0
"""FlexAttention over whole rows: masks of trees, and the same loss and gradients as the CPU's implementation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from nemo_launcher.data.batching import Collate
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.t5.packing import pack
from nemo_launcher.families.t5.samples import T5Sample
from nemo_launcher.megatron import flex_attention
from nemo_launcher.megatron.alibi import BIASES, Alibi
from nemo_launcher.megatron.attention import PackedAttention, set_attention_backend
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.flex_check import flex_error
from nemo_launcher.training.step import forward_backward
from tests import t5
from tests.engine import adapted, gradients_of, random_tree
from tests.megatron.test_block_attention import random_group

pytestmark = pytest.mark.unit


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use FlexAttention's reference implementation, whose gradients torch blocks on a CPU although they work."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex_attention, "_kernel", lambda: torch_flex.flex_attention)


def uses_flex(model: torch.nn.Module) -> list[bool]:
    return [module.uses_flex for module in model.modules() if isinstance(module, PackedAttention)]


@pytest.mark.parametrize("seed", range(20))
def test_a_token_is_seen_by_itself_and_what_goes_on_from_it(seed: int) -> None:
    group = random_group(seed)
    owner = [segment for segment, length in enumerate(group.lengths) for _ in range(length)]
    until = group.visible_until().tolist()
    generator = random.Random(seed)
    for _ in range(300):
        query, key = (generator.randrange(len(owner)) for _ in range(2))
        segment = owner[query]
        while segment not in (-1, owner[key]):  # from the query's segment up the tree
            segment = group.parents[segment]
        assert (key <= query < until[key]) == (segment >= 0 and key <= query)


def test_groups_of_a_row_do_not_see_each_other() -> None:
    first, second = Group(0, (3, 2, 2), (-1, 0, 0)), Group(7, (4,))
    mask = AttentionPlan([first, second]).row_mask(torch.device("cpu"))
    seen = torch.tensor([[bool(mask.mask_mod(*map(torch.tensor, (0, 0, q, k)))) for k in range(11)] for q in range(11)])
    assert seen[:7, :7].equal(AttentionPlan([first]).group_mask(0, torch.device("cpu")))
    assert seen[7:, 7:].equal(torch.ones(4, 4).tril().bool())
    assert not seen[7:, :7].any()
    assert not seen[:7, 7:].any()


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradients_are_those_of_blocks(tiny_base: Path, seed: int) -> None:
    base, adapters = adapted(tiny_base, {})
    samples = random_tree(seed, 300, max_length=100)
    wanted, gradients, _ = gradients_of(base, adapters, samples, micro_batch_size=9)
    for module in base.model.modules():
        if isinstance(module, PackedAttention):
            module.uses_flex = True
    found, same, _ = gradients_of(base, adapters, samples, micro_batch_size=9)
    assert found == pytest.approx(wanted, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "flex"])
def test_a_cpu_keeps_its_own_way(tiny_base: Path, backend: str) -> None:
    base, _ = adapted(tiny_base, {})
    if base.device.type != "cpu":
        pytest.skip("this machine has a GPU")
    set_attention_backend(base.model, backend)
    assert uses_flex(base.model) == [False] * len(base.model.decoder.layers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_the_mask(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    group = random_group(1)
    shapes = ((group.stop, 1, heads, 64) for heads in (6, 2, 2))
    tensors = [torch.randn(shape, generator=generator).to("cuda", dtype).requires_grad_() for shape in shapes]
    plan, device = AttentionPlan([group]), torch.device("cuda")
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in tensors)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=plan.group_mask(0, device), scale=0.3, enable_gqa=True
    ).permute(2, 0, 1, 3)
    found = flex_attention.row_attention(*tensors, mask=plan.row_mask(device), scale=0.3)
    grad = torch.randn_like(wanted)
    mine, theirs = ((output, *torch.autograd.grad(output, tensors, grad)) for output in (found, wanted))
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).norm() < {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype] * other.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs a GPU")
@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_adds_the_biases_of_alibi(dtype: torch.dtype, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    group, device = random_group(1), torch.device("cuda")
    alibi = Alibi.of_rank(kind, 6, softmax_scale=0.3, rank=0, ranks=1, device=device)
    shapes = ((group.stop, 1, heads, 64) for heads in (6, 6, 6))
    tensors = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    plan = AttentionPlan([group], alibi=alibi)
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in tensors)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=plan.group_bias(0, q), scale=0.3)
    change = flex_attention.biased_by_alibi(alibi, plan.row_depths(device))
    found = flex_attention.row_attention(*tensors, mask=plan.row_mask(device), scale=0.3, change=change)
    wanted = wanted.permute(2, 0, 1, 3)
    grad = torch.randn_like(wanted)
    mine, theirs = ((output, *torch.autograd.grad(output, tensors, grad)) for output in (found, wanted))
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).norm() < {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype] * other.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs a GPU")
def test_short_rows_without_gradients_have_a_kernel() -> None:
    """torch would choose its kernel for decoding, which does not have this mask."""
    plan, device = AttentionPlan([Group(0, (20, 7, 9), (-1, 0, 0))]), torch.device("cuda")
    tensors = [torch.randn(36, 1, heads, 64, device=device, dtype=torch.bfloat16) for heads in (6, 2, 2)]
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in tensors)
    with torch.no_grad():
        found = flex_attention.row_attention(*tensors, mask=plan.row_mask(device), scale=0.3)
        wanted = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=plan.group_mask(0, device), scale=0.3, enable_gqa=True
        ).permute(2, 0, 1, 3)
    torch.testing.assert_close(found, wanted, rtol=3e-2, atol=3e-2)


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("variant", ["", "_fused", "_hft5"])
def test_a_t5_computes_in_one_kernel_what_it_computes_by_sample(variant: str) -> None:
    _, base, adapters = t5.adapted(f"ia3_t5{variant}")
    generator = random.Random(3)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(3, 60) for _ in range(count)]

    samples = [T5Sample(tokens(generator.randint(2, 12)), tokens(generator.randint(3, 7)), {}, "") for _ in range(5)]
    results = []
    for uses in (False, True):
        for module in base.model.modules():
            if isinstance(module, PackedAttention):
                module.uses_flex = uses
        for parameter in adapters.parameters():
            parameter.grad = None
        batch = Collate(Layout.one_after_the_other(5), False, pack=pack)(samples)
        loss = forward_backward(base.model, batch, backward=True)
        results.append([loss, *(parameter.grad for parameter in adapters.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("reference")
def test_biases_are_tried_before_they_are_used() -> None:
    assert flex_error(torch.device("cpu"), torch.float32) is None


@pytest.mark.usefixtures("reference")
def test_a_kernel_that_forgets_biases_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*row: torch.Tensor, score_mod: object, **options: object) -> object:
        return torch_flex.flex_attention(*row, score_mod=None, **options)

    monkeypatch.setattr(flex_attention, "_kernel", lambda: forgetful)
    assert flex_error(torch.device("cpu"), torch.float32) == "FlexAttention computes other values than torch"


def test_a_kernel_that_does_not_compile_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no valid triton configs\nmore")

    monkeypatch.setattr(flex_attention, "_kernel", broken)
    assert flex_error(torch.device("cpu"), torch.float32) == "no valid triton configs"
