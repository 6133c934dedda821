# SPDX-License-Identifier: Apache-2.0
"""This machine: the stages run here, one after another."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import ClassVar

from nemo_launcher import exit_status
from nemo_launcher.clusters import job as job_folder
from nemo_launcher.clusters.base import Answers, Cluster
from nemo_launcher.clusters.interactive.output import Writer, last_lines
from nemo_launcher.clusters.job import Job, JobFiles
from nemo_launcher.clusters.local import cancel_local, local_status
from nemo_launcher.clusters.process import HOST, identity
from nemo_launcher.clusters.record import JobRecord, read, started
from nemo_launcher.clusters.state import JobStatus
from nemo_launcher.errors import Problem
from nemo_launcher.files.locks import folder_lock
from nemo_launcher.runtime.gpu_devices import VISIBLE, num_gpus
from nemo_launcher.runtime.progress_file import TERMINAL_VARIABLE

GRACE_S = 60.0
"""Seconds that a job may take to end after Ctrl-C before it is killed."""
LAST_LINES = 15
TORCHRUN_LINES = 60
FROM_TORCHRUN = re.compile(r"[EW]\d{4} .*torch/distributed/elastic/multiprocessing/api\.py")
"""Matches the first line of torchrun's own report after a rank has failed."""


class Stopped(KeyboardInterrupt):
    """A signal asked the launcher to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Interactive(Cluster):
    """Run each job script in a separate process group, show its output and keep its exit status."""

    cluster_type: ClassVar[str] = "interactive"
    title: ClassVar[str] = "this machine"
    aliases: ClassVar[tuple[str, ...]] = ("local", "localhost")

    @classmethod
    def detect(cls) -> bool:
        return True  # the fallback if no other cluster is detected

    def problems(self, jobs: list[Job]) -> list[Problem]:
        problems = []
        for job in jobs:
            if job.num_nodes > 1:
                key = f"{job.stage}.trainer.num_nodes"
                what = f"{job.num_nodes} nodes, but cluster_type=interactive has only this machine"
                problems.append(Problem(key, what, f"{key}=1, or cluster_type=bcm"))
            problems += [] if self.settings.debug else self._without_gpus(job)
        return problems

    def _without_gpus(self, job: Job) -> list[Problem]:
        """Return a problem if this machine has fewer GPUs than a job has processes that use one."""
        count = num_gpus({**os.environ, **self.settings.env_vars})
        if not job.wants_gpu or count is None or count >= job.devices or (count == 0 and not job.needs_gpu):
            return []
        on_cpu = f"{job.stage}.trainer.accelerator=cpu"
        if count == 0:
            fix = f"{on_cpu} {job.stage}.trainer.devices=1"
            what = f"{VISIBLE} hides the GPUs of this machine" if num_gpus({}) else "this machine has no GPU"
            return [Problem(f"{job.stage}.trainer.accelerator", what, fix)]
        key = f"{job.stage}.trainer.devices"
        what = f"is {job.devices}, but jobs on this machine can use {count} GPU{'s' if count > 1 else ''}"
        return [Problem(key, what, f"lower {key} (and the parallel sizes), or {on_cpu}")]

    def body(self, job: Job) -> list[str]:
        python = [self.interpreter(), "-u"]
        if job.devices > 1:
            python += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job.devices}"]
        return [*self.read_wandb_key(job), shlex.join([*python, *job.command])]

    @classmethod
    def states(cls, records: Sequence[JobRecord]) -> Answers:
        return Answers([[local_status(record)] for record in records])

    @classmethod
    def cancel(cls, found: Sequence[JobStatus]) -> bool:
        done = [cancel_local(status.record) for status in found]
        return all(done)

    @classmethod
    def start(cls, records: list[JobRecord]) -> int:
        me = identity(os.getpid())
        later = [started(record, None, [], host=HOST, process=me) for record in records[1:]]
        failed = 0
        for number, record in enumerate([*records[:1], *later]):
            if record.job_id is None and _is_cancelled(record):
                _report_not_started(records[number:])
                return failed or exit_status.of_signal(signal.SIGTERM)
            status = run_job(record)
            failed = failed or status
            rest = records[number + 1 :]
            if status > 128 or (status and rest and rest[0].edge == "afterok"):
                _report_not_started(rest)
                return failed
        return failed


def _is_cancelled(waiting: JobRecord) -> bool:
    """Return whether a stage was cancelled before its turn."""
    now = read(waiting.record_file)
    return now is not None and now.cancelled


def _report_not_started(jobs: Sequence[JobFiles]) -> None:
    if jobs:
        print(f"not started: {', '.join(job.stage for job in jobs)}", file=sys.stderr)


def run_job(job: JobRecord) -> int:
    """Run a job's script until it ends; return its exit status, or 128 + n when signal n stopped it."""
    log_file = job.log_file(time.strftime("%m%d_%H%M%S"))
    print(f"{job.stage}: {job.name}, in {job.folder}", flush=True)
    start = time.monotonic()
    with folder_lock(job.folder, "job"):
        job.exit_status_file.unlink(missing_ok=True)
        status = run_script(
            job.script_file, log_file, lambda pid: started(job, str(pid), [log_file], host=HOST, process=identity(pid))
        )
    seconds = time.monotonic() - start
    job_folder.record(job, f"bash {job.script_file.name}: exit status {status} after {seconds:.1f} s")
    missing = [str(output) for output in job.outputs if not output.exists()]
    if status == 0 and not missing:
        print(f"{job.stage}: done in {seconds:.1f} s", flush=True)
        return 0
    if status > 128:
        print(f"{job.stage}: stopped after {seconds:.1f} s; its log: {log_file}", file=sys.stderr)
        return status
    reason = f"exit status {status}" if status else f"it ended without writing {', '.join(missing)}"
    failed = f"{job.stage}: failed after {seconds:.1f} s, {reason}"
    if _shows_output_and_errors():  # the job's own message stands above already
        print(f"{failed}; its log: {log_file}", file=sys.stderr)
    else:
        print(f"{failed}\nthe end of {log_file}:\n{_end_of(log_file)}", file=sys.stderr)
    return status or exit_status.FAILED


def _shows_output_and_errors() -> bool:
    """Return whether standard output and standard error go to the same terminal, pipe or file."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False


def _end_of(log_file: Path) -> str:
    """Return the last lines of a log without torchrun's own report, unless there are no others."""
    lines = last_lines(log_file, LAST_LINES + TORCHRUN_LINES).splitlines()
    own = next((i for i, line in enumerate(lines) if FROM_TORCHRUN.match(line)), len(lines)) or len(lines)
    return "\n".join(lines[:own][-LAST_LINES:])


def run_script(script: Path, log_file: Path, on_start: Callable[[int], object]) -> int:
    """Run a bash script, show and log its output, and pass Ctrl-C and SIGTERM on to all its processes.

    on_start: called with its process id, which is also its process group's.
    """
    with _signals_raise():
        writer = Writer(log_file)
        try:
            process = subprocess.Popen(
                ["bash", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=writer.pipe,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # and a new process group
                env=_environment(),
            )
        finally:
            writer.hand_over()
        try:
            on_start(process.pid)
            status = process.wait()
        except KeyboardInterrupt as interrupt:
            number = interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT
            stop(process, number)
            status = exit_status.of_signal(number)
        finally:
            # processes that the script left behind would keep the pipe open
            _signal_group(process, signal.SIGKILL)
            writer.wait()
    return exit_status.of_signal(-status) if status < 0 else status


def stop(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the process group and wait; kill it after a second Ctrl-C or GRACE_S seconds."""
    print(f"stopping within {GRACE_S:.0f} s (a second Ctrl-C kills at once) ...", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
        _signal_group(process, number)
        process.wait(timeout=GRACE_S)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise Stopped, so that no job outlives the launcher; ignored signals stay ignored."""

    def raise_stopped(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    handled = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, raise_stopped) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment() -> dict[str, str]:
    """Return the launcher's environment for a job, which draws progress bars only on a terminal."""
    progress = {}
    if sys.stdout.isatty():
        progress = {"NEMO_LAUNCHER_PROGRESS": "bar", TERMINAL_VARIABLE: os.ttyname(sys.stdout.fileno())}
    return {**os.environ, "PYTHONUNBUFFERED": "1", **progress}
