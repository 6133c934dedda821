# SPDX-License-Identifier: Apache-2.0
"""Recomputed layers: the same gradients, also with dropout, in less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate
from nemo_launcher.families.base import load_base
from nemo_launcher.families.gpt.model import FrozenGPT
from nemo_launcher.megatron.attention import AttentionPlan, Group
from nemo_launcher.megatron.frozen_layer import recompute_layers
from nemo_launcher.training.step import forward_backward
from nemo_launcher.training.workers import Workers
from tests import t5
from tests.engine import BOTTLENECK, named_gradients, random_tree, randomize

pytestmark = pytest.mark.unit

CONFIGS = {"ia3": {}, "adapter": {"adapter_tuning": BOTTLENECK | {"adapter_dropout": 0.3}}}


@pytest.mark.parametrize("family", ["gpt", "t5"])
@pytest.mark.parametrize("method", CONFIGS)
def test_recomputation_changes_no_gradient(method: str, family: str, tiny_base: Path, tmp_path: Path) -> None:
    path = tiny_base if family == "gpt" else t5.tiny_base(tmp_path / "t5.nemo")
    base = load_base(path)
    adapters = AdapterSet(base.model, base.shape, CONFIGS[method])
    randomize(adapters, scale=0.1)
    adapters.train()
    samples = random_tree(1, base.shape.vocab_size, count=6) if family == "gpt" else t5.random_samples(6)
    batch = Collate(3, True, pack=base.family.pack)(samples)
    found: dict[str, tuple[float, dict[str, Tensor]]] = {}
    for granularity in ("none", "full"):
        for stack in base.family.stacks(base.model, base.shape):
            recompute_layers(stack.layers, granularity, "uniform", None)
        for parameter in adapters.parameters():
            parameter.grad = None
        loss = forward_backward(base.model, batch, backward=True, seed=3, workers=Workers(2, 6))
        found[granularity] = float(loss), named_gradients(adapters)
    (loss, wanted), (again, gradients) = found["none"], found["full"]
    assert again == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_layer_keeps_its_input_alone(tiny_base: Path) -> None:
    base = load_base(tiny_base)
    AdapterSet(base.model, base.shape, {})
    layers = base.model.decoder.layers
    kept = {}
    for granularity in (None, "selective", "full"):
        recompute_layers(layers, granularity, "uniform" if granularity == "full" else None, None)
        kept[granularity] = _kept(base.model)
    assert kept["selective"] == kept[None]
    hidden = 12 * base.model.config.hidden_size * 4
    assert kept["full"] < len(layers) * hidden + 2 * hidden  # plus the final norm's input
    assert kept[None] > 5 * len(layers) * hidden


def test_block_recomputes_the_first_layers(tiny_base: Path) -> None:
    layers = load_base(tiny_base).model.decoder.layers
    recompute_layers(layers, "full", "block", 1)
    assert [layer.recomputes for layer in layers] == [True] + [False] * (len(layers) - 1)
    recompute_layers(layers, None, None, None)
    assert not any(layer.recomputes for layer in layers)


def _kept(model: FrozenGPT) -> int:
    """Return the bytes that layers save for the backward pass of 12 tokens, with each storage counted once."""
    stores: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        stores[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.arange(12)[None]
    hidden, plan = model.embedding(tokens, tokens), AttentionPlan([Group(0, (12,))], rotation=model._rotation(tokens))
    with saved_tensors_hooks(count, lambda tensor: tensor):
        output = model.decoder(hidden, plan)
    assert output.requires_grad
    return sum(stores.values())
