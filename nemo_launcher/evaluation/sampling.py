# SPDX-License-Identifier: Apache-2.0
"""Choose the next token: greedy decoding or sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from nemo_launcher.config.sections.other import Inference
from nemo_launcher.errors import Problem, UserError

MAX_TOKENS = 2**31 - 1
_FACTORS = (1e-4, 1e4)
"""Range of factors; beyond it a scaled 32-bit logit may not be finite."""


_WHOLE = ("tokens_to_generate", "min_tokens_to_generate", "top_k", "seed")
_FRACTIONS = ("temperature", "top_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings, with the keys of the `inference` section. Raises UserError for values out of range."""

    tokens_to_generate: int = 30
    """Maximum new tokens of an answer."""
    min_tokens_to_generate: int = 0
    """Minimum new tokens before the end-of-text token."""
    greedy: bool = True
    """Whether decoding is greedy; temperature, top_k and top_p are then ignored."""
    top_k: int = 0
    """Number of most likely tokens to sample from; 0 for all."""
    top_p: float = 0.0
    """Total probability of the most likely tokens to sample from; 0 or 1 for all tokens."""
    temperature: float = 1.0
    """Divides the logits."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that already occur in the text (Keskar et al. 2019,
    arXiv:1909.05858, section 4.1); ignored with greedy decoding, as in NeMo."""
    seed: int = 1234
    """Random seed of the first prompt; each further one adds 1."""

    def __post_init__(self) -> None:
        """Raise UserError for values of a wrong type and out of range."""
        wrong = [
            Problem(f"inference.{key}", f"{value!r} is not a {words}", "write a number without quotes")
            for keys, kind, words in ((_WHOLE, Integral, "whole number"), (_FRACTIONS, Real, "number"))
            for key in keys
            if isinstance(value := getattr(self, key), bool) or not isinstance(value, kind)
        ]
        if wrong:
            raise UserError(wrong)
        bounds = {
            "tokens_to_generate": (1, MAX_TOKENS),
            "min_tokens_to_generate": (0, self.tokens_to_generate),
            "temperature": _FACTORS,
            "top_k": (0, MAX_TOKENS),
            "top_p": (0, 1),
            "repetition_penalty": _FACTORS,
            "seed": (-(2**63), 2**63 - 1 - MAX_TOKENS),  # a sample's index is added
        }
        problems = [
            Problem(f"inference.{key}", f"{getattr(self, key)} is out of range", f"choose from {low:,} to {high:,}")
            for key, (low, high) in bounds.items()
            if not low <= getattr(self, key) <= high
        ]
        if problems:
            raise UserError(problems)

    @classmethod
    def of_job(cls, inference: Inference) -> Sampling:
        """Return the settings of an evaluation's `inference` section. Raises UserError for values out of range."""
        names = {field.name for field in fields(cls)} & {field.name for field in fields(inference)}
        return cls(**{name: getattr(inference, name) for name in names})

    def as_nemo(self, length: int | None) -> Sampling:
        """Return NeMo's settings: greedy with `length` tokens; unchanged if `length` is None (Family.nemo_length)."""
        if length is None:
            return self
        return replace(self, greedy=True, tokens_to_generate=length, min_tokens_to_generate=0)

    def choose(self, logits: Tensor, history: Sequence[Sequence[int]], generators: Sequence[torch.Generator]) -> Tensor:
        """Return the next token of each sample, [samples].

        logits: [samples, vocabulary]; history: their tokens so far; generators: one per sample. Unused if greedy.
        """
        if self.greedy:
            return logits.argmax(dim=-1)
        logits = _penalize(logits.float(), history, self.repetition_penalty) / self.temperature
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


@dataclass(frozen=True, slots=True)
class Request:
    """A request of a console verb to a model."""

    sampling: Sampling
    """The sampling settings."""
    batch_size: int
    """Maximum samples that run at a time."""
    add_bos: bool | None = None
    """Whether prompts start with the beginning-of-text token; None for as in training."""

    def changed(self, inference: Mapping[str, Any]) -> Request:
        """Return the request with these keys of the `inference` section replaced."""
        names = {field.name for field in fields(Sampling)} & inference.keys()
        return Request(
            replace(self.sampling, **{name: inference[name] for name in names}),
            inference.get("batch_size", self.batch_size),
            inference.get("add_BOS", self.add_bos),
        )


def _penalize(logits: Tensor, history: Sequence[Sequence[int]], penalty: float) -> Tensor:
    if penalty == 1.0:
        return logits
    logits = logits.clone()
    for row, tokens in zip(logits, history, strict=True):
        index = torch.tensor(sorted(set(tokens)), device=logits.device)
        row[index] = torch.where(row[index] > 0, row[index] / penalty, row[index] * penalty)
    return logits


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Mask all logits outside the nucleus, keeping the token that crosses `top_p`: [samples, vocabulary].

    Source: Holtzman et al. 2020 (arXiv:1904.09751), section 3.1.
    """
    ordered, index = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, index, ordered)
