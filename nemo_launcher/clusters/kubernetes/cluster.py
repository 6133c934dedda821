# SPDX-License-Identifier: Apache-2.0
"""Kubernetes: one indexed Job per chain of stages; its pods share the results folder with this machine."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import ClassVar

from nemo_launcher import __version__
from nemo_launcher.clusters.base import EDGES, Answers, Cluster, Rendered, Settings
from nemo_launcher.clusters.job import Job
from nemo_launcher.clusters.kubernetes import kubectl, states
from nemo_launcher.clusters.kubernetes.manifest import (
    AFTER,
    GOES_ON,
    chain_file,
    chained,
    digest,
    manifest_file,
    manifest_of,
    renamed,
    text_of,
)
from nemo_launcher.clusters.kubernetes.options import Options
from nemo_launcher.clusters.kubernetes.section import KubernetesSection
from nemo_launcher.clusters.kubernetes.submission import submit_chain
from nemo_launcher.clusters.record import JobRecord, record_file
from nemo_launcher.clusters.state import JobStatus
from nemo_launcher.config.overrides import override
from nemo_launcher.errors import Problem
from nemo_launcher.exit_status import STOPPED, USER_ERROR

START_RANKS = "start_ranks.py"
"""The script in launcher_scripts that starts a pod's ranks."""
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[A-Za-z0-9](?:[-A-Za-z0-9.]*[A-Za-z0-9])?(?::\d{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?::\w[\w.-]{0,127})?(?:@[a-z0-9]+:[0-9a-f]{32,128})?",
    re.ASCII,
)
"""An image reference: REGISTRY:PORT/REPOSITORY:TAG@DIGEST."""
_IMAGE_EXAMPLE = "container=registry.example/nemo-adapter-launcher:0.2"
_KEYS = {
    "namespaces": "cluster.namespace",
    "serviceaccount": "cluster.service_account",
    "PriorityClass": "cluster.priority_class",
    "quota": "cluster.cpus, cluster.memory or trainer.devices",
}
"""Maps a word in a refusal to the keys that may have caused it."""


class Kubernetes(Cluster):
    """Submit jobs with kubectl apply; each pod starts one process per device."""

    cluster_type: ClassVar[str] = "k8s"
    title: ClassVar[str] = states.TITLE
    aliases: ClassVar[tuple[str, ...]] = ("kubernetes", "kubectl", "kube", "eks", "gke", "aks", "openshift")
    section: ClassVar[type | None] = KubernetesSection
    keys: ClassVar[tuple[str, ...]] = ("cluster", "container", "run.time_limit")
    queues: ClassVar[bool] = True
    asks_with: ClassVar[str] = "kubectl"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.options = Options(settings.cluster)

    @classmethod
    def detect(cls) -> bool:
        return False  # kubectl alone does not show that the user wants Kubernetes

    def problems(self, jobs: list[Job]) -> list[Problem]:
        problems = []
        if not self.settings.debug and not shutil.which("kubectl"):
            fix = "cluster_type=interactive runs here; debug=True only writes the manifests"
            problems.append(Problem("cluster_type", "k8s needs kubectl, which is not on the PATH", fix))
        if self.settings.container is None:
            what = "k8s needs a container image for the pods"
            problems.append(Problem("container", what, _IMAGE_EXAMPLE))
        if not (self.settings.launcher_scripts / START_RANKS).is_file():
            what = f"{self.settings.launcher_scripts} has no {START_RANKS}, which starts the ranks of a pod"
            problems.append(Problem("launcher_scripts_path", what, "leave it out, or copy the file there"))
        problems += self.options.problems() + self._mount_problems(jobs)
        for number, job in enumerate(jobs):
            if number and self.edge(job) not in EDGES:
                what = f"{self.edge(job)} exists only in Slurm; here a chain's stages run in the pods of one Job"
                problems.append(Problem("dependency", what, "dependency=afterok"))
            # the shipped files set singleton for Slurm; it has no effect here, as job names are unique
            if job.dependency is not None and job.dependency not in (*EDGES, "singleton"):
                what = f"{job.dependency} exists only in Slurm; a Kubernetes Job cannot wait for another"
                problems.append(Problem(f"{job.stage}.run.dependency", what, f"{job.stage}.run.dependency=null"))
        return problems

    def _mount_problems(self, jobs: list[Job]) -> list[Problem]:
        """Return a problem for each path that the pods need and no volume holds."""
        if self.options.problems():
            return []
        needed = [("base_results_dir", job.folder, f"{job.stage} writes") for job in jobs]
        for job in jobs:
            needed += [("cluster.volumes", path, f"{job.stage} reads") for path in job.inputs]
            written = {path.parent: path for path in job.writes if not path.is_relative_to(job.folder)}
            needed += [("cluster.volumes", path, f"{job.stage} writes") for path in written.values()]
        key_file = self.settings.wandb_key_file
        if key_file is not None and any(job.wants_wandb for job in jobs):
            needed.append(("wandb_api_key_file", Path(key_file).absolute(), "training reads"))
        found = []
        for key, path, use in needed:
            if not self._is_mounted(path):
                volumes = [*self.options.entries("volumes"), {"mount_path": str(path.parent), "pvc": "my-claim"}]
                fix = f"{override('cluster.volumes', volumes)}, with the name of your own claim"
                found.append(Problem(key, f"{use} {path}, which is in no volume of the pods", fix))
        return found

    def _is_mounted(self, path: PurePath) -> bool:
        return any(path.is_relative_to(mount.path) for mount in self.options.mounts())

    def warnings(self, jobs: list[Job]) -> list[Problem]:
        warnings = []
        scripts = self.settings.launcher_scripts
        if not self._is_mounted(scripts):
            what = f"{scripts} is in no volume of the pods: the image must have this release at that path"
            warnings.append(Problem("launcher_scripts_path", what, "mount it, or install this package in the image"))
        image = self.settings.container
        if image is not None and not _IMAGE.fullmatch(image):
            what = f"{image!r} is not the name of a registry image, so no pod would start"
            warnings.append(Problem("container", what, f"{_IMAGE_EXAMPLE}, without docker:// and not a .sqsh file"))
        limits = [job.time_limit for job in jobs]
        if any(limits) and not all(limits):
            without = next(job for job in jobs if job.time_limit is None)
            key = f"{without.stage}.run.time_limit"
            warnings.append(Problem(key, "is null, so the Job of the whole chain has no deadline"))
        return warnings

    # --- files --------------------------------------------------------------------------------------------------

    def render(self, job: Job) -> Rendered:
        script = self.script(job)
        manifest = manifest_of(job, self.settings.container or "", self.options)
        return Rendered(job, script, {manifest_file(job): text_of(manifest)})

    def render_chain(self, jobs: list[Job]) -> dict[Path, str]:
        if len(jobs) < 2:
            return {}
        image = self.settings.container or ""
        manifests = [manifest_of(job, image, self.options) for job in jobs]
        whole = chained(jobs, manifests, [self.edge(job) == "afterany" for job in jobs[1:]])
        return {chain_file(jobs[0]): text_of(whole)}

    def header(self, job: Job) -> list[str]:
        """Return lines that skip a stage that does not run in this pod or has already run in the pod it replaces."""
        exit_status, record = shlex.quote(str(job.exit_status_file)), shlex.quote(str(record_file(job)))
        ended = '[ "$after" = 0 ]'
        if self.edge(job) == "afterany":
            ended = f'[ -n "$after" ] && [ "$after" != {STOPPED} ]'
        read = f'after="$(cat "${AFTER}" 2> /dev/null || :)"'
        return [
            'index="${JOB_COMPLETION_INDEX:-0}"',
            f'[ "$index" -lt {job.num_nodes} ] || exit 0',
            # the stage before ends in the first pod, which writes its files and its exit status
            'trap "exit 143" TERM',
            f'while [ "$index" != 0 ] && [ -n "${{{AFTER}:-}}" ]; do {read}; {ended} && break; sleep 2; done',
            f'before="$(cat {exit_status} 2> /dev/null || :)"',
            '[ "$before" != 0 ] || exit 0',
            f'[ -z "${{{GOES_ON}:-}}" ] || [ -z "$before" ] || [ "$before" = {STOPPED} ] || exit 0',
            f"""! grep -qs '"cancelled": true' {record} || {{ echo "cancelled before its start" >&2; exit 143; }}""",
        ]

    def at_start(self, job: Job) -> list[str]:
        return [
            f"log_file={shlex.quote(str(job.log_file(digest(job))))}",
            '[ "$index" = 0 ] || exit_status_file=/dev/null',
            f'[ "$index" = 0 ] || log_file={_with_index(job)}',
            # written to the log file and shown by kubectl logs
            "exec > >(trap '' HUP INT TERM USR1; exec tee -a \"$log_file\") 2>&1",
            'log_writer="$!"',
            'echo "$(date "+%F %T") pod $index starts on $(hostname)"',
        ]

    def at_end(self) -> str:
        log = 'echo "$(date "+%F %T") pod $index ends, exit status $status"'
        goes_on = f'[ -z "${{{GOES_ON}:-}}" ] || [ "$status" -eq {STOPPED} ] || exit 0'
        return f'{log}; exec >&- 2>&-; wait "$log_writer"; {goes_on}'

    def body(self, job: Job) -> list[str]:
        start = [self.interpreter(), "-u", str(self.settings.launcher_scripts / START_RANKS)]
        ranks = [str(job.num_nodes), str(job.devices), self.interpreter(), "-u", *job.command]
        scripts = [str(self.settings.launcher_scripts / START_RANKS), job.command[0]]
        lacks = f"is not in this pod: the image must hold nemo-adapter-launcher {__version__} there, or a volume"
        return [
            *self.read_wandb_key(job),
            f"for file in {shlex.join(scripts)}; do",
            f'[ -f "$file" ] || {{ echo "$file {lacks}" >&2; exit {USER_ERROR}; }}',
            "done",
            f"{shlex.join([*start, *ranks])} &",
            'ranks="$!"',
            'for name in HUP INT TERM USR1; do trap "kill -s $name $ranks 2> /dev/null || :" "$name"; done',
            "status=0",
            'wait "$ranks" || status="$?"',
            # a signal interrupts wait but does not end the ranks
            'while kill -0 "$ranks" 2> /dev/null; do status=0; wait "$ranks" || status="$?"; done',
            'again=0; wait "$ranks" 2> /dev/null || again="$?"',
            '[ "$again" -eq 127 ] || status="$again"',
            'exit "$status"',
        ]

    def interpreter(self) -> str:
        return "python3"

    def try_out(self, rendered: Sequence[Rendered]) -> tuple[list[Problem], list[Problem]]:
        """Test all manifests with one server-side dry run, which creates nothing."""
        if self.settings.debug or self.settings.preflight == "off":
            return [], []
        items = []
        for number, one in enumerate(rendered):
            manifest = manifest_of(one.job, self.settings.container or "", self.options)
            items += renamed(manifest, f"try-{number}-{digest(one.job)}")  # an earlier Job may have the real name
        text = text_of({"apiVersion": "v1", "kind": "List", "items": items})
        answer = kubectl.order(self.options.namespace, "apply", "--dry-run=server", "--filename=-", text=text)
        refusal = kubectl.refusal(answer)
        if not refusal:
            return [], []
        key = next((key for word, key in _KEYS.items() if word.casefold() in refusal.casefold()), None)
        fix = f"change {key}" if key else "preflight=off submits it without this test"
        problem = Problem("cluster", f"Kubernetes rejects the job: {refusal}", fix)
        return ([problem], []) if self.settings.preflight == "error" or answer is None else ([], [problem])

    # --- jobs ---------------------------------------------------------------------------------------------------

    def completed(self, record: JobRecord, job: Job, chain: list[Job]) -> JobRecord:
        of_cluster = {states.NAMESPACE: self.options.namespace}
        return dataclasses.replace(record, requeue=self.options.flag("requeue"), of_cluster=of_cluster)

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
        return [record.log_file(digest(record))]

    @classmethod
    def remote_logs(cls, record: JobRecord, num_lines: int) -> str | None:
        container = re.sub(r"[^a-z0-9]+", "-", record.stage.lower())
        pods = (f"job/{record.job_id}", f"--container={container}", f"--tail={num_lines}")
        answer = kubectl.ask(states.namespace_of(record), "logs", *pods)
        return answer.stdout if answer is not None and answer.returncode == 0 and answer.stdout.strip() else None

    @classmethod
    def is_job_id(cls, text: str) -> bool:
        return _NAME.fullmatch(text) is not None


def _with_index(job: Job) -> str:
    """Return the log path of any pod but the first, as a shell word that expands $index."""
    log = job.log_file(digest(job) + "-")
    return f'{shlex.quote(str(log).removesuffix(log.suffix))}"$index"{log.suffix}'
