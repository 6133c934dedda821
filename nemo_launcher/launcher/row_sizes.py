# SPDX-License-Identifier: Apache-2.0
"""The rows that a rank computes at the same time, as data.batching cuts them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.sampled_lengths import Lengths
from nemo_launcher.launcher.activations import Device
from nemo_launcher.launcher.memory import Rows


def concurrent_rows(model: Ia3Model, lengths: Lengths, device: Device, stacks: Iterable[str], replicas: int) -> Rows:
    """Return the rows of samples with these lengths. replicas: the number of ranks that share a global batch."""
    is_t5 = "encoder" in stacks
    layout = _layout(model, device)
    concurrency = layout.choices[0]
    size, share = concurrency.size, max(1.0, model.global_batch_size / replicas)
    shares_prefix = not is_t5 and model.data.share_prefix
    sample = (lengths.own if shares_prefix else lengths.mean) + (lengths.answer if is_t5 else 0.0)
    longest = lengths.longest + (lengths.longest_answer if is_t5 else 0.0)
    row = max(longest, sample * _samples_in_row(model, layout, sample, longest, share, shares_prefix=shares_prefix))
    if _keeps_groups(model) and shares_prefix:
        most = size * longest
        if model.data.traversal == "depth":  # a prefix, and a row of its branches (data.traversal)
            most = longest + min(most - longest, math.inf if layout.row_tokens is None else layout.row_tokens)
        row = max(row, min(lengths.tree, most, share * sample / concurrency.workers + longest / 2))
    together = min(row * concurrency.workers, max(row, share * sample))
    if not is_t5:
        answers = min(together, max(lengths.longest_answer, together / sample * lengths.answer))
        return Rows({"decoder": together}, answers, longest)
    decoder = together * lengths.answer / sample
    return Rows({"encoder": together - decoder, "decoder": decoder}, decoder, lengths.longest)


def _layout(model: Ia3Model, device: Device) -> Layout:
    """Return the layout as training.base_setup chooses it, on this machine for a CPU."""
    if device.is_gpu or model.nemo_compat:
        return Layout.one_after_the_other(model.micro_batch_size)
    return Layout.on_cpu(model.micro_batch_size, num_threads(), device.width, is_split=device.ranks > 1)


def _keeps_groups(model: Ia3Model) -> bool:
    return model.data.pack and not model.nemo_compat


def _samples_in_row(
    model: Ia3Model, layout: Layout, sample: float, longest: float, share: float, *, shares_prefix: bool
) -> float:
    """Return about how many samples fill a row. sample: tokens of one; share: samples of a replica's global batch."""
    size = layout.choices[0].size
    if not _keeps_groups(model):
        return min(size, share)
    fill = size * longest if layout.row_tokens is None else min(size * longest, layout.row_tokens)
    limit = share if shares_prefix else min(size, share)
    return min(limit, max(1.0, fill // sample))


def num_threads() -> int:
    """Return the number of threads that torch uses in a process on this machine."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else len(os.sched_getaffinity(0))


def longest_possible(limit: int, answer_limit: int | None) -> Lengths:
    """Return the lengths of samples that are as long as the settings allow, with a common prefix."""
    return Lengths(limit, limit, limit, math.inf, answer_limit or limit, answer_limit or limit)
