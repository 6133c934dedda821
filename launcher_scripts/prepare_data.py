# SPDX-License-Identifier: Apache-2.0
"""Run a data_preparation job: `python3 -u prepare_data.py <job>_hydra.yaml`."""

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

from nemo_launcher.config.datasets import DATASETS
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections import DataPreparation
from nemo_launcher.data.preparation import builder_of
from nemo_launcher.script import run_script


def main(job: Loaded[DataPreparation]) -> None:
    """Prepare the dataset `run.task_name` in `output_dir`; print the progress and the number of questions."""
    section = job.section
    builder = builder_of(DATASETS[section.run.task_name])
    builder.prepare(section.source_dir, section.output_dir, download=section.download)


if __name__ == "__main__":
    run_script(main, lambda _: DataPreparation)
