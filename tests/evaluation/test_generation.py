"""Generation: cache, batches and shared prefixes change no token; NeMo's and transformers' tokens come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter
from nemo_launcher.checkpoint.base import Base, load_base
from nemo_launcher.data import batching
from nemo_launcher.data.prompts import Sample
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.models.attention import AttentionPlan, Group
from tests import oracle
from tests.engine import BOTTLENECK, adapted, random_tree
from tests.shared import shared_path

pytestmark = pytest.mark.unit

GREEDY = Sampling(tokens_to_generate=8)
METHODS: dict[str, dict[str, Any]] = {"adapter": {"adapter_tuning": BOTTLENECK}, "ia3": {}}


@pytest.fixture(params=METHODS)
def base(request: pytest.FixtureRequest, tiny_base: Path) -> Base:
    """The tiny base with random adapters of each method."""
    return adapted(tiny_base, METHODS[request.param])[0]


def prompts(seed: int = 0) -> list[Sample]:
    return [Sample(sample.input_ids, 0, {}, "") for sample in random_tree(seed, 300)]


@torch.no_grad()
def without_cache(base: Base, ids: list[int], count: int) -> list[int]:
    """The most likely tokens, each from a run over the whole text so far, until the end of text."""
    text = list(ids)
    for _ in range(count):
        length = len(text)
        plan = AttentionPlan([Group(0, 0, (length,))])
        logits = base.model(torch.tensor([text]), torch.arange(length)[None], plan)[0, -1]
        token = int(logits[: base.tokenizer.vocab_size].argmax())
        if token == base.tokenizer.eos_id:
            break
        text.append(token)
    return text[len(ids) :]


def test_tokens_are_those_without_a_cache(base: Base) -> None:
    samples = prompts()
    wanted = [without_cache(base, sample.input_ids, 8) for sample in samples]
    assert len({tuple(tokens) for tokens in wanted}) > 3  # not the same token for ever
    assert generate(base, samples, GREEDY, batch_size=4) == wanted


@pytest.mark.parametrize("batch_size", [2, 3, 9, 50])
def test_a_batch_gives_what_each_prompt_gives_alone(batch_size: int, base: Base) -> None:
    samples = prompts(1)
    alone = [generate(base, [sample], GREEDY, batch_size=1)[0] for sample in samples]
    assert generate(base, samples, GREEDY, batch_size=batch_size) == alone


def test_shared_prefixes_change_no_token(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = prompts(2)
    assert batching.pack(samples, with_answers=False).tokens.numel() < sum(len(s.input_ids) for s in samples)
    shared = generate(base, samples, GREEDY, batch_size=9)
    monkeypatch.setattr(batching, "MIN_SHARED_TOKENS", 1000)
    assert generate(base, samples, GREEDY, batch_size=9) == shared


def test_end_of_text_ends_a_sample_and_no_other(base: Base) -> None:
    samples = prompts()
    free = generate(base, samples, GREEDY, batch_size=9)
    base.tokenizer.eos_id = free[2][3]
    wanted = [
        tokens[: tokens.index(base.tokenizer.eos_id)] if base.tokenizer.eos_id in tokens else tokens for tokens in free
    ]
    assert len(wanted[2]) < 8
    assert generate(base, samples, GREEDY, batch_size=9) == wanted


def test_a_prompt_that_ends_at_once_gives_nothing(base: Base) -> None:
    samples = prompts()[:1]
    base.tokenizer.eos_id = generate(base, samples, GREEDY, batch_size=1)[0][0]
    assert generate(base, samples, GREEDY, batch_size=1) == [[]]


def test_before_the_minimum_no_end_of_text_is_accepted(base: Base) -> None:
    samples = prompts()
    free = generate(base, samples, GREEDY, batch_size=9)
    base.tokenizer.eos_id = free[0][0]
    short = generate(base, samples, GREEDY, batch_size=9)
    assert short[0] == []
    sampling = Sampling(tokens_to_generate=8, min_tokens_to_generate=5)
    long = generate(base, samples, sampling, batch_size=9)
    assert all(5 <= len(tokens) <= 8 for tokens in long)
    assert all(base.tokenizer.eos_id not in tokens for tokens in long)


def test_padding_rows_of_the_embedding_are_never_chosen(base: Base) -> None:
    base.tokenizer.vocab_size = 20  # as if all later rows only padded
    assert all(token < 20 for tokens in generate(base, prompts(), GREEDY, batch_size=9) for token in tokens)


def test_every_sample_is_reported_once(base: Base) -> None:
    reported: list[int] = []
    generate(base, prompts(), GREEDY, batch_size=4, report=reported.append)
    assert reported == [4, 4, 1]


def test_the_same_sample_twice_gives_two_results(base: Base) -> None:
    sample = prompts()[0]
    first, second = generate(base, [sample, sample], GREEDY, batch_size=2)
    assert first == second != []


def test_greedy_tokens_are_transformers(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = load_base(tiny_base)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_base.with_name("base_hf"))
    padding = list(range(base.tokenizer.vocab_size, base.shape.vocab_size))
    samples = prompts(3)
    ours = generate(base, samples, Sampling(tokens_to_generate=12), batch_size=4)
    for sample, tokens in zip(samples, ours, strict=True):
        ids = torch.tensor([sample.input_ids])
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": padding}
        wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.size(1) :].tolist()
        assert tokens == [token for token in wanted if token != base.tokenizer.eos_id]


@pytest.mark.parametrize("name", ["adapter_gpt", "ia3_gpt"])
def test_greedy_tokens_are_nemos(name: str) -> None:
    """NeMo decodes a batch to one length, so its shorter prompts got more tokens than were asked for."""
    stored = oracle.load(f"generate_{name}")
    base = oracle.load_frozen(name)
    load_adapter(shared_path(f"oracle/{name}.nemo"), base)
    lengths = stored["input_lengths"].tolist()
    rows = stored["token_ids"]
    samples = [Sample(row[:length], 0, {}, "") for row, length in zip(rows, lengths, strict=True)]
    tokens = generate(base, samples, Sampling(tokens_to_generate=10), batch_size=4)
    assert tokens == [row[length : length + 10] for row, length in zip(rows, lengths, strict=True)]


def test_the_seed_alone_decides_what_is_sampled(base: Base) -> None:
    def sampled(seed: int) -> list[list[int]]:
        sampling = Sampling(tokens_to_generate=8, greedy=False, temperature=3.0, seed=seed)
        return generate(base, prompts(), sampling, batch_size=4)

    first = sampled(1)
    torch.manual_seed(99)
    assert sampled(1) == first
    assert sampled(2) != first
