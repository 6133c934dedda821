# SPDX-License-Identifier: Apache-2.0
"""The search of the learning rates that `model.optim.lr=auto` stands for:

    python benchmarks/learning_rates.py --base BASE.nemo --json FILE.json

Each method trains on small tasks (benchmarks/learning_tasks.py) at each rate of a grid, with the optimizer and
the schedule of a training job. `accuracy` is the share of validation records whose whole answer, up to the end of
text, greedy decoding would give. FILE.json is written after each run, and a run in it is not repeated. --table
FILE.json... prints for each task what the rate of `auto` reaches of the best rate's accuracy, over all seeds there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.learning_tasks import TASKS, LearningTask
from nemo_launcher.adapters.registry import methods
from nemo_launcher.errors import UserError
from nemo_launcher.files.atomic import write_json
from nemo_launcher.files.foreign import load_json
from nemo_launcher.runtime.quiet import quiet_libraries

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""The rates."""
_BOTTLENECK = {"adapter_dim": 16, "adapter_dropout": 0.1}
BLOCKS: dict[str, dict[str, Any]] = {
    "parallel_adapter": {"type": "parallel_adapter"} | _BOTTLENECK,
    "linear_adapter": {"type": "linear_adapter"} | _BOTTLENECK,
    "lora": {"type": "lora", "adapter_dim": 16},
    "ia3": {},
}
"""The methods with the settings that conf/ ships."""
Run = dict[str, Any]


def key_of(run: Run) -> tuple[Any, ...]:
    """Return what identifies a run."""
    return tuple(run[name] for name in ("base", "task", "method", "seed", "steps", "batch", "lr"))


def search(options: argparse.Namespace) -> None:
    """Make the runs that the file lacks."""
    quiet_libraries()
    runs = read(options.json) if options.json.exists() else []
    done = {key_of(run) for run in runs}
    for task, method in product(options.tasks, options.methods):
        fixed = {"base": options.base.stem, "task": task, "method": method, "seed": options.seed}
        fixed |= {"steps": options.steps, "batch": options.batch}
        wanted = [fixed | {"lr": rate} for rate in options.rates if key_of(fixed | {"lr": rate}) not in done]
        if not wanted:
            continue
        for run in results(options, next(one for one in TASKS if one.name == task), wanted):
            runs.append(run)
            write_json(options.json, runs)
            print(json.dumps(run), flush=True)


def results(options: argparse.Namespace, task: LearningTask, wanted: Sequence[Run]) -> Iterator[Run]:
    """Train one method at each rate and yield the runs with their results."""
    from benchmarks.learning_runs import Trainee

    trainee = Trainee(options.base, BLOCKS[wanted[0]["method"]], task, batch=options.batch, threads=options.threads)
    for run in wanted:
        yield run | trainee.train(run["lr"], steps=run["steps"], seed=run["seed"])


def read(path: Path) -> list[Run]:
    """Return the runs of a file. Raises UserError if it is not one."""
    runs: list[Run] = load_json(path)
    return runs


def table(runs: Sequence[Run], names: Sequence[str], tasks: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a Markdown table: the mean accuracy over the seeds at each rate, and the share at `auto`."""
    yield f"| method | task | seeds | {' | '.join(f'{rate:g}' for rate in GRID)} | auto | of the best |"
    yield f"|{' --- |' * (len(GRID) + 5)}"
    for method, task in product(names, tasks):
        chosen = methods()[method].settings.LEARNING_RATES.few
        found = {
            rate: [run for run in runs if (run["method"], run["task"], run["lr"]) == (method, task, rate)]
            for rate in (*GRID, chosen)
        }
        if not all(found.values()):
            continue
        means = {rate: statistics.mean(run["accuracy"] for run in at) for rate, at in found.items()}
        best = max(means[rate] for rate in GRID)
        share = f"{means[chosen] / best:.0%}" if best else "-"
        cells = " | ".join(f"{means[rate]:.2f}" for rate in GRID)
        at = f"{means[chosen]:.2f} at {chosen:g}"
        yield f"| {method} | {task} | {len(found[chosen])} | {cells} | {at} | {share} |"


def main() -> None:
    """Search, or print the table."""
    names = [task.name for task in TASKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a .nemo of benchmarks/base_models.py, such as smollm2-third.nemo")
    parser.add_argument("--json", type=Path, help="the file of results, which grows run by run")
    parser.add_argument("--methods", nargs="+", choices=list(BLOCKS), default=list(BLOCKS))
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    parser.add_argument("--rates", nargs="+", type=float, default=GRID)
    parser.add_argument("--seed", type=int, default=1, help="of initial weights and order")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="print the table of these results")
    options = parser.parse_args()
    if options.table:
        print("\n".join(table([run for path in options.table for run in read(path)], options.methods, options.tasks)))
    elif options.base is None or options.json is None:
        parser.error("give --base and --json, or --table")
    else:
        search(options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
