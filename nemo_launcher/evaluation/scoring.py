# SPDX-License-Identifier: Apache-2.0
"""Compute the loss of each sample exactly as training does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch

from nemo_launcher.data.batching import cut_by_prefix
from nemo_launcher.data.samples import Sample
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.generation import not_finite
from nemo_launcher.families.base import Base
from nemo_launcher.families.forward import token_losses
from nemo_launcher.megatron import parallel
from nemo_launcher.runtime.bars import new_bar


def batches_left(
    samples: Sequence[Sample], batch_size: int, known: Mapping[int, object], *, share_prefix: bool
) -> list[list[int]]:
    """Return the samples (indices) that are still to be scored, in batches of at most `batch_size`, on all replicas.

    A batch is left out if all of its samples are known. The others stay whole: the last digits of a score depend on the
    samples beside it, and those of a job that was stopped must be the same.
    """
    cut = cut_by_prefix(samples, batch_size, share_prefix=share_prefix)
    return [places for places in cut if any(place not in known for place in places)]


@torch.inference_mode()
def score(
    base: Base,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    known: Mapping[int, dict[str, float]] = MappingProxyType({}),
    keep: Callable[[int, dict[str, float]], None] = lambda place, found: None,
) -> Iterator[dict[str, float]]:
    """Yield nll_sum and nll_mean (nats) over the answer tokens, and answer_tokens, for each sample in order.

    Model replicas score a share of the batches each, and every rank yields all results. known: existing results by
    sample index. keep: called with each new result of the replica. Raises UserError, before the first result, for
    samples with a loss that is not finite.
    """
    results = dict[int, dict[str, float]]()
    dtype = next(base.model.parameters()).dtype
    share = base.family.shares_prefixes
    cut = batches_left(samples, batch_size, known, share_prefix=share)[parallel.data_rank() :: parallel.data_size()]
    with new_bar(len(cut), "batch") as bar:
        for places in cut:
            batch = base.family.pack([samples[place] for place in places], share_prefix=share).to(base.device)
            losses = token_losses(base.model, batch).double()
            sums = torch.zeros(len(places), dtype=torch.double, device=losses.device)
            sums.index_add_(0, batch.label_samples, losses)
            counts = torch.bincount(batch.label_samples, minlength=len(places))
            wrong = [places[index] for index in (~sums.isfinite()).nonzero()[:, 0].tolist()]
            if wrong:
                where = [(samples[place].source, "the loss of its answer") for place in wrong]
                raise UserError(not_finite(where, dtype))
            for place, total, count in zip(places, sums.tolist(), counts.tolist(), strict=True):
                results[place] = {"nll_sum": total, "nll_mean": total / count, "answer_tokens": count}
                if place not in known:
                    keep(place, results[place])
            bar.update()
    merged = {**known, **parallel.merge_replicas(results)}
    yield from (merged[place] for place in range(len(samples)))
