# SPDX-License-Identifier: Apache-2.0
"""Two programs side by side: each in its own process, called alternately, so that both see the same machine load.

A worker script answers commands, one JSON object per line, on its standard input and output; its libraries' output goes
to standard error.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent


class WorkerDied(SystemExit):
    """A worker ended without an answer; the message holds its last output."""


class Side:
    """A worker process. Use it as a context manager."""

    def __init__(
        self,
        script: str,
        options: Mapping[str, Any],
        *,
        python: str,
        threads: int,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        own = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(HERE.parent)}
        self.log = log
        self._log_file = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [python, str(HERE / script), json.dumps({**options, "started_at": time.time()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            env=os.environ | own | (environment or {}),
            text=True,
        )

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log_file.close()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a command in the worker and return its answer; raise WorkerDied if the worker ended instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerDied(f"the worker died at {command}:\n{self.log.read_text(encoding='utf-8')[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(commands_of: Callable[[dict[str, Any]], Mapping[str, Callable[..., dict[str, Any]]]]) -> None:
    """Answer commands until standard input ends. commands_of: maps the worker's options to its commands.

    The command `startup` returns the seconds from the start of the process until the commands were ready.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    options = json.loads(sys.argv[1])
    commands = dict(commands_of(options))
    ready = time.time() - options["started_at"]
    commands["startup"] = lambda: {"startup_seconds": ready}
    for line in sys.stdin:
        call = json.loads(line)
        answers.write(json.dumps(commands[call["command"]](**call["arguments"])) + "\n")
        answers.flush()


def publish(measure: Callable[[Any, Path], dict[str, Any]], options: Any) -> None:
    """Run `measure` in a temporary folder, print its results, and write them to `options.json` if given."""
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(measure(options, Path(folder)), indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")


def memory() -> dict[str, Any]:
    """Return this process's peak memory in GiB."""
    return {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": model,
        "amx": "amx_tile" in flags,
        "avx512": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
    }
