# SPDX-License-Identifier: Apache-2.0
"""Recomputed layers keep less memory; tests/conformance/methods compares their gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.families.base import load_base
from nemo_launcher.families.gpt.model import FrozenGPT
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.frozen_layer import recompute_layers

pytestmark = pytest.mark.unit


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
    hidden, plan = model.embedding(tokens, tokens), AttentionPlan([Group(0, (12,))], rotations=model.rotations(tokens))
    with saved_tensors_hooks(count, lambda tensor: tensor):
        output = model.decoder(hidden, plan)
    assert output.requires_grad
    return sum(stores.values())
