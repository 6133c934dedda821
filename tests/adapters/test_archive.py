# SPDX-License-Identifier: Apache-2.0
"""Adapter `.nemo` files: writing and reading, NeMo's own files, and refused files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter, new_adapters, read_adapter, save_adapter
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.adapters.methods.bottleneck.config import ParallelAdapterSettings
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from tests import oracle
from tests.checkpoint.test_base import rewritten
from tests.engine import BOTTLENECK, adapted
from tests.shared import shared_path

pytestmark = pytest.mark.unit

ADAPTER: dict[str, Any] = {"adapter_tuning": BOTTLENECK}
IA3: dict[str, Any] = {"seed": 1}
FIRST = "model.language_model.encoder.layers.0"


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
    """Save `state`, load it, and return the error message; nothing may have been loaded."""
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


# --- numbers and settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(value: float, tiny_base: Path, tmp_path: Path) -> None:
    _base, adapters = adapted(tiny_base, ADAPTER)
    state = adapters.state_dict()
    state[f"{FIRST}:adapter_1"]["linear_in.weight"][1, 2] = value
    save_adapter(tmp_path / "a.nemo", ADAPTER, state)
    for use in (
        lambda: load_adapter(tmp_path / "a.nemo", load_base(tiny_base)),
        lambda: new_adapters(load_base(tiny_base), ADAPTER | {"restore_path": str(tmp_path / "a.nemo")}),
    ):
        with pytest.raises(UserError, match=r"adapter_1: linear_in\.weight: 1 of 128 values are NaN or infinite"):
            use()


def test_an_adapter_beyond_float32_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    state = {
        key: {n: t.double() * 0 + 1e300 for n, t in tensors.items()} for key, tensors in state_of(tiny_base).items()
    }
    save_adapter(tmp_path / "a.nemo", ADAPTER, state)
    with pytest.raises(UserError, match="values are NaN or infinite"):
        load_adapter(tmp_path / "a.nemo", load_base(tiny_base))


@pytest.mark.parametrize("number", ["01", "\u0661"])
def test_a_layer_has_one_name(number: str, tiny_base: Path, tmp_path: Path) -> None:
    """Python's int() also accepts 01 and an Arabic digit as 1; one of the names would silently win."""
    state = state_of(tiny_base)
    twins = {key.replace("layers.1:", f"layers.{number}:"): value for key, value in state.items() if "layers.1:" in key}
    save_adapter(tmp_path / "a.nemo", ADAPTER, state | twins)
    with pytest.raises(UserError, match="has no place in this model"):
        load_adapter(tmp_path / "a.nemo", load_base(tiny_base))


def test_whole_numbers_are_no_weights(tiny_base: Path, tmp_path: Path) -> None:
    state = {
        key: {name: tensor.to(torch.int32) for name, tensor in tensors.items()}
        for key, tensors in state_of(tiny_base).items()
    }
    save_adapter(tmp_path / "a.nemo", ADAPTER, state)
    with pytest.raises(UserError, match="has numbers of type int32"):
        load_adapter(tmp_path / "a.nemo", load_base(tiny_base))


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"norm_position": "post"}, r"norm_position: is post, but the adapter in .*a\.nemo has pre"),
        ({"norm_position": None}, r"norm_position: is null, but the adapter in .*a\.nemo has pre"),
        ({"type": "linear_adapter"}, r"type: is linear_adapter, but the adapter in .*a\.nemo has parallel_adapter"),
        ({"adapter_dim": 8}, r"adapter_dim: is 8, but the adapter in .*a\.nemo has 4"),
    ],
)
def test_training_goes_on_from_the_same_kind_of_adapter_alone(
    asked: dict[str, Any], word: str, tiny_base: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "a.nemo", ADAPTER, state_of(tiny_base))
    config = {"adapter_tuning": BOTTLENECK | asked, "restore_path": str(tmp_path / "a.nemo")}
    with pytest.raises(UserError, match=word):
        new_adapters(load_base(tiny_base), config)
    harmless = {"adapter_tuning": BOTTLENECK | {"adapter_dropout": 0.5, "column_init_method": "normal"}}
    new_adapters(load_base(tiny_base), harmless | {"restore_path": str(tmp_path / "a.nemo")})


def test_ia3_does_not_go_on_from_a_bottleneck(tiny_base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a.nemo", ADAPTER, state_of(tiny_base))
    with pytest.raises(UserError, match=r"type: is ia3, but the adapter in .* has parallel_adapter"):
        new_adapters(load_base(tiny_base), IA3 | {"restore_path": str(tmp_path / "a.nemo")})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"activation": "geglu"}, "base_settings.activation_function: was trained with silu, this base has gelu"),
        ({"rotary_base": 500.0}, r"base_settings.rotary\.base: was trained with 10000.0, this base has 500.0"),
        ({"layernorm_epsilon": 1e-3}, "base_settings.layernorm_epsilon"),
        ({"normalization": "layernorm1p"}, None),
        ({"seq_len_interpolation_factor": 2.0}, "interpolation_factor: was trained with 1.0, this base has 2.0"),
    ],
)
def test_a_base_of_the_same_weights_and_other_settings_is_refused(
    change: dict[str, Any], word: str | None, tiny_base: Path, tmp_path: Path
) -> None:
    base, adapters = adapted(tiny_base, ADAPTER)
    marks = {"base_fingerprint": base.fingerprint, "base_settings": base.settings}
    save_adapter(tmp_path / "new.nemo", ADAPTER | marks, adapters.state_dict())
    older = {"base_fingerprint": base.fingerprint.partition("+")[0]}
    save_adapter(tmp_path / "older.nemo", ADAPTER | older, adapters.state_dict())
    changed = rewritten(tiny_base, tmp_path / "base.nemo", config=change)
    if word is None:  # a LayerNorm also needs biases
        with pytest.raises(UserError):
            load_base(changed)
        return
    load_adapter(tmp_path / "older.nemo", load_base(changed))  # its fingerprint covers only the weights
    load_adapter(tmp_path / "new.nemo", load_base(tiny_base))
    with pytest.raises(UserError, match=word):
        load_adapter(tmp_path / "new.nemo", load_base(changed))


def test_a_linear_adapter_without_a_norm_has_none(tiny_base: Path, tmp_path: Path) -> None:
    config = {"adapter_tuning": BOTTLENECK | {"type": "linear_adapter", "norm_position": None}}
    _, adapters = adapted(tiny_base, config)
    state = adapters.state_dict()
    assert {name for tensors in state.values() for name in tensors} == {"module.0.weight", "module.2.weight"}
    assert adapters.num_parameters() == 4 * 2 * 4 * 32
    save_adapter(tmp_path / "a.nemo", config, state)
    torch.testing.assert_close(load_adapter(tmp_path / "a.nemo", load_base(tiny_base))[0].state_dict(), state)


def test_a_norm_that_is_not_named_comes_first() -> None:
    """NeMo's models default to 'pre' too: cfg.get('norm_position', 'pre')."""
    block = {key: value for key, value in BOTTLENECK.items() if key != "norm_position"}
    assert ParallelAdapterSettings.from_block(block).norm_position == "pre"


@pytest.mark.parametrize("key", ["row_init_method", "column_init_method"])
def test_initial_weights_that_a_linear_adapter_does_not_read_are_refused(key: str, tiny_base: Path) -> None:
    block = BOTTLENECK | {"type": "linear_adapter", key: "normal"}
    with pytest.raises(
        UserError, match=rf"adapter_tuning\.{key}: 'normal' has no effect: the initialization of linear_adapter"
    ):
        new_adapters(load_base(tiny_base), {"adapter_tuning": block})
    new_adapters(load_base(tiny_base), {"adapter_tuning": BOTTLENECK | {"type": "linear_adapter"}})
