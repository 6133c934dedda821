# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for each kind of cluster in the conformance tests. A new kind needs an entry in STAND_INS."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from nemo_launcher.clusters.slurm import commands
from tests.clusters import fake_kubernetes, fake_slurm
from tests.workplace import REPOSITORY, SRUN, Workplace, executable


class StandIn(ABC):
    """A cluster for tests, installed in a workplace whose PATH starts with its `bin`."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self.tools = workplace.root / "bin"
        self.install()

    def arguments(self) -> list[str]:
        """Launcher arguments for this kind of cluster, in addition to `cluster_type`."""
        return []

    def install(self) -> None:  # noqa: B027, a cluster may need none
        """Install the cluster's commands in `tools`."""

    @abstractmethod
    def refuse(self) -> None:
        """Make the next job fail at its submission or, without submissions, in its script."""

    @abstractmethod
    def accept(self) -> None:
        """Accept jobs again."""

    def run(self) -> None:  # noqa: B027, jobs may have run already
        """Run the submitted jobs to the end."""

    def started(self) -> int:
        """Return the number of jobs that were submitted or run."""
        return len(list(self.workplace.results.rglob("log-*.out")))


class Here(StandIn):
    """A cluster that runs jobs while the launcher waits."""

    def refuse(self) -> None:
        script = self.workplace.scripts / "train.py"
        script.rename(script.with_suffix(".kept"))
        script.write_text("raise SystemExit(3)\n")

    def accept(self) -> None:
        script = self.workplace.scripts / "train.py"
        script.with_suffix(".kept").replace(script)


class BaseCommand(Here):
    """bcprun runs its command once."""

    def install(self) -> None:
        executable(self.tools / "bcprun", 'eval "${@: -1}"')


class Slurm(StandIn):
    """sbatch stores scripts; `run` runs them like a node, with srun for two ranks."""

    def install(self) -> None:
        commands._silent_until = float("-inf")
        self.fake = fake_slurm.install(self.workplace.root / "slurm", self.tools)
        executable(self.tools / "srun", SRUN)
        executable(self.tools / "scontrol", "echo node1")

    def refuse(self) -> None:
        (self.fake.root / "refuse").touch()

    def accept(self) -> None:
        (self.fake.root / "refuse").unlink()

    def run(self) -> None:
        for line in self.fake.submitted():
            job_id, script = line.split()[0], Path(line.split()[-1])
            if (self.fake.root / "jobs" / job_id).read_text().strip() != "PENDING":
                continue
            log = script.parent / f"log-{script.name.removesuffix('_submission.sh')}_{job_id}.out"
            variables = {"SLURM_JOB_ID": job_id, "SLURM_JOB_NODELIST": "node1", "SLURM_NTASKS": "2"}
            variables |= {"SLURM_NTASKS_PER_NODE": "2", "TRACE": str(self.fake.root / "trace")}
            with log.open("w") as output:
                subprocess.run(["bash", script], env=os.environ | variables, stdout=output, stderr=output, check=False)
            self.fake.set(int(job_id), "")  # Slurm forgets the job

    def started(self) -> int:
        return len(self.fake.submitted())


class Kubernetes(StandIn):
    """kubectl stores objects; `run` runs the pods."""

    def install(self) -> None:
        self.fake = fake_kubernetes.install(self.workplace.root / "kubernetes", self.tools)
        program = (REPOSITORY / "launcher_scripts" / "start_ranks.py").read_text()
        (self.workplace.scripts / "start_ranks.py").write_text(program)

    def arguments(self) -> list[str]:
        volume = f"cluster.volumes=[{{mount_path: {self.workplace.root}, pvc: data}}]"
        return ["container=image", volume, f"data_dir={self.workplace.root}/data"]

    def refuse(self) -> None:
        (self.fake.state / "refuse").write_text("Error from server (Forbidden): exceeded quota\n")

    def accept(self) -> None:
        (self.fake.state / "refuse").unlink()

    def run(self) -> None:
        for name, job in self.fake.jobs().items():
            if not job["status"].get("conditions"):
                self.fake.run(name)

    def started(self) -> int:
        return len([call for call in self.fake.calls("apply") if "--dry-run=server" not in call])


STAND_INS: dict[str, Callable[[Workplace], StandIn]] = {
    "bcm": Slurm,
    "bcp": BaseCommand,
    "k8s": Kubernetes,
    "interactive": Here,
}
