# SPDX-License-Identifier: Apache-2.0
"""Training from stored hidden states (model.data.cache_hidden): computing them, and giving them to the batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nemo_launcher.adapters.registry import AdapterMethod
from nemo_launcher.checkpoint.outline import dropout_rates
from nemo_launcher.config.hidden_states import dropout_problem, layer_problem
from nemo_launcher.data.batching import Collate, CollateNumbered, GlobalBatch, Numbered
from nemo_launcher.data.hidden_file import HiddenRows, TableShape, TableWriter, keep_mapped
from nemo_launcher.data.row_tree import RowForest
from nemo_launcher.data.samples import Batch, Sample
from nemo_launcher.data.token_rows import TokenRows
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import Base
from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.hidden import HiddenStates
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.partial_stack import first_adapted_layer
from nemo_launcher.runtime.progress import Progress
from nemo_launcher.training.hidden_cache import HiddenCache, cache_key
from nemo_launcher.training.workers import run_concurrently


@dataclass(frozen=True, slots=True)
class StoredHidden:
    """The stored hidden states of a data set (picklable, for DataLoader workers)."""

    path: Path
    """Their file."""
    layer: int
    """The layer that they enter, counted from 0."""
    rows: TokenRows
    """The rows of each sample's tokens."""


@dataclass(frozen=True, slots=True)
class CollateStored:
    """Collates numbered samples into one rank's share of a global batch that starts from stored hidden states."""

    collate: Collate
    """Collates samples."""
    stored: StoredHidden
    """Their hidden states."""
    states: HiddenStates[FrozenModel, Batch]
    """Of the base's family."""

    def __call__(self, numbered: Numbered) -> GlobalBatch:
        batch = CollateNumbered(self.collate)(numbered)
        pairs = zip(batch.micro_batches, batch.members, strict=True)
        return replace(batch, micro_batches=[self._attach(micro, numbers) for micro, numbers in pairs])

    def packed_again(self, numbered: Numbered, like: Batch, tokens: float) -> Batch:
        """Return Collate.packed_again, with the hidden states."""
        packed = CollateNumbered(self.collate).packed_again(numbered, like, tokens)
        return self._attach(packed, [number for number, _ in numbered])

    def _attach(self, micro: Batch, numbers: Sequence[int]) -> Batch:
        states, stored = self.states, self.stored

        def attach(row: Batch) -> Batch:
            index = _table_index(states, stored.rows, row, numbers)
            return states.attach(row, HiddenRows(stored.path, stored.layer, index))

        return micro.changed(attach) if isinstance(micro, RowForest) else attach(micro)


def _table_index(
    states: HiddenStates[FrozenModel, Batch], rows: TokenRows, batch: Batch, numbers: Sequence[int]
) -> Tensor:
    """Return the row in the table of each token of a batch, [s]; numbers: of its samples in the data set."""
    samples, places = states.owners(batch)
    index = torch.empty(len(samples), dtype=torch.int64)
    parts = samples.argsort(stable=True).split(torch.bincount(samples, minlength=len(numbers)).tolist())
    for number, part in zip(numbers, parts, strict=True):
        if len(part):
            index[part] = torch.from_numpy(rows.of(number))[places[part]]
    return index


def store_hidden(
    base: Base, samples: Sequence[Sample], collate: Collate, cache: HiddenCache, *, size: int
) -> StoredHidden:
    """Return the hidden states of samples, computed unless the cache has them; all ranks must call this.

    collate: packs samples as in training; size: samples that are collated at a time. Raises UserError like
    HiddenCache.find_or_fill.
    """
    states = base.family.hidden
    layer = first_layer(base)
    # One path at a time would save no memory here: nothing is kept for a backward pass.
    collate = replace(collate, rank=0, ranks=1, traversal="breadth")
    rows = TokenRows(samples, is_causal=states.is_causal)
    shape = TableShape(rows.num_rows, base.shape.hidden_size, base.dtype)

    def fill(path: Path) -> int:
        writer = TableWriter(path, shape)
        try:
            return _Filling(base, samples, rows, layer, collate, writer).run(size)
        finally:
            writer.close()

    key = cache_key(base, states.stack, layer, shape, rows.digest)
    path = cache.find_or_fill(key, shape, fill)
    keep_mapped(path)
    return StoredHidden(path, layer, rows)


def check_can_store(base: Base, method: AdapterMethod, *, nemo_compat: bool) -> None:
    """Raise UserError if no layer is below the adapters of a method, or if its output differs in each epoch."""
    problems = []
    rates = dropout_rates(base.config)
    if nemo_compat and any(rates):
        problems.append(dropout_problem(rates))
    if first_layer(base) == 0:
        counts = {name: shape.num_layers for name, shape in base.family.stack_shapes(base.shape).items()}
        problems.append(layer_problem(base.family.hidden.stack, counts, f"model.{method.block}.layers"))
    if problems:
        raise UserError(problems)


def first_layer(base: Base) -> int:
    """Return the layer whose input is stored, counted from 0; the number of layers for the output of the stack."""
    stack = base.family.hidden.stack
    layers = next(found.layers for found in base.family.stacks(base.model, base.shape) if found.name == stack)
    return first_adapted_layer(layers)


@dataclass(frozen=True, slots=True)
class _Filling:
    """Computes this rank's share of the rows and writes them to a file."""

    base: Base
    """The base, with adapters from `layer` on."""
    samples: Sequence[Sample]
    """The data set."""
    rows: TokenRows
    """The rows of its tokens."""
    layer: int
    """The layer that the hidden states enter."""
    collate: Collate
    """Cuts samples into rows as in training."""
    writer: TableWriter
    """Writes to the file."""

    def run(self, size: int) -> int:
        """Return the checksum of what was written; size: samples that are collated at a time."""
        new = [int(sample) for sample in self.rows.order if self.rows.own(int(sample))[1]]
        parts = [new[start : start + size] for start in range(0, len(new), size)]  # neighbors have common prefixes
        own_parts = parts[parallel.data_rank() :: parallel.data_size()]
        checksum = 0
        with Progress("hidden states", len(own_parts), unit="batch") as progress:
            for part in own_parts:
                checksum += self._part(part)
                progress.advance()
        return checksum

    def _part(self, part: Sequence[int]) -> int:
        batch = CollateNumbered(self.collate)([(number, self.samples[number]) for number in part])

        def run(own: list[int]) -> int:
            return sum(self._micro_batch(batch.micro_batches[index], batch.members[index]) for index in own)

        return sum(run_concurrently(run, batch.costs, batch.workers))

    @torch.no_grad()
    def _micro_batch(self, micro: Batch, numbers: Sequence[int]) -> int:
        states = self.base.family.hidden
        hidden = states.compute(self.base.model, micro.to(self.base.device), self.layer)[:, 0].cpu()
        if parallel.tensor_rank() > 0:  # tensor-parallel ranks compute the same
            return 0
        index, order = _table_index(states, self.rows, micro, numbers).sort()
        checksum = 0
        for number in numbers:
            start, count = self.rows.own(number)
            found = order[torch.searchsorted(index, torch.arange(start, start + count))]
            checksum += self.writer.write(start, hidden[found])
        return checksum
