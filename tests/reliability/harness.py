# SPDX-License-Identifier: Apache-2.0
"""Shared code of the drivers: arguments, the JSON report, forked children with limits, and parallel workers."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STATUSES = frozenset({0, 1, 2, 75, 130, *(128 + number for number in range(1, 65))})
"""The exit statuses documented in nemo_launcher/script.py."""
CASE_SECONDS = 120.0
"""The time limit of a case, even on a busy machine; beyond it the case counts as hung."""
MEMORY_BYTES = 2**30
"""The memory that a child may use in addition to that at its fork."""


# --- arguments and report ---------------------------------------------------------------------------------------


def parse_arguments(description: str, arguments: Sequence[str] | None, **more: Mapping[str, Any]) -> argparse.Namespace:
    """Return the options that all drivers have, and those in `more`, {name: add_argument's keywords}."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--seed", type=int, default=0, help="first seed; a failure names the one that repeats it")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="cases at a time")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all cases and say where they are")
    for name, keywords in more.items():
        parser.add_argument(f"--{name}", **keywords)
    return parser.parse_args(arguments)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed case. repeat: the options that run it alone; detail: the end of its output."""

    kind: str
    repeat: str
    what: str
    detail: str = ""


@dataclass
class Report:
    """Counts by kind, and all failures."""

    driver: str
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def count(self, kind: str, **numbers: int) -> None:
        """Add to the counts of a kind."""
        self.counts.setdefault(kind, Counter()).update(numbers)

    def total(self, name: str) -> int:
        """Return the sum of a count over all kinds."""
        return sum(counts[name] for counts in self.counts.values())

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C or SIGTERM end the cases; the report then covers those that are done, and is marked as cut."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            yield
        except KeyboardInterrupt:
            self.more["interrupted"] = True
        finally:
            signal.signal(signal.SIGTERM, before)

    def finish(self, path: Path | None) -> int:
        """Write the report to `path`, print a summary, and return the exit status."""
        totals = {name: self.total(name) for name in sorted({n for counts in self.counts.values() for n in counts})}
        values = {
            "driver": self.driver,
            "seconds": round(time.monotonic() - self.started, 1),
            "totals": totals,
            "counts": {kind: dict(counts) for kind, counts in sorted(self.counts.items())},
            "failures": [asdict(failure) for failure in self.failures],
            **self.more,
        }
        if path is not None:
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        for failure in self.failures[:20]:
            print(f"FAILED {failure.kind} ({failure.repeat}): {failure.what}\n{failure.detail[-1500:]}")
        print(f"{self.driver}: {json.dumps(totals)}, {len(self.failures)} failures, {values['seconds']} s")
        return 1 if self.failures else 0


@contextlib.contextmanager
def scratch(keep: bool) -> Iterator[Path]:
    """Yield a folder for the cases, which is removed at the end."""
    root = Path(tempfile.mkdtemp(prefix="reliability-"))
    try:
        yield root
    finally:
        if keep:
            print(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)


# --- children ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a child. status: its exit status, negative if it was killed by that signal."""

    status: int
    output: str
    timed_out: bool = False
    seconds: float = 0.0

    def problem(self) -> str | None:
        """Return what is wrong with this end; None for the project's own message and exit status."""
        if self.timed_out:
            return f"still running after {CASE_SECONDS:g} s"
        if self.status < 0:
            return f"died of {signal.Signals(-self.status).name}"
        if "Traceback (most recent call last)" in self.output:
            return "ended in a traceback"
        if self.status not in STATUSES:
            return f"exit status {self.status}"
        return "refused without a message" if self.status and not self.output.strip() else None


def fork(function: Callable[[], object], log: Path, memory_bytes: int = MEMORY_BYTES) -> int:
    """Fork a child as leader of a process group that calls `function` with output to `log`; return its id."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _be_child(function, log, memory_bytes)
    with contextlib.suppress(OSError):  # the child does so too, but may be killed before
        os.setpgid(process, process)
    return process


def in_child(
    function: Callable[[], object], log: Path, *, seconds: float = CASE_SECONDS, kill_after: float | None = None
) -> Ended:
    """Call `function` in a forked child; kill_after: seconds until SIGKILL, which is not a hang."""
    started = time.monotonic()
    process = fork(function, log)
    ended = _wait(process, seconds if kill_after is None else kill_after)
    if not ended:
        os.killpg(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return Ended(status, read_log(log), timed_out=not ended and kill_after is None, seconds=time.monotonic() - started)


def read_log(log: Path) -> str:
    """Return a child's output."""
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def _wait(process: int, seconds: float) -> bool:
    """Return whether a child ended within this time, without reaping it."""
    handle = os.pidfd_open(process)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(handle)


def _be_child(function: Callable[[], object], log: Path, memory_bytes: int) -> None:
    """Call `function` like a script's process, and exit."""
    status = 1
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        atexit._clear()
        limit = _address_space() + 2 * memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        status = _status_of(function)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        os._exit(status)


def _status_of(function: Callable[[], object]) -> int:
    """Call `function`; return the exit status with which the interpreter would end."""
    try:
        function()
        threading._shutdown()  # type: ignore[attr-defined]
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize()


# --- workers ----------------------------------------------------------------------------------------------------


def run_cases(cases: Iterable[Any], run: Callable[[Any], Any], jobs: int) -> Iterator[Any]:
    """Yield the results of `run` for each case (JSON values), in the order in which they end.

    The cases are run by `jobs` forked workers, each of which forks the children of its cases; the next case is drawn
    only when a worker is free.
    """
    queue = iter(cases)
    workers: list[_Worker] = []
    try:
        for _ in range(jobs):
            workers.append(_Worker(run, workers))
        busy = [worker for worker in workers if worker.give(queue)]
        while busy:
            ready, _, _ = select.select(busy, [], [])
            for worker in ready:
                yield worker.take()
                if not worker.give(queue):
                    busy.remove(worker)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A forked process that answers each line of JSON on its input with one on its output."""

    def __init__(self, run: Callable[[Any], Any], others: Iterable[_Worker]) -> None:
        to_read, own_write = os.pipe()
        own_read, to_write = os.pipe()
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            for worker in others:  # close inherited pipes
                worker._cases.close()
                worker._answers.close()
            os.close(own_write)
            os.close(own_read)
            self._serve(run, to_read, to_write)
        os.close(to_read)
        os.close(to_write)
        self._cases = os.fdopen(own_write, "w", encoding="utf-8")
        self._answers = os.fdopen(own_read, encoding="utf-8")

    @staticmethod
    def _serve(run: Callable[[Any], Any], to_read: int, to_write: int) -> None:
        status = 1
        try:
            with os.fdopen(to_read, encoding="utf-8") as cases, os.fdopen(to_write, "w", encoding="utf-8") as answers:
                while line := cases.readline():
                    answers.write(json.dumps(run(json.loads(line))) + "\n")
                    answers.flush()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def fileno(self) -> int:
        return self._answers.fileno()

    def give(self, queue: Iterator[Any]) -> bool:
        """Pass the next case to the worker; return False if there is none left."""
        for case in queue:
            self._cases.write(json.dumps(case) + "\n")
            self._cases.flush()
            return True
        return False

    def take(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("a worker of the driver itself has died; its traceback is above")
        return json.loads(line)

    def end(self) -> None:
        self._cases.close()
        self._answers.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process, 0)
