# SPDX-License-Identifier: Apache-2.0
"""Adapter methods: trained parameters, effects and refused settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from nemo_launcher.adapters import registry
from nemo_launcher.adapters.hooks import has_site
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.adapters.methods.bottleneck.config import ParallelAdapterSettings
from nemo_launcher.adapters.registry import AdapterMethod, method_of, register
from nemo_launcher.adapters.settings import Placement, Settings
from nemo_launcher.adapters.sites import Action, Site
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.megatron.attention_plan import AttentionPlan
from nemo_launcher.megatron.sizes import LayerSizes
from tests import oracle
from tests.engine import BOTTLENECK, adapted, gradients_of, random_tree, randomize

pytestmark = pytest.mark.unit

ADAPTER = {"adapter_tuning": BOTTLENECK}
IA3: dict[str, Any] = {}


def logits_of(base: Base) -> torch.Tensor:
    batch = pack(random_tree(0, base.tokenizer.vocab_size))
    with torch.no_grad():
        return base.model(batch.tokens, batch.position_ids, AttentionPlan(batch.groups))


# --- what is trained --------------------------------------------------------------------------------------------


def assert_trained(base_path: Path, config: Mapping[str, Any], names: Iterable[str], count: int) -> None:
    """Exactly these tensors of both layers are trained, `count` numbers in all."""
    base, adapters = adapted(base_path, config)
    assert set(trainable(base)) == {f"decoder.layers.{layer}.{name}" for layer in (0, 1) for name in names}
    assert adapters.num_parameters() == count


# of two layers: hidden 32, ffn 48, keys and values 2 x 8, adapter_dim 4


def test_the_tensors_of_bottlenecks(tiny_base: Path) -> None:
    tensors = ("linear_in.weight", "linear_out.weight", "layer_norm.weight", "layer_norm.bias")
    names = [f"adapter_layer.adapter_{number}.{name}" for number in (1, 2) for name in tensors]
    assert_trained(tiny_base, ADAPTER, names, 2 * 2 * (2 * 4 * 32 + 2 * 32))


def test_the_tensors_of_ia3(tiny_base: Path) -> None:
    owners = ("self_attention", "key"), ("self_attention", "value"), ("mlp", "mlp")
    names = [f"{owner}.adapter_layer.{name}_infused_adapter.scalers" for owner, name in owners]
    assert_trained(tiny_base, IA3, names, 2 * (16 + 16 + 48))


@pytest.mark.parametrize("name", oracle.GPT_CASES)
def test_trained_tensors_are_nemos(name: str) -> None:
    case, base, _ = oracle.load_adapted(name)
    ours = [f"frozen_model.model.language_model.encoder.{name.removeprefix('decoder.')}" for name in trainable(base)]
    assert sorted(ours) == sorted(case["trainable"])


def trainable(base: Base) -> list[str]:
    return [name for name, parameter in base.model.named_parameters() if parameter.requires_grad]


# --- how they act -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_position", ["pre", "post", "none", None])
def test_new_bottleneck_adapters_change_nothing(norm_position: str | None, tiny_base: Path) -> None:
    base = load_base(tiny_base)
    wanted = logits_of(base)
    adapters = AdapterSet(base.model, base.shape, {"adapter_tuning": BOTTLENECK | {"norm_position": norm_position}})
    torch.testing.assert_close(logits_of(base), wanted, rtol=0, atol=0)
    randomize(adapters)
    assert (logits_of(base) - wanted).abs().max() > 0.1


@pytest.mark.parametrize(
    ("method", "std"), [("xavier", (2 / (4 + 32)) ** 0.5), ("normal", 0.2), ("zero", 0.0)], ids=str
)
@pytest.mark.parametrize("key", ["column_init_method", "row_init_method"])
def test_initial_weights_have_nemos_spread(key: str, method: str, std: float, tiny_base: Path) -> None:
    base = load_base(tiny_base)
    adapters = AdapterSet(base.model, base.shape, {"adapter_tuning": BOTTLENECK | {key: method}})
    name = "linear_in" if key == "column_init_method" else "linear_out"
    weights = torch.cat([getattr(adapter, name).weight.flatten() for adapter in adapters.adapters.values()])
    assert float(weights.std()) == pytest.approx(std, rel=0.15)


def test_dropout_acts_in_training_alone_and_leaves_the_base_in_eval_mode(tiny_base: Path) -> None:
    base = load_base(tiny_base)
    wanted = logits_of(base)
    adapters = AdapterSet(base.model, base.shape, {"adapter_tuning": BOTTLENECK | {"adapter_dropout": 0.5}})
    randomize(adapters)
    adapters.train()
    assert not torch.equal(logits_of(base), logits_of(base))
    assert not any(module.training for name, module in base.model.named_modules() if "adapter_layer" not in name)
    adapters.train(False)
    torch.testing.assert_close(logits_of(base), logits_of(base), rtol=0, atol=0)
    assert not torch.equal(logits_of(base), wanted)


# --- methods by name --------------------------------------------------------------------------------------------


def test_method_is_found_by_type_and_ia3_by_its_absence() -> None:
    assert method_of(ADAPTER).name == "parallel_adapter"
    assert method_of({}).name == "ia3"
    assert method_of({"adapter_tuning": None}).name == "ia3"


@pytest.mark.parametrize("typo", ["paralel_adapter", "parallel-adapter", "Parallel_adapter"])
def test_misspelt_type_gets_a_suggestion(typo: str) -> None:
    with pytest.raises(UserError, match=r"model\.adapter_tuning\.type") as error:
        method_of({"adapter_tuning": {"type": typo}})
    assert "did you mean 'parallel_adapter'?" in str(error.value)


def test_absent_type_lists_the_choices() -> None:
    with pytest.raises(UserError, match="parallel_adapter"):
        method_of({"adapter_tuning": {"adapter_dim": 8}})


class Shift(nn.Module):
    """A toy adapter: its input, or the output of its projection, times a learned number."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.shape = (3, sizes.num_query_groups, sizes.kv_channels)

    def forward(self, *tensors: torch.Tensor) -> Any:
        if tensors:
            return tensors[-1] * self.factor
        return self.factor * torch.ones(self.shape), self.factor * torch.ones(self.shape)


@dataclass(frozen=True, kw_only=True)
class ToySettings(Settings):
    """A method that acts at every site."""

    type: Literal["toy"]

    def placements(self) -> tuple[Placement, ...]:
        return tuple(Placement(f"toy_{site.name.lower()}", site) for site in Site)

    def num_parameters(self, site: Site, sizes: LayerSizes) -> int:
        return 1


def toy(settings: ToySettings, site: Site, sizes: LayerSizes) -> nn.Module:
    return Shift(sizes)


@pytest.fixture
def toy_method() -> Any:
    yield register(AdapterMethod(settings=ToySettings, layer=f"{__name__}:toy", title="toys"))
    del registry._METHODS["toy"]


def test_a_method_needs_nothing_but_its_registration(toy_method: AdapterMethod, tiny_base: Path) -> None:
    base = load_base(tiny_base)
    wanted = logits_of(base)
    adapters = AdapterSet(base.model, base.shape, {"adapter_tuning": {"type": "toy"}})
    layer = "model.language_model.encoder.layers.0"
    assert f"{layer}:toy_attention_output" in adapters.adapters
    assert f"{layer}.self_attention:toy_key" in adapters.adapters
    assert f"{layer}.mlp:toy_mlp_activation" in adapters.adapters
    num_sites = sum(has_site(base.model.decoder.layers[0], site) for site in Site)
    assert num_sites == sum(not site.is_cross for site in Site)
    assert adapters.num_parameters() == 2 * num_sites
    assert not torch.allclose(logits_of(base), wanted)
    _, gradients, _ = gradients_of(base, adapters, random_tree(0, 300), micro_batch_size=4)
    assert len(gradients) == 2 * num_sites
    assert all(gradient != 0 for gradient in gradients.values())
    with torch.no_grad():  # neutral values: a factor of one where values are replaced, zero elsewhere
        for layer in base.model.decoder.layers:
            layer.self_attention.core_attention.prefixes.clear()  # zero keys would still receive attention
        for placement in ToySettings(type="toy").placements():
            for key, adapter in adapters.adapters.items():
                if key.endswith(f":{placement.name}"):
                    adapter.factor.fill_(1.0 if placement.site.action is Action.REPLACE else 0.0)
    torch.testing.assert_close(logits_of(base), wanted, rtol=0, atol=0)


def test_a_name_is_registered_once(toy_method: AdapterMethod) -> None:
    with pytest.raises(ValueError, match="'toy' is registered already"):
        register(toy_method)


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"adapter_dim": 0}, "adapter_dim: must be at least 1, not 0"),
        ({"adapter_dim": -4}, "adapter_dim: must be at least 1, not -4"),
        ({"adapter_dropout": 1.0}, "adapter_dropout: must be at least 0 and below 1, not 1.0"),
        ({"adapter_dropout": -0.1}, "adapter_dropout: must be at least 0 and below 1, not -0.1"),
        ({"norm_position": "prae"}, "did you mean 'pre'?"),
        ({"norm_position": "x"}, "choose from: none, post, pre"),
        ({"norm_type": "layer_norm"}, "did you mean 'layernorm'?"),
        ({"column_init_method": "xavir"}, "did you mean 'xavier'?"),
        ({"row_init_method": "zeros"}, "did you mean 'zero'?"),
        pytest.param({"adapter_dim": "many"}, "adapter_dim", id="text_dim"),
        pytest.param({"adapter_dropout": "much"}, "adapter_dropout", id="text_dropout"),
    ],
)
def test_wrong_setting_is_named(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError) as error:
        ParallelAdapterSettings.from_block(BOTTLENECK | changes)
    assert word in str(error.value)
    assert all(problem.where.startswith("model.adapter_tuning.") for problem in error.value.problems)


def test_adapter_dim_has_no_default() -> None:
    with pytest.raises(UserError, match="adapter_dim"):
        ParallelAdapterSettings.from_block({"type": "parallel_adapter"})


def test_all_wrong_settings_are_named_at_once() -> None:
    block = {"adapter_dim": 0, "adapter_dropout": 2, "norm_position": "a", "norm_type": "b"}
    block |= {"column_init_method": "c", "row_init_method": "d"}
    with pytest.raises(UserError) as error:
        ParallelAdapterSettings.from_block({"type": "parallel_adapter"} | block)
    assert [problem.where.rpartition(".")[2] for problem in error.value.problems] == list(block)
