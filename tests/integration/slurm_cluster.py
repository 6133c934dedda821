# SPDX-License-Identifier: Apache-2.0
"""A real Slurm on this machine, started by local-slurm.sh for all tests of a session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.launching import LIMIT_S

# Limits of an account, and partitions whose jobs can be preempted, by requeueing or cancelling.
EXTRA = """AccountingStorageEnforce=associations,limits,qos
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=INFINITE DefaultTime=60
PartitionName=lowest Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=20 MaxTime=INFINITE DefaultTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE DefaultTime=60
PartitionName=closed Nodes=ALL State=DRAIN MaxTime=INFINITE DefaultTime=60"""
SCRIPT = Path(__file__).with_name("local-slurm.sh")
NEEDS_SLURM = [
    pytest.mark.slurm,
    pytest.mark.skipif(os.geteuid() != 0, reason="a Slurm of its own needs root"),
    pytest.mark.skipif(
        not (shutil.which("slurmctld") or shutil.which("apt-get")), reason="Slurm is not there, nor Debian's apt-get"
    ),
]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of two nodes with eight fake GPUs each; SLURM_CONF points to it."""
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


def slurm_command(*command: str) -> str:
    """Run one of Slurm's commands; return its output."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout


def details(job: object) -> str:
    """Return Slurm's details of a job."""
    return slurm_command("scontrol", "show", "job", str(job))


def wait_for_end(*jobs: object, partition: str = "high") -> None:
    """Wait until jobs have left the queue."""
    after = "--dependency=afterany:" + ":".join(map(str, jobs))
    slurm_command("srun", "--quiet", "--ntasks=1", f"--partition={partition}", after, "true")


def wait_for(text: str, log: Path) -> None:
    """Wait until a job's log holds `text`."""
    follow = ["timeout", str(LIMIT_S), "tail", "--follow=name", "--retry", "--lines=+1", "--quiet", str(log)]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as tail:
        assert tail.stdout is not None
        seen = any(text in line for line in tail.stdout)
        tail.kill()
    content = log.read_text() if log.exists() else "nothing"
    assert seen, f"{log} never said {text!r}; it holds: {content}; jobs:\n{slurm_command('scontrol', 'show', 'job')}"
