# SPDX-License-Identifier: Apache-2.0
"""Training from Python: the launcher in a process of its own, on this machine."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nemo_launcher import exit_status
from nemo_launcher.api.overrides import argument_problems, overrides_of
from nemo_launcher.clusters.interactive.output import last_lines
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import load_json
from nemo_launcher.runtime.progress_file import load_summary

Settings = Sequence[str] | Mapping[str, Any]
"""Overrides as on the command line, or a (nested) mapping of keys to values."""

_LAST_LINES = 15
_OF_THIS_PROCESS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class JobError(RuntimeError):
    """A job that was started and failed; the message ends with the last lines of its log."""

    def __init__(self, stage: str, status: int, log: Path | None, text: str) -> None:
        super().__init__(text)
        self.stage, self.status, self.log = stage, status, log


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training has written."""

    adapter: Path
    """The adapter's `.nemo` file; of several trainings, that of the last one."""
    summary: dict[str, object]
    """Its training_summary.json (docs/reference.md)."""
    outputs: dict[str, list[Path]]
    """The files that each stage has written, by stage in order: adapters, predictions, converted bases."""


def train(
    settings: Settings, *more: Settings, show: Callable[[str], object] | None = None, quiet: bool = False
) -> TrainingResult:
    """Run stages with a training on this machine and wait for them; return what they have written.

    settings, more: overrides as on the command line, such as ["adapter_learning=llama/squad"], or mappings such as
    {"adapter_learning": {"trainer": {"max_steps": 100}}}; later ones win. The default stages are [adapter_learning].
    show: receives each piece of the output; the default writes it to sys.stdout. quiet: show nothing.

    The launcher runs in a process of its own. So the training has its own process groups, threads and memory, whatever
    this process has loaded; and Ctrl-C, or a notebook's interrupt, lets it save a checkpoint before KeyboardInterrupt
    is raised. A later call with the same settings resumes from it.

    Raises UserError with all mistakes if nothing was launched, and JobError if a job has failed.
    """
    arguments = [argument for part in (settings, *more) for argument in overrides_of(part)]
    if problems := argument_problems(arguments):
        raise UserError(problems)
    with tempfile.TemporaryDirectory(prefix="nemo-launcher-") as folder:
        report_file = Path(folder) / "report.json"
        command = [sys.executable, "-m", "nemo_launcher.api.launch_process", str(report_file)]
        status = _run([*command, "cluster_type=interactive", *arguments], _shown(show, quiet))
        report = load_json(report_file) if report_file.exists() else {}
    _raise_failure(status, report)
    if "jobs" not in report:
        raise UserError(Problem("settings", "launch nothing", "leave out options such as --help"))
    trained = next(job for job in reversed(report["jobs"]) if job["adapter"] is not None)
    summary = Path(trained["summary"])
    outputs = {job["stage"]: [Path(output) for output in job["outputs"]] for job in report["jobs"]}
    return TrainingResult(Path(trained["adapter"]), load_summary(summary) if summary.is_file() else {}, outputs)


def _raise_failure(status: int, report: Mapping[str, Any]) -> None:
    """Raise the exception of a launch that has failed: UserError, JobError or, if it was interrupted, Ctrl-C's."""
    if report.get("problems"):
        raise UserError(Problem(*problem) for problem in report["problems"])
    if status == exit_status.INTERRUPTED:
        raise KeyboardInterrupt
    if status != 0:
        failed = report.get("failed") or {"stage": "launcher", "log": None}
        log = None if failed["log"] is None else Path(failed["log"])
        text = f"{failed['stage']} failed with exit status {status}"
        if log is not None:
            text += f"; the end of {log}:\n{last_lines(log, _LAST_LINES)}"
        raise JobError(failed["stage"], status, log, text)


def _shown(show: Callable[[str], object] | None, quiet: bool) -> Callable[[str], object]:
    if quiet:
        return lambda text: None
    return _print if show is None else show


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _run(command: list[str], show: Callable[[str], object]) -> int:
    """Run a command in a session of its own, pass its output on as it comes, and return its exit status."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches it through this process, once
        env={name: value for name, value in os.environ.items() if name not in _OF_THIS_PROCESS},
    )
    assert process.stdout is not None
    with process, process.stdout as output:
        try:
            for text in _pieces(output):
                show(text)
            return process.wait()
        except BaseException:
            _stop(process, output, show)
            raise


def _pieces(output: IO[bytes]) -> Iterator[str]:
    """Yield the output as it comes, in whole characters."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while data := os.read(output.fileno(), 65536):
        yield decoder.decode(data)


def _stop(process: subprocess.Popen[bytes], output: IO[bytes], show: Callable[[str], object]) -> None:
    """Let the launcher stop its jobs, which save checkpoints; a second Ctrl-C makes it kill them."""
    while process.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):
            process.send_signal(signal.SIGINT)
            for text in _pieces(output):
                with contextlib.suppress(Exception):  # `show` may be what has failed
                    show(text)
            process.wait()
