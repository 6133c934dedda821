"""Generation with a key/value cache; prompts of a batch that share a prefix compute it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from nemo_launcher.data.batching import cut_by_prefix, pack
from nemo_launcher.data.prompts import Sample
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.models import parallel
from nemo_launcher.models.attention import AttentionPlan, KeyValueCache
from nemo_launcher.models.relay import relay
from nemo_launcher.models.sizes import StackStages

if TYPE_CHECKING:
    from nemo_launcher.checkpoint.base import Base


class Decoding(Protocol):
    """A family's state of a batch of samples. logits: of each sample's next token, [samples, vocabulary]."""

    logits: Tensor

    def step(self, tokens: Tensor) -> Tensor:
        """Run one new token a sample, [samples]; return the logits of the next, [samples, vocabulary]."""

    def select(self, samples: Tensor) -> None:
        """Go on with the given samples alone (indices, [kept])."""


@torch.inference_mode()
def generate(
    base: Base,
    samples: Sequence[Any],
    sampling: Sampling,
    *,
    batch_size: int,
    report: Callable[[int], None] = lambda finished: None,
) -> list[list[int]]:
    """Return the new token ids of each sample, in the order of the samples, without the end-of-text token.

    Each sample gets what it would get alone: at most `sampling.tokens_to_generate` tokens, fewer when it ends. Model
    replicas take batches in turn, and every rank returns all answers. report: called with the number of samples
    finished since the last call.
    """
    batches = cut_by_prefix(samples, batch_size)
    replicas = parallel.data_size()
    found: dict[int, list[int]] = {}
    for start in range(0, len(batches), replicas):
        number = start + parallel.data_rank()
        if number < len(batches):
            # of its own for each batch, so that what is drawn does not depend on the number of replicas
            generator = torch.Generator(device=base.device).manual_seed(sampling.seed + number)
            batch = [samples[place] for place in batches[number]]
            found |= zip(batches[number], _generate_batch(base, batch, sampling, generator), strict=True)
        report(sum(len(batch) for batch in batches[start : start + replicas]))
    found = parallel.merge_replicas(found)
    return [found[place] for place in range(len(samples))]


def _generate_batch(
    base: Base, samples: Sequence[Any], sampling: Sampling, generator: torch.Generator
) -> list[list[int]]:
    results: list[list[int]] = [[] for _ in samples]
    running = list(range(len(samples)))  # samples that have not ended; row i of every tensor is sample running[i]
    decoding = base.family.start_decoding(base, samples, sampling.tokens_to_generate)
    logits = decoding.logits
    for step in range(sampling.tokens_to_generate):
        logits[:, base.tokenizer.vocab_size :] = float("-inf")  # rows that only pad the embedding
        if step < sampling.min_tokens_to_generate and base.tokenizer.eos_id is not None:
            logits[:, base.tokenizer.eos_id] = float("-inf")
        seen = [[*samples[index].input_ids, *results[index]] for index in running] if not sampling.greedy else []
        tokens = sampling.choose(logits, seen, generator)
        kept = [row for row, token in enumerate(tokens.tolist()) if token != base.tokenizer.eos_id]
        if len(kept) < len(running):
            rows = torch.tensor(kept, device=base.device, dtype=torch.long)
            decoding.select(rows)
            tokens, running = tokens[rows], [running[row] for row in kept]
        for index, token in zip(running, tokens.tolist(), strict=True):
            results[index].append(token)
        if not running or step + 1 == sampling.tokens_to_generate:
            break
        logits = decoding.step(tokens)
    return results


class GPTDecoding:
    """Prompts run in one row; their keys and values, and those of the new tokens, stay in a cache."""

    def __init__(self, base: Base, samples: Sequence[Sample], max_new_tokens: int) -> None:
        batch = pack(samples, with_answers=False).to(base.device)
        self.model = base.model
        slots = int(batch.lengths.max()) + max_new_tokens
        self.cache = KeyValueCache(samples=len(samples), slots=slots, lengths=batch.lengths)
        plan = AttentionPlan(batch.groups, self.cache, batch.cache_index)
        self.logits = self._run(batch.tokens, batch.position_ids, plan, batch.logit_positions)

    def step(self, tokens: Tensor) -> Tensor:
        """Run one new token a sample, [samples]; return the logits of the next, [samples, vocabulary]."""
        every = torch.arange(len(tokens), device=tokens.device)
        plan = AttentionPlan(cache=self.cache)
        logits = self._run(tokens[:, None], self.cache.lengths[:, None], plan, every)
        self.cache.lengths = self.cache.lengths + 1
        return logits

    def select(self, samples: Tensor) -> None:
        """Go on with the given samples alone (indices, [kept])."""
        self.cache.select(samples)

    def _run(self, tokens: Tensor, position_ids: Tensor, plan: AttentionPlan, logit_positions: Tensor) -> Tensor:
        """Return the logits of some positions, [n, vocabulary], after all pipeline stages."""

        def forward(received: Tensor | None) -> Tensor:
            if received is not None:
                self.model.set_input_tensor(received)
            return self.model(tokens, position_ids, plan, logit_positions)

        return relay(
            forward,
            StackStages(0, parallel.pipeline_size()),
            hidden=(tokens.size(1), tokens.size(0), self.model.config.hidden_size),
            result=(len(logit_positions), self.model.num_logits),
            like=next(self.model.parameters()),
        )
