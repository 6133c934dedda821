# SPDX-License-Identifier: Apache-2.0
"""Run a conversion_hf2nemo job: `python3 -u convert_hf2nemo.py <job>_hydra.yaml`."""

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
from nemo_launcher.config.sections import Conversion
from nemo_launcher.runtime import ranks
from nemo_launcher.script import run_script


def main(job: Loaded[Conversion]) -> None:
    """Convert the Hugging Face model that the configuration names."""
    from nemo_launcher.checkpoint.hub_model import local_source
    from nemo_launcher.checkpoint.sources import KEY
    from nemo_launcher.conversion.convert import convert

    ranks.use_accelerator("cpu")
    model = job.section.model
    source = local_source(model.hf_model_path, KEY)
    convert(source, Path(model.nemo_path), model.precision, language_model=model.hf_language_model)


if __name__ == "__main__":
    run_script(main, lambda _: Conversion)
