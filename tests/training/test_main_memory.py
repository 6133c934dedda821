# SPDX-License-Identifier: Apache-2.0
"""What ranks exchange and files hold is in main memory first: elsewhere, a GPU's tensor is rebuilt on that GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemo_launcher.megatron import parallel
from nemo_launcher.training.optimizer_state import whole_optimizer_state
from tests.engine import adapted
from tests.methods import model_section

pytestmark = pytest.mark.unit


def tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)


def test_weights_and_optimizer_state_are_copied_before_ranks_exchange_them(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, adapters = adapted(tiny_base, model_section("parallel_adapter"))
    optimizer = torch.optim.Adam(adapters.parameters())
    for parameter in adapters.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    copies: list[Tensor] = []
    exchanged: list[Tensor] = []

    def cpu(tensor: Tensor) -> Tensor:
        copies.append(tensor.clone())
        return copies[-1]

    def merge(state: Mapping[str, object], group: object) -> dict[str, object]:
        exchanged.extend(tensors_in(state))
        return dict(state)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    monkeypatch.setattr(parallel, "_merged", merge)
    saved = [adapters.state_dict(), whole_optimizer_state(adapters, optimizer)["state"]]
    of_copies = {id(copy) for copy in copies}
    count = len(adapters.parameters())
    assert len(exchanged) == 4 * count  # weights, both moments and the number of steps
    assert all(id(tensor) in of_copies for tensor in [*exchanged, *tensors_in(dict(enumerate(saved)))])
