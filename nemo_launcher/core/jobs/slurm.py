"""What Slurm says of jobs: squeue for those it has in mind, sacct for those it has not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass

TIMEOUT_S = 20.0
# names and widths; fixed ones, as older releases have no separators
QUEUE_FIELDS = {"JobID": 24, "State": 24, "Reason": 60, "TimeLeft": 24, "RestartCnt": 12}
DURATION = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True)
class SlurmState:
    """state: Slurm's word in small letters; seconds_left: of the time limit."""

    state: str
    reason: str = ""
    seconds_left: int | None = None


class SlurmSilent(RuntimeError):
    """No command of Slurm's answers."""


def ask(job_ids: Collection[str]) -> dict[str, SlurmState]:
    """Return the states of the jobs that Slurm knows, with at most one squeue and one sacct for all of them.

    Raises SlurmSilent when neither answers.
    """
    if not job_ids:
        return {}
    queued = _ask_squeue(job_ids)
    missing = [job_id for job_id in job_ids if job_id not in (queued or {})]
    ended = _ask_sacct(missing) if missing else {}
    if queued is None and ended is None:
        raise SlurmSilent
    return (ended or {}) | (queued or {})


def cancel(job_ids: Iterable[str]) -> str:
    """Cancel jobs; return what scancel has against it, which is nothing when it worked."""
    answer = call(["scancel", *job_ids])
    if answer is None:
        return "scancel is not there or does not answer"
    return answer.stderr.strip() if answer.returncode else ""


def call(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a command of Slurm's; None when it is not there or does not answer: a dead controller is waited for long."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _ask_squeue(job_ids: Collection[str]) -> dict[str, SlurmState] | None:
    fields = ",".join(f"{name}:{width}" for name, width in QUEUE_FIELDS.items())
    command = ["squeue", f"--jobs={','.join(job_ids)}", "--states=all", "--noheader", "--Format", fields]
    answer = call(command)
    if answer is None:
        return None
    if answer.returncode:
        return {} if "Invalid job id" in answer.stderr else None  # the one job asked for is forgotten
    return dict(_read_queue_line(line) for line in answer.stdout.splitlines() if line.strip())


def _read_queue_line(line: str) -> tuple[str, SlurmState]:
    values, start = {}, 0
    for name, width in QUEUE_FIELDS.items():
        values[name] = line[start : start + width].strip()
        start += width
    state = values["State"].lower()
    if state == "pending" and values["RestartCnt"] not in ("", "0"):
        state = "requeued"
    reason = "" if values["Reason"] in ("None", "(null)") else values["Reason"]
    return values["JobID"], SlurmState(state, reason, seconds(values["TimeLeft"]))


def _ask_sacct(job_ids: Collection[str]) -> dict[str, SlurmState] | None:
    if shutil.which("sacct") is None:
        return None
    answer = call(["sacct", f"--jobs={','.join(job_ids)}", "--format=JobID,State,Reason", "--parsable2"])
    if answer is None or answer.returncode:
        return None  # also where accounting is switched off
    from submitit.slurm.slurm import SlurmInfoWatcher

    found = SlurmInfoWatcher().read_info(answer.stdout)
    # "CANCELLED by 1000"; what sacct calls a reason is why the job was pending once
    return {job_id: SlurmState(facts["State"].split()[0].lower()) for job_id, facts in found.items()}


def seconds(text: str) -> int | None:
    """Read Slurm's [days-][hours:]minutes:seconds; None for UNLIMITED and the like."""
    match = DURATION.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
