# SPDX-License-Identifier: Apache-2.0
"""Run the tests of what the engine computes with other versions of torch and transformers.

python -m tests.environments [--environment NAME ...] [--folder DIR] [TEST ...] makes a virtual environment for each
entry of `ENVIRONMENTS` with the interpreter that runs it, installs the package as `make install` does, runs the unit
tests in it, and finally prints a line for each with the versions and the numbers of passed, failed and skipped tests.
The exit status is 1 if a test fails or an environment cannot be made. It needs nothing but Python; pip uses its own
configuration.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_ROOMS = ("adapters", "checkpoint", "conformance/families", "data", "evaluation", "megatron", "training", "upstream")
TESTS = tuple(f"tests/{room}" for room in _ROOMS)
"""The rooms whose tests compute with torch or transformers."""


@dataclass(frozen=True)
class Environment:
    """Versions that are tested together."""

    constraints: str
    """The file with the versions of all packages."""
    instead: dict[str, str] = field(default_factory=dict)
    """Packages with another version than there."""
    free: tuple[str, ...] = ()
    """Packages of any version that fits the others."""

    def pins(self) -> list[str]:
        """Return the constraints of pip."""
        own = {*self.instead, *self.free}
        lines = (ROOT / self.constraints).read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line[:1] != "#" and line.partition("==")[0] not in own]
        return kept + [f"{name}=={version}" for name, version in self.instead.items()]


_OF_TRANSFORMERS = ("huggingface_hub", "tokenizers")
ENVIRONMENTS = {
    "lowest": Environment("constraints-lowest.txt"),
    "older": Environment("constraints.txt", {"torch": "2.11.0", "transformers": "5.17.0"}, _OF_TRANSFORMERS),
    "pinned": Environment("constraints.txt"),
}
"""Pairs of versions of torch and transformers that containers have: the oldest, older ones, those of `make install`."""


def main() -> int:
    """Test in each environment; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", action="append", choices=ENVIRONMENTS, help="one of them; default: all")
    parser.add_argument("--folder", type=Path, help="where they are made and kept; default: a temporary folder")
    parser.add_argument("--workers", type=int, default=2, help="processes that run tests; default: 2")
    parser.add_argument("tests", nargs="*", default=TESTS, metavar="TEST", help=f"default: {' '.join(TESTS)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="environments-") as temporary:
        folder = options.folder or Path(temporary)
        names = options.environment or list(ENVIRONMENTS)
        done = [_tested(ENVIRONMENTS[name], folder.resolve() / name, options.tests, options.workers) for name in names]
    print("\n".join(line for _, line in done))
    return 0 if all(passed for passed, _ in done) else 1


def _tested(environment: Environment, folder: Path, tests: list[str], workers: int) -> tuple[bool, str]:
    """Make an environment and run tests in it; return whether all passed, and the line to print."""
    begin = time.monotonic()
    try:
        python = _make(environment, folder)
    except subprocess.CalledProcessError as error:
        return False, f"{folder.name}: cannot be made: {error}"
    report = folder / "tests.xml"
    report.unlink(missing_ok=True)
    workers_of = [] if workers == 1 else ["-n", str(workers), "--dist", "worksteal"]
    command = [
        python,
        "-m",
        "pytest",
        "-m",
        "unit",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *workers_of,
        *tests,
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    counts = _counts(report)
    minutes = (time.monotonic() - begin) / 60
    return done.returncode == 0, f"{folder.name}: {_versions(python)}: {counts}, {minutes:.1f} minutes"


def _make(environment: Environment, folder: Path) -> Path:
    """Make an environment in a folder, or bring it up to date; return its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(environment.pins()) + "\n", encoding="utf-8")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", constraints]
    subprocess.run([*install, "torch", "transformers", "--editable", f"{ROOT}[dev]"], check=True)
    return python


def _versions(python: Path) -> str:
    names = ("torch", "transformers")
    code = f"import importlib.metadata as m, platform; print(platform.python_version(), *map(m.version, {names}))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return ", ".join(f"{name} {version}" for name, version in zip(("Python", *names), found, strict=True))


def _counts(report: Path) -> str:
    """Return the numbers of a JUnit report."""
    if not report.is_file():
        return "no test ran"
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return f"{total - failures - errors - skipped} passed, {failures + errors} failed, {skipped} skipped"


if __name__ == "__main__":
    sys.exit(main())
