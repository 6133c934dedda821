# SPDX-License-Identifier: Apache-2.0
"""Requirements on every adapter method in every model family, in one process. Registered methods are tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_launcher.adapters.archive import load_adapter, save_adapter
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.adapters.registry import method_of, settings_of
from nemo_launcher.adapters.settings import trainable_parameters
from nemo_launcher.data.batching import Collate
from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.megatron.frozen_layer import recompute_layers
from nemo_launcher.training.step import forward_backward
from tests import gpt, t5
from tests.engine import logits_of, named_gradients, random_tree, randomize
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.unit

FAMILIES = ("gpt", "llama", "t5")
GPT = gpt.CONFIG | {
    "normalization": "layernorm",
    "activation": "gelu",
    "bias": True,
    "position_embedding_type": "learned_absolute",
    "share_embeddings_and_output_weights": True,
}


@pytest.fixture(scope="module")
def bases(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "gpt": gpt.write_gpt(folder / "gpt.nemo", GPT, {"model_weights.ckpt": gpt.random_weights(GPT)}),
        "llama": tiny_base,
        "t5": t5.tiny_base(folder / "t5.nemo", seed=3),
    }


class Case:
    """A method in a base of a family."""

    def __init__(self, method: str, family: str, path: Path) -> None:
        self.method, self.family, self.path = method, family, path
        self.config = model_section(method)

    def base(self) -> Base:
        return load_base(self.path)

    def adapted(self, *, random: bool = True, **changes: Any) -> tuple[Base, AdapterSet]:
        """Return a base with random or new adapters; changes: of `adapter_tuning`."""
        base = self.base()
        adapters = AdapterSet(base.model, base.shape, model_section(self.method, **changes))
        if random:
            randomize(adapters, scale=0.1)
        return base, adapters

    def samples(self, base: Base, count: int = 6) -> Sequence[Any]:
        return t5.random_samples(count, seed=4) if self.family == "t5" else random_tree(1, 300, count)

    def loss(
        self, base: Base, adapters: AdapterSet, *, share_prefix: bool = True, workers: int = 1
    ) -> tuple[float, dict[str, Tensor]]:
        """Return loss and gradients of one global batch in two micro-batches."""
        for parameter in adapters.parameters():
            parameter.grad = None
        family, layout = base.family, Layout((Concurrency(workers, 3),))
        collate = Collate(layout, share_prefix and family.shares_prefixes, pack=family.pack)
        batch = collate(self.samples(base))
        loss = forward_backward(base.model, batch, backward=True, seed=3)
        return float(loss), named_gradients(adapters)

    def logits(self, base: Base) -> Tensor:
        if self.family == "t5":
            return t5.logits_of(base, self.samples(base))
        return logits_of(base, torch.arange(5, 35)[None])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=METHODS)
def case(request: pytest.FixtureRequest, family: str, bases: dict[str, Path]) -> Case:
    return Case(request.param, family, bases[family])


def test_new_adapters_are_the_identity(case: Case) -> None:
    wanted = case.logits(case.base())
    found = case.logits(case.adapted(random=False)[0])
    if method_of(case.config).settings.IDENTITY_AT_INIT:
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert (case.logits(case.adapted()[0]) - wanted).abs().max() > 1e-3


def test_exactly_the_adapters_train(case: Case) -> None:
    base, adapters = case.adapted()
    wanted = {id(parameter) for parameter in adapters.parameters()}
    assert {id(p) for p in base.model.parameters() if p.requires_grad} == wanted
    _, gradients = case.loss(base, adapters)
    assert {id(p) for p in base.model.parameters() if p.grad is not None} == wanted
    assert len(gradients) == len(wanted)
    assert [name for name, gradient in gradients.items() if gradient.abs().max() == 0] == []
    frozen = [m for name, m in base.model.named_modules() if "adapter_layer" not in name]
    assert not any(module.training for module in frozen)


def test_every_adapter_changes_the_model(case: Case) -> None:
    base, adapters = case.adapted()
    adapters.train(False)
    before = case.logits(base)
    with torch.no_grad():
        for key, adapter in adapters.adapters.items():
            last = list(adapter.parameters())[-1]
            kept = last.detach().clone()
            last.add_(0.3)
            assert not torch.equal(case.logits(base), before), key
            last.copy_(kept)
    torch.testing.assert_close(case.logits(base), before, rtol=0, atol=0)


def test_every_parameter_moves(case: Case) -> None:
    base, adapters = case.adapted()
    before = {id(p): p.detach().clone() for p in adapters.parameters()}
    optimizer = torch.optim.AdamW(adapters.parameters(), 1e-3)
    case.loss(base, adapters)
    optimizer.step()
    assert all(not torch.equal(p, before[id(p)]) for p in adapters.parameters())


def test_as_many_parameters_as_the_settings_say(case: Case) -> None:
    base, adapters = case.adapted(random=False)
    stacks = base.family.stack_shapes(base.shape)
    assert trainable_parameters(settings_of(case.config), stacks) == adapters.num_parameters()


def test_weights_are_fp32_in_a_bf16_base(case: Case) -> None:
    base = load_base(case.path, dtype=torch.bfloat16)
    adapters = AdapterSet(base.model, base.shape, case.config)
    assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float32}
    randomize(adapters, scale=0.01)
    assert case.logits(base).dtype == torch.bfloat16


def test_an_archive_holds_all_of_it(case: Case, tmp_path: Path) -> None:
    base, adapters = case.adapted()
    adapters.train(False)
    state, wanted = adapters.state_dict(), case.logits(base)
    config = case.config | {"language_model_path": str(case.path)}
    save_adapter(tmp_path / "a.nemo", config, state)
    again = case.base()
    loaded, read = load_adapter(tmp_path / "a.nemo", again)
    assert read == config
    torch.testing.assert_close(loaded.state_dict(), state, rtol=0, atol=0)
    assert not any(adapter.training for adapter in loaded.adapters.values())
    torch.testing.assert_close(case.logits(again), wanted, rtol=0, atol=0)


def test_training_goes_on_as_if_it_had_not_stopped(case: Case) -> None:
    """Two steps equal one step, after which adapters and optimizer are loaded into new ones, and another."""
    base, adapters = case.adapted()
    optimizer = torch.optim.AdamW(adapters.parameters(), 1e-3)
    case.loss(base, adapters)
    optimizer.step()
    state, optimizer_state = adapters.state_dict(), optimizer.state_dict()
    state = {key: {name: tensor.clone() for name, tensor in tensors.items()} for key, tensors in state.items()}
    saved = {n: {k: v.clone() for k, v in entry.items()} for n, entry in optimizer_state["state"].items()}
    loss, _ = case.loss(base, adapters)
    optimizer.step()
    again, resumed = case.adapted(random=False)
    resumed.load_state_dict(state, "state")
    second = torch.optim.AdamW(resumed.parameters(), 1e-3)
    second.load_state_dict({"state": saved, "param_groups": optimizer_state["param_groups"]})
    assert case.loss(again, resumed)[0] == loss
    second.step()
    torch.testing.assert_close(resumed.state_dict(), adapters.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_give_the_same_gradients(dropout: float, case: Case) -> None:
    has_dropout = "adapter_dropout" in method_of(case.config).settings.__dataclass_fields__
    if dropout and not has_dropout:
        pytest.skip(f"{case.method} has no dropout")
    base, adapters = case.adapted(**({"adapter_dropout": dropout} if dropout else {}))
    adapters.train()
    kinds = (1, 2)
    wanted = [case.loss(base, adapters, workers=workers) for workers in kinds]
    assert all(gradient.abs().max() > 0 for _, gradients in wanted for gradient in gradients.values())
    for stack in base.family.stacks(base.model, base.shape):
        recompute_layers(stack.layers, "full", "uniform", None)
    for workers, (loss, gradients) in zip(kinds, wanted, strict=True):
        again, found = case.loss(base, adapters, workers=workers)
        assert again == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-6)


def test_shared_prompts_give_the_same_gradients(case: Case) -> None:
    base, adapters = case.adapted()
    loss, wanted = case.loss(base, adapters, share_prefix=False)
    again, found = case.loss(base, adapters)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_generated_tokens_are_those_of_whole_texts(case: Case) -> None:
    """Cached, batched answers equal the most likely tokens of a full forward pass over prompt and answer."""
    base, adapters = case.adapted()
    adapters.train(False)
    count = 12 if case.family == "t5" else 6
    sampling = Sampling(tokens_to_generate=count)
    if case.family == "t5":
        samples = [dataclasses.replace(sample, decoder_ids=[0]) for sample in case.samples(base, 9)]
    else:
        samples = [GPTSample(sample.input_ids, 0, {}, "") for sample in case.samples(base)]
    answers = generate(base, samples, sampling, batch_size=4)
    assert answers == generate(base, samples, sampling, batch_size=1)
    for sample, answer in zip(samples, answers, strict=True):
        ended = [*answer, base.tokenizer.eos_id][:count]
        assert _most_likely(case, base, sample, answer)[: len(ended)] == ended


def _most_likely(case: Case, base: Base, sample: Any, answer: list[int]) -> list[int]:
    """Return the most likely tokens behind the prompt and behind each token of the answer."""
    if case.family == "t5":
        whole = dataclasses.replace(sample, decoder_ids=[*sample.decoder_ids, *answer, 0])
        logits = t5.logits_of(base, [whole])
    else:
        logits = logits_of(base, torch.tensor([[*sample.input_ids, *answer]]))[0, len(sample.input_ids) - 1 :]
    tokens: list[int] = logits[:, : base.tokenizer.vocab_size].argmax(-1).tolist()
    return tokens
