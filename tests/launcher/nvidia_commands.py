# SPDX-License-Identifier: Apache-2.0
"""The command lines of NVIDIA's launcher in nvidia_commands.txt.

`python -m tests.launcher.nvidia_commands` runs each as a dry run and prints a table of what became of it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("nvidia_commands.txt")
SHORT = {
    "@": "adapter_learning.",
    "%run": "ia3_learning.run",
    "%model": "ia3_learning.model",
    "ADAPTER": "stages=[adapter_learning] adapter_learning=gpt3/squad cluster_type=bcm",
}


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    number: str
    """Its number."""
    text: str
    """The arguments of main.py."""
    outcome: str
    """same, told or refused."""
    parts: list[str]
    """What the script or the message must have."""

    def arguments(self, folder: Path) -> list[str]:
        """Return the arguments of a dry run that writes below `folder` only."""
        key = folder / "wandb.key"
        key.write_text("0123\n")
        words = shlex.split(self.text.replace("RESULTS", str(folder / "results")).replace("KEYFILE", str(key)))
        return [*words, f"base_results_dir={folder / 'results'}", f"data_dir={folder / 'data'}", "preflight=off"]


def lines() -> list[Line]:
    """Return the rows of the table."""
    found = []
    for row in TABLE.read_text(encoding="utf-8").splitlines():
        if not row.startswith("#"):
            number, text, outcome, parts = row.split(" | ")
            for short, long in SHORT.items():
                text = text.replace(short, long)
            found.append(Line(number, text, outcome, parts.split("; ")))
    return found


def script_of(folder: Path) -> str:
    """Return the script of the last stage in `folder`; empty if nothing was written."""
    scripts = sorted((folder / "results").rglob("*_submission.sh"))
    evaluation = [path for path in scripts if path.name.startswith("eval")]
    return (evaluation or scripts)[0].read_text() if scripts else ""


def outcome(status: int, script: str, err: str) -> tuple[str, str]:
    """Return same, told or refused, and the text in which the parts are looked for."""
    if status:
        return "refused", err
    return ("told", err) if "warning:" in err else ("same", script)


def main() -> None:
    """Print the table."""
    print("| number | arguments | outcome | message |\n| --- | --- | --- | --- |")
    for line in lines():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = [sys.executable, str(REPOSITORY / "main.py"), *line.arguments(folder)]
            environment = os.environ | {"NEMO_LAUNCHER_DEBUG": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
            found, text = outcome(done.returncode, script_of(folder), done.stderr)
            fits = found == line.outcome and all(part in text for part in line.parts)
            message = "" if found == "same" else " ".join(done.stderr.split()).replace("|", "/")
            print(f"| {line.number} | `{line.text}` | {found}{'' if fits else ', unlike the table'} | {message} |")


if __name__ == "__main__":
    main()
