# SPDX-License-Identifier: Apache-2.0
"""Mutants of what the project reads: refused with its own message, or used; never code, crashes, hangs or other harm.

    python -m tests.reliability.mutations --kind nemo --count 3000 --json out.json
    python -m tests.reliability.mutations --kind nemo --seed 17 --count 1 --keep     # repeats one

Of the mutants a quarter are written in another way and must give what the valid input gives; some 45% are changed in
their structure; the rest are damaged bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import select
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tests.preload  # noqa: F401 (imported once, then forked)
from tests.reliability.harness import (
    CASE_SECONDS,
    MEMORY_BYTES,
    STATUSES,
    Failure,
    Report,
    fork,
    in_child,
    parse_arguments,
    read_log,
    run_cases,
    scratch,
)
from tests.reliability.mutants import damaged
from tests.reliability.mutation_kind import Kind
from tests.reliability.mutation_kinds import KINDS
from tests.reliability.small_jobs import Inputs

WAYS = ("harmless",) * 5 + ("structural",) * 9 + ("damaged",) * 6
NEVER_FOUND = {"os", "posix", "nt", "builtins", "subprocess", "pathlib", "shutil", "sys", "runpy"}
"""Modules whose names occur in no pickle of ours or NeMo's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the driver; return 1 if there are failures."""
    options = parse_arguments(
        str(__doc__),
        arguments,
        kind={"choices": list(KINDS), "action": "append", "help": "may be repeated; default: every kind"},
        count={"type": int, "default": 3000, "metavar": "N", "help": "mutants of each kind"},
    )
    report = Report("mutations")
    with report.interruptible(), scratch(options.keep) as root:
        inputs = Inputs(root / "inputs")
        made = in_child(inputs.make, root / "inputs.log")
        if made.status != 0:
            raise RuntimeError(made.output)
        for name in options.kind or KINDS:
            _try_kind(KINDS[name], inputs, root / name, options, report)
    return report.finish(options.json)


def _try_kind(
    make_kind: Callable[[Inputs, Path], Kind], inputs: Inputs, root: Path, options: Any, report: Report
) -> None:
    (root / "canary").mkdir(parents=True)
    (root / "canary/kept").write_text("kept")
    (root / "valid").mkdir()
    kind = make_kind(inputs, root / "canary/made")
    made = in_child(lambda: _make(kind, root), root / "make.log")
    if made.status != 0:
        report.failures.append(
            Failure(kind.name, f"--kind {kind.name}", "the valid input is not accepted", made.output)
        )
        return
    wanted = json.loads((root / "wanted.json").read_text())
    judge = _Judge(kind, root, wanted, options.keep)
    seeds = range(options.seed, options.seed + options.count)
    batches = [list(seeds[start : start + kind.once]) for start in range(0, len(seeds), kind.once)]
    for answers in run_cases(batches, judge.batch, options.jobs):
        for answer in answers:
            report.count(kind.name, mutants=1, **dict.fromkeys(answer["counts"], 1))
            if answer["problem"]:
                what = f"{answer['what']}: {answer['problem']}"
                repeat = f"--kind {kind.name} --seed {answer['seed']} --count 1"
                report.failures.append(Failure(kind.name, repeat, what, answer["output"][-3000:]))
    counts = report.counts[kind.name]
    shares = {name: round(counts[name] / counts["mutants"], 3) for name in ("stay_valid", "past_the_first_parser")}
    report.more.setdefault("shares", {})[kind.name] = shares


def _make(kind: Kind, root: Path) -> None:
    """Write the valid input and store its result."""
    kind.make(root / "valid")
    (root / "first").mkdir()
    wanted = kind.use(root / "valid", root / "first")
    (root / "wanted.json").write_text(json.dumps(wanted))


class _Judge:
    """Processes mutants in forked children, many per child, and returns what went wrong with each."""

    def __init__(self, kind: Kind, root: Path, wanted: Any, keep: bool) -> None:
        self.kind, self.root, self.wanted, self.keep = kind, root, wanted, keep

    def batch(self, seeds: list[int]) -> list[dict[str, Any]]:
        """Return a verdict for each seed. A child that dies or hangs fails its mutant; the next gets a new child."""
        answers: list[dict[str, Any]] = []
        log = self.root / f"batch-{seeds[0]}.log"
        while len(answers) < len(seeds):
            left = seeds[len(answers) :]
            reader, writer = os.pipe()
            process = fork(lambda left=left, writer=writer: self._serve(left, writer, log), log)  # type: ignore[misc]
            os.close(writer)
            for line in _lines(reader, CASE_SECONDS):
                answers.append(json.loads(line))
            os.close(reader)
            _kill_group(process)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            if len(answers) < len(seeds):
                what = (
                    f"the process hung ({CASE_SECONDS:g} s)"
                    if status == -signal.SIGKILL
                    else f"the process died ({status})"
                )
                seed = seeds[len(answers)]
                answers.append({"seed": seed, "what": "mutant", "problem": what, "counts": [], "output": read_log(log)})
        log.unlink(missing_ok=True)
        return answers

    def _serve(self, seeds: list[int], writer: int, log: Path) -> None:
        seen = _Watch()
        for seed in seeds:
            os.ftruncate(1, 0)
            os.lseek(1, 0, os.SEEK_SET)
            answer = self._try(seed, seen)
            sys.stdout.flush()
            sys.stderr.flush()
            answer["output"] = read_log(log) if answer["problem"] else ""
            with os.fdopen(os.dup(writer), "w") as stream:
                stream.write(json.dumps(answer) + "\n")
        os._exit(0)

    def _try(self, seed: int, seen: _Watch) -> dict[str, Any]:
        """Make one mutant, use it, and compare the result with the expectation."""
        draw = random.Random(f"{self.kind.name}:{seed}")
        place = self.root / f"seed-{seed}"
        mutated, out = place / "in", place / "out"
        shutil.copytree(self.root / "valid", mutated)
        out.mkdir()
        (place / "tmp").mkdir()
        tempfile.tempdir = str(place / "tmp")
        os.environ["TMPDIR"] = tempfile.tempdir
        name, way = self.kind.choose(draw), draw.choice(WAYS)
        file = self.kind.formats()[name]
        content = (mutated / name).read_bytes()
        try:
            changed = damaged(draw, content) if way == "damaged" else getattr(file, way)(draw, content)
        except (UnicodeError, ValueError, OverflowError, struct.error):
            way, changed = "damaged", damaged(draw, content)  # a value that the format cannot represent
        (mutated / name).write_bytes(changed)
        counts = [way]
        if way == "harmless":
            counts.append("stay_valid")
        if file.parses(changed):
            counts.append("past_the_first_parser")
        before = _contents(mutated)
        seen.start()
        status, result = _boundary(lambda: self.kind.use(mutated, out))
        counts.append("accepted" if status == 0 else "refused")
        problem = seen.problem(self.kind) or self._problem(way, status, result)
        if problem is None and _contents(mutated) != before:
            problem = "the input was changed"
        if problem is None:
            problem = self._traces(place, out, status)
        if not self.keep:
            shutil.rmtree(place, ignore_errors=True)
        return {"seed": seed, "what": f"{way} {name}", "problem": problem, "counts": counts}

    def _problem(self, way: str, status: int | None, result: Any) -> str | None:
        if status is None:
            return "a traceback"
        if status not in STATUSES:
            return f"exit status {status}"
        if status and os.fstat(1).st_size == 0:
            return "refused without a message"
        if way == "harmless" and status:
            return "refused, though it is valid"
        if status == 0 and self.kind.must_agree(way) and result != self.wanted:
            return f"accepted, and gave {str(result)[:300]}"
        return None

    def _traces(self, place: Path, out: Path, status: int | None) -> str | None:
        """Return a file where there should be none, if any."""
        canary = self.root / "canary"
        if [path.name for path in canary.iterdir()] != ["kept"] or (canary / "kept").read_text() != "kept":
            (canary / "made").unlink(missing_ok=True)
            return "the canary was made or changed: foreign code or a foreign path"
        if sorted(path.name for path in place.iterdir()) != ["in", "out", "tmp"]:
            return f"files beside the input: {[path.name for path in place.iterdir()]}"
        left = [str(path.relative_to(place)) for path in (place / "tmp").rglob("*")]
        if status:
            left += [str(path.relative_to(place)) for path in out.rglob("*") if path.is_file()]
        return f"left behind: {left[:5]}" if left else None


class _Watch:
    """Records what a mutant makes the process do: programs started, names in pickles, memory used."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.at_start = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in (
            "os.system",
            "subprocess.Popen",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
            "pty.spawn",
            "socket.connect",
        ):
            self.events.append(f"{event} {str(arguments)[:200]}")
        elif event == "pickle.find_class" and str(arguments[0]).partition(".")[0] in NEVER_FOUND:
            self.events.append(f"pickle names {arguments[0]}.{arguments[1]}")

    def start(self) -> None:
        """Reset the records."""
        self.events.clear()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.at_start = _peak_bytes()

    def problem(self, kind: Kind) -> str | None:
        """Return what should not have happened since `start`."""
        taken = _peak_bytes() - self.at_start
        if taken > MEMORY_BYTES:
            return f"took {taken / 2**20:.0f} MiB"
        started = [event for event in self.events if not kind.wants_processes or event.startswith(("pickle", "socket"))]
        return f"foreign code: {started[0]}" if started else None


def _boundary(use: Callable[[], Any]) -> tuple[int | None, Any]:
    """Call `use` like the project's scripts; return the exit status (None for a crash) and the result."""
    from nemo_launcher.errors import UserError, environment_message

    try:
        return 0, use()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2, None
    except OSError as error:
        message = environment_message(error)
        if message is None:
            traceback.print_exc()
            return None, None
        print(message, file=sys.stderr)
        return 1, None
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1, None
    except BaseException:
        traceback.print_exc()
        return None, None


def _lines(reader: int, seconds: float) -> Iterator[str]:
    """Yield the lines of a pipe until its end, or until no line arrives in time."""
    waiting = b""
    while select.select([reader], [], [], seconds)[0]:
        block = os.read(reader, 1 << 16)
        if not block:
            return
        *whole, waiting = (waiting + block).split(b"\n")
        yield from (line.decode() for line in whole)


def _kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def _contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
