# SPDX-License-Identifier: Apache-2.0
"""Generation with continuous batching: new prompts join as soon as others end, so that every step is full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_launcher.data.batching import cut_by_prefix
from nemo_launcher.data.jsonl import MAX_PROBLEMS
from nemo_launcher.data.samples import Sample
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.megatron import parallel

if TYPE_CHECKING:
    from nemo_launcher.families.base import Base


@torch.inference_mode()
def generate(
    base: Base,
    samples: Sequence[Sample],
    sampling: Sampling,
    *,
    batch_size: int,
    report: Callable[[int], None] = lambda finished: None,
    known: Mapping[int, list[int]] = MappingProxyType({}),
    keep: Callable[[int, list[int]], None] = lambda place, tokens: None,
) -> list[list[int]]:
    """Return the new token ids of each sample, in order, without the end-of-text token.

    Each sample gets the same answer as alone: at most `sampling.tokens_to_generate` tokens, fewer if it ends.
    batch_size: maximum samples that run at a time. Model replicas process a share of the samples each, and every rank
    returns all answers. report: called with the number of samples finished since the last call; a replica assumes that
    the others have the same progress. known: existing answers by sample index. keep: called with each new answer of the
    replica as soon as it is complete. Raises UserError when the model's output is not finite.
    """
    order = [place for batch in cut_by_prefix(samples, batch_size) for place in batch if place not in known]
    rank, replicas = parallel.data_rank(), parallel.data_size()
    mine = order[len(order) * rank // replicas : len(order) * (rank + 1) // replicas]
    running = _Running(base, [samples[place] for place in mine], sampling, [sampling.seed + place for place in mine])
    finished = reported = 0
    while finished < len(mine):
        for place in running.step(batch_size):
            keep(mine[place], running.results[place])
            finished += 1
        of_all = len(order) * finished // len(mine)
        if of_all > reported:
            report(of_all - reported)
            reported = of_all
    found = {**known, **parallel.merge_replicas(dict(zip(mine, running.results, strict=True)))}
    return [found[place] for place in range(len(samples))]


class _Running:
    """The samples in generation and those that wait. seeds: the random seed of each sample.

    Each sample has its own random generator, so that its tokens depend neither on the batch nor on the replicas.
    """

    def __init__(self, base: Base, samples: Sequence[Sample], sampling: Sampling, seeds: Sequence[int]) -> None:
        self.samples, self.sampling = samples, sampling
        self.vocab_size, self.eos_id = base.tokenizer.vocab_size, base.tokenizer.eos_id
        self.generators = [torch.Generator(device=base.device).manual_seed(seed) for seed in seeds]
        self.results: list[list[int]] = [[] for _ in samples]
        self.decoding = base.family.start_decoding(base.model, base.device, samples, sampling.tokens_to_generate)
        self.joined = 0  # number of samples that have run or are running, always the first ones
        self.running: list[int] = []
        self.tokens: list[int] = []  # the last token of each running sample

    def step(self, batch_size: int) -> list[int]:
        """Fill the batch up to `batch_size`, generate a token per sample; return the indices of samples that ended."""
        free = batch_size - len(self.running)
        joining = range(self.joined, min(self.joined + free, len(self.samples)))
        logits = self.decoding.step(self.tokens, joining)
        self.joined = joining.stop
        self.running += joining
        self.tokens = self._choose(logits)
        ended = {place for place, token in enumerate(self.tokens) if not self._append_token(self.running[place], token)}
        finished = [self.running[place] for place in sorted(ended)]
        if ended:
            kept = _kept_rows(len(self.running), ended)
            self.decoding.select(kept)
            self.running, self.tokens = [self.running[i] for i in kept], [self.tokens[i] for i in kept]
        return finished

    def _choose(self, logits: Tensor) -> list[int]:
        """Return the next token of each running sample."""
        self._check_finite(logits[:, : self.vocab_size].amax(dim=-1))
        logits[:, self.vocab_size :] = float("-inf")  # padding rows of the embedding
        if self.eos_id is not None and self.sampling.min_tokens_to_generate:
            short = [
                place
                for place, index in enumerate(self.running)
                if len(self.results[index]) < self.sampling.min_tokens_to_generate
            ]
            logits[short, self.eos_id] = float("-inf")
        history = [[*self.samples[index].input_ids, *self.results[index]] for index in self.running]
        chosen: list[int] = self.sampling.choose(logits, history, [self.generators[i] for i in self.running]).tolist()
        return chosen

    def _check_finite(self, highest: Tensor) -> None:
        """Raise UserError when a running sample's highest logit is NaN or infinite; the maximum propagates NaN."""
        finite = highest.isfinite()
        if finite.all():
            return
        wrong = [self.running[place] for place in (~finite).nonzero()[:, 0].tolist()]
        where = [(self.samples[index].source, f"token {len(self.results[index]) + 1} of the answer") for index in wrong]
        raise UserError(not_finite(where, highest.dtype))

    def _append_token(self, index: int, token: int) -> bool:
        """Append a sample's new token; return whether generation continues."""
        if token == self.eos_id:
            return False
        self.results[index].append(token)
        return len(self.results[index]) < self.sampling.tokens_to_generate


def not_finite(where: Sequence[tuple[str, str]], dtype: torch.dtype) -> list[Problem]:
    """Return the problems of samples with NaN or infinite model outputs, with possible fixes.

    where: (source of the sample, description of the value). dtype: that of the model's computation.
    """
    fix = "base or adapter may be damaged: check with nemo-launcher inspect FILE; copy, convert or train it again"
    if dtype == torch.float16:
        fix = "fp16 overflows at 65,504: try precision bf16 or 32"
    shown = where[:MAX_PROBLEMS]
    return [Problem(source, f"the model's output is not finite at {what}", fix) for source, what in shown]


def _kept_rows(count: int, ended: set[int]) -> list[int]:
    """Return the indices of the remaining rows, of `count`, in an order that moves as few of them as possible."""
    left = count - len(ended)
    behind = (place for place in range(left, count) if place not in ended)
    return [next(behind) if place in ended else place for place in range(left)]
