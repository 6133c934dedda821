# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of given continuations of given tokens, and whether greedy decoding would produce them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_launcher.data.batching import cut_by_prefix
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.generation import not_finite
from nemo_launcher.families.base import Base
from nemo_launcher.families.forward import cross_entropy, run_model
from nemo_launcher.families.head import over_logits
from nemo_launcher.runtime.bars import new_bar


class Continuation(NamedTuple):
    """What a model says about a continuation."""

    log_likelihood: float
    """The sum over its tokens, in nats."""
    is_greedy: bool
    """Whether each of its tokens is the most likely one."""


@torch.inference_mode()
def rate_continuations(
    base: Base, pairs: Sequence[tuple[list[int], list[int]]], *, batch_size: int
) -> list[Continuation]:
    """Return the log-likelihood of each continuation, in order.

    pairs: the token ids before a continuation, and its own; neither is empty. Common first tokens of a batch are
    computed once if the family can. Raises UserError for a log-likelihood that is not finite.
    """
    samples = [base.family.make_sample(before, own) for before, own in pairs]
    found: dict[int, Continuation] = {}
    share = base.family.shares_prefixes
    cut = cut_by_prefix(samples, batch_size, share_prefix=share)
    with new_bar(len(cut), "batch") as bar:
        for places in cut:
            batch = base.family.pack([samples[place] for place in places], share_prefix=share).to(base.device)
            rated = over_logits(base.model, run_model(base.model, batch), batch.labels, _loss_and_miss).double()
            sums, unlikely = rated.new_zeros(2, len(places)).index_add(1, batch.label_samples, rated.t())
            wrong = [places[index] for index in (~sums.isfinite()).nonzero()[:, 0].tolist()]
            if wrong:
                where = [(f"request {place + 1}", "a continuation") for place in wrong]
                raise UserError(not_finite(where, base.dtype))
            for place, total, misses in zip(places, (-sums).tolist(), unlikely.tolist(), strict=True):
                found[place] = Continuation(total, misses == 0)
            bar.update()
    return [found[place] for place in range(len(pairs))]


def _loss_and_miss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each token, and 1 if another one is more likely, [n, 2]."""
    return torch.stack((cross_entropy(logits, labels), (logits.argmax(dim=-1) != labels).float()), dim=1)
