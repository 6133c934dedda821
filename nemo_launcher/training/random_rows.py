# SPDX-License-Identifier: Apache-2.0
"""Rows of random tokens, with which a training measures what rows cost on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.data.samples import Batch
from nemo_launcher.families.base import Base
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.step import run_side_by_side


def random_row(base: Base, length: int, seed: int, *, sample_tokens: int, answer_tokens: int) -> Batch:
    """Return random samples in a row of `length` tokens, in main memory.

    Samples are shorter than `sample_tokens` if the base has fewer positions: an index out of range would end the
    process's use of the GPU.
    """
    generator, tokens = torch.Generator().manual_seed(seed), min(base.tokenizer.vocab_size, base.shape.vocab_size)
    sample_tokens = min(sample_tokens, base.shape.max_position_embeddings or sample_tokens)
    answer_tokens = min(answer_tokens, sample_tokens)

    def ids(count: int) -> list[int]:
        return torch.randint(0, tokens, (count,), generator=generator).tolist()

    samples = [
        base.family.make_sample(ids(sample_tokens - answer_tokens + 1), ids(answer_tokens))
        for _ in range(length // sample_tokens)
    ]
    return base.family.pack(samples, share_prefix=False)


def run_rows(base: Base, rows: Sequence[Batch]) -> None:
    """Run forward and backward of rows, each in a worker of its own; the adapters' gradients are added up."""
    batch = GlobalBatch(
        micro_batches=list(rows),
        num_micro_batches=len(rows),
        num_samples=1,
        answer_tokens=sum(row.labels.numel() for row in rows),
        sample_tokens=0,
        workers=len(rows),
        costs=[1.0] * len(rows),
    )

    def loss_of(hidden: Tensor, micro: Batch) -> Tensor:
        return TrainingLoss().share(base.model, hidden, micro, batch)

    run_side_by_side(base.model, batch, loss_of, backward=True, seed=0)


@contextlib.contextmanager
def cleared_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Clear the gradients at the end, also of rows that failed: the training's first step adds to what is there."""
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.grad = None
