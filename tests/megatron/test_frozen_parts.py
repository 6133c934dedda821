# SPDX-License-Identifier: Apache-2.0
"""Forward and backward passes of frozen layers compared with torch's, and the memory that they save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from nemo_launcher.families.layer_shape import ACTIVATIONS
from nemo_launcher.megatron.frozen_mlp import _Activated, _activated_backward
from nemo_launcher.megatron.frozen_norm import FrozenRMSNorm
from nemo_launcher.megatron.recompute import recomputed
from nemo_launcher.megatron.rotary import Rotary, Rotation
from tests.engine import BOTTLENECK, adapted

pytestmark = pytest.mark.unit


def kept(run: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd saves for the backward pass, with each storage counted once."""
    stores: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        stores[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        run()
    return sum(stores.values())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.02)]
)
def test_rms_norm_is_torchs(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    norm = FrozenRMSNorm(24, eps=1e-5).to(dtype).requires_grad_(False)
    norm.weight.uniform_(0.5, 1.5, generator=generator)
    x = (3 * torch.randn(7, 1, 24, generator=generator)).to(dtype).requires_grad_()
    grad = torch.randn(7, 1, 24, generator=generator).to(dtype)
    wanted = F.rms_norm(x, (24,), norm.weight, 1e-5)
    torch.testing.assert_close(norm(x), wanted, rtol=tolerance, atol=tolerance)
    found, right = (torch.autograd.grad(y, x, grad)[0] for y in (norm(x), wanted))
    torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance)


def test_rms_norm_keeps_its_input_and_a_number_a_token() -> None:
    norm, x = FrozenRMSNorm(64, eps=1e-5).requires_grad_(False), torch.randn(10, 1, 64, requires_grad=True)
    assert kept(lambda: norm(x)) == (10 * 64 + 64 + 10) * 4


def test_recomputed_gives_the_same_gradients_and_keeps_its_input_alone() -> None:
    x, w = torch.randn(5, 8, requires_grad=True), torch.randn(8, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return F.gelu(x).sigmoid() * w

    assert kept(lambda: recomputed(function, x)) == 5 * 8 * 4
    assert kept(lambda: function(x)) > 2 * 5 * 8 * 4
    found, right = (torch.autograd.grad(y.sin().sum(), (x, w)) for y in (recomputed(function, x), function(x)))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)
    fixed = x.detach()
    (alone,) = torch.autograd.grad(recomputed(function, fixed).sum(), w)  # one input needs no gradient
    torch.testing.assert_close(alone, (F.gelu(fixed).sigmoid()).sum(0))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_gradients_are_autograds(name: str, with_bias: bool, scaled: bool) -> None:
    generator = torch.Generator().manual_seed(len(name))
    activation, gated = ACTIVATIONS[name]
    projected = torch.randn(7, 1, 12, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(12, generator=generator, dtype=torch.float64) if with_bias else None
    width = 6 if gated else 12
    scalers = torch.randn(width, generator=generator, dtype=torch.float64).requires_grad_() if scaled else None
    grad = torch.randn(7, 1, width, generator=generator, dtype=torch.float64)
    both = projected if bias is None else projected + bias
    plain = activation(both[..., :width]) * (both[..., width:] if gated else 1) * (1 if scalers is None else scalers)
    found = _Activated.apply(projected, bias, scalers, activation, gated)
    torch.testing.assert_close(found, plain)
    inputs = [projected] if scalers is None else [projected, scalers]
    for one, other in zip(*(torch.autograd.grad(y, inputs, grad) for y in (found, plain)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.03)]
)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_rotation_is_megatrons(share: float, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(2)
    rotary = Rotary(share, 10000.0, 1.0, None)
    width = int(16 * share)
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = rotary.angles(torch.randint(0, 900, (1, 9), generator=generator), frequencies)
    x = torch.randn(9, 1, 3, 16, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(9, 1, 3, 16, generator=generator).to(dtype)
    found, wanted = Rotation.from_angles(angles, dtype).apply_rotary(x), _apply_rotary_pos_emb_bshd(x, angles)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    turned, right = (torch.autograd.grad(y, x, grad)[0] for y in (found, wanted))
    torch.testing.assert_close(turned, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("adapter_dim", [None, 4], ids=["ia3", "bottleneck"])
def test_a_feed_forward_keeps_the_output_of_its_first_projection(adapter_dim: int | None, tiny_base: Path) -> None:
    block = {} if adapter_dim is None else {"adapter_tuning": BOTTLENECK | {"adapter_dim": adapter_dim}}
    base, _ = adapted(tiny_base, block)
    layer = base.model.decoder.layers[0]
    config = base.model.config
    x = torch.randn(10, 1, config.hidden_size, requires_grad=True)
    limit = projected = 2 * config.ffn_hidden_size * 10 * 4  # gate and value
    if adapter_dim is not None:
        limit += (3 * config.hidden_size + 3 * adapter_dim + 2) * 10 * 4 + 8 * config.hidden_size
        limit += 2 * config.hidden_size * adapter_dim * 4  # its weights
    assert projected <= kept(lambda: layer.mlp(x)[0]) <= limit


def test_gradients_of_scalers_are_summed_in_fp32() -> None:
    """In bf16 the sum over thousands of tokens would lose most of its digits."""
    gate = torch.full((4096, 1, 2), 3.0, dtype=torch.bfloat16)
    scalers = torch.ones(2, dtype=torch.bfloat16)
    product = _activated_backward(F.silu, gate, None, scalers, torch.ones_like(gate), (torch.empty_like(gate), None))
    assert product is not None
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, torch.full((2,), 4096 * float(F.silu(gate)[0, 0, 0])))
