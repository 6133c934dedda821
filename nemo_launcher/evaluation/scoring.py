# SPDX-License-Identifier: Apache-2.0
"""Compute the loss of each sample exactly as training does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from nemo_launcher.data.batching import cut_by_prefix
from nemo_launcher.data.samples import Sample
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.generation import not_finite
from nemo_launcher.families.base import Base
from nemo_launcher.families.forward import run_model, token_losses
from nemo_launcher.runtime.bars import new_bar


@torch.inference_mode()
def score(base: Base, samples: Sequence[Sample], *, batch_size: int) -> Iterator[dict[str, float]]:
    """Yield nll_sum and nll_mean (nats) over the answer tokens, and answer_tokens, for each sample in order.

    Raises UserError, before the first result, for samples with a loss that is not finite.
    """
    results: list[dict[str, float]] = [{} for _ in samples]
    dtype = next(base.model.parameters()).dtype
    share = base.family.shares_prefixes
    cut = cut_by_prefix(samples, batch_size, share_prefix=share)
    with new_bar(len(cut), "batch") as bar:
        for places in cut:
            batch = base.family.pack([samples[place] for place in places], share_prefix=share).to(base.device)
            losses = token_losses(run_model(base.model, batch), batch).double()
            sums = torch.zeros(len(places), dtype=torch.double, device=losses.device)
            sums.index_add_(0, batch.label_samples, losses)
            counts = torch.bincount(batch.label_samples, minlength=len(places))
            wrong = [places[index] for index in (~sums.isfinite()).nonzero()[:, 0].tolist()]
            if wrong:
                where = [(samples[place].source, "the loss of its answer") for place in wrong]
                raise UserError(not_finite(where, dtype))
            for place, total, count in zip(places, sums.tolist(), counts.tolist(), strict=True):
                results[place] = {"nll_sum": total, "nll_mean": total / count, "answer_tokens": count}
            bar.update()
    yield from results
