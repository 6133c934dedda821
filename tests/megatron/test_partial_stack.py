# SPDX-License-Identifier: Apache-2.0
"""A forward pass from stored hidden states on has the loss and gradients of a whole one, bit by bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.hidden_file import HiddenRows
from nemo_launcher.data.samples import Batch
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.forward import token_losses
from tests import t5
from tests.engine import random_tree, randomize, tiny_gpt_nemo
from tests.hidden import first_layer, upper_adapters
from tests.methods import METHODS

pytestmark = pytest.mark.unit


class InMemory(HiddenRows):
    """Hidden states of a whole row that lie in memory."""

    def read(self, device: torch.device) -> Tensor:
        return self.index.to(device)


def gradients_of(base: Base, batch: Batch, adapters: AdapterSet) -> tuple[Tensor, list[Tensor]]:
    loss = token_losses(base.model, batch).sum()
    return loss.detach(), list(torch.autograd.grad(loss, adapters.parameters()))


def check(base: Base, batch: Any, adapters: AdapterSet, layer: int) -> None:
    randomize(adapters)
    hidden = base.family.hidden
    assert first_layer(base) == layer
    whole = gradients_of(base, batch, adapters)
    with torch.no_grad():
        stored = hidden.compute(base.model, batch, layer)
    assert all(gradient.abs().sum() > 0 for gradient in whole[1])

    ran: list[int] = []
    stack = getattr(base.model, hidden.stack)
    for number, below in enumerate(stack.layers):
        below.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    started = gradients_of(base, hidden.attach(batch, InMemory(Path(), layer, stored)), adapters)

    assert ran == list(range(layer, len(stack.layers)))
    torch.testing.assert_close(started, whole, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [1, 3])
def test_a_gpt_starts_at_a_layer(layer: int, tmp_path: Path) -> None:
    base = load_base(tiny_gpt_nemo(tmp_path / "base.nemo", num_hidden_layers=4))
    adapters = upper_adapters(base, METHODS[0], {"decoder": layer})
    batch = base.family.pack(random_tree(1, 300), share_prefix=True)

    check(base, batch, adapters, layer)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_t5_starts_at_an_encoder_layer(layer: int, tmp_path: Path) -> None:
    """Without adapters in its encoder, of two layers, it starts at the encoder's output."""
    base = load_base(t5.tiny_base(tmp_path / "base.nemo"))
    adapters = upper_adapters(base, METHODS[0], {"encoder": layer, "decoder": 1})

    check(base, base.family.pack(t5.random_samples(5)), adapters, layer)


def test_stored_states_move_with_their_batch(tmp_path: Path) -> None:
    base = load_base(tiny_gpt_nemo(tmp_path / "base.nemo"))
    batch: Any = base.family.pack(random_tree(1, 300), share_prefix=True)
    rows = InMemory(Path(), 1, torch.zeros(3))

    assert base.family.hidden.attach(batch, rows).to(base.device).hidden is rows
    assert dataclasses.replace(batch, hidden=rows).num_computed_tokens == batch.num_computed_tokens
