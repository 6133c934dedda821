# SPDX-License-Identifier: Apache-2.0
"""The rows that a rank computes at the same time, as data.batching cuts them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.config.traversal import allows_depth
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.sampled_lengths import Lengths
from nemo_launcher.launcher.activations import Device
from nemo_launcher.launcher.memory import Rows
from nemo_launcher.runtime.row_costs import RowCosts


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a replica's share of a global batch."""

    layout: Layout
    """How they are cut, with the concurrency that applies without measured costs."""
    lengths: Lengths
    """The lengths of the samples."""
    sample: float
    """The mean number of tokens of a sample, common prefixes counted once."""
    usual: float
    """The number of tokens in a row."""
    largest: float
    """The number of tokens in the largest row."""
    total: float
    """The number of tokens in all rows."""
    is_t5: bool
    """Whether a row has tokens of an encoder and of a decoder."""

    def concurrent(self) -> Rows:
        """Return the most that is computed at the same time."""
        together = min(self.largest * self.layout.choices[0].workers, max(self.largest, self.total))
        answers, longest = together / self.sample * self.lengths.answer, self.lengths.longest
        if self.is_t5:
            return Rows({"encoder": together - answers, "decoder": answers}, answers, longest)
        return Rows({"decoder": together}, min(together, max(self.lengths.longest_answer, answers)), longest)

    def seconds(self, costs: RowCosts, replicas: int) -> float | None:
        """Return the time of forward and backward by the measured costs of rows; None if they are of other threads."""
        layout = self.layout.calibrated(costs)
        if not layout.costs.is_calibrated:
            return None
        count = max(1, round(replicas * self.total / self.usual))
        rows = [[replicas * self.total / count]] * count
        return min(choice.largest_share(rows, replicas, costs) for choice in layout.choices)


def step_rows(model: Ia3Model, lengths: Lengths, device: Device, *, is_t5: bool, replicas: int) -> StepRows:
    """Return the rows of samples with these lengths. replicas: the number of ranks that share a global batch."""
    layout = _layout(model, device, 2 if is_t5 else 1)
    concurrency = layout.choices[0]
    size, share = concurrency.size, max(1.0, model.global_batch_size / replicas)
    keeps_groups, shares_prefix = model.data.pack and not model.nemo_compat, not is_t5 and model.data.share_prefix
    sample = (lengths.own if shares_prefix else lengths.mean) + (lengths.answer if is_t5 else 0.0)
    longest = lengths.longest + (lengths.longest_answer if is_t5 else 0.0)
    total, most = share * sample, size * longest
    count = min(float(size), share)
    if keeps_groups:
        fill = most if layout.row_tokens is None else min(most, layout.row_tokens)
        count = min(share, max(1.0, fill // sample))
    usual, largest = min(total, count * sample), max(longest, count * sample)
    if keeps_groups and shares_prefix:
        if model.data.traversal == "depth" and allows_depth(model):  # a path (data.traversal)
            most = min(most, longest + (layout.row_tokens or most))
        largest = max(largest, min(lengths.tree, most, total / concurrency.workers + longest / 2))
    return StepRows(layout, lengths, sample, usual, largest, total, is_t5)


def _layout(model: Ia3Model, device: Device, stacks: int) -> Layout:
    """Return the layout as training.base_setup chooses it, on this machine for a CPU."""
    if device.is_gpu or model.nemo_compat:
        return Layout.one_after_the_other(model.micro_batch_size)
    is_split = device.ranks > 1
    return Layout.on_cpu(model.micro_batch_size, num_threads(), device.width, stacks=stacks, is_split=is_split)


def num_threads() -> int:
    """Return the number of threads that torch uses in a process on this machine."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else len(os.sched_getaffinity(0))


def longest_possible(limit: int, answer_limit: int | None) -> Lengths:
    """Return the lengths of samples that are as long as the settings allow, with a common prefix."""
    return Lengths(limit, limit, limit, math.inf, answer_limit or limit, answer_limit or limit)
