# SPDX-License-Identifier: Apache-2.0
"""T-Few's losses against the formulas of section 3.2 of arXiv 2205.05638, in plain torch on a padded batch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate
from nemo_launcher.data.choices import Branches
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.forward import run_model
from nemo_launcher.families.gpt.samples import GPTChoices, GPTSample
from nemo_launcher.families.t5.samples import T5Choices, T5Sample
from nemo_launcher.training.choice_loss import unlikelihood
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.step import forward_backward
from tests import t5
from tests.engine import adapted, named_gradients, randomize
from tests.methods import model_section

pytestmark = pytest.mark.unit
BOTH = TrainingLoss(unlikelihood=True, length_norm=True)


def gpt_choices(count: int, *, prompt: int = 40, choices: int = 4, seed: int = 0, answer: int = 6) -> list[GPTChoices]:
    """Return records with choices of different lengths, one of which starts with a token of the prompt."""
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        shared = [generator.randrange(3, 300) for _ in range(prompt)]
        number = generator.randint(2, choices) if choices > 2 else choices
        rests = [
            [*(generator.randrange(3, 300) for _ in range(generator.randint(1, answer))), 2] for _ in range(number)
        ]
        rests[0] = [7, *rests[0]]
        branches = Branches.of(rests, 0)
        longest = max(rests, key=len)
        sample = GPTChoices(
            shared + longest,
            len(shared),
            {},
            "",
            num_shared=prompt,
            choice_ids=branches.ids,
            choice_owners=branches.owners,
            unlearnt=[1, *[0] * (number - 1)],
            right=generator.randrange(number),
        )
        found.append(sample)
    return found


def t5_choices(count: int, seed: int = 0) -> list[T5Choices]:
    """Return records with choices of different lengths behind the decoder's start and a sentinel."""
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        prompt = [generator.randrange(4, 58) for _ in range(generator.randint(5, 20))]
        number = generator.randint(2, 4)
        rests = [[*(generator.randrange(4, 58) for _ in range(generator.randint(1, 5))), 1] for _ in range(number)]
        branches = Branches.of(rests, 0)
        sample = T5Choices(
            prompt,
            [0, 60, *max(rests, key=len)],
            {},
            "",
            num_shared=2,
            choice_ids=branches.ids,
            choice_owners=branches.owners,
            right=generator.randrange(number),
        )
        found.append(sample)
    return found


def reference(base: Base, records: Sequence[GPTChoices | T5Choices]) -> Tensor:
    """Return L_LM + L_UL + L_LN of the records; each choice runs alone, without sharing."""
    rows, starts, right = [], [], []
    owners: list[int] = []
    for record, sample in enumerate(records):
        for place, choice in enumerate(sample.sequences()):
            batch = base.family.pack([choice], share_prefix=False)
            log_p = base.model.logits_of(run_model(base.model, batch)).double().log_softmax(-1)
            rows.append(log_p.gather(1, batch.labels[:, None])[:, 0])
            starts.append(1 if isinstance(sample, T5Choices) else 0)  # the sentinel is no token of a choice
            right.append(place == sample.right)
            owners.append(record)
    padded = pad_sequence(rows, batch_first=True)
    real = torch.arange(padded.size(1)) < torch.tensor([len(row) for row in rows])[:, None]
    of_choice = real & (torch.arange(padded.size(1)) >= torch.tensor(starts)[:, None])
    is_right = torch.tensor(right)
    lm = -padded[is_right][real[is_right]].mean()
    wrong = of_choice & ~is_right[:, None]
    ul = -torch.log(1 - padded.exp())[wrong].sum() / wrong.sum()
    beta = (padded * of_choice).sum(1) / of_choice.sum(1)
    terms = []
    for record in range(len(records)):
        own = torch.tensor(owners) == record
        terms.append(-torch.log(beta[own & is_right].exp().sum() / beta[own].exp().sum()))
    return lm + ul + torch.stack(terms).mean()


def compare(base: Base, adapters: AdapterSet, records: Sequence[GPTChoices | T5Choices], collate: Collate) -> None:
    """Compare loss and gradients of a global batch with the reference."""
    parameters = list(adapters.parameters())
    expected = reference(base, records)
    gradients = torch.autograd.grad(expected, parameters)
    for parameter in parameters:
        parameter.grad = None
    loss = forward_backward(base.model, collate(records), backward=True, loss=BOTH)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_losses_of_a_gpt_are_those_of_the_paper(tiny_base: Path, size: int) -> None:
    base, adapters = adapted(tiny_base, model_section("ia3"), torch.float64)
    cut = partial(Collate, Layout.one_after_the_other(size), pack=base.family.pack)
    compare(base, adapters, gpt_choices(7), cut(share_prefix=True, keep_groups=True))


def test_the_losses_do_not_depend_on_shared_prefixes(tiny_base: Path) -> None:
    base, adapters = adapted(tiny_base, model_section("ia3"), torch.float64)
    compare(base, adapters, gpt_choices(3), Collate(Layout.one_after_the_other(2), False, pack=base.family.pack))


@pytest.fixture(scope="module")
def adapted_t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, AdapterSet]:
    base = load_base(t5.tiny_base(tmp_path_factory.mktemp("t5") / "t5.nemo"), dtype=torch.float64)
    adapters = AdapterSet(base.model, base.shape, model_section("ia3"))
    randomize(adapters)
    return base, adapters


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_losses_of_a_t5_are_those_of_the_paper(adapted_t5: tuple[Base, AdapterSet], size: int) -> None:
    base, adapters = adapted_t5
    compare(base, adapters, t5_choices(7), Collate(Layout.one_after_the_other(size), False, pack=base.family.pack))


def test_two_ranks_together_have_the_loss_of_one(tiny_base: Path) -> None:
    base, adapters = adapted(tiny_base, model_section("ia3"), torch.float64)
    records = gpt_choices(6, seed=3)
    layout = Layout.one_after_the_other(1)
    cut = partial(Collate, layout, True, pack=base.family.pack, keep_groups=True)
    shares = [forward_backward(base.model, cut(rank, 2)(records), backward=False, loss=BOTH) for rank in range(2)]
    whole = forward_backward(base.model, cut()(records), backward=False, loss=BOTH)
    torch.testing.assert_close(shares[0] + shares[1], whole, rtol=1e-6, atol=0)
    assert len(named_gradients(adapters)) == 0


def test_without_the_losses_only_the_right_choice_counts(tiny_base: Path) -> None:
    base, _ = adapted(tiny_base, model_section("ia3"), torch.float64)
    records = gpt_choices(5)
    collate = Collate(Layout.one_after_the_other(2), True, pack=base.family.pack, keep_groups=True)
    right = [record.sequences()[record.right] for record in records]
    with_choices = forward_backward(base.model, collate(records), backward=False, loss=TrainingLoss())
    alone = forward_backward(base.model, collate(right), backward=False, loss=TrainingLoss())
    torch.testing.assert_close(with_choices, alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("margin", [-40.0, -5.0, 0.0, 0.7, 5.0, 20.0, 60.0, 90.0])
def test_unlikelihood_is_exact_where_the_probability_rounds_to_0_or_1(margin: float) -> None:
    logits = torch.tensor([[margin, 0.0, -1.0]], requires_grad=True)
    labels = torch.tensor([0])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(loss := unlikelihood(logits, labels, losses).sum(), logits)
    exact = torch.tensor([margin, 0.0, -1.0], dtype=torch.float64)
    others = torch.tensor(1 + math.exp(-1), dtype=torch.float64)
    # 1 - p = others / (e^margin + others)
    expected = torch.nn.functional.softplus(exact[0] - others.log(), threshold=1000)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    p = exact.softmax(0)
    torch.testing.assert_close(gradient[0].double()[0], p[0], rtol=1e-5, atol=1e-12)
    assert gradient.isfinite().all()


def test_four_choices_of_a_long_prompt_compute_few_more_tokens_than_one(tiny_base: Path) -> None:
    base, _ = adapted(tiny_base, model_section("ia3"), torch.float32)
    records = gpt_choices(4, prompt=200, choices=2, answer=8)
    four = [record for record in gpt_choices(40, prompt=200, answer=8) if len(record.unlearnt) == 4][:4]
    collate = Collate(Layout.one_after_the_other(4), True, pack=base.family.pack, keep_groups=True)
    one = [GPTSample(record.input_ids, 200, {}, "") for record in four]
    assert collate(four).computed_tokens <= 1.3 * collate(one).computed_tokens
    assert collate(records).computed_tokens < collate(four).computed_tokens


def test_the_encoder_of_a_t5_runs_once_for_all_choices(adapted_t5: tuple[Base, AdapterSet]) -> None:
    base, _ = adapted_t5
    records = t5_choices(5)
    batch = base.family.pack(records)
    assert batch.encoder_row.tokens.numel() == sum(len(record.input_ids) for record in records)
    assert batch.decoder_row.tokens.numel() == sum(
        len(choice.decoder_ids) - 1 for record in records for choice in record.sequences()
    )
    assert isinstance(records[0].sequences()[0], T5Sample)
