"""Adapter `.nemo` files: written and read again, NeMo's own read, others refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter, read_adapter, save_adapter
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.checkpoint.base import load_base
from nemo_launcher.errors import UserError
from nemo_launcher.models.attention import AttentionPlan, Group
from tests import oracle
from tests.engine import BOTTLENECK, adapted
from tests.shared import shared_path

pytestmark = pytest.mark.unit

ADAPTER: dict[str, Any] = {"adapter_tuning": BOTTLENECK}
IA3: dict[str, Any] = {"seed": 1}
FIRST = "model.language_model.encoder.layers.0"


@pytest.mark.parametrize("config", [ADAPTER, IA3], ids=["adapter", "ia3"])
def test_saved_adapter_is_loaded_again(config: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    _, adapters = adapted(tiny_base, config)
    save_adapter(tmp_path / "a.nemo", config, adapters.state_dict())
    loaded, read_config = load_adapter(tmp_path / "a.nemo", load_base(tiny_base))
    assert read_config == config
    torch.testing.assert_close(loaded.state_dict(), adapters.state_dict(), rtol=0, atol=0)
    assert not any(adapter.training for adapter in loaded.adapters.values())


@pytest.mark.parametrize("name", [name for name in oracle.GPT_CASES if "post" not in name])
def test_nemos_own_archive_gives_nemos_logits(name: str) -> None:
    case, base = oracle.load(name), oracle.load_frozen(name)
    adapters, config = load_adapter(shared_path(f"oracle/{name}.nemo"), base)
    assert config["task_templates"][0]["taskname"] == "toy"
    torch.testing.assert_close(adapters.state_dict(), dict(case["adapter_state_dict"]), rtol=0, atol=0)
    batch = case["batch"]
    plan = AttentionPlan([Group(0, (batch["input_ids"].size(1),))])
    with torch.no_grad():
        logits = base.model(batch["input_ids"], batch["position_ids"], plan)
    torch.testing.assert_close(logits, case["logits"], rtol=0, atol=1e-5)


def refused(config: dict[str, Any], state: Any, base_path: Path, folder: Path) -> str:
    """Save `state`, load it, and return the message; nothing of it may have been taken over."""
    save_adapter(folder / "a.nemo", config, state)
    base = load_base(base_path)
    adapters = AdapterSet(base.model, base.shape, config)
    before = {key: {n: t.clone() for n, t in tensors.items()} for key, tensors in adapters.state_dict().items()}
    with pytest.raises(UserError) as error:
        adapters.load_state_dict(read_adapter(folder / "a.nemo")[1], str(folder / "a.nemo"))
    torch.testing.assert_close(adapters.state_dict(), before, rtol=0, atol=0)
    assert str(folder / "a.nemo") in str(error.value)
    return str(error.value)


def test_other_adapter_dim_names_key_and_shapes(tiny_base: Path, tmp_path: Path) -> None:
    config = {"adapter_tuning": BOTTLENECK | {"adapter_dim": 6}}
    text = refused(ADAPTER, adapted(tiny_base, config)[1].state_dict(), tiny_base, tmp_path)
    assert f"{FIRST}:adapter_1" in text
    assert "(6, 32)" in text
    assert "(4, 32)" in text


def state_of(base: Path) -> AdapterState:
    return adapted(base, ADAPTER)[1].state_dict()


def test_absent_adapter_is_named(tiny_base: Path, tmp_path: Path) -> None:
    state = state_of(tiny_base)
    del state[f"{FIRST}:adapter_2"]
    assert f"{FIRST}:adapter_2: is absent" in refused(ADAPTER, state, tiny_base, tmp_path)


def test_adapter_without_a_place_is_named(tiny_base: Path, tmp_path: Path) -> None:
    state = state_of(tiny_base)
    state["model.language_model.encoder.layers.2:adapter_1"] = state[f"{FIRST}:adapter_1"]
    assert "layers.2:adapter_1: has no place" in refused(ADAPTER, state, tiny_base, tmp_path)


def test_absent_tensor_is_named(tiny_base: Path, tmp_path: Path) -> None:
    state = state_of(tiny_base)
    del state[f"{FIRST}:adapter_1"]["layer_norm.bias"]
    text = refused(ADAPTER, state, tiny_base, tmp_path)
    assert f"{FIRST}:adapter_1" in text
    assert "layer_norm.bias" in text


def test_adapter_of_the_other_method_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    text = refused(IA3, state_of(tiny_base), tiny_base, tmp_path)
    assert "key_infused_adapter: is absent" in text


@pytest.mark.parametrize(
    "state",
    [
        {f"{FIRST}.adapter_layer.adapter_1.linear_in.weight": torch.ones(4, 32)},  # NeMo 1.21's flat form
        pytest.param({f"{FIRST}:adapter_1": torch.ones(2)}, id="tensor_for_dict"),
        pytest.param({f"{FIRST}:adapter_1": {"linear_in.weight": 3}}, id="number_for_tensor"),
        pytest.param([torch.ones(1)], id="list"),
    ],
)
def test_weights_of_another_form_are_refused(state: Any, tiny_base: Path, tmp_path: Path) -> None:
    refused(ADAPTER, state, tiny_base, tmp_path)


def test_base_checkpoint_in_place_of_an_adapter_is_refused(tiny_base: Path) -> None:
    base = load_base(tiny_base)
    with pytest.raises(UserError, match=tiny_base.name):
        load_adapter(tiny_base, base)
