# SPDX-License-Identifier: Apache-2.0
"""Peak and available memory of this process, and smaller allocator caches on a CPU."""

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
# Compiled products (oneDNN primitives) to cache: per thread, those of the frozen weights in a T5's encoder and decoder
# layers and its head, in both directions; in all, those of attention in bf16 too.
_FROZEN_PRODUCTS, _PRODUCTS = 24, 64


def peak_memory_gib() -> float:
    """Return the peak memory in GiB: allocated on the GPU if the job uses one, else resident in main memory."""
    if ranks.uses_gpu():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def limit_allocator_caches(dtype: torch.dtype) -> None:
    """Limit the memory that libraries cache in this process; call before the first tensor is computed.

    glibc gives each thread its own heap, and free memory of one heap is useless to other threads, so threads that start
    from now on share one heap. Activations narrower than fp32 (dtype) are an exception: operations are so short that
    threads would contend for the heap. torch (per thread) and oneDNN (for all threads) cache 1,024 compiled products,
    one for each number of rows, of about 0.5 MB each; the limit here is what one pass through a model needs.
    Environment variables that the user has set keep their values.
    """
    heaps = 1 if dtype.itemsize >= torch.float32.itemsize else torch.get_num_threads()
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, heaps)
    products = min(1024, max(2, torch.get_num_threads()) * _PRODUCTS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(_FROZEN_PRODUCTS))  # torch's
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(products))


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the main memory in bytes that this process can still allocate; None if the system does not report it.

    This is the minimum of the machine's available memory and the limits of its control groups (of a Slurm job or a
    container), divided by the number of this job's processes on the node. root: the parent of /proc and /sys.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        left = [sizes["MemAvailable"], *_left_in_groups(root)]
    except (OSError, LookupError, ValueError):
        return None
    return min(left) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield the bytes that remain in each control group of this process; groups without a limit are skipped."""
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
    """Return the bytes of cached file pages in a control group, which the kernel can reclaim."""
    for line in path.read_text(encoding="ascii").splitlines() if path.is_file() else ():
        name, value = line.split()
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
