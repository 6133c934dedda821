# SPDX-License-Identifier: Apache-2.0
"""Memory: how much this process used at most, how much there is left, and what libraries need not hold on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from nemo_launcher.runtime import ranks

_M_ARENA_MAX = -8  # glibc, malloc.h
# How many compiled products a thread needs: for its frozen weights, those of a T5's encoder and decoder layer and the
# head in both directions; for all products, with those of attention in bf16.
_FROZEN_PRODUCTS, _PRODUCTS = 24, 64


def peak_memory_gib() -> float:
    """Return the peak in GiB: allocated on the GPU when the job uses one, else resident in main memory."""
    if ranks.uses_gpu():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def limit_allocator_caches(dtype: torch.dtype) -> None:
    """Let libraries hold less memory in this process from now on; call it before the first tensor is computed.

    glibc gives each thread a heap of its own, and what is free in one heap is of no use to the others: threads that
    begin from now on share one. Only where activations are narrower than fp32 (dtype) operations are so short that
    threads would wait for each other there. torch in each thread, and oneDNN for all, keep the 1,024 products that they
    compiled last, one for each number of rows that occurs, about 0.5 MB each: here as many as a pass through a model
    needs. What the user has set in the environment stays.
    """
    heaps = 1 if dtype.itemsize >= torch.float32.itemsize else torch.get_num_threads()
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, heaps)
    products = min(1024, max(2, torch.get_num_threads()) * _PRODUCTS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(_FROZEN_PRODUCTS))  # torch's
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(products))


def available_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes of main memory this process can still have; None where the system does not tell.

    It is what the machine has left and what the limits of its control groups leave (a Slurm job's, a container's),
    shared among the node's processes of this job. root: where /proc and /sys are.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        left = [sizes["MemAvailable"], *_left_in_groups(root)]
    except (OSError, LookupError, ValueError):
        return None
    return min(left) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield what each control group of this process leaves, in bytes; those without a limit yield nothing."""
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mount, limit_name, usage_name = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, limit_name, usage_name = (
                root / "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            limit = folder / limit_name
            if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
                cached = _cached(folder / "memory.stat")
                yield int(text) - int((folder / usage_name).read_text(encoding="ascii")) + cached
            if folder == mount:
                break


def _cached(path: Path) -> int:
    """Return the bytes of file pages in a group that the system takes back when it needs them."""
    for line in path.read_text(encoding="ascii").splitlines() if path.is_file() else ():
        name, value = line.split()
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
