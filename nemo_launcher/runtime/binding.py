# SPDX-License-Identifier: Apache-2.0
"""Bind each rank to CPU cores near its GPU (`numa_mapping`), as the kernel describes them below /sys.

A rank's memory is then on its GPU's NUMA node, and the ranks of a node do not share cores. NVIDIA's launcher has these
keys; its ranks ask NVML for the node of their GPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_launcher.config.load import load
from nemo_launcher.config.sections.top_level import NumaMapping
from nemo_launcher.files.foreign import parse_json

VARIABLE = "NEMO_LAUNCHER_NUMA"
"""The environment variable that gives a job's ranks the settings of `numa_mapping`."""
_SYS = Path("/sys")
_TOPOLOGY = "devices/system/cpu/cpu{}/topology"
_GPUS = Path("/proc/driver/nvidia/gpus")

Core = tuple[int, ...]
"""The logical CPUs of a physical core."""


def variables(mapping: NumaMapping | None) -> dict[str, str]:
    """Return the environment variables with which a job's ranks bind themselves; none if they are not to."""
    if mapping is None or not mapping.enable:
        return {}
    return {VARIABLE: json.dumps(vars(mapping), separators=(",", ":"))}


def bind_rank() -> None:
    """Bind this process if `numa_mapping` says so; rank 0 reports."""
    gpus = gpu_addresses(os.environ.get("CUDA_VISIBLE_DEVICES"), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    cpus = bind(os.environ, gpus)
    if VARIABLE in os.environ and os.environ.get("RANK", "0") == "0":
        print(f"numa_mapping: rank 0 runs on CPUs {cpus}" if cpus else "numa_mapping: the ranks are not bound")


def bind(environment: Mapping[str, str], gpus: Sequence[str | None], root: Path = _SYS) -> list[int]:
    """Bind this process, and the threads that it starts later, to its CPUs; return them, none if it is not bound.

    gpus: the PCI address of the GPU of each of this machine's ranks, such as 0000:3b:00.0; None for a rank without one.
    """
    text = environment.get(VARIABLE)
    if text is None:
        return []
    mapping = load(parse_json(text, VARIABLE), NumaMapping).section
    cpus = cpus_of_rank(mapping, int(environment.get("LOCAL_RANK", "0")), gpus, os.sched_getaffinity(0), root)
    if cpus:
        os.sched_setaffinity(0, cpus)
    return cpus


def cpus_of_rank(
    mapping: NumaMapping, local_rank: int, gpus: Sequence[str | None], allowed: set[int], root: Path = _SYS
) -> list[int]:
    """Return the CPUs of a rank; none if they would be fewer cores than `min_cores`, or the kernel tells nothing.

    gpus: as for `bind`. allowed: the CPUs that the job may use.
    """
    places = _places(mapping.scope, allowed, root)
    if not places:
        return []
    near = [_place_of_gpu(gpu, places, root) for gpu in gpus]
    # without a GPU, ranks are spread evenly over the nodes
    of_ranks = [rank * len(places) // len(gpus) if place is None else place for rank, place in enumerate(near)]
    sharing = [rank for rank, place in enumerate(of_ranks) if place == of_ranks[local_rank]]
    cores = _cores(mapping, places[of_ranks[local_rank]], sharing.index(local_rank), len(sharing))[: mapping.max_cores]
    if len(cores) < (mapping.min_cores or 1):
        return []
    return sorted(cpu for core in cores for cpu in (core if mapping.cores == "all_logical" else core[:1]))


def _cores(mapping: NumaMapping, cores: Sequence[Core], position: int, ranks: int) -> Sequence[Core]:
    """Return the cores of one of the ranks that share a place, before the limits."""
    match mapping.mode:
        case "all":
            return cores
        case "single":
            return cores[:1]
        case "single_unique":
            return cores[position : position + 1]
    if mapping.balanced:
        cores = cores[: len(cores) // ranks * ranks]
    if mapping.mode == "unique_interleaved":
        return cores[position::ranks]
    return cores[position * len(cores) // ranks : (position + 1) * len(cores) // ranks]


def _places(scope: str, allowed: set[int], root: Path) -> list[list[Core]]:
    """Return the cores of each NUMA node or socket that has CPUs which the job may use."""
    key = _node_of if scope == "node" else _socket_of
    places: dict[int, dict[Core, None]] = {}
    for cpu in sorted(allowed):
        place, siblings = key(cpu, root), _read(root / _TOPOLOGY.format(cpu) / "thread_siblings_list")
        if place is None or siblings is None:
            return []
        core = tuple(sorted(allowed.intersection(cpu_list(siblings))))
        places.setdefault(place, {})[core] = None
    return [list(places[place]) for place in sorted(places)]


def _place_of_gpu(gpu: str | None, places: Sequence[Sequence[Core]], root: Path) -> int | None:
    """Return the index of the place near a GPU; None without one, or if the kernel does not know a single one."""
    text = _read(root / f"bus/pci/devices/{gpu}/local_cpulist") if gpu is not None else None
    near = set(cpu_list(text or ""))
    shared = [len(near.intersection(cpu for core in cores for cpu in core)) for cores in places]
    return shared.index(max(shared)) if max(shared) and shared.count(max(shared)) == 1 else None


def _node_of(cpu: int, root: Path) -> int | None:
    nodes = sorted((root / f"devices/system/cpu/cpu{cpu}").glob("node[0-9]*"))
    return int(nodes[0].name.removeprefix("node")) if nodes else None


def _socket_of(cpu: int, root: Path) -> int | None:
    text = _read(root / _TOPOLOGY.format(cpu) / "physical_package_id")
    return None if text is None else int(text)


def cpu_list(text: str) -> list[int]:
    """Return the numbers in the kernel's form `0-3,8`."""
    parts = [part.partition("-") for part in text.split(",") if part]
    return [cpu for first, _, last in parts for cpu in range(int(first), int(last or first) + 1)]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def gpu_addresses(visible: str | None, ranks: int, folder: Path = _GPUS) -> list[str | None]:
    """Return the PCI address of the GPU of each of this machine's ranks in the order of the bus; None if unknown.

    visible: CUDA_VISIBLE_DEVICES. CUDA's own order differs only on machines with GPUs of several kinds.
    """
    gpus = sorted(path.name for path in folder.glob("*"))
    chosen = [gpus[int(n)] if n.isdecimal() and int(n) < len(gpus) else None for n in (visible or "").split(",")]
    of_ranks: list[str | None] = [*(chosen if visible else gpus)]
    return [of_ranks[rank] if rank < len(of_ranks) else None for rank in range(ranks)]
