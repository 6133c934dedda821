# SPDX-License-Identifier: Apache-2.0
"""The loss of a training is one class: nothing else decides what is minimised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_launcher.data.batching import Collate
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.forward import run_model
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.step import forward_backward
from tests.engine import adapted, random_tree
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.unit


@dataclass(frozen=True, slots=True)
class Smoothed(TrainingLoss):
    """Another loss: label smoothing."""

    def of_tokens(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.3)


def test_a_training_minimises_the_loss_that_it_is_given(tiny_base: Path) -> None:
    base, adapters = adapted(tiny_base, model_section(METHODS[0]), torch.float64)
    batch = Collate(Layout.one_after_the_other(2), True, pack=pack)(random_tree(3, base.shape.vocab_size, count=7))
    loss = forward_backward(base.model, batch, backward=True, loss=Smoothed())
    parameters = [parameter for parameter in adapters.parameters() if parameter.grad is not None]
    pairs = [(base.model.logits_of(run_model(base.model, micro)), micro.labels) for micro in batch.micro_batches]
    logits, labels = torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3)
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close([parameter.grad for parameter in parameters], list(gradients), rtol=1e-6, atol=1e-9)
    plain = forward_backward(base.model, batch, backward=False)
    assert abs(float(plain) - float(loss)) > 1e-3
