"""adapter_learning and ia3_learning as a job: `python3 -u train.py <job>_hydra.yaml`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import DictConfig

from nemo_launcher.script import run_script


def main(config: DictConfig) -> None:
    """Train the adapters that the configuration describes."""
    from nemo_launcher.training.run import train

    train(config)


if __name__ == "__main__":
    run_script(main)
