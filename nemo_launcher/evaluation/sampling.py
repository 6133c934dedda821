# SPDX-License-Identifier: Apache-2.0
"""Choosing the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_launcher.errors import Problem, UserError

MAX_TOKENS = 2**31 - 1
_FACTORS = (1e-4, 1e4)
"""Beyond these a logit of 32 bits, divided or multiplied, may not be finite."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; the keys of the documented `inference` section.

    greedy: the most likely token, and temperature, top_k, top_p play no part. top_k: only the k most likely, 0 for all.
    top_p: only the most likely ones that together reach this probability, 0 or 1 for all. repetition_penalty: divides
    positive and multiplies negative logits of tokens that the text holds already (Keskar et al. 2019, arXiv:1909.05858,
    section 4.1); with greedy it plays no part, as in NeMo. tokens_to_generate, min_tokens_to_generate: counts of
    tokens; before the minimum no end of text is accepted. Raises UserError for numbers out of range.
    """

    tokens_to_generate: int = 30
    min_tokens_to_generate: int = 0
    greedy: bool = True
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        """Raise UserError for numbers that no token can be drawn with."""
        bounds = {
            "tokens_to_generate": (1, MAX_TOKENS),
            "min_tokens_to_generate": (0, self.tokens_to_generate),
            "temperature": _FACTORS,
            "top_k": (0, MAX_TOKENS),
            "top_p": (0, 1),
            "repetition_penalty": _FACTORS,
            "seed": (-(2**63), 2**63 - 1 - MAX_TOKENS),  # a sample's place is added
        }
        problems = [
            Problem(f"inference.{key}", f"{getattr(self, key)} is out of range", f"choose from {low:,} to {high:,}")
            for key, (low, high) in bounds.items()
            if not low <= getattr(self, key) <= high
        ]
        if problems:
            raise UserError(problems)

    def choose(self, logits: Tensor, seen: Sequence[Sequence[int]], generators: Sequence[torch.Generator]) -> Tensor:
        """Return the next token of each sample, [samples].

        logits: [samples, vocabulary]; seen: their tokens so far; generators: one a sample. Greedily neither counts.
        """
        if self.greedy:
            return logits.argmax(dim=-1)
        logits = _penalize(logits.float(), seen, self.repetition_penalty) / self.temperature
        if self.top_k > 0:
            threshold = logits.topk(min(self.top_k, logits.size(-1)), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < threshold, float("-inf"))
        if 0.0 < self.top_p < 1.0:
            logits = _nucleus(logits, self.top_p)
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(logits.softmax(dim=-1), generators, strict=True)
        ]
        return torch.cat(drawn)


def _penalize(logits: Tensor, seen: Sequence[Sequence[int]], penalty: float) -> Tensor:
    if penalty == 1.0:
        return logits
    logits = logits.clone()
    for row, tokens in zip(logits, seen, strict=True):
        index = torch.tensor(sorted(set(tokens)), device=logits.device)
        row[index] = torch.where(row[index] > 0, row[index] / penalty, row[index] * penalty)
    return logits


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Holtzman et al. 2020 (arXiv:1904.09751), section 3.1: the token that crosses the threshold is kept."""
    ordered, index = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, index, ordered)
