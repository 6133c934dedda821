# SPDX-License-Identifier: Apache-2.0
"""Values of each token that follow from its logits, with a bounded number of logits in memory.

The logits of 8,000 tokens over a vocabulary of 128,000 take 4 GB in fp32, and their gradients as much again. A loss of
a token depends on its own logits only, and the head is frozen: so the gradient of the token's hidden state is computed
with the loss, part by part, and nothing of the size of the vocabulary is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.megatron.autograd import Context
from nemo_launcher.megatron.sizes import tokens_with_logits

_SCALE = 256.0
"""Factor of the gradients in memory, without which small ones would be subnormal in fp16."""
OfLogits = Callable[[Tensor, Tensor], Tensor]
"""Returns one or k values of each token, [m] or [m, k], from its own logits, [m, vocabulary], and its label, [m]."""


def over_logits(model: FrozenModel, hidden: Tensor, labels: Tensor, of_logits: OfLogits) -> Tensor:
    """Return the values of all tokens, [n] or [n, k]; hidden: what the head reads, [n, hidden]; labels: [n].

    The head is frozen, and the values of a token follow from its own logits only.
    """
    rows = tokens_with_logits(model.num_logits)
    if labels.numel() <= rows:
        return of_logits(model.logits_of(hidden), labels)
    if torch.is_grad_enabled() and hidden.requires_grad:
        output: Tensor = _InParts.apply(hidden, labels, model, of_logits, rows)
        return output
    pairs = zip(hidden.split(rows), labels.split(rows), strict=True)
    return torch.cat([of_logits(model.logits_of(part), own) for part, own in pairs])


class _InParts(torch.autograd.Function):
    """Computes values part by part, with the gradients of the hidden states, so that backward needs no logits."""

    @staticmethod
    def forward(
        ctx: Context, hidden: Tensor, labels: Tensor, model: FrozenModel, of_logits: OfLogits, rows: int
    ) -> Tensor:
        pairs = zip(hidden.split(rows), labels.split(rows), strict=True)
        found, gradients = zip(*(_with_gradients(model, *pair, of_logits) for pair in pairs), strict=True)
        ctx.save_for_backward(*map(torch.cat, zip(*gradients, strict=True)))  # k of [n, hidden]
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        # The factors stay in fp32: rounded, those of a mean would all be wrong by the same ratio.
        factors = (grad.reshape(grad.size(0), -1, 1) / _SCALE).unbind(1)  # k of [n, 1]
        first, *others = (factor * each for factor, each in zip(factors, ctx.saved_tensors, strict=True))
        return sum(others, first).to(ctx.saved_tensors[0].dtype), None, None, None, None


def _with_gradients(
    model: FrozenModel, hidden: Tensor, labels: Tensor, of_logits: OfLogits
) -> tuple[Tensor, list[Tensor]]:
    """Return the values of some tokens, and _SCALE times the gradient of each of the k values, [m, hidden]."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        found = of_logits(model.logits_of(hidden), labels)
        sums = [_SCALE * each for each in found.reshape(labels.numel(), -1).sum(0).unbind()]
    last = len(sums) - 1
    gradients = [torch.autograd.grad(each, hidden, retain_graph=place < last)[0] for place, each in enumerate(sums)]
    return found.detach(), gradients
