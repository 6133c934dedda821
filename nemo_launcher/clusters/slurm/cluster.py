# SPDX-License-Identifier: Apache-2.0
"""Slurm: one sbatch script per stage, chained by `dependency`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from nemo_launcher import __version__, exit_status, places
from nemo_launcher.clusters.base import EDGES, Answers, Cluster, Rendered, Site
from nemo_launcher.clusters.job import Job
from nemo_launcher.clusters.record import CONTROL, JobRecord
from nemo_launcher.clusters.slurm import commands as slurm
from nemo_launcher.clusters.slurm import states
from nemo_launcher.clusters.slurm.containers import container_problems, mounts_of
from nemo_launcher.clusters.slurm.queue import log_pattern
from nemo_launcher.clusters.slurm.sbatch_options import check_additional, normal, suggested
from nemo_launcher.clusters.slurm.section import SlurmSection
from nemo_launcher.clusters.slurm.signal_lead import signal_problems
from nemo_launcher.clusters.slurm.site import SlurmSite
from nemo_launcher.clusters.slurm.submission import submit_chain, waiting_for
from nemo_launcher.clusters.slurm.trial import setup_problems, try_scripts
from nemo_launcher.clusters.state import JobStatus
from nemo_launcher.errors import Problem, UserError, did_you_mean

NOT_SBATCH = ("srun_args", "job_name_prefix", "gpus_per_task", "gpus_per_node", "setup", "additional_parameters")
AFTER = ("after", "afterany", "afterburstbuffer", "aftercorr", "afternotok", "afterok")
DEPENDENCIES = (*AFTER, "expand", "singleton")
DEPENDENCY = re.compile(rf"({'|'.join(AFTER)})(:\d+(_\d+)?(\+\d+)?)+|expand:\d+")
MINUTES_AND_SECONDS = re.compile(r"\d{1,2}:\d{1,2}")
GPUS_OTHERWISE = ("gpus", "gpus-per-socket", "tres-per-task", "ntasks-per-gpu")
"""Additional parameters that request GPUs, as alternatives to cluster.gpus_per_task."""
# srun's variables under torch.distributed's names; USR1 must not end the shell before Python handles it
RANK_FROM_SRUN = (
    "trap '' USR1; "
    'export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS" '
    'LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE"; exec "$@"'
)


class Slurm(Cluster):
    """Submit jobs with sbatch; inside a job, srun starts one task per device."""

    cluster_type: ClassVar[str] = "bcm"
    title: ClassVar[str] = "Slurm"
    aliases: ClassVar[tuple[str, ...]] = ("slurm", "sbatch")
    section: ClassVar[type | None] = SlurmSection
    keys: ClassVar[tuple[str, ...]] = (
        *("cluster", "container", "container_runtime", "container_mounts"),
        *("run.time_limit", "run.dependency"),
    )
    queues: ClassVar[bool] = True
    asks_with: ClassVar[str] = "squeue"

    @classmethod
    def detect(cls) -> bool:
        return shutil.which("sbatch") is not None

    @classmethod
    def site(cls) -> Site:
        return SlurmSite()

    @classmethod
    def suggested_option(cls, name: str) -> str | None:
        return suggested(name)

    def problems(self, jobs: list[Job]) -> list[Problem]:
        problems = []
        if not self.settings.debug and not shutil.which("sbatch"):
            fix = "cluster_type=interactive runs here; debug=True only writes the scripts"
            problems.append(Problem("cluster_type", "bcm needs Slurm, but sbatch is not on the PATH", fix))
        problems += check_additional(self._additional())
        problems += [p for i, job in enumerate(jobs) for p in dependency_problems(job, is_first=i == 0)]
        problems += setup_problems(self._setup()) + signal_problems(self.settings.cluster, jobs)
        problems += self._gpu_problems() + [p for job in jobs for p in _header_problems(self, job)]
        return problems + (container_problems(self.settings, jobs) if self.settings.container else [])

    def warnings(self, jobs: list[Job]) -> list[Problem]:
        """Return warnings about ignored shell variables, and about time limits in minutes that look like hours."""
        names = [] if self.settings.debug else slurm.dropped_variables()
        fix = "set it in the configuration: cluster.partition=..., cluster.account=..."
        warnings = [Problem(name, "is set in your shell but not used for the jobs", fix) for name in names]
        scripts = self.settings.launcher_scripts
        if self.settings.container and not self._package_is_mounted():
            what = f"has no nemo_launcher beside it: the image must hold nemo-adapter-launcher {__version__}"
            fix = f"leave it out: {places.LAUNCHER_SCRIPTS} is the default"
            warnings.append(Problem("launcher_scripts_path", f"{scripts} {what}", fix))
        for job in jobs:
            if MINUTES_AND_SECONDS.fullmatch(job.time_limit or ""):
                key = f"{job.stage}.run.time_limit"
                what = f"{job.time_limit} is minutes and seconds"
                warnings.append(Problem(key, what, f"for hours and minutes: '{key}=\"{job.time_limit}:00\"'"))
        return warnings

    def header(self, job: Job) -> list[str]:
        options: dict[str, object] = {
            "dependency": None if job.dependency in EDGES else job.dependency,
            "error": log_pattern(job, "err"),
            "job-name": self._job_name(job),
            "kill-on-invalid-dep": "yes",  # a job whose predecessor failed leaves the queue
            "nodes": job.num_nodes,
            "ntasks-per-node": job.devices,
            "open-mode": "append",
            "output": log_pattern(job),
            "time": job.time_limit,
        }
        options |= {k.replace("_", "-"): v for k, v in self.settings.cluster.items() if k not in NOT_SBATCH}
        options |= self._gpus(job) | {normal(k): v for k, v in self._additional().items()}
        given = {name: value for name, value in options.items() if value is not None and value is not False}
        return [_sbatch_line(name, value) for name, value in sorted(given.items())]

    def by_hand(self, job: Job) -> list[str]:
        if not super().by_hand(job):
            return []
        edge = "afterany" if self.edge(job) == "afterany" else "afterok"
        others = f",{job.dependency}" if job.dependency not in (None, *EDGES) else ""
        command = f"sbatch --dependency={shlex.quote(f'{edge}:ID{others}')} {shlex.quote(str(job.script_file))}"
        return [f"# by hand: {command}", f"# with the ID that sbatch prints for {job.previous}"]

    def at_start(self, job: Job) -> list[str]:
        return [f'echo "$(date "+%F %T") job $SLURM_JOB_ID starts on {_HERE}" >&2', ""]

    def at_end(self) -> str:
        return f'echo "$(date "+%F %T") job $SLURM_JOB_ID ends on {_HERE}, exit status $status" >&2'

    def body(self, job: Job) -> list[str]:
        return [
            'nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))',
            'export MASTER_ADDR="${nodes[0]}"',
            # the same on every node, different for every job, and below the ephemeral ports
            'export MASTER_PORT="$((15000 + SLURM_JOB_ID % 15000))"',
            *self.read_wandb_key(job),
            "",
            # as in an interactive shell, a failing line does not end the script; the last command sets the exit status
            *(["set +euo pipefail", *self._setup()] if self._setup() else []),
            " ".join([*self._srun(job), "\\\n  bash -c", shlex.quote(RANK_FROM_SRUN), "bash", "\\\n "])
            + " "
            + shlex.join([self.interpreter(), "-u", *job.command])
            + self._go_on(),
        ]

    def _go_on(self) -> str:
        """Return shell text that requeues a job that saved a checkpoint before its time limit or a preemption."""
        if not self.settings.cluster.get("requeue"):
            return ""
        terminated = exit_status.of_signal(signal.SIGTERM)
        preempted = f'[ "$status" -ne {terminated} ] || {_IF_PREEMPTED} status={exit_status.STOPPED};; esac'
        log = 'echo "$(date "+%F %T") job $SLURM_JOB_ID goes back into the queue" >&2'
        requeue = f'[ "$status" -ne {exit_status.STOPPED} ] || scontrol requeue "$SLURM_JOB_ID"'
        lines = f'status=$?; {preempted}; [ "$status" -ne {exit_status.STOPPED} ] || {log}; {requeue}'
        return f' \\\n  || {{ {lines}; exit "$status"; }}'

    def try_out(self, rendered: Sequence[Rendered]) -> tuple[list[Problem], list[Problem]]:
        if self.settings.debug or self.settings.preflight == "off":
            return [], []
        refused, waiting = try_scripts((one.job.stage, one.script) for one in rendered)
        return (refused, waiting) if self.settings.preflight == "error" else ([], refused + waiting)

    def launch(self, records: list[JobRecord]) -> int:
        for folder in (self.settings.data_dir, self.settings.base_results_dir) if self.settings.container else ():
            folder.mkdir(parents=True, exist_ok=True)  # mounted folders must exist
        return super().launch(records)

    @classmethod
    def start(cls, records: list[JobRecord]) -> int:
        return submit_chain(records)

    @classmethod
    def states(cls, records: Sequence[JobRecord]) -> Answers:
        return states.states(records)

    @classmethod
    def cancel(cls, found: Sequence[JobStatus]) -> bool:
        return states.cancel(found)

    @classmethod
    def logs(cls, record: JobRecord, job_id: str) -> list[Path]:
        return states.logs_of(record, job_id)

    @classmethod
    def for_rerun(cls, record: JobRecord) -> JobRecord:
        return waiting_for(record)

    def completed(self, record: JobRecord, job: Job, chain: list[Job]) -> JobRecord:
        requeue = bool(self.settings.cluster.get("requeue"))
        return dataclasses.replace(record, slurm_name=self._slurm_name(job, chain), requeue=requeue)

    def _slurm_name(self, job: Job, chain: list[Job]) -> str | None:
        """Return the unique name of a job that waits for others of the same name; None for any other job.

        The jobs of a singleton chain share a name: each starts when all earlier jobs of that name have ended, those of
        earlier chains included.
        """
        if self.edge(job) == "singleton":
            return _name_of_folder(self._job_name(chain[0]), chain[0].folder)
        is_alone = "singleton" in re.split("[,?]", job.dependency or "")
        return _name_of_folder(self._job_name(job), job.folder) if is_alone else None

    def _job_name(self, job: Job) -> str:
        return f"{self.settings.cluster.get('job_name_prefix', '')}{job.name}"

    def _setup(self) -> list[str]:
        return self._list("setup")

    def _list(self, key: str) -> list[str]:
        value = self.settings.cluster.get(key)
        return list(map(str, value)) if isinstance(value, list) else []

    def _additional(self) -> dict[str, object]:
        value = self.settings.cluster.get("additional_parameters")
        return dict(value) if isinstance(value, dict) else {}

    def interpreter(self) -> str:
        return "python3" if self.settings.container else super().interpreter()

    def _gpus(self, job: Job) -> dict[str, object]:
        """Return the options that request GPUs per node or per task; empty for a job on CPUs."""
        cluster = self.settings.cluster
        if not job.wants_gpu or self._requests_gpus_elsewhere():
            return {}
        if cluster.get("gpus_per_node") is not None:
            return {"gpus-per-node": cluster["gpus_per_node"]}
        return {"gpus-per-task": cluster.get("gpus_per_task")}

    def _requests_gpus_elsewhere(self) -> bool:
        gres = str(self.settings.cluster.get("gres") or "")
        given = {normal(name) for name, value in self._additional().items() if value is not None}
        return any(part.split(":")[0] in ("gpu", "gres/gpu") for part in gres.split(",")) or bool(
            given.intersection(GPUS_OTHERWISE)
        )

    def _gpu_problems(self) -> list[Problem]:
        if self.settings.cluster.get("gpus_per_node") is None or not self._requests_gpus_elsewhere():
            return []
        what = "GPUs are requested twice: here, and by cluster.gres or cluster.additional_parameters"
        return [Problem("cluster.gpus_per_node", what, "cluster.gpus_per_node=null")]

    def _srun(self, job: Job) -> list[str]:
        output, error = log_pattern(job), log_pattern(job, "err")
        options = ["srun", "--output", output, "--error", error, "--open-mode=append"]
        if "gpus-per-task" in self._gpus(job):
            # otherwise each task sees only one GPU, number 0, and a LOCAL_RANK above 0 fails
            options += ["--gpu-bind=none"]
        image, in_srun = self.settings.container, self.settings.container_runtime == "pyxis"
        if image and in_srun:
            options += ["--container-image", image, "--container-mounts", ",".join(mounts_of(self.settings, [job]))]
        if self.settings.cluster.get("cpus_per_task") is not None:  # srun does not inherit it from sbatch
            options += [f"--cpus-per-task={self.settings.cluster['cpus_per_task']}"]
        options += self._list("srun_args")
        if image and not in_srun:
            gpus = ["--nv"] if job.wants_gpu else []  # the node's driver and its libraries
            options += ["apptainer", "exec", *gpus, "--bind", ",".join(mounts_of(self.settings, [job])), image]
        return [shlex.join(options)]

    def _package_is_mounted(self) -> bool:
        """Whether the scripts find this package in the container, beside them or above."""
        scripts = self.settings.launcher_scripts
        package = next((up / "nemo_launcher" for up in scripts.parents if (up / "nemo_launcher").is_dir()), None)
        return package is not None and package.is_relative_to(scripts.parent)


def dependency_problems(job: Job, *, is_first: bool) -> list[Problem]:
    """Return what is wrong with a stage's `run.dependency`."""
    key = f"{job.stage}.run.dependency"
    if job.dependency is None or job.dependency in EDGES:
        return []
    if "?" in job.dependency and not is_first:
        what = "`?` (any of them) cannot be combined with the dependency on the previous stage"
        return [Problem(key, what, "separate the jobs by commas, which means all of them")]
    problems = []
    for part in re.split("[,?]", job.dependency):
        if part != "singleton" and not DEPENDENCY.fullmatch(part):
            kind = part.split(":")[0]
            fix = did_you_mean(kind, DEPENDENCIES) if kind not in DEPENDENCIES else f"write {kind}:JOB_ID"
            problems.append(Problem(key, f"{part!r} is not a valid Slurm dependency", fix))
    return problems


# Slurm counts a job that ends during a preemption's grace period as failed and does not requeue it
_IF_PREEMPTED = 'case "$(scontrol --oneliner show job "$SLURM_JOB_ID")" in *JobState=RUNNING\\ *PreemptTime=[0-9]*)'
_HERE = "${SLURMD_NODENAME:-$(hostname)}, restart ${SLURM_RESTART_COUNT:-0}"


def _sbatch_line(name: str, value: object) -> str:
    """Return an #SBATCH line; the only way to write an option. Raises UserError for control characters."""
    if CONTROL.search(str(value)):
        where = f"cluster.{name.replace('-', '_')}"
        raise UserError(Problem(where, f"{str(value)!r} has control characters", "write it on one line of plain text"))
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"


def _header_problems(launcher: Slurm, job: Job) -> list[Problem]:
    problems = []
    if "\\" in str(job.folder):
        what = f"{job.folder} has a backslash, which stops Slurm from putting the job id into log names"
        problems.append(Problem(f"{job.stage}.run.results_dir", what, "choose a path without one"))
    try:
        launcher.header(job)
    except UserError as error:
        problems += error.problems
    return problems


def _name_of_folder(name: str, folder: Path) -> str:
    return f"{name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
