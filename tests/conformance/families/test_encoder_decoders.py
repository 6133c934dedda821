# SPDX-License-Identifier: Apache-2.0
"""Bases of all kinds of T5 generate transformers' tokens, and IA3 has PEFT's gradients in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, inject_adapter_in_model
from torch import Tensor

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.conversion.convert import convert
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.t5.samples import T5Sample
from tests import t5
from tests.engine import randomize
from tests.methods import model_section
from tests.versions import load_t5

pytestmark = pytest.mark.unit

_ODD = {"num_heads": 5, "d_kv": 4, "d_ff": 37, "num_decoder_layers": 1}
_BUCKETS = {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 30}
VARIATIONS: dict[str, dict[str, Any]] = {
    "gelu": {"tied": False, "feed_forward_proj": "gated-gelu"},
    "relu": {"tied": True, "feed_forward_proj": "relu"},
    "silu": {"tied": False, "feed_forward_proj": "gated-silu", **_ODD},
    "buckets": {"tied": False, "feed_forward_proj": "gated-relu", "num_layers": 3, **_BUCKETS},
}
KINDS = {
    f"{kind}-{name}": {"kind": kind, **settings, **({"tied": False} if kind == "MT5" else {})}
    for kind in ("T5", "MT5", "UMT5")
    for name, settings in VARIATIONS.items()
}
"""T5's variations with `tied` are those of v1.0; the head of an mT5 is never the embedding."""
NEW_TOKENS = 6
_PLACES = {
    "self_attention": "0.SelfAttention",
    "inter_attention": "1.EncDecAttention",
    "key_infused_adapter": "k",
    "value_infused_adapter": "v",
}


@pytest.fixture(params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Base, Any]:
    """A base, and transformers' model that it was converted from."""
    settings = KINDS[request.param]
    folder = t5.save_t5(tmp_path / "hf", **settings)
    convert(folder, tmp_path / "base.nemo")
    theirs = load_t5(folder)
    if settings["kind"] == "UMT5":  # transformers 5 multiplies every UMT5's output by a factor
        theirs.config.tie_word_embeddings = settings["tied"]
    return load_base(tmp_path / "base.nemo"), theirs


def test_logits_are_those_of_transformers(both: tuple[Base, Any]) -> None:
    base, theirs = both
    samples = t5.random_samples(4)
    for sample in samples:
        ids = torch.tensor([sample.input_ids]), torch.tensor([sample.decoder_ids[:-1]])
        with torch.no_grad():
            wanted = theirs(input_ids=ids[0], decoder_input_ids=ids[1]).logits[0]
        found = t5.logits_of(base, [sample])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_greedy_tokens_are_those_of_transformers(both: tuple[Base, Any]) -> None:
    base, theirs = both
    samples = [T5Sample(sample.input_ids, [0], {}, "") for sample in t5.random_samples(6)]
    found = generate(base, samples, Sampling(tokens_to_generate=NEW_TOKENS), batch_size=4)
    wanted = [_greedy(theirs, sample, base) for sample in samples]
    assert found == wanted
    assert len({tuple(tokens) for tokens in found}) > 1


@torch.no_grad()
def _greedy(theirs: Any, sample: T5Sample, base: Base) -> list[int]:
    tokens = list(sample.decoder_ids)
    for _ in range(NEW_TOKENS):
        logits = theirs(input_ids=torch.tensor([sample.input_ids]), decoder_input_ids=torch.tensor([tokens])).logits
        tokens.append(int(logits[0, -1, : base.tokenizer.vocab_size].argmax()))
        if tokens[-1] == base.tokenizer.eos_id:
            return tokens[1:-1]
    return tokens[1:]


def test_gradients_of_ia3_are_pefts(both: tuple[Base, Any]) -> None:
    base, theirs = both
    adapters, samples = AdapterSet(base.model, base.shape, model_section("ia3")), t5.random_samples(5)
    randomize(adapters)
    loss, found = t5.loss_and_gradients(base, samples)
    vectors = {key: next(adapter.parameters()).detach().clone() for key, adapter in adapters.adapters.items()}
    wanted_loss, wanted = _with_peft(theirs, vectors, samples)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert len(found) == len(wanted) == base.shape.encoder.num_layers * 3 + base.shape.decoder.num_layers * 5
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for key, gradient in wanted.items():
        stack, place, name = key.split(":")
        (ours,) = (n for n in found if n.endswith(f"{stack}.{place}.adapter_layer.{name}.scalers"))
        torch.testing.assert_close(found[ours], gradient, rtol=0, atol=1e-4 * largest)


def _with_peft(theirs: Any, vectors: dict[str, Tensor], samples: Sequence[T5Sample]) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss over all labels and PEFT's gradients, under our names of the vectors."""
    places = {_place(key): key for key in vectors}
    feed_forward = [place for place in places if place.endswith(".wo")]
    model = inject_adapter_in_model(IA3Config(target_modules=list(places), feedforward_modules=feed_forward), theirs)
    there = {key: model.get_submodule(place).ia3_l["default"] for place, key in places.items()}
    for key, vector in there.items():
        vector.data.copy_(vectors[key].view_as(vector))
    total, count = torch.zeros(()), 0
    for sample in samples:
        prompt, answer = (torch.tensor([ids]) for ids in (sample.input_ids, sample.decoder_ids))
        logits = model(input_ids=prompt, decoder_input_ids=answer[:, :-1]).logits[0]
        total = total + F.cross_entropy(logits, answer[0, 1:], reduction="sum")
        count += logits.size(0)
    (total / count).backward()
    return float(total / count), {key: vector.grad.flatten() for key, vector in there.items()}


def _place(key: str) -> str:
    """Return PEFT's module of one of our vectors, as in `decoder:model.layers.0.mlp:mlp_infused_adapter`."""
    stack, number, part, name = re.fullmatch(r"(\w+):model\.layers\.(\d+)\.(\w+):(\w+)", key).groups()  # type: ignore[union-attr]
    block = f"{stack}.block.{number}.layer"
    if part == "mlp":
        return f"{block}.{1 if stack == 'encoder' else 2}.DenseReluDense.wo"
    return f"{block}.{_PLACES[part]}.{_PLACES[name]}"
