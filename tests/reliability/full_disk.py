# SPDX-License-Identifier: Apache-2.0
"""Runs each stage on file systems that are too small, at a size that fails somewhere else each time, then makes room.

    python -m tests.reliability.full_disk --count 200 --json out.json

A small tmpfs stands in for the folder of results, of data, of temporary files (TMPDIR) or of the log. A job either
does without, or ends with status 1 and a message that names a file on that file system; nothing is half written or
left behind, and the next start, with room, leaves what an undisturbed job does. Mounting needs root.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tests.preload  # noqa: F401 (imported once, then forked)
from tests.reliability.harness import Ended, Failure, Report, in_child, parse_arguments, run_cases, scratch
from tests.reliability.small_jobs import JOBS, PLACE, Inputs, SmallJob, Undisturbed, files_of, undisturbed

PLACES = {
    "training": ("results", "data", "tmp", "log"),
    "conversion": ("out", "tmp", "log"),
    "evaluation": ("results", "data", "tmp", "log"),
    "preparation": ("data", "tmp", "log"),
}
"""The folders of a job, below its case's, that are put on small file systems; log: standard output and error."""
LEAST_BYTES, ROOM = 4096, "size=256m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the driver; return the exit status."""
    options = parse_arguments(
        (__doc__ or "").splitlines()[0],
        arguments,
        count={"type": int, "default": 28, "help": "cases in all"},
        only={"default": None, "metavar": "STAGE/PLACE", "help": "such as training/results"},
    )
    report = Report("full_disk")
    kinds = [f"{name}/{place}" for name, places in PLACES.items() for place in places]
    kinds = [kind for kind in kinds if options.only in (None, kind)]
    with scratch(options.keep) as root:
        if not _can_mount(root / "mount"):
            print("full_disk: skipped, as this process may not mount a tmpfs")
            report.more["skipped"] = "may not mount"
            return report.finish(options.json)
        inputs = Inputs(root / "inputs")
        made = in_child(inputs.make, root / "inputs.log")
        if made.status != 0:
            raise RuntimeError(made.output)
        jobs = {name: _job(name) for name in PLACES}
        wanted = {name: undisturbed(jobs[name], inputs, root / PLACE) for name in {k.split("/")[0] for k in kinds}}
        sizes = {kind: _bytes_in(_reference(jobs, inputs, root, kind)) for kind in kinds}

        def run(case: Any) -> dict[str, Any]:
            kind, seed, number = case
            name, place = kind.split("/")
            folder = root / f"case-{number:06d}"
            return _fill(jobs[name], inputs, wanted[name], folder, place, sizes[kind], seed) | {"case": (kind, seed)}

        cases = ((kinds[i % len(kinds)], options.seed + i // len(kinds), i + 1) for i in range(options.count))
        for answer in run_cases(cases, run, options.jobs):
            kind, seed = answer["case"]
            report.count(kind, cases=1, full=int(answer["full"]), went_on=int(not answer["full"]))
            if answer["problems"]:
                repeat = f"--only {kind} --seed {seed} --count 1"
                report.failures.append(Failure(kind, repeat, "; ".join(answer["problems"]), answer["output"]))
    return report.finish(options.json)


def _job(name: str) -> SmallJob:
    """Return a stage's small job; a conversion writes to an otherwise empty folder."""
    job = JOBS[name]
    if name != "conversion":
        return job

    def prepare(inputs: Inputs, folder: Path) -> dict[str, Any]:
        config = job.prepare(inputs, folder)
        config["model"]["nemo_path"] = str(folder / "out" / "converted.nemo")
        return config

    return dataclasses.replace(job, prepare=prepare, outputs=("out/converted.nemo",))


def _reference(jobs: dict[str, SmallJob], inputs: Inputs, root: Path, kind: str) -> Path:
    """Return a folder of an undisturbed job, to know how much is written there."""
    name, place = kind.split("/")
    folder = root / f"size-{list(PLACES).index(name):06d}"
    if not folder.exists():
        undisturbed(jobs[name], inputs, folder)
    return folder / place if place != "log" else folder.with_suffix(".d") / "log"


def _bytes_in(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _fill(
    job: SmallJob, inputs: Inputs, wanted: Undisturbed, folder: Path, place: str, size: int, seed: int
) -> dict[str, Any]:
    """Run a job with one folder on a file system of random size, free space, and run it again."""
    job.config_file(inputs, folder)
    small = folder / place if place != "log" else folder.with_suffix(".d") / "logs"
    small.mkdir(parents=True, exist_ok=True)
    log = (small if place == "log" else folder.with_suffix(".d")) / "log"
    draw = random.Random(f"{job.name} {place} {seed}")
    free = LEAST_BYTES + int(draw.random() ** 2 * 2.5 * max(size, 16384))
    with _SmallFileSystem(small, free):
        first = in_child(lambda: job.run(folder), log)
        problems = _problems_of(first, small, place)
        problems += job.half_written(folder, wanted)
        problems += [f"{name} was left behind" for name in files_of(folder) if name.endswith((".tmp", ".lock"))]
        output = first.output
        if not problems:
            subprocess.run(["mount", "-o", f"remount,{ROOM}", str(small)], check=True)
            again = in_child(lambda: job.run(folder), folder.with_suffix(".d") / "again")
            problems = [f"with room: {again.problem() or f'status {again.status}'}"] if again.status else []
            problems += [line for line in job.differences(folder, wanted) if ".nemo_launcher_cache" not in line]
            output += again.output
    shutil.rmtree(folder)
    failed = {"problems": [f"{free:,} bytes: {problem}" for problem in problems], "output": output}
    return {"full": first.status != 0} | (failed if problems else {"problems": [], "output": ""})


def _problems_of(ended: Ended, small: Path, place: str) -> list[str]:
    """Return what is wrong with a job's end on a full disk; its output is unreadable if the log is full."""
    if place == "log":
        return [] if ended.status in (0, 1) and not ended.timed_out else [f"exit status {ended.status}"]
    if ended.problem() is not None:
        return [str(ended.problem())]
    if ended.status not in (0, 1, 2):
        return [f"exit status {ended.status}"]
    # a conversion checks beforehand whether its weights fit, and refuses otherwise
    told = "disk full" if ended.status == 1 else "free"
    named = not ended.status or any(told in line and str(small) in line for line in ended.output.splitlines()[-3:])
    return [] if named else [f"the message names no file: {ended.output.splitlines()[-1:]}"]


class _SmallFileSystem:
    """A tmpfs over a folder, with the folder's content and a number of free bytes."""

    def __init__(self, folder: Path, free: int) -> None:
        self.folder, self.free = folder, free

    def __enter__(self) -> None:
        content = self.folder.with_name(f"{self.folder.name}.content")
        shutil.copytree(self.folder, content)
        blocks = sum(-(-path.stat().st_size // 4096) + 1 for path in content.rglob("*"))
        options = f"size={(blocks * 4096 + self.free + 4095) // 4096 * 4096}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", str(self.folder)], check=True)
        shutil.copytree(content, self.folder, dirs_exist_ok=True)
        shutil.rmtree(content)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


def _can_mount(folder: Path) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4096", "small", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
    if done:
        subprocess.run(["umount", str(folder)], check=True)
    return done


if __name__ == "__main__":
    sys.exit(main())
