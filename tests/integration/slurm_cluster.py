"""A real Slurm on this machine, which local-slurm.sh starts, for all tests of a session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# limits of an account, and partitions whose jobs give way: back into the queue, or to their end
EXTRA = """AccountingStorageEnforce=associations,limits,qos
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=INFINITE DefaultTime=60
PartitionName=lowest Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=20 MaxTime=INFINITE DefaultTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE DefaultTime=60
PartitionName=closed Nodes=ALL State=DRAIN MaxTime=INFINITE DefaultTime=60"""
SCRIPT = Path(__file__).with_name("local-slurm.sh")
NEEDS_SLURM = [
    pytest.mark.xdist_group("slurm"),  # one cluster for all of its tests
    pytest.mark.skipif(os.geteuid() != 0, reason="a Slurm of its own needs root"),
    pytest.mark.skipif(
        not (shutil.which("slurmctld") or shutil.which("apt-get")), reason="Slurm is not there, nor Debian's apt-get"
    ),
]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of two nodes with eight pretended GPUs each; SLURM_CONF points to it."""
    state = tmp_path_factory.mktemp("slurm")
    port = os.environ.get("LOCAL_SLURM_PORT", "27950")
    environment = os.environ | {"LOCAL_SLURM_PORT": port, "LOCAL_SLURM_EXTRA": EXTRA}
    started = subprocess.run(
        ["bash", str(SCRIPT), "start", str(state)], env=environment, capture_output=True, text=True
    )
    if started.returncode != 0:
        pytest.skip(f"no Slurm could be started: {started.stderr.strip().splitlines()[-1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(state / "etc/slurm.conf"))
        yield
    subprocess.run(["bash", str(SCRIPT), "stop", str(state)], env=environment, capture_output=True, check=True)
