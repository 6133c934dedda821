"""evaluation as a job: `python3 -u evaluate.py <job>_hydra.yaml`."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from nemo_launcher import interrupts, utf8

if __name__ == "__main__":
    interrupts.end_at_once()  # before the imports, which take seconds
    utf8.ensure()

from nemo_launcher import signals

if __name__ == "__main__":
    signals.watch()

from omegaconf import DictConfig

from nemo_launcher import ranks
from nemo_launcher.core.sections import Evaluation
from nemo_launcher.script import run_script
from nemo_launcher.startup import quick_imports


def main(config: DictConfig) -> None:
    """Evaluate the adapter that the configuration names."""
    ranks.use_accelerator(config.trainer.accelerator)
    with quick_imports():
        from nemo_launcher.evaluation.run import evaluate

    evaluate(config)


if __name__ == "__main__":
    run_script(main, lambda _: Evaluation)
