# SPDX-License-Identifier: Apache-2.0
"""The rows that a rank computes at the same time, as data.batching cuts them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.data.row_limits import MIN_SAMPLES, ROW_BYTES
from nemo_launcher.data.sampled_lengths import Lengths
from nemo_launcher.launcher.activations import Device
from nemo_launcher.launcher.memory import Rows


def concurrent_rows(model: Ia3Model, lengths: Lengths, device: Device, stacks: Iterable[str], replicas: int) -> Rows:
    """Return the rows of samples with these lengths. replicas: the number of ranks that share a global batch."""
    is_t5 = "encoder" in stacks
    workers = 1
    if not device.is_gpu and device.ranks == 1 and not model.nemo_compat:
        workers = max(1, min(num_threads(), model.micro_batch_size // MIN_SAMPLES))
    size = math.ceil(model.micro_batch_size / workers)
    share = max(1.0, model.global_batch_size / replicas)  # samples
    shares_prefix = not is_t5 and model.data.share_prefix
    own = lengths.own if shares_prefix else lengths.mean
    sample = own + (lengths.answer if is_t5 else 0.0)
    longest = lengths.longest + (lengths.longest_answer if is_t5 else 0.0)
    samples = min(float(size), share)
    keeps_groups = model.data.pack and not model.nemo_compat
    if keeps_groups and not device.is_gpu:
        samples = min(samples if not shares_prefix else share, max(1.0, ROW_BYTES // device.width // sample))
    elif keeps_groups and shares_prefix:
        samples = min(share, size * longest / sample)
    row = max(longest, samples * sample)
    if keeps_groups and shares_prefix:
        row = max(row, min(lengths.tree, size * longest, share * sample / workers + longest / 2))
    together = min(row * workers, max(row, share * sample))
    if not is_t5:
        answers = min(together, max(lengths.longest_answer, together / sample * lengths.answer))
        return Rows({"decoder": together}, answers, longest)
    decoder = together * lengths.answer / sample
    return Rows({"encoder": together - decoder, "decoder": decoder}, decoder, lengths.longest)


def num_threads() -> int:
    """Return the number of threads that torch uses in a process on this machine."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else len(os.sched_getaffinity(0))


def longest_possible(limit: int, answer_limit: int | None) -> Lengths:
    """Return the lengths of samples that are as long as the settings allow."""
    return Lengths(limit, limit, limit, 0, answer_limit or limit, answer_limit or limit)
