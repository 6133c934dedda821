# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments, saves included, until each job has ended; then bit for bit against the uninterrupted run.

    python -m tests.reliability.kills --count 1000 --json out.json
    python -m tests.reliability.kills --only training --seed 17 --count 1     # the job with this seed

Half of the kills come before a random file-system call, half after a random time; one with `--only` and a seed repeats
the first kind exactly, the second as far as the machine's clock allows.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tests.preload  # noqa: F401 (imported once, then forked)
from tests.reliability.harness import Ended, Failure, Report, in_child, parse_arguments, run_cases, scratch
from tests.reliability.small_jobs import JOBS, PLACE, Inputs, SmallJob, Undisturbed, undisturbed
from tests.reliability.tracing import traced

REAL_PROCESS = "train.py"
"""A training as its own process, started by its command line, including imports."""
SHARES = {"training": 14, "conversion": 2, "evaluation": 1, "preparation": 1, REAL_PROCESS: 2}
MOST_KILLS = 6
"""The maximum number of kills of one job before it may finish."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the driver; return 1 if there are failures."""
    options = parse_arguments(
        str(__doc__),
        arguments,
        count={"type": int, "default": 1000, "metavar": "N", "help": "kills in all"},
        only={"choices": list(SHARES), "help": "jobs of one kind alone"},
    )
    report = Report("kills")
    with report.interruptible(), scratch(options.keep) as root:
        inputs = Inputs(root / "inputs")
        made = in_child(inputs.make, root / "inputs.log")
        if made.status != 0:
            raise RuntimeError(made.output)
        wanted = {name: _Wanted(job, inputs, root / name) for name, job in JOBS.items()}

        def cases() -> Iterator[tuple[str, int]]:
            seed = options.seed
            names = [options.only] if options.only else [name for name, share in SHARES.items() for _ in range(share)]
            while report.total("kills") < options.count:
                yield names[seed % len(names)], seed
                seed += 1

        def run(case: tuple[str, int]) -> dict[str, Any]:
            name, seed = case
            job = wanted["training" if name == REAL_PROCESS else name]
            folder = root / job.job.name / f"case-{seed:06d}"
            return _kill_until_done(job, inputs, folder, seed, name == REAL_PROCESS, options.keep)

        for answer in run_cases(cases(), run, options.jobs):
            kind, seed = answer["case"]
            report.count(kind, jobs=1, kills=answer["kills"], kills_at_calls=answer["at_calls"])
            if answer["problems"]:
                what = "; ".join(answer["problems"])
                repeat = f"--only {kind} --seed {seed} --count 1"
                report.failures.append(Failure(kind, repeat, what, answer["output"]))
    return report.finish(options.json)


class _Wanted:
    """A job, its undisturbed outputs, and its approximate numbers of calls and seconds."""

    def __init__(self, job: SmallJob, inputs: Inputs, root: Path) -> None:
        self.job = job
        self.undisturbed: Undisturbed = undisturbed(job, inputs, root / PLACE)
        folder = root / "case-999999"
        job.config_file(inputs, folder)
        self.calls = len(traced(lambda: job.run(folder), folder.with_suffix(".d") / "log", folder)[1])
        self.seconds = self.undisturbed.ended.seconds


def _kill_until_done(
    wanted: _Wanted, inputs: Inputs, folder: Path, seed: int, real_process: bool, keep: bool
) -> dict[str, Any]:
    """Start a job again and again, killing it, then let it end; compare its outputs."""
    draw, job = random.Random(seed), wanted.job
    config = job.config_file(inputs, folder)
    kind = REAL_PROCESS if real_process else job.name
    kills = at_calls = 0
    problems: list[str] = []
    function = (lambda: _become_script(job, config, folder)) if real_process else (lambda: job.run(folder))
    for _ in range(draw.randint(1, MOST_KILLS)):
        at_call = draw.random() < 0.5
        ended = _start_and_kill(function, wanted, folder, draw, at_call, real_process)
        if ended.status == -signal.SIGKILL and not ended.timed_out:
            kills += 1
            at_calls += at_call
        elif ended.problem() or ended.status:
            problems.append(f"start {kills + 1}: {ended.problem() or f'status {ended.status}'}")
        problems += job.half_written(folder, wanted.undisturbed)
        if problems:
            break
    if not problems:
        ended = in_child(function, folder.with_suffix(".d") / "log")
        problem = ended.problem() or (f"status {ended.status}" if ended.status else None)
        problems = [f"after {kills} kills: {problem}"] if problem else []
        problems += job.differences(folder, wanted.undisturbed)
    if not keep:
        shutil.rmtree(folder)
    return {
        "case": (kind, seed),
        "kills": kills,
        "at_calls": at_calls,
        "problems": problems,
        "output": ended.output if problems else "",
    }


def _start_and_kill(
    function: Any, wanted: _Wanted, folder: Path, draw: random.Random, at_call: bool, real_process: bool
) -> Ended:
    log = folder.with_suffix(".d") / "log"
    if at_call:
        return traced(function, log, folder, kill_before=draw.randint(1, wanted.calls))[0]
    start_up = 8 * wanted.seconds if real_process else 0.0  # time for imports
    return in_child(function, log, kill_after=draw.uniform(0.0, start_up + 1.1 * wanted.seconds))


def _become_script(job: SmallJob, config: Path, folder: Path) -> None:
    """Replace this process by a job's own command line."""
    from tests.jobs import REPOSITORY, SCRIPTS

    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    os.execve(sys.executable, [sys.executable, "-u", str(SCRIPTS / job.script), str(config)], environment)


if __name__ == "__main__":
    sys.exit(main())
