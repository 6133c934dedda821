# SPDX-License-Identifier: Apache-2.0
"""Compiled norms and feed-forward activations: the same loss and gradients, and no more saved activations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nemo_launcher.families.layer_shape import ACTIVATIONS
from nemo_launcher.megatron.compilation import compiled, set_torch_compile
from nemo_launcher.megatron.frozen_mlp import _Activated, _activated
from tests.cpp import needs_cpp
from tests.engine import adapted, gradients_of, random_tree
from tests.megatron.test_frozen_parts import kept

pytestmark = [pytest.mark.unit, needs_cpp]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def none_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def counts() -> dict[str, int]:
    """Return how often torch.compile has compiled and fallen back."""
    from torch._dynamo.utils import counters

    return {"made": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}


def test_loss_and_gradients_are_the_same(tiny_base: Path) -> None:
    base, adapters = adapted(tiny_base, {})
    batches = [random_tree(seed, 300, max_length=100) for seed in range(3)]  # rows of different lengths
    wanted = [gradients_of(base, adapters, samples, micro_batch_size=4)[:2] for samples in batches]
    set_torch_compile(base.model, True)
    before = counts()
    for samples, (loss, gradients) in zip(batches, wanted, strict=True):
        found, same, _ = gradients_of(base, adapters, samples, micro_batch_size=4)
        assert found == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6)
    # For each function, one for the first length and one for all others; norms have more, for calls without gradients.
    assert 4 <= counts()["made"] - before["made"] <= 8
    assert counts()["breaks"] == before["breaks"]


@pytest.mark.parametrize("name", ["gelu", "squared-relu", "geglu"])
def test_an_activation_with_bias_and_vector_keeps_what_it_keeps_otherwise(name: str) -> None:
    activation, gated = ACTIVATIONS[name]
    width = 24 if gated else 48
    generator = torch.Generator().manual_seed(3)
    projected, bias = (torch.randn(shape, generator=generator) for shape in ((9, 1, 48), (48,)))
    scalers = torch.randn(width, generator=generator).requires_grad_()
    inputs = (projected.requires_grad_(), bias, scalers, activation, gated)
    function = compiled(_activated, CPU)
    wanted, found = _Activated.apply(*inputs), function(*inputs)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn(found.shape, generator=generator)
    for one, other in zip(*(torch.autograd.grad(y, inputs[0::2][:2], grad) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    vectors = (bias.nbytes if gated else 0) + bias.nbytes + scalers.nbytes
    own = kept(lambda: _Activated.apply(*inputs))
    assert own <= kept(lambda: function(*inputs)) <= own + vectors
