# SPDX-License-Identifier: Apache-2.0
"""adapter_learning and ia3_learning as a job: `python3 -u train.py <job>_hydra.yaml`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "nemo_launcher").is_dir())))

from nemo_launcher import interrupts, utf8

if __name__ == "__main__":
    interrupts.end_at_once()  # before the imports, which take seconds
    utf8.ensure()

from nemo_launcher.runtime import signals

if __name__ == "__main__":
    signals.watch()

from omegaconf import DictConfig, OmegaConf

from nemo_launcher.config.sections import AdapterLearning, Ia3Learning
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.startup import quick_imports
from nemo_launcher.script import run_script


def main(config: DictConfig) -> None:
    """Train the adapters that the configuration describes."""
    ranks.use_accelerator(config.trainer.accelerator)
    with quick_imports():
        from nemo_launcher.training.run import train

    train(config)


def schema(config: DictConfig) -> type:
    """A configuration without `model.adapter_tuning` is IA3's, as in NeMo."""
    return AdapterLearning if OmegaConf.select(config, "model.adapter_tuning") is not None else Ia3Learning


if __name__ == "__main__":
    run_script(main, schema)
