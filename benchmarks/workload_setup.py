# SPDX-License-Identifier: Apache-2.0
"""What a run of benchmarks/workloads.py needs besides its rows: bases, versions, and the rates of products."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.side import HERE, Side
from benchmarks.workload_results import Row
from nemo_launcher.errors import Problem, UserError


def product_rates(options: argparse.Namespace) -> list[Row]:
    """Return the rates of products in both dtypes."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("fp32", "bf16"):
            given = {"base": str(options.folder / "smollm2.nemo"), "dtype": dtype, "threads": options.threads}
            log = Path(folder, "products.log")
            with Side("products.py", given, python=sys.executable, threads=options.threads, log=log) as side:
                found += [{"dtype": dtype} | row for row in side.ask("rates")["products"]]
    return found


def make_bases(options: argparse.Namespace, names: list[str]) -> None:
    """Make the bases that are not in options.folder."""
    lacking = [name for name in names if not (options.folder / f"{name}.nemo").is_file()]
    if not lacking:
        return
    tell(f"making {', '.join(lacking)} in {options.folder}")
    command = [sys.executable, str(HERE / "base_models.py"), "--data", str(options.squad)]
    run = subprocess.run(
        [*command, "--folder", str(options.folder), "--only", *lacking], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise UserError(Problem("base_models.py", run.stderr.strip()[-500:], "run it alone to see all of its output"))


def version_of(python: str, package: str) -> str | None:
    """Return the version of a package of another Python; None if it is not installed."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    try:
        run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(Problem(python, str(error.strerror), "give a Python to --peer-python")) from None
    return run.stdout.strip() or None


def tell(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)
