# SPDX-License-Identifier: Apache-2.0
"""ALiBi: instead of positions, attention scores fall linearly with the distance, by a slope of each head.

Source: Press et al. 2022, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation"
(arXiv:2108.12409), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BIASES = ("exact", "scaled_bf16")
"""The values of `alibi_bias`: slope * distance, or what Falcon adds.

Falcon's bias is bf16(slope) * bf16(place of the key), rounded to bf16 and multiplied by the factor of the scores.
"""


@dataclass(frozen=True, slots=True)
class Alibi:
    """The biases of some heads' scores. Only differences between the keys of a query matter: a softmax follows."""

    slopes: Tensor
    """The slope of each head, fp32, [heads]."""
    rounded_scale: float | None = None
    """The factor of Falcon's bias, which is rounded to bf16; None for exact biases."""

    @classmethod
    def of_rank(
        cls, kind: str, heads: int, *, softmax_scale: float, rank: int, ranks: int, device: torch.device
    ) -> Alibi:
        """Return the biases of the heads of tensor-parallel `rank` of `ranks`; kind: one of BIASES; heads: of all."""
        own = slopes(heads).chunk(ranks)[rank].to(device)
        return cls(own, None if kind == BIASES[0] else softmax_scale)

    def between(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the bias of each key for each query, fp32, [heads, ..., queries, keys], which is 0 at no distance.

        queries, keys: their places in the same text, [..., queries] and [..., keys]; places before the text are
        negative.
        """
        if self.rounded_scale is None:
            return self._by_head(keys[..., None, :] - queries[..., :, None], self.slopes)
        return self.heights(keys)[..., None, :] - self.heights(queries)[..., :, None]

    def heights(self, places: Tensor) -> Tensor:
        """Return the bias of keys in a form that no query is needed for, fp32, [heads, ...]; places: [...]."""
        if self.rounded_scale is None:
            return self._by_head(places, self.slopes)
        rounded = self._by_head(places.bfloat16(), self.slopes.bfloat16())
        return rounded.float() * self.rounded_scale

    @staticmethod
    def _by_head(places: Tensor, slopes: Tensor) -> Tensor:
        return slopes.view(-1, *[1] * places.dim()) * places


def slopes(heads: int) -> Tensor:
    """Return the slope of each of a model's heads, fp32, [heads].

    For n heads, a power of two, they are 2^(-8/n), 2^(-16/n) and so on. Other numbers of heads take those of the next
    lower power of two, then every other one of twice that power. Source: the authors' attention_with_linear_biases,
    fairseq/models/transformer.py, get_slopes.
    """
    lower = 2 ** int(math.log2(heads))
    further = _powers(2 * lower, 2 * torch.arange(heads - lower) + 1)
    return torch.cat([_powers(lower, torch.arange(1, lower + 1)), further])


def _powers(heads: int, exponents: Tensor) -> Tensor:
    return torch.tensor(2.0 ** (-8 / heads)) ** exponents
