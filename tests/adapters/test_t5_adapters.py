# SPDX-License-Identifier: Apache-2.0
"""Adapters in T5: their positions, their names, and NVIDIA's archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter, read_adapter, save_adapter
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests import t5
from tests.shared import shared_path

pytestmark = pytest.mark.unit

BOTTLENECK = {"adapter_tuning": t5.BOTTLENECK}
IA3: dict[str, Any] = {}


@pytest.mark.parametrize("name", t5.CASES)
def test_nemos_parameters_are_trained_and_no_others(name: str) -> None:
    case, base, adapters = t5.adapted(name)
    trained = {t5.nemo_name(key) for key, value in base.model.named_parameters() if value.requires_grad}
    assert trained == set(case["trainable"])
    assert list(adapters.adapters) == list(case["adapter_state_dict"])
    assert adapters.num_parameters() == sum(tensor.numel() for tensor in case["grads"].values())


@pytest.mark.parametrize("name", t5.CASES)
def test_nvidias_archives_go_through_unchanged(name: str, tmp_path: Path) -> None:
    base, path = t5.frozen_base(name), shared_path(f"oracle/{name}.nemo")
    adapters, config = load_adapter(path, base)
    save_adapter(tmp_path / "again.nemo", config, adapters.state_dict())
    again_config, again = read_adapter(tmp_path / "again.nemo")
    wanted_config, wanted = read_adapter(path)
    assert again_config == wanted_config
    assert list(again) == list(wanted)
    torch.testing.assert_close(again, {key: dict(value) for key, value in wanted.items()}, rtol=0, atol=0)


def places_of(config: dict[str, Any], folder: Path) -> list[str]:
    """Return where the adapters of a T5 of two encoder and three decoder layers lie."""
    base = load_base(t5.tiny_base(folder / "base.nemo"))
    return list(AdapterSet(base.model, base.shape, config).adapters)


def test_bottlenecks_lie_behind_attention_and_feed_forward(tmp_path: Path) -> None:
    places = places_of(BOTTLENECK, tmp_path)
    assert len(places) == 2 * 2 + 3 * 2
    assert not any("inter_attention" in key for key in places)


def test_ia3_lies_in_cross_attention_as_well(tmp_path: Path) -> None:
    places = places_of(IA3, tmp_path)
    assert len(places) == 2 * 3 + 3 * 5
    assert sum("inter_attention" in key for key in places) == 6


def test_ia3_widths_follow_kv_channels(tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "base.nemo"))
    state = AdapterSet(base.model, base.shape, IA3).state_dict()
    widths = {key.rpartition(":")[2]: tensors["scalers"].numel() for key, tensors in state.items()}
    assert widths == {"key_infused_adapter": 18, "value_infused_adapter": 18, "mlp_infused_adapter": 40}


def test_an_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "base.nemo"))
    state = {"model.language_model.encoder.layers.0:adapter_1": {"linear_in.weight": torch.zeros(4, 24)}}
    save_adapter(tmp_path / "gpt.nemo", BOTTLENECK, state)
    with pytest.raises(UserError, match="is an adapter for a GPT model, the base is a T5 model"):
        load_adapter(tmp_path / "gpt.nemo", base)
