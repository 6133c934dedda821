"""How much memory this process used at most."""

from __future__ import annotations

import resource

import torch


def peak_memory_gib() -> float:
    """Return the peak in GiB: allocated on the GPU when there is one, else resident in main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
