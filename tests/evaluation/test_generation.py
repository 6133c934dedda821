# SPDX-License-Identifier: Apache-2.0
"""Generation: cache, batches and shared prefixes change no token; tokens equal NeMo's and transformers'."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter
from nemo_launcher.data import prefix_tree
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.gpt.generation import GPTDecoding
from nemo_launcher.families.gpt.samples import GPTSample
from tests import gpt, oracle
from tests.engine import adapted, logits_of, random_tree
from tests.methods import at_other_sites, model_section
from tests.shared import shared_path

pytestmark = pytest.mark.unit

GREEDY = Sampling(tokens_to_generate=8)
LEGACY = gpt.CONFIG | {
    "normalization": "layernorm",
    "activation": "gelu",
    "position_embedding_type": "learned_absolute",
    "share_embeddings_and_output_weights": True,
}


@pytest.fixture(params=at_other_sites())
def base(request: pytest.FixtureRequest, tiny_base: Path) -> Base:
    """The tiny base with random adapters, at each set of sites that methods act at."""
    return adapted(tiny_base, model_section(request.param))[0]


def prompts(seed: int = 0) -> list[GPTSample]:
    return [GPTSample(sample.input_ids, 0, {}, "") for sample in random_tree(seed, 300, max_length=100)]


@torch.no_grad()
def without_cache(base: Base, ids: list[int], count: int) -> list[int]:
    """Return the most likely tokens, each from a full forward pass over the text so far, until the end of text."""
    text = list(ids)
    for _ in range(count):
        logits = logits_of(base, torch.tensor([text]))[0, -1]
        token = int(logits[: base.tokenizer.vocab_size].argmax())
        if token == base.tokenizer.eos_id:
            break
        text.append(token)
    return text[len(ids) :]


def test_tokens_are_those_without_a_cache(base: Base) -> None:
    samples = prompts()
    wanted = [without_cache(base, sample.input_ids, 8) for sample in samples]
    assert len({tuple(tokens) for tokens in wanted}) > 3  # not a single repeated token
    assert generate(base, samples, GREEDY, batch_size=4) == wanted


@pytest.mark.parametrize("batch_size", [2, 3, 9, 50])
def test_a_batch_gives_what_each_prompt_gives_alone(batch_size: int, base: Base) -> None:
    samples = prompts(1)
    alone = [generate(base, [sample], GREEDY, batch_size=1)[0] for sample in samples]
    assert generate(base, samples, GREEDY, batch_size=batch_size) == alone


@pytest.mark.parametrize("style", ["llama", "legacy"])
@pytest.mark.parametrize("seed", range(3))
def test_samples_that_join_as_others_end_get_what_they_get_alone(
    seed: int, style: str, tiny_base: Path, tmp_path: Path
) -> None:
    path, max_length = tiny_base, 100
    if style == "legacy":
        max_length = 40  # its position table has 64 rows
        path = gpt.write_gpt(tmp_path / "b.nemo", LEGACY, {"model_weights.ckpt": gpt.random_weights(LEGACY)})
    base = load_base(path)
    vocabulary = base.tokenizer.vocab_size
    samples = [
        GPTSample(s.input_ids, 0, {}, "") for s in random_tree(seed, vocabulary, count=20, max_length=max_length)
    ]
    samples += [samples[4], *(GPTSample([*samples[0].input_ids, token], 0, {}, "") for token in (3, 4, 5))]
    sampling = Sampling(tokens_to_generate=10, min_tokens_to_generate=2)
    free = [generate(base, [sample], sampling, batch_size=1)[0] for sample in samples]
    base.tokenizer.eos_id = Counter(token for tokens in free for token in tokens[2:9]).most_common(1)[0][0]
    alone = [generate(base, [sample], sampling, batch_size=1)[0] for sample in samples]
    assert len({len(tokens) for tokens in alone}) > 2  # samples end at different steps
    for batch_size in (1, 2, 3, 5, 16, 50):
        assert generate(base, samples, sampling, batch_size=batch_size) == alone


def shared_prompts() -> list[GPTSample]:
    """Seven prompts on one context of 24 tokens, five on another of 20, and a separate one of 30."""
    contexts = [list(range(10, 34))] * 7 + [list(range(40, 60))] * 5 + [list(range(100, 130))]
    return [GPTSample([*context, 200 + number], 0, {}, "") for number, context in enumerate(contexts)]


def row_lengths(base: Base, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that records the number of tokens in every later forward pass."""
    lengths: list[int] = []
    forward = base.model.forward
    monkeypatch.setattr(
        base.model, "forward", lambda tokens, *rest: lengths.append(tokens.numel()) or forward(tokens, *rest)
    )
    return lengths


def test_what_prompts_share_is_computed_once_even_when_they_cannot_run_together(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = shared_prompts()
    base.tokenizer.eos_id = None
    wanted = generate(base, samples, GREEDY, batch_size=1)
    for batch_size in (1, 2, 4, 13):
        lengths = row_lengths(base, monkeypatch)
        assert generate(base, samples, GREEDY, batch_size=batch_size) == wanted
        assert sum(lengths) == (24 + 7) + (20 + 5) + 31 + 7 * 13  # plus each new token except the last
        monkeypatch.undo()


def test_a_sample_that_ends_makes_room_at_once(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample for seed in range(3) for sample in prompts(seed)]
    sampling = Sampling(tokens_to_generate=12)
    free = generate(base, samples, sampling, batch_size=50)
    base.tokenizer.eos_id = Counter(token for tokens in free for token in tokens[:10]).most_common(1)[0][0]
    tokens = generate(base, samples, sampling, batch_size=50)
    steps = [min(len(answer) + 1, 12) for answer in tokens]  # one step more for the end of text
    assert len(set(steps)) > 2
    lengths = row_lengths(base, monkeypatch)
    assert generate(base, samples, sampling, batch_size=4) == tokens
    # 4 at a time until none waits: the idle places are those of the 4 last samples alone
    assert len(lengths) <= math.ceil(sum(steps) / 4) + max(steps)


def test_the_cache_holds_what_prompts_share_once(base: Base) -> None:
    samples = shared_prompts()
    with torch.inference_mode():
        decoding = GPTDecoding(base.model, base.device, samples, 8)
        decoding.step([], range(13))
    per_slot = 2 * base.shape.num_layers * base.shape.num_query_groups * base.shape.kv_channels
    # prefixes padded to the longest, 31; a sample's own: its last token and 8 new ones
    assert decoding.prefixes.num_elements + decoding.own.num_elements == (3 * 31 + 13 * 9) * per_slot
    with torch.inference_mode():
        decoding.select([12, 0])
        assert decoding.prefixes.lengths == [24, 0, 31]  # the second context has no samples left
        decoding.step([5, 5], [])
    assert decoding.own.lengths == [1, 2]


def test_an_instruction_ahead_of_several_contexts_is_computed_once(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    instruction, contexts = list(range(10, 50)), [list(range(first, first + 24)) for first in (60, 100, 140)]
    samples = [GPTSample([*instruction, *contexts[n // 4], 200 + n], 0, {}, "") for n in range(12)]
    base.tokenizer.eos_id = None
    wanted = [generate(base, [sample], GREEDY, batch_size=1)[0] for sample in samples]
    for batch_size in (1, 2, 3, 5, 12):
        lengths = row_lengths(base, monkeypatch)
        assert generate(base, samples, GREEDY, batch_size=batch_size) == wanted
        assert sum(lengths) == 40 + 3 * 24 + 12 + 7 * 12
        monkeypatch.undo()


def test_shared_prefixes_change_no_token(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = prompts(2)
    lengths = row_lengths(base, monkeypatch)
    shared = generate(base, samples, GREEDY, batch_size=9)
    together = lengths[0]
    monkeypatch.setattr(prefix_tree, "MIN_SHARED_TOKENS", 1000)
    assert generate(base, samples, GREEDY, batch_size=9) == shared
    assert together < sum(len(sample.input_ids) for sample in samples) in lengths


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
    base.tokenizer.vocab_size = 20  # as if all later rows were padding
    assert all(token < 20 for tokens in generate(base, prompts(), GREEDY, batch_size=9) for token in tokens)


def test_every_sample_is_reported_once(base: Base) -> None:
    reported: list[int] = []
    generate(base, prompts(), GREEDY, batch_size=4, report=reported.append)
    assert sum(reported) == 9
    assert len(reported) > 1


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
    """NeMo decodes a batch to one length, so its shorter prompts got more tokens than requested."""
    stored = oracle.load(f"generate_{name}")
    base = oracle.load_frozen(name)
    load_adapter(shared_path(f"oracle/{name}.nemo"), base)
    lengths = stored["input_lengths"].tolist()
    rows = stored["token_ids"]
    samples = [GPTSample(row[:length], 0, {}, "") for row, length in zip(rows, lengths, strict=True)]
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


@pytest.mark.parametrize("options", [{}, {"top_k": 20}, {"top_p": 0.9, "repetition_penalty": 1.2}])
def test_what_is_sampled_depends_on_no_company(options: dict[str, Any], base: Base) -> None:
    samples = prompts()
    sampling = Sampling(tokens_to_generate=8, greedy=False, temperature=2.0, **options)
    wanted = generate(base, samples, sampling, batch_size=1)
    assert all(generate(base, samples, sampling, batch_size=batch_size) == wanted for batch_size in (2, 5, 9))
    first, second = generate(base, [samples[0], samples[0]], sampling, batch_size=2)
    assert first != second  # samples draw independently


def test_nothing_to_generate(base: Base) -> None:
    assert generate(base, [], GREEDY, batch_size=4) == []
