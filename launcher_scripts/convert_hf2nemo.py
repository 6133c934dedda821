"""conversion_hf2nemo as a job: `python3 -u convert_hf2nemo.py <job>_hydra.yaml`."""

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

from pathlib import Path

from omegaconf import DictConfig

from nemo_launcher.core.sections import Conversion
from nemo_launcher.script import run_script


def main(config: DictConfig) -> None:
    """Convert the Hugging Face model that the configuration names."""
    from nemo_launcher.checkpoint.convert import convert

    convert(Path(config.model.hf_model_path), Path(config.model.nemo_path), config.model.precision)


if __name__ == "__main__":
    run_script(main, lambda _: Conversion)
