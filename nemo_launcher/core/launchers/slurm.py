"""Slurm: one sbatch script a stage, chained as `dependency` says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from nemo_launcher.core import job as job_folder
from nemo_launcher.core.job import Job
from nemo_launcher.core.jobs.record import JobRecord, record_of, started
from nemo_launcher.core.launchers.base import EDGES, Launcher
from nemo_launcher.core.launchers.sbatch_options import check_additional, normal
from nemo_launcher.errors import Problem, did_you_mean

NOT_SBATCH = ("srun_args", "job_name_prefix", "gpus_per_task", "gpus_per_node", "setup", "additional_parameters")
AFTER = ("after", "afterany", "afterburstbuffer", "aftercorr", "afternotok", "afterok")
DEPENDENCIES = (*AFTER, "expand", "singleton")
DEPENDENCY = re.compile(rf"({'|'.join(AFTER)})(:\d+(_\d+)?(\+\d+)?)+|expand:\d+")
STOPPED = 75  # a job's exit status when the signal ahead of its time limit stopped it (nemo_launcher/script.py)
# torch.distributed's names for what srun tells each task
RANK_FROM_SRUN = (
    'export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS" '
    'LOCAL_WORLD_SIZE="$SLURM_NTASKS_PER_NODE"; exec "$@"'
)


class SubmissionError(RuntimeError):
    """sbatch refused a job; the message is sbatch's."""


class SlurmLauncher(Launcher):
    """Submits jobs with sbatch; inside a job, srun starts one task for each device."""

    cluster_type: ClassVar[str] = "bcm"

    def problems(self, jobs: list[Job]) -> list[Problem]:
        problems = []
        if not self.settings.debug and not shutil.which("sbatch"):
            fix = "cluster_type=interactive runs here; debug=True only writes the scripts"
            problems.append(Problem("cluster_type", "bcm needs Slurm, and there is no sbatch on the PATH", fix))
        problems += check_additional(self._additional())
        problems += [p for i, job in enumerate(jobs) for p in dependency_problems(job, is_first=i == 0)]
        return problems + (self._container_problems(jobs) if self.settings.container else [])

    def header(self, job: Job) -> list[str]:
        options: dict[str, object] = {
            "dependency": None if job.dependency in EDGES else job.dependency,
            "error": _pattern(job.log_file("%j", "err")),
            "job-name": self._job_name(job),
            "kill-on-invalid-dep": "yes",  # a job whose predecessor failed leaves the queue
            "nodes": job.num_nodes,
            "ntasks-per-node": job.devices,
            "open-mode": "append",
            "output": _pattern(job.log_file("%j")),
            "time": job.time_limit,
        }
        options |= {k.replace("_", "-"): v for k, v in self.settings.cluster.items() if k not in NOT_SBATCH}
        options |= self._gpus(job) | {normal(k): v for k, v in self._additional().items()}
        return [
            f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
            for name, value in sorted(options.items())
            if value is not None and value is not False
        ]

    def body(self, job: Job) -> list[str]:
        return [
            'nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))',
            'export MASTER_ADDR="${nodes[0]}"',
            # the same on every node, other for every job, below the ports that the system hands out
            'export MASTER_PORT="$((15000 + SLURM_JOB_ID % 15000))"',
            *self.read_wandb_key(job),
            "",
            *(self.settings.cluster.get("setup") or []),
            " ".join([*self._srun(job), "\\\n  bash -c", shlex.quote(RANK_FROM_SRUN), "bash", "\\\n "])
            + " "
            + shlex.join([self.interpreter(), "-u", *job.command])
            + self._go_on(),
        ]

    def _go_on(self) -> str:
        """Put a job that was stopped ahead of its time limit back into the queue; its checkpoint is saved."""
        if not self.settings.cluster.get("requeue"):
            return ""
        requeue = f'[ "$status" -ne {STOPPED} ] || scontrol requeue "$SLURM_JOB_ID"'
        return f' \\\n  || {{ status=$?; {requeue}; exit "$status"; }}'

    def launch(self, jobs: list[Job]) -> int:
        for folder in (self.settings.data_dir, self.settings.base_results_dir) if self.settings.container else ():
            folder.mkdir(parents=True, exist_ok=True)  # a mount has to be there
        submitted: list[str] = []
        for job in jobs:
            options = self._place_in_chain(job, jobs[0], submitted[-1:])
            try:
                job_id = submit(record_of(job, self.cluster_type), options)
            except SubmissionError as error:
                print(f"{job.stage}: not submitted: {error}", file=sys.stderr)
                if submitted:
                    print(f"queued already: scancel {' '.join(submitted)} takes it back", file=sys.stderr)
                return 1
            print(f"{job.stage}: submitted as job {job_id}, script {job.script_file}")
            submitted.append(job_id)
        return 0

    @classmethod
    def run_again(cls, record: JobRecord) -> int:
        try:
            print(f"{record.stage}: submitted as job {submit(record, [])}, script {record.script_file}")
        except SubmissionError as error:
            print(f"{record.stage}: not submitted: {error}", file=sys.stderr)
            return 1
        return 0

    def _place_in_chain(self, job: Job, first: Job, before: list[str]) -> list[str]:
        """sbatch's options for a job behind the one `before`.

        A singleton chain has one name: each job starts when all earlier ones of that name have ended, in this chain
        and in those submitted before.
        """
        own = [job.dependency] if job.dependency and job.dependency not in EDGES else []
        if self.edge(job) == "singleton":
            after = ["singleton", *(part for part in own if part != "singleton")]
            return [f"--job-name={self._job_name(first)}", f"--dependency={','.join(after)}"]
        after = [f"{self.edge(job)}:{job_id}" for job_id in before]
        return [f"--dependency={','.join([*after, *own])}"] if after else []

    def _job_name(self, job: Job) -> str:
        return self.settings.cluster.get("job_name_prefix", "") + job.name

    def _additional(self) -> dict[str, Any]:
        return self.settings.cluster.get("additional_parameters") or {}

    def interpreter(self) -> str:
        return "python3" if self.settings.container else super().interpreter()

    def _gpus(self, job: Job) -> dict[str, object]:
        """GPUs for each node or each task; none for a job on CPUs."""
        cluster = self.settings.cluster
        if not job.wants_gpu:
            return {}
        if cluster.get("gpus_per_node") is not None:
            return {"gpus-per-node": cluster["gpus_per_node"]}
        return {"gpus-per-task": cluster.get("gpus_per_task")}

    def _srun(self, job: Job) -> list[str]:
        output, error = _pattern(job.log_file("%j")), _pattern(job.log_file("%j", "err"))
        options = ["srun", "--output", output, "--error", error, "--open-mode=append"]
        if "gpus-per-task" in self._gpus(job):
            # otherwise each task sees one GPU, as number 0, and LOCAL_RANK counts beyond it
            options += ["--gpu-bind=none"]
        if self.settings.container:
            options += ["--container-image", self.settings.container]
            options += ["--container-mounts", ",".join(self._mounts([job]))]
        if self.settings.cluster.get("cpus_per_task") is not None:  # srun does not take it over from sbatch
            options += [f"--cpus-per-task={self.settings.cluster['cpus_per_task']}"]
        options += self.settings.cluster.get("srun_args") or []
        return [shlex.join(options)]

    def _mounts(self, jobs: list[Job]) -> list[str]:
        """The folders of the run onto themselves, then the user's; each once."""
        settings = self.settings
        own = [
            settings.launcher_scripts.parent,
            settings.launcher_scripts,
            settings.data_dir,
            settings.base_results_dir,
        ]
        own += [job.folder for job in jobs if not job.folder.is_relative_to(settings.base_results_dir)]
        users = [mount if ":" in mount else f"{mount}:{mount}" for mount in settings.container_mounts]
        return list(dict.fromkeys([*(f"{path}:{path}" for path in own), *users]))

    def _container_problems(self, jobs: list[Job]) -> list[Problem]:
        """Mounts that cannot be written down, and files that the container would not see."""
        mounts = self._mounts(jobs)
        what, fix = "has a comma, which separates mounts", "choose a path without one"
        problems = [Problem("container_mounts", f"{mount!r} {what}", fix) for mount in mounts if "," in mount]
        inside = [Path(mount.split(":")[1]) for mount in mounts]
        for job in jobs:
            for path in job.inputs:
                if not any(path.is_relative_to(folder) for folder in inside):
                    fix = f"add it: 'container_mounts=[{path.parent}]'"
                    problems.append(Problem("container_mounts", f"{job.stage} reads {path}, which is not mounted", fix))
        return problems


def submit(job: JobRecord, options: list[str]) -> str:
    """Submit a job's script and record it; return its id. Raises SubmissionError."""
    command = ["sbatch", "--parsable", *options, str(job.script_file)]
    job.exit_status_file.unlink(missing_ok=True)
    answer = subprocess.run(command, capture_output=True, text=True, env=_clean_environment(), check=False)
    job_folder.record(job, f"{shlex.join(command)}: {(answer.stdout or answer.stderr).strip()}")
    job_id = answer.stdout.strip().split(";")[0]
    if answer.returncode != 0 or not re.fullmatch(r"\d+", job_id):
        raise SubmissionError((answer.stderr or answer.stdout).strip() or "sbatch gave no job id")
    started(job, job_id, [job.log_file(job_id), job.log_file(job_id, "err")])
    return job_id


def dependency_problems(job: Job, *, is_first: bool) -> list[Problem]:
    """What is wrong with a stage's own dependency."""
    key = f"{job.stage}.run.dependency"
    if job.dependency is None or job.dependency in EDGES:
        return []
    if "?" in job.dependency and not is_first:
        what = "`?` (any of them) does not go together with the stage before"
        return [Problem(key, what, "separate by commas, which means all of them")]
    problems = []
    for part in re.split("[,?]", job.dependency):
        if part != "singleton" and not DEPENDENCY.fullmatch(part):
            kind = part.split(":")[0]
            fix = did_you_mean(kind, DEPENDENCIES) if kind not in DEPENDENCIES else f"write {kind}:JOB_ID"
            problems.append(Problem(key, f"{part!r} is no dependency of Slurm's", fix))
    return problems


def _pattern(path: Path) -> str:
    """A log file as Slurm wants it: %j is the job id, any other % is itself."""
    return str(path).replace("%", "%%").replace("%%j", "%j")


def _clean_environment() -> dict[str, str]:
    """The environment without what an allocation around the launcher has set; the job gets its own values."""
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
