# SPDX-License-Identifier: Apache-2.0
"""Two programs side by side: each in a process of its own, asked in turn, so that both see the same machine.

A worker script answers commands, one JSON object a line, on its standard input and output; what its libraries print
goes to standard error.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent


class Side:
    """A worker process. Use as a context manager."""

    def __init__(self, script: str, options: Mapping[str, Any], *, python: str, threads: int, log: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = str(HERE.parent)
        self.log = log
        self._log_file = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            env=environment,
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
        """Let the worker run a command and return its answer; exits with the worker's last words when it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"command": command, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the worker died at {command}:\n{self.log.read_text(encoding='utf-8')[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve(commands_of: Callable[[dict[str, Any]], Mapping[str, Callable[..., dict[str, Any]]]]) -> None:
    """Answer commands until standard input ends. commands_of: the commands by name, from the worker's options."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    commands = commands_of(json.loads(sys.argv[1]))
    for line in sys.stdin:
        call = json.loads(line)
        answers.write(json.dumps(commands[call["command"]](**call["arguments"])) + "\n")
        answers.flush()


def publish(measure: Callable[[Any, Path], dict[str, Any]], options: Any) -> None:
    """Print what `measure` finds, in a folder of its own, and write it to `options.json` where that is given."""
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(measure(options, Path(folder)), indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")


def memory() -> dict[str, Any]:
    """Return the most memory that this process ever held, in GiB."""
    return {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {"cpu": model, "cores": os.cpu_count(), "threads": threads, "system": platform.platform()}
