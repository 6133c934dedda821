# SPDX-License-Identifier: Apache-2.0
"""Samples in trees, run depth-first, and what the backward passes keep in memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate, GlobalBatch
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.base import Base
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.families.gpt.row_packing import pack_rows
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.training.step import forward_backward
from tests.engine import named_gradients

Result = tuple[float, dict[str, Tensor]]


def in_rows(samples: Sequence[GPTSample], row_tokens: float) -> GlobalBatch:
    """Return the samples as a single micro-batch of rows."""
    forest = pack_rows(samples, row_tokens)
    return GlobalBatch(
        micro_batches=[forest],
        num_micro_batches=1,
        num_samples=len(samples),
        answer_tokens=sum(sample.num_trained_tokens for sample in samples),
        sample_tokens=sum(sample.num_input_tokens for sample in samples),
        costs=[forest.num_computed_tokens],
    )


def whole(samples: Sequence[GPTSample]) -> GlobalBatch:
    """Return the samples as one packed row with shared prefixes."""
    return Collate(Layout.one_after_the_other(len(samples)), True, pack=pack)(samples)


def plain(samples: Sequence[GPTSample]) -> GlobalBatch:
    """Return the samples as one packed row without shared prefixes."""
    return Collate(Layout.one_after_the_other(len(samples)), False, pack=pack)(samples)


def run(base: Base, adapters: AdapterSet, batch: GlobalBatch, **options: Any) -> Result:
    """Return loss and gradients of a batch."""
    for parameter in adapters.parameters():
        parameter.grad = None
    loss = forward_backward(base.model, batch, backward=True, **options)
    return float(loss), named_gradients(adapters)


def branches(count: int, *, prefix: int = 60, own: int = 12, trained: int = 4, vocabulary: int = 300) -> list[Any]:
    """Return `count` samples with one common prefix, `own` further tokens each, and labels at their ends."""
    generator = random.Random(7)
    shared = [generator.randrange(3, vocabulary) for _ in range(prefix)]
    samples = []
    for number in range(count):
        ids = [*shared, 3 + number, *(generator.randrange(3, vocabulary) for _ in range(own - 1))]
        samples.append(GPTSample(ids, len(ids) - trained, {}, ""))
    return samples


def peak_saved_bytes(function: Callable[[], object]) -> int:
    """Return the most bytes that graphs kept for backward passes at one time, while the function ran.

    Each storage counts once; views and tensors saved twice add nothing.
    """
    users: dict[int, int] = {}
    sizes: dict[int, int] = {}
    peak = 0

    class Saved:
        """A saved tensor; it counts until its graph drops it."""

        def __init__(self, tensor: Tensor) -> None:
            nonlocal peak
            self.tensor, storage = tensor, tensor.untyped_storage()
            self.key = storage.data_ptr()
            users[self.key] = users.get(self.key, 0) + 1
            sizes[self.key] = storage.nbytes()
            peak = max(peak, sum(sizes.values()))

        def __del__(self) -> None:
            users[self.key] -= 1
            if not users[self.key]:
                del users[self.key], sizes[self.key]

    with saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        function()
    torch.set_grad_enabled(True)
    return peak
