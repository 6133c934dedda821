# SPDX-License-Identifier: Apache-2.0
"""Requirements on every adapter method in every model family, with adapters in some layers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter, save_adapter
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.adapters.settings import trainable_parameters
from nemo_launcher.families.base import Base
from nemo_launcher.megatron.frozen_layer import FrozenLayer, recompute_layers
from tests import gpt, t5
from tests.conformance.methods.test_one_rank import GPT, Case
from tests.engine import adapted, random_tree, tiny_gpt_nemo
from tests.methods import METHODS, model_section
from tests.training.trees import in_rows, run, whole

pytestmark = pytest.mark.unit

LAYERS = 4
T5_UPPER = {"encoder": "2-3", "decoder": "3"}
T5_DECODER = {"encoder": "none", "decoder": "1,3"}
T5_ENCODER = {"encoder": "1", "decoder": "none"}
CHOICES: list[tuple[str, Any, dict[str, list[int]]]] = [
    # family, layers, the layers that run without gradients by stack
    ("gpt", "2-3", {"decoder": [0, 1]}),
    ("llama", "1,3", {"decoder": [0]}),
    ("t5", T5_UPPER, {"encoder": [0, 1], "decoder": []}),
    ("t5", T5_DECODER, {"encoder": [0, 1, 2, 3], "decoder": [0]}),
    ("t5", T5_ENCODER, {"encoder": [0], "decoder": []}),
]


@pytest.fixture(scope="module")
def deep_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base of each family with 4 layers in each stack."""
    folder = tmp_path_factory.mktemp("deep")
    config = GPT | {"num_layers": LAYERS}
    return {
        "gpt": gpt.write_gpt(folder / "gpt.nemo", config, {"model_weights.ckpt": gpt.random_weights(config)}),
        "llama": tiny_gpt_nemo(folder / "llama.nemo", num_hidden_layers=LAYERS),
        "t5": t5.tiny_base(folder / "t5.nemo", seed=3, num_layers=LAYERS, num_decoder_layers=LAYERS),
    }


class ChosenCase(Case):
    """A method in some layers of a base."""

    def __init__(self, method: str, family: str, path: Path, layers: Any, frozen: dict[str, list[int]]) -> None:
        super().__init__(method, family, path)
        self.layers, self.frozen = layers, frozen
        self.config = model_section(method, layers=layers)

    def chosen(self, **changes: Any) -> tuple[Base, AdapterSet]:
        return self.adapted(layers=self.layers, **changes)


@pytest.fixture(params=CHOICES, ids=[f"{family}-{layers}" for family, layers, _ in CHOICES])
def choice(request: pytest.FixtureRequest) -> tuple[str, Any, dict[str, list[int]]]:
    return request.param


@pytest.fixture(params=METHODS)
def case(request: pytest.FixtureRequest, choice: tuple[str, Any, dict[str, list[int]]], deep_bases: dict) -> ChosenCase:
    family, layers, frozen = choice
    return ChosenCase(request.param, family, deep_bases[family], layers, frozen)


@pytest.fixture
def graded(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[bool]]:
    """Whether gradients were enabled in each layer, by the identity of its module."""
    seen: dict[int, set[bool]] = {}
    compute = FrozenLayer.compute

    def recording(layer: FrozenLayer, *args: Any, **kwargs: Any) -> Any:
        seen.setdefault(id(layer), set()).add(torch.is_grad_enabled())
        return compute(layer, *args, **kwargs)

    monkeypatch.setattr(FrozenLayer, "compute", recording)
    return seen


def test_exactly_the_chosen_layers_have_adapters(case: ChosenCase) -> None:
    base, adapters = case.chosen(random=False)
    _, everywhere = case.adapted(random=False)
    kept = {key for key in everywhere.adapters if key in adapters.adapters}
    assert kept == adapters.adapters.keys()
    wanted = {
        stack.name: settings_of(case.config).chosen_layers(stack.name, LAYERS)
        for stack in base.family.stacks(base.model, base.shape)
    }
    for stack in base.family.stacks(base.model, base.shape):
        found = {
            number for number, layer in enumerate(stack.layers) if any(p.requires_grad for p in layer.parameters())
        }
        assert found == wanted[stack.name]
    state, whole = adapters.state_dict(), everywhere.state_dict()
    torch.testing.assert_close(state, {key: whole[key] for key in state}, rtol=0, atol=0)
    stacks = base.family.stack_shapes(base.shape)
    assert trainable_parameters(settings_of(case.config), stacks) == adapters.num_parameters()


def test_layers_below_the_first_run_without_gradients(case: ChosenCase, graded: dict[int, set[bool]]) -> None:
    base, adapters = case.chosen()
    for recompute in (False, True):
        graded.clear()
        if recompute:
            for stack in base.family.stacks(base.model, base.shape):
                recompute_layers(stack.layers, "full", "uniform", None)
        case.loss(base, adapters)
        for stack in base.family.stacks(base.model, base.shape):
            modes = {number: graded[id(layer)] for number, layer in enumerate(stack.layers)}
            frozen = case.frozen[stack.name]
            assert modes == {number: {number not in frozen} for number in range(LAYERS)}, stack.name


@pytest.mark.parametrize("workers", [1, 2])
def test_gradients_are_those_of_a_model_that_keeps_everything(
    workers: int, case: ChosenCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with layers that all run with gradients, and with all layers adapted, the others to the identity."""
    base, adapters = case.chosen()
    loss, found = case.loss(base, adapters, workers=workers)
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    monkeypatch.setattr(FrozenLayer, "_needs_gradients", lambda *_: True)
    again, wanted = case.loss(base, adapters, workers=workers)
    assert again == loss
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    everywhere, filled = case.adapted(random=False)
    if settings_of(case.config).IDENTITY_AT_INIT:
        with torch.no_grad():
            for key, adapter in adapters.adapters.items():
                filled.adapters[key].load_state_dict(adapter.state_dict())
        again, gradients = case.loss(everywhere, filled, workers=workers)
        assert again == loss
        torch.testing.assert_close(found, {name: gradients[name] for name in found}, rtol=0, atol=0)


def test_recomputed_layers_give_the_same_gradients(case: ChosenCase) -> None:
    base, adapters = case.chosen()
    loss, wanted = case.loss(base, adapters)
    for stack in base.family.stacks(base.model, base.shape):
        recompute_layers(stack.layers, "full", "uniform", None)
    again, found = case.loss(base, adapters)
    assert again == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layers", ["1", "3", "0,2"])
@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_depth_first_execution_gives_the_same_gradients(
    method: str, family: str, layers: str, deep_bases: dict[str, Path]
) -> None:
    """Also if a shared row has nothing to train: its keys and values are below the first adapter."""
    base, adapters = adapted(deep_bases[family], model_section(method, layers=layers), torch.float64)
    samples = random_tree(1, 300, 6)
    loss, found = run(base, adapters, in_rows(samples, 12))
    again, wanted = run(base, adapters, whole(samples))
    assert loss == pytest.approx(again, rel=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * largest)


def test_an_archive_is_read_into_the_same_layers(case: ChosenCase, tmp_path: Path) -> None:
    base, adapters = case.chosen()
    adapters.train(False)
    state, wanted = adapters.state_dict(), case.logits(base)
    save_adapter(tmp_path / "a.nemo", case.config | {"language_model_path": str(case.path)}, state)
    again = case.base()
    loaded, _ = load_adapter(tmp_path / "a.nemo", again)
    torch.testing.assert_close(loaded.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(case.logits(again), wanted, rtol=0, atol=0)
