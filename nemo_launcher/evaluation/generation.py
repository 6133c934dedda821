# SPDX-License-Identifier: Apache-2.0
"""Generation with continuous batching: new prompts join as soon as others end, so that every step is full."""

from __future__ import annotations

import sys
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
from nemo_launcher.runtime.gpu_memory import free_cached, gpu_size, is_out_of_memory

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
    If the memory of a GPU runs out, the answers that have not ended start again, half as many at a time.
    """
    order = [place for batch in cut_by_prefix(samples, batch_size) for place in batch if place not in known]
    rank, replicas = parallel.data_rank(), parallel.data_size()
    mine = order[len(order) * rank // replicas : len(order) * (rank + 1) // replicas]
    answers: dict[int, list[int]] = {}
    reported = 0
    while len(answers) < len(mine):
        left = [place for place in mine if place not in answers]
        running = _Running(
            base, [samples[place] for place in left], sampling, [sampling.seed + place for place in left]
        )
        try:
            while len(left) > running.num_ended:
                for number in running.step(batch_size):
                    answers[left[number]] = running.results[number]
                    keep(left[number], running.results[number])
                of_all = len(order) * len(answers) // len(mine)
                if of_all > reported:
                    report(of_all - reported)
                    reported = of_all
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            batch_size = _halved(batch_size, samples[left[running.num_ended]])
        del running
        if len(answers) < len(mine):
            free_cached()
    found = {**known, **parallel.merge_replicas(answers)}
    return [found[place] for place in range(len(samples))]


def _halved(batch_size: int, sample: Sample) -> int:
    """Return a batch size that needs less memory.

    Raises UserError if there is none, or if several ranks would have to agree on it. sample: one that runs.
    """
    fix = "use a shorter max_seq_length or tokens_to_generate, or a GPU with more memory"
    if parallel.tensor_size() * parallel.pipeline_size() > 1:
        what = f"{batch_size} answers at a time do not fit into {gpu_size()}"
        raise UserError(Problem("batch_size", what, f"lower batch_size, or {fix}"))
    if batch_size == 1:
        what = f"an answer to {sample.num_input_tokens:,} tokens does not fit into {gpu_size()}"
        raise UserError(Problem(sample.source or "batch_size", what, fix))
    smaller = batch_size // 2
    what = f"the memory of the GPU ran out: {smaller} answers at a time instead of {batch_size}, which are the same"
    print(f"{what}; a lower batch_size avoids the failed attempt", file=sys.stderr, flush=True)
    return smaller


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
        self.num_ended = 0
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
        self.num_ended += len(ended)
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
