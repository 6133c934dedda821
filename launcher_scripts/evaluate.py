# SPDX-License-Identifier: Apache-2.0
"""Run an evaluation job: `python3 -u evaluate.py <job>_hydra.yaml`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(
    0, str(next((up for up in Path(__file__).resolve().parents if (up / "nemo_launcher").is_dir()), sys.path[0]))
)

from nemo_launcher import interrupts, utf8

if __name__ == "__main__":
    interrupts.end_at_once()  # before the imports, which take seconds
    utf8.ensure()

from nemo_launcher.runtime import signals

if __name__ == "__main__":
    signals.watch()

from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.runtime import binding, ranks
from nemo_launcher.runtime.startup import quick_imports
from nemo_launcher.script import run_script


def main(job: Loaded[Evaluation]) -> None:
    """Evaluate the adapter that the configuration names."""
    ranks.use_accelerator(job.section.trainer.accelerator)
    with quick_imports():
        from nemo_launcher.evaluation.run import evaluate

    evaluate(job)


if __name__ == "__main__":
    binding.bind_rank()  # before torch starts its threads
    run_script(main, lambda _: Evaluation)
