# SPDX-License-Identifier: Apache-2.0
"""Generation: prompts join as soon as others have ended, so that every step runs as many samples as it may."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_launcher import __version__
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
    """Return the new token ids of each sample, in the order of the samples, without the end-of-text token.

    Each sample gets what it would get alone: at most `sampling.tokens_to_generate` tokens, fewer when it ends.
    batch_size: samples that run at a time. Model replicas take a share of the samples each, and every rank returns all
    answers. report: called with the number of samples finished since the last call; a replica takes the others to be as
    far as itself. known: answers that are there already, by the place of their sample; keep: called with each further
    one of this replica as soon as it is complete. Raises UserError where the model's output is not finite.
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


def answers_key(
    base: Base, adapter: Mapping[str, Mapping[str, Tensor]], samples: Sequence[Sample], sampling: Sampling
) -> str:
    """Return a hash of all that decides the answers: model, prompts and how tokens are chosen.

    adapter: the tensors of the adapter in the base, by place and name.
    """
    digest = hashlib.sha256()
    settings = [__version__, base.fingerprint, base.checksum, str(base.dtype), dataclasses.asdict(sampling)]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    tensors = ((f"{key} {name}", adapter[key][name]) for key in sorted(adapter) for name in sorted(adapter[key]))
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    for sample in samples:
        digest.update(json.dumps([sample.input_ids, getattr(sample, "decoder_ids", None)]).encode())
    return digest.hexdigest()


class _Running:
    """The samples that are being generated, and those that wait. seeds: what each sample's random numbers start from.

    Each has random numbers of its own, so that what is drawn for it depends neither on its company nor on replicas.
    """

    def __init__(self, base: Base, samples: Sequence[Sample], sampling: Sampling, seeds: Sequence[int]) -> None:
        self.samples, self.sampling = samples, sampling
        self.vocab_size, self.eos_id = base.tokenizer.vocab_size, base.tokenizer.eos_id
        self.generators = [torch.Generator(device=base.device).manual_seed(seed) for seed in seeds]
        self.results: list[list[int]] = [[] for _ in samples]
        self.decoding = base.family.start_decoding(base.model, base.device, samples, sampling.tokens_to_generate)
        self.joined = 0  # the first samples, which have run or are running
        self.running: list[int] = []
        self.tokens: list[int] = []  # the last token of each running sample

    def step(self, batch_size: int) -> list[int]:
        """Give each running sample a token, let others join up to `batch_size`; return those that ended (indices)."""
        free = batch_size - len(self.running)
        joining = range(self.joined, min(self.joined + free, len(self.samples)))
        logits = self.decoding.step(self.tokens, joining)
        self.joined = joining.stop
        self.running += joining
        self.tokens = self._choose(logits)
        ended = {place for place, token in enumerate(self.tokens) if not self._goes_on(self.running[place], token)}
        finished = [self.running[place] for place in sorted(ended)]
        if ended:
            kept = _kept_rows(len(self.running), ended)
            self.decoding.select(kept)
            self.running, self.tokens = [self.running[i] for i in kept], [self.tokens[i] for i in kept]
        return finished

    def _choose(self, logits: Tensor) -> list[int]:
        """Return the next token of each running sample."""
        self._check_finite(logits[:, : self.vocab_size].amax(dim=-1))
        logits[:, self.vocab_size :] = float("-inf")  # rows that only pad the embedding
        if self.eos_id is not None and self.sampling.min_tokens_to_generate:
            short = [
                place
                for place, index in enumerate(self.running)
                if len(self.results[index]) < self.sampling.min_tokens_to_generate
            ]
            logits[short, self.eos_id] = float("-inf")
        seen = [[*self.samples[index].input_ids, *self.results[index]] for index in self.running]
        chosen: list[int] = self.sampling.choose(logits, seen, [self.generators[i] for i in self.running]).tolist()
        return chosen

    def _check_finite(self, highest: Tensor) -> None:
        """Raise UserError where the highest logit of a running sample is NaN or infinite; NaN wins over all others."""
        finite = highest.isfinite()
        if finite.all():
            return
        wrong = [self.running[place] for place in (~finite).nonzero()[:, 0].tolist()]
        told = [(self.samples[index].source, f"token {len(self.results[index]) + 1} of the answer") for index in wrong]
        raise UserError(not_finite(told, highest.dtype))

    def _goes_on(self, index: int, token: int) -> bool:
        """Take a sample's new token; return whether another one follows."""
        if token == self.eos_id:
            return False
        self.results[index].append(token)
        return len(self.results[index]) < self.sampling.tokens_to_generate


def not_finite(told: Sequence[tuple[str, str]], dtype: torch.dtype) -> list[Problem]:
    """Return the problems of samples that a model computed NaN or infinity for, with what to try.

    told: where each sample comes from, and which of its numbers it is; dtype: what the model computes in.
    """
    fix = "base or adapter may hold such numbers: nemo-launcher inspect FILE; copy, convert or train again"
    if dtype == torch.float16:
        fix = "fp16 ends at 65,504: try bf16 or 32 as precision"
    return [Problem(source, f"the model's output is not finite at {what}", fix) for source, what in told[:MAX_PROBLEMS]]


def _kept_rows(count: int, ended: set[int]) -> list[int]:
    """Return the places that go on, of `count`, in an order in which as few as can be come to lie elsewhere."""
    left = count - len(ended)
    behind = (place for place in range(left, count) if place not in ended)
    return [next(behind) if place in ended else place for place in range(left)]
