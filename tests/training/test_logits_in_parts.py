# SPDX-License-Identifier: Apache-2.0
"""Losses whose logits are in memory a part at a time have the values and gradients of those computed at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.samples import Sample
from nemo_launcher.evaluation.continuations import rate_continuations
from nemo_launcher.evaluation.scoring import score
from nemo_launcher.families import head
from nemo_launcher.families.base import Base
from nemo_launcher.megatron import sizes
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.step import forward_backward
from tests import t5
from tests.engine import adapted, named_gradients, random_tree, tiny_gpt_nemo
from tests.methods import METHODS, model_section
from tests.training.test_choice_loss import gpt_choices, t5_choices

pytestmark = pytest.mark.unit
ROWS = 3
BASES = {
    "tied head": lambda path: tiny_gpt_nemo(path, tie_word_embeddings=True),
    "own head": lambda path: tiny_gpt_nemo(path, tie_word_embeddings=False),
    "T5": t5.tiny_base,
}


class Largest(TorchDispatchMode):
    """Notes the most rows of a tensor as wide as the vocabulary."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for each in output if isinstance(output, tuple) else [output]:
            # The transposed weight is as wide.
            if (
                isinstance(each, Tensor)
                and each.dim() > 1
                and each.size(-1) == self.width
                and "t." not in str(function)
            ):
                self.rows = max(self.rows, each.numel() // self.width)
        return output


def step(base: Base, adapters: AdapterSet, samples: Sequence[Sample], loss: TrainingLoss) -> tuple[float, Any]:
    """Return loss and gradients of all samples in one micro-batch."""
    layout = Layout.one_after_the_other(len(samples))
    batch = Collate(layout, base.family.shares_prefixes, pack=base.family.pack)(samples)
    for parameter in adapters.parameters():
        parameter.grad = None
    return float(forward_backward(base.model, batch, backward=True, loss=loss)), named_gradients(adapters)


def in_parts(monkeypatch: pytest.MonkeyPatch, base: Base) -> None:
    monkeypatch.setattr(sizes, "MAX_LOGITS", ROWS * base.model.num_logits)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("loss", ["tokens", "choices"])
def test_loss_and_gradients_are_those_of_one_part(
    kind: str, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters = adapted(BASES[kind](tmp_path / "base.nemo"), model_section(METHODS[0]), torch.float64)
    if loss == "choices":
        samples: Sequence[Sample] = t5_choices(4) if kind == "T5" else gpt_choices(4)
    else:
        samples = t5.random_samples(5, 58) if kind == "T5" else random_tree(3, base.shape.vocab_size, count=7)
    chosen = TrainingLoss(unlikelihood=True, length_norm=True) if loss == "choices" else TrainingLoss()
    with Largest(base.model.num_logits) as whole:
        expected = step(base, adapters, samples, chosen)
    in_parts(monkeypatch, base)
    with Largest(base.model.num_logits) as parts:
        found = step(base, adapters, samples, chosen)
    assert parts.rows == ROWS < whole.rows
    # The losses of tokens are in fp32.
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-8)
    assert all(gradient.abs().max() > 1e-5 for gradient in found[1].values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gradients_in_half_precision_are_not_less_exact(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors of the losses, such as 1 / 7,000, are rounded to neither type."""
    base, _ = adapted(tiny_gpt_nemo(tmp_path / "base.nemo"), model_section(METHODS[0]), dtype)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, base.model.config.hidden_size, generator=generator).to(dtype)
    labels = torch.randint(base.model.num_logits, (40,), generator=generator)

    def gradient(of: Any, hidden: Tensor) -> Tensor:
        hidden = hidden.requires_grad_()
        losses = head.over_logits(of, hidden, labels, TrainingLoss().of_tokens)
        return torch.autograd.grad(losses.sum() / 3, hidden)[0].double()

    half = gradient(base.model, hidden.detach())
    in_parts(monkeypatch, base)
    parts = gradient(base.model, hidden.detach())
    exact = gradient(base.model.double(), hidden.detach().double())
    assert (parts - exact).norm() <= 1.1 * (half - exact).norm()
    slope = (parts * exact).sum() / exact.square().sum()
    assert abs(slope - 1) < 1e-3  # in bf16 1 / 3 is wrong by 0.002


def test_small_gradients_survive_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tokens with a loss of 1e-6, p - y is subnormal in fp16; with the factor of the loss it is not."""
    model: Any = SimpleNamespace(num_logits=4, logits_of=lambda hidden: hidden * 1.0)
    hidden, labels = 14.0 * torch.eye(4), torch.arange(4)
    monkeypatch.setattr(sizes, "MAX_LOGITS", model.num_logits)

    def gradient(dtype: torch.dtype) -> Tensor:
        given = hidden.to(dtype).requires_grad_()
        losses = head.over_logits(model, given, labels, TrainingLoss().of_tokens)
        return torch.autograd.grad(losses.sum() * 2.0**12, given)[0].double()

    torch.testing.assert_close(gradient(torch.float16), gradient(torch.float32), rtol=2e-3, atol=0)


def test_scores_and_continuations_are_those_of_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = adapted(tiny_gpt_nemo(tmp_path / "base.nemo"), model_section(METHODS[0]))
    samples = random_tree(3, base.shape.vocab_size, count=7)
    pairs = [([5, 6, 7], [8, 9, 10, 11]), ([5, 6], [12])]
    expected = list(score(base, samples, batch_size=7)), rate_continuations(base, pairs, batch_size=2)
    in_parts(monkeypatch, base)
    with Largest(base.model.num_logits) as parts:
        found = list(score(base, samples, batch_size=7)), rate_continuations(base, pairs, batch_size=2)
    assert parts.rows == ROWS
    for one, other in zip(found[0], expected[0], strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    for (likelihood, greedy), (wanted, wanted_greedy) in zip(found[1], expected[1], strict=True):
        assert (likelihood, greedy) == (pytest.approx(wanted, rel=1e-6), wanted_greedy)
