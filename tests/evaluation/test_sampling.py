# SPDX-License-Identifier: Apache-2.0
"""Selection of the next token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.sampling import Sampling

pytestmark = pytest.mark.unit

PROBABILITIES = torch.tensor([0.15, 0.5, 0.05, 0.3])
LOGITS = PROBABILITIES.log()
DRAWS = 10_000


def frequencies(logits: torch.Tensor = LOGITS, seen: list[int] | None = None, **options: Any) -> torch.Tensor:
    """Return how often each token is selected in many draws."""
    sampling = Sampling(greedy=False, **options)
    generator = torch.Generator().manual_seed(sampling.seed)
    tokens = sampling.choose(logits.expand(DRAWS, -1).clone(), [seen or []] * DRAWS, [generator] * DRAWS)
    return tokens.bincount(minlength=logits.numel()) / DRAWS


def assert_close(actual: torch.Tensor, wanted: Any) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(wanted, dtype=torch.float32), rtol=0, atol=0.02)


def test_greedy_takes_the_most_likely_whatever_the_other_settings() -> None:
    sampling = Sampling(greedy=True, top_k=1, top_p=0.1, temperature=100.0, repetition_penalty=9.0)
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    assert sampling.choose(logits, [], []).tolist() == [1, 2]


def test_tokens_are_drawn_by_their_probability() -> None:
    assert_close(frequencies(), PROBABILITIES)


@pytest.mark.parametrize(
    ("top_k", "kept"), [(0, [0, 1, 2, 3]), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3])]
)
def test_top_k_keeps_the_most_likely(top_k: int, kept: list[int]) -> None:
    wanted = torch.zeros(4)
    wanted[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    found = frequencies(top_k=top_k)
    assert_close(found, wanted)
    assert found.nonzero().flatten().tolist() == kept


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.0, [0, 1, 2, 3]),
        (0.3, [1]),
        (0.6, [1, 3]),
        (0.9, [0, 1, 3]),
        (0.97, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_token_that_crosses_the_threshold(top_p: float, kept: list[int]) -> None:
    wanted = torch.zeros(4)
    wanted[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    found = frequencies(top_p=top_p)
    assert_close(found, wanted)
    assert found.nonzero().flatten().tolist() == kept


@pytest.mark.parametrize("temperature", [0.25, 0.5, 2.0, 50.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    assert_close(frequencies(temperature=temperature), (LOGITS / temperature).softmax(0))


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = torch.tensor([2.0, 1.0, -1.0, 0.5])
    wanted = torch.tensor([2.0 / 4.0, 1.0, -1.0 * 4.0, 0.5]).softmax(0)
    assert_close(frequencies(logits, seen=[0, 2, 2, 0], repetition_penalty=4.0), wanted)


def test_repetition_penalty_concerns_each_row_alone() -> None:
    logits = torch.tensor([[2.0, 1.9]]).expand(2, -1).clone()
    sampling = Sampling(greedy=False, top_k=1, repetition_penalty=2.0)
    assert sampling.choose(logits, [[0], [1]], [torch.Generator()] * 2).tolist() == [1, 0]
    assert torch.equal(logits, torch.tensor([[2.0, 1.9]]).expand(2, -1))  # the caller's logits are unchanged


def test_a_banned_token_stays_banned() -> None:
    logits = LOGITS.clone()
    logits[1] = float("-inf")
    assert frequencies(logits, seen=[1], top_p=0.9, repetition_penalty=1.2, temperature=5.0)[1] == 0


def test_temperature_zero_is_refused() -> None:
    with pytest.raises(UserError, match="temperature"):
        frequencies(temperature=0.0)
