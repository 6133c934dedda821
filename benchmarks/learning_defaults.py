# SPDX-License-Identifier: Apache-2.0
"""What each method learns with the shipped settings and `model.optim.lr=auto` on a user's own kind of tasks:

    python benchmarks/learning_defaults.py --base BASE.nemo --json FILE.json

Each task of OWN_TASKS (benchmarks/learning_tasks.py) has 128 training records, 2 epochs of batches of 16, and 64 test
records with other sentences and words. `accuracy` is the share of test records whose whole answer, up to the end of
text, greedy decoding would give; of the base the end of text is not asked. Prints a Markdown table with Wilson's
intervals of 95%. FILE.json is written after each run, and a run in it is not repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.learning_rates import BLOCKS, read
from benchmarks.learning_tasks import OWN_TASKS, LearningTask
from nemo_launcher.adapters.registry import methods
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.intervals import wilson
from nemo_launcher.files.atomic import write_json
from nemo_launcher.runtime.quiet import quiet_libraries

TRAINING, TEST, BATCH, EPOCHS = 128, 64, 16, 2
BASE = "base"
Run = dict[str, Any]


def missing(options: argparse.Namespace, done: Sequence[Run]) -> Iterator[Run]:
    """Yield the runs that the file lacks, with their results."""
    from benchmarks.learning_runs import Trainee

    known = {(run["task"], run["method"]) for run in done}
    for method in BLOCKS:
        tasks = [task for task in OWN_TASKS if (task.name, method) not in known]
        if not tasks:
            continue
        trainee = Trainee(options.base, BLOCKS[method], tasks[0], batch=BATCH, threads=options.threads, validation=TEST)
        for task in tasks:
            trainee.take(task, TEST)
            if (task.name, BASE) not in known:
                known.add((task.name, BASE))
                yield {"task": task.name, "method": BASE} | trainee.untrained()
            began = time.perf_counter()
            result = trainee.train(rate_of(method), steps=TRAINING // BATCH * EPOCHS, seed=1, epochs=EPOCHS)
            yield {"task": task.name, "method": method, "seconds": time.perf_counter() - began} | result


def rate_of(method: str) -> float:
    """Return what `auto` stands for in short trainings."""
    return methods()[method].settings.LEARNING_RATES.few


def table(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the lines of a Markdown table: a row for the base and each method, a column for each task."""
    yield f"| | learning rate | {' | '.join(task.name for task in OWN_TASKS)} |"
    yield f"|{' --- |' * (len(OWN_TASKS) + 2)}"
    for method in (BASE, *BLOCKS):
        cells = [_cell(next((run for run in runs if is_of(run, task, method)), None)) for task in OWN_TASKS]
        yield f"| {method} | {'' if method == BASE else f'{rate_of(method):g}'} | {' | '.join(cells)} |"


def is_of(run: Run, task: LearningTask, method: str) -> bool:
    """Return whether a run is one of this task and method."""
    return (run["task"], run["method"]) == (task.name, method)


def _cell(run: Run | None) -> str:
    if run is None:
        return "-"
    share = run["begins_right" if run["method"] == BASE else "accuracy"]
    interval = wilson(round(share * TEST), TEST)
    return f"{share:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def main() -> None:
    """Make the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a .nemo such as the quickstart's")
    parser.add_argument("--json", type=Path, required=True, help="the file of results, which grows run by run")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    quiet_libraries()
    runs = read(options.json) if options.json.exists() else []
    for run in missing(options, tuple(runs)):
        runs.append(run)
        write_json(options.json, runs)
        print(run, file=sys.stderr, flush=True)
    print("\n".join(table(runs)))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
