# SPDX-License-Identifier: Apache-2.0
"""Time of a training job from `python3` to its first step, by phase:

    python benchmarks/startup.py --base BASE.nemo --other CHECKOUT

Each round runs the quickstart's training job, on the questions shipped with the launcher, in a fresh process. The job's
output marks the end of each phase, so nothing is added to it. seconds: from the start of the process to the end of each
phase; cpu_seconds: of the whole process. The fastest of --rounds is reported for each phase. --other: alternate with
the training script of another checkout of this project; ratio: its seconds divided by ours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side import machine, publish
from nemo_launcher.data.squad import SquadBuilder

REPOSITORY = Path(__file__).resolve().parents[1]
# phase -> text in the job's line at its end
PHASES = {
    "imports": "loading the base model",
    "base and samples": " training and ",
    "trainer": " parameters (",
    "first step": "training: step 1 of",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the base model as .nemo")
    parser.add_argument("--other", help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=20, help="in the first step (default 20, as in the quickstart)")
    parser.add_argument("--json", help="where the figures go too")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the results of each checkout."""
    checkouts = {"ours": REPOSITORY} | ({"other": Path(options.other).resolve()} if options.other else {})
    quickstart = REPOSITORY / "launcher_scripts/data/quickstart"
    report = partial(print, file=sys.stderr)
    SquadBuilder().prepare(quickstart, folder / "quickstart/data", download=False, report=report)
    configs = {name: write_job(options, path, folder, folder / f"{name}.yaml") for name, path in checkouts.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for number in range(options.rounds):
        for name, checkout in checkouts.items():
            results = folder / f"{name}_{number}"
            rounds[name].append(run(checkout, configs[name], results, options.threads))
            print(f"round {number} {name}: {_readable(rounds[name][-1])}", file=sys.stderr, flush=True)
    fastest = {name: {key: min(one[key] for one in taken) for key in taken[0]} for name, taken in rounds.items()}
    figures: dict[str, Any] = {"seconds": fastest, "all": rounds, "machine": machine(options.threads)}
    if options.other:
        figures["ratio"] = {phase: fastest["other"][phase] / fastest["ours"][phase] for phase in fastest["ours"]}
    return figures


def write_job(options: argparse.Namespace, checkout: Path, folder: Path, target: Path) -> Path:
    """Let a checkout's launcher write its job's configuration and move it to `target`, which is returned."""
    launch = ["--config-name", "quickstart", "stages=[adapter_learning]", "debug=True", "preflight=off"]
    job = {
        "model.language_model_path": options.base,
        "model.global_batch_size": options.samples,
        "model.micro_batch_size": options.samples,
        "trainer.max_steps": 1,
    }
    changes = [f"adapter_learning.{key}={value}" for key, value in job.items()]
    command = [sys.executable, str(checkout / "main.py"), *launch, f"base_results_dir={folder}", *changes]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (path,) = folder.glob("quickstart/*/*_hydra.yaml")
    return path.rename(target)


def run(checkout: Path, config: Path, results: Path, threads: int) -> dict[str, float]:
    """Run the job in a fresh process; return the end of each phase. Exit with the job's output if it fails."""
    places = {"exp_manager.explicit_log_dir": results, "model.nemo_path": results / "adapter.nemo"}
    script = [sys.executable, "-u", str(checkout / "launcher_scripts/train.py"), str(config)]
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(
        [*script, *(f"{key}={value}" for key, value in places.items())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": ""},
        text=True,
    )
    assert process.stdout is not None
    ends: dict[str, float] = {}
    words = []
    for line in process.stdout:
        words.append(line)
        ends |= {phase: time.perf_counter() - start for phase, sign in PHASES.items() if sign in line}
    if process.wait() != 0 or list(ends) != list(PHASES):
        sys.exit("".join(words))
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return ends | {"end": time.perf_counter() - start, "cpu_seconds": cpu}


def _readable(seconds: dict[str, float]) -> str:
    return ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items())


if __name__ == "__main__":
    publish(measure, parse(sys.argv[1:]))
