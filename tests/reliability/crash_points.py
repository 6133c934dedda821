# SPDX-License-Identifier: Apache-2.0
"""Dies before each file-system call of a short run of every stage, starts it again, and compares what comes out.

python -m tests.reliability.crash_points --json out.json
python -m tests.reliability.crash_points --only training:57      # one call of one stage
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tests.preload  # noqa: F401 (imported once, then forked)
from tests.reliability.harness import Failure, Report, in_child, parse_arguments, run_cases, scratch
from tests.reliability.small_jobs import JOBS, PLACE, Inputs, undisturbed
from tests.reliability.tracing import Call, traced


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the driver; return 1 if there are failures."""
    options = parse_arguments(
        str(__doc__),
        arguments,
        count={"type": int, "metavar": "N", "help": "points of each stage, spread over the run; default: every one"},
        only={"metavar": "STAGE[:NUMBER]", "help": "one stage, or one call of it"},
    )
    stage, _, number = (options.only or "").partition(":")
    report = Report("crash_points")
    with report.interruptible(), scratch(options.keep) as root:
        inputs = Inputs(root / "inputs")
        made = in_child(inputs.make, root / "inputs.log")
        if made.status != 0:
            raise RuntimeError(made.output)
        for name in [stage] if stage else JOBS:
            _try_stage(name, inputs, root / name, options, [int(number)] if number else None, report)
    return report.finish(options.json)


def _try_stage(name: str, inputs: Inputs, root: Path, options: Any, only: list[int] | None, report: Report) -> None:
    """Run one stage undisturbed, then once for each of its calls."""
    job = JOBS[name]
    wanted = undisturbed(job, inputs, root / PLACE)
    calls = _calls_of(name, inputs, root / "case-999999")
    report.more.setdefault("calls", {})[name] = [str(call) for call in calls]
    report.count(name, calls=len(calls))

    def try_point(number: int) -> dict[str, Any]:
        folder = root / f"case-{number:06d}"
        job.config_file(inputs, folder)
        log = folder.with_suffix(".d") / "log"
        died, seen = traced(lambda: job.run(folder), log, folder, kill_before=number)
        if died.status != -signal.SIGKILL or died.timed_out:
            return {"number": number, "problems": [died.problem()] if died.problem() else [], "died": 0}
        problems = job.half_written(folder, wanted)
        again = in_child(lambda: job.run(folder), log)
        problems += [again.problem() or f"the next start ended with status {again.status}"] if again.status else []
        problems += [again.problem()] if again.status == 0 and again.problem() else []
        problems += job.differences(folder, wanted)
        if not options.keep:
            shutil.rmtree(folder)
        return {
            "number": number,
            "died": 1,
            "before": str(seen[-1]),
            "problems": problems,
            "output": again.output,
        }

    for answer in run_cases(only or spread(len(calls), options.count), try_point, options.jobs):
        report.count(name, points=1, died=answer["died"])
        if answer["problems"]:
            what = f"died before {answer.get('before', 'its end')}: {'; '.join(answer['problems'])}"
            report.failures.append(Failure(name, f"--only {name}:{answer['number']}", what, answer.get("output", "")))


def _calls_of(name: str, inputs: Inputs, folder: Path) -> list[Call]:
    job = JOBS[name]
    job.config_file(inputs, folder)
    return traced(lambda: job.run(folder), folder.with_suffix(".d") / "log", folder)[1]


def spread(total: int, count: int | None) -> Iterator[int]:
    """Yield numbers from 1 to `total`: all, or `count` of them at equal distances."""
    wanted = total if count is None else min(count, total)
    yield from (1 + index * total // wanted for index in range(wanted))


if __name__ == "__main__":
    sys.exit(main())
