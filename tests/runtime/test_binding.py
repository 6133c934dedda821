# SPDX-License-Identifier: Apache-2.0
"""`numa_mapping`: each rank gets cores of its own near its GPU, and its process really runs there."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_launcher.config.sections.top_level import NumaMapping
from nemo_launcher.runtime.binding import VARIABLE, cpus_of_rank, gpu_addresses, variables

pytestmark = pytest.mark.unit
SCRIPT = """
import os
from nemo_launcher.runtime import binding
binding.bind_rank()
print(sorted(os.sched_getaffinity(0)))
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two nodes with four cores each, two logical CPUs a core: node 0 has 0-3 and 8-11, node 1 has 4-7 and 12-15.

    The GPUs 0 and 1 are at node 1, the GPUs 2 and 3 at node 0.
    """
    for cpu in range(16):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / f"node{cpu % 8 // 4}").mkdir()
        (folder / "topology/thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n")
        (folder / "topology/physical_package_id").write_text(f"{cpu % 8 // 4}\n")
    for gpu, cpus in enumerate(("4-7,12-15", "4-7,12-15", "0-3,8-11", "0-3,8-11")):
        folder = tmp_path / f"bus/pci/devices/{address(gpu)}"
        folder.mkdir(parents=True)
        (folder / "local_cpulist").write_text(f"{cpus}\n")
    return tmp_path


def address(gpu: int) -> str:
    return f"0000:{gpu}a:00.0"


ON = NumaMapping(enable=True)
GPUS = [address(gpu) for gpu in range(4)]
NO_GPUS = [None] * 4


@pytest.mark.parametrize(
    ("changes", "gpus", "expected"),
    [
        ({}, GPUS, [[4, 5, 12, 13], [6, 7, 14, 15], [0, 1, 8, 9], [2, 3, 10, 11]]),
        ({"scope": "socket"}, GPUS, [[4, 5, 12, 13], [6, 7, 14, 15], [0, 1, 8, 9], [2, 3, 10, 11]]),
        ({}, NO_GPUS, [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]),
        ({"mode": "unique_interleaved"}, NO_GPUS, [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]]),
        ({"mode": "single"}, NO_GPUS, [[0, 8], [0, 8], [4, 12], [4, 12]]),
        ({"mode": "single_unique"}, NO_GPUS, [[0, 8], [1, 9], [4, 12], [5, 13]]),
        ({"mode": "all", "cores": "single_logical"}, NO_GPUS, [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2),
        ({"max_cores": 1}, NO_GPUS, [[0, 8], [2, 10], [4, 12], [6, 14]]),
        ({"min_cores": 3}, NO_GPUS, [[], [], [], []]),
        ({}, [None] * 3, [[0, 8], [1, 9], [4, 5, 6, 7, 12, 13, 14, 15]]),
    ],
)
def test_the_cores_of_each_rank(changes, gpus, expected, machine: Path) -> None:
    mapping = dataclasses.replace(ON, **changes)
    if len(gpus) == 3:  # two ranks at node 0, one at node 1; two cores each, or four
        expected = [[0, 1, 8, 9], [2, 3, 10, 11], expected[2]]
    found = [cpus_of_rank(mapping, rank, gpus, set(range(16)), machine) for rank in range(len(gpus))]
    assert found == expected


def test_only_cpus_of_the_job_are_used(machine: Path) -> None:
    allowed = {0, 8, 1, 9, 2}  # one of node 0's cores, half of another, none of node 1
    assert [cpus_of_rank(ON, rank, NO_GPUS[:2], allowed, machine) for rank in range(2)] == [[0, 8], [1, 9]]
    unbalanced = dataclasses.replace(ON, balanced=False)
    assert [cpus_of_rank(unbalanced, rank, NO_GPUS[:2], allowed, machine) for rank in range(2)] == [[0, 8], [1, 2, 9]]


def test_a_kernel_that_tells_nothing_binds_nothing(tmp_path: Path) -> None:
    assert cpus_of_rank(ON, 0, [None], {0, 1}, tmp_path) == []


def test_the_gpus_of_ranks(tmp_path: Path) -> None:
    for gpu in GPUS:
        (tmp_path / gpu).mkdir()
    assert gpu_addresses(None, 2, tmp_path) == GPUS[:2]
    assert gpu_addresses("3,1", 3, tmp_path) == [GPUS[3], GPUS[1], None]
    assert gpu_addresses("GPU-0123,7", 2, tmp_path) == [None, None]
    assert gpu_addresses(None, 1, tmp_path / "absent") == [None]


def test_the_variable_says_all_and_only_if_it_is_on() -> None:
    assert variables(None) == variables(NumaMapping()) == {}
    assert json.loads(variables(ON)[VARIABLE]) == dataclasses.asdict(ON)


def test_a_process_runs_on_its_cores() -> None:
    """Two ranks on this machine; with fewer than two cores they stay where they are."""
    allowed = os.sched_getaffinity(0)
    mapping = dataclasses.replace(ON, cores="single_logical", max_cores=1)
    for rank in range(2):
        environment = os.environ | variables(mapping)
        environment |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "RANK": str(rank)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        *reported, cpus = done.stdout.splitlines()
        expected = cpus_of_rank(mapping, rank, [None, None], allowed)
        assert json.loads(cpus) == (expected or sorted(allowed))
        assert bool(reported) == (rank == 0)
