# SPDX-License-Identifier: Apache-2.0
"""Time of a dry run of one stage, compared with importing Hydra alone: `python benchmarks/launch.py`.

Both are timed as complete commands, alternating; the fastest of --rounds is reported. ratio: the dry run's seconds
divided by those of `python -c "import hydra"`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the commands by name; the dry run renders a stage that needs no files."""
    stage = ["stages=[conversion_hf2nemo]", "conversion_hf2nemo=hf", "conversion_hf2nemo.run.model_train_name=model"]
    options = [f"conversion_hf2nemo.model.hf_model_path={folder / 'model'}", f"base_results_dir={folder / 'results'}"]
    dry_run = [*stage, *options, "cluster_type=interactive", "preflight=off", "debug=True"]
    return {
        "dry_run": [sys.executable, str(REPOSITORY / "main.py"), *dry_run],
        "import_hydra": [sys.executable, "-c", "import hydra"],
    }


def seconds(command: list[str]) -> float:
    """Return the wall time of a command; exit with its output if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return taken


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        taken = [{name: seconds(command) for name, command in commands(Path(folder)).items()} for _ in range(rounds)]
    fastest = {name: min(times[name] for times in taken) for name in taken[0]}
    print(json.dumps({"seconds": fastest, "ratio": fastest["dry_run"] / fastest["import_hydra"]}, indent=2))


if __name__ == "__main__":
    main()
