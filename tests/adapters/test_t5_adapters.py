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

CONFIGS: dict[str, dict[str, Any]] = {
    "parallel_adapter": {"adapter_tuning": t5.BOTTLENECK},
    "linear_adapter": {"adapter_tuning": t5.BOTTLENECK | {"type": "linear_adapter"}},
    "ia3": {},
}


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


@pytest.mark.parametrize(("method", "encoder", "decoder"), [("parallel_adapter", 2, 2), ("ia3", 3, 5)])
def test_every_layer_has_its_adapters(method: str, encoder: int, decoder: int, tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "base.nemo"))
    adapters = AdapterSet(base.model, base.shape, CONFIGS[method])
    assert len(adapters.adapters) == 2 * encoder + 3 * decoder
    crossing = [key for key in adapters.adapters if "inter_attention" in key]
    assert len(crossing) == (6 if method == "ia3" else 0)


def test_ia3_widths_follow_kv_channels(tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "base.nemo"))
    state = AdapterSet(base.model, base.shape, CONFIGS["ia3"]).state_dict()
    widths = {key.rpartition(":")[2]: tensors["scalers"].numel() for key, tensors in state.items()}
    assert widths == {"key_infused_adapter": 18, "value_infused_adapter": 18, "mlp_infused_adapter": 40}


@pytest.mark.parametrize("method", CONFIGS)
def test_every_adapter_changes_the_model_and_gets_a_gradient(method: str, tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "base.nemo"))
    samples = t5.random_samples(3)
    adapters = AdapterSet(base.model, base.shape, CONFIGS[method])
    before = t5.logits_of(base, samples)
    for adapter in adapters.adapters.values():
        last = list(adapter.parameters())[-1]
        kept = last.detach().clone()
        with torch.no_grad():
            last.add_(0.3)
        assert not torch.equal(t5.logits_of(base, samples), before)
        with torch.no_grad():
            last.copy_(kept)
    _, gradients = t5.loss_and_gradients(base, samples)
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("method", ["ia3", "linear_adapter"])
def test_fresh_adapters_change_nothing(method: str, tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "base.nemo"))
    samples = t5.random_samples(3)
    before = t5.logits_of(base, samples)
    AdapterSet(base.model, base.shape, CONFIGS[method])
    torch.testing.assert_close(t5.logits_of(base, samples), before, rtol=0, atol=0)


def test_an_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "base.nemo"))
    state = {"model.language_model.encoder.layers.0:adapter_1": {"linear_in.weight": torch.zeros(4, 24)}}
    save_adapter(tmp_path / "gpt.nemo", CONFIGS["parallel_adapter"], state)
    with pytest.raises(UserError, match="is an adapter for a GPT model, the base is a T5 model"):
        load_adapter(tmp_path / "gpt.nemo", base)
