"""Generation with a key/value cache; prompts of a batch that share a prefix compute it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nemo_launcher.checkpoint.base import Base
from nemo_launcher.data.batching import cut_by_prefix, pack
from nemo_launcher.data.prompts import Sample
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.models.attention import AttentionPlan, KeyValueCache


@torch.inference_mode()
def generate(
    base: Base,
    samples: Sequence[Sample],
    sampling: Sampling,
    *,
    batch_size: int,
    report: Callable[[int], None] = lambda finished: None,
) -> list[list[int]]:
    """Return the new token ids of each sample, in the order of the samples, without the end-of-text token.

    Each sample gets what it would get alone: at most `sampling.tokens_to_generate` tokens, fewer when it ends. report:
    called with the number of samples finished since the last call.
    """
    generator = torch.Generator(device=base.device).manual_seed(sampling.seed)
    results: list[list[int]] = [[] for _ in samples]
    for places in cut_by_prefix(samples, batch_size):
        batch = [samples[place] for place in places]
        for place, tokens in zip(places, _generate_batch(base, batch, sampling, generator), strict=True):
            results[place] = tokens
        report(len(batch))
    return results


def _generate_batch(
    base: Base, samples: Sequence[Sample], sampling: Sampling, generator: torch.Generator
) -> list[list[int]]:
    results: list[list[int]] = [[] for _ in samples]
    running = list(range(len(samples)))  # samples that have not ended; row i of every tensor is sample running[i]
    logits, cache = _prefill(base, samples, sampling.tokens_to_generate)
    for step in range(sampling.tokens_to_generate):
        logits[:, base.tokenizer.vocab_size :] = float("-inf")  # rows that only pad the embedding
        if step < sampling.min_tokens_to_generate and base.tokenizer.eos_id is not None:
            logits[:, base.tokenizer.eos_id] = float("-inf")
        seen = [[*samples[index].input_ids, *results[index]] for index in running] if not sampling.greedy else []
        tokens = sampling.choose(logits, seen, generator)
        kept = [row for row, token in enumerate(tokens.tolist()) if token != base.tokenizer.eos_id]
        if len(kept) < len(running):
            rows = torch.tensor(kept, device=base.device, dtype=torch.long)
            cache.select(rows)
            tokens, running = tokens[rows], [running[row] for row in kept]
        for index, token in zip(running, tokens.tolist(), strict=True):
            results[index].append(token)
        if not running or step + 1 == sampling.tokens_to_generate:
            break
        logits = _decode(base, tokens, cache)
    return results


def _prefill(base: Base, samples: Sequence[Sample], extra_slots: int) -> tuple[Tensor, KeyValueCache]:
    """Run the prompts; return the logits of each next token, [samples, vocabulary], and the cache."""
    batch = pack(samples, with_answers=False).to(base.device)
    slots = int(batch.lengths.max()) + extra_slots
    cache = KeyValueCache(samples=len(samples), slots=slots, lengths=batch.lengths)
    plan = AttentionPlan(batch.groups, cache, batch.cache_index)
    return base.model(batch.tokens, batch.position_ids, plan, batch.logit_positions), cache


def _decode(base: Base, tokens: Tensor, cache: KeyValueCache) -> Tensor:
    """Run one new token a sample; return the logits of the next, [samples, vocabulary]."""
    logits = base.model(tokens[:, None], cache.lengths[:, None], AttentionPlan(cache=cache))
    cache.lengths = cache.lengths + 1
    return logits[:, 0]
