# SPDX-License-Identifier: Apache-2.0
"""Templates for training records that need none of their own, as soon as the records are known."""

from __future__ import annotations

from nemo_launcher.data.assumed import with_assumed
from nemo_launcher.data.record_forms import told
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Learning


def assume_templates(stage: Stage) -> None:
    """Add the templates that a training's records need (data.assumed).

    While the records are unknown, the job adds them.
    """
    found = with_assumed(stage.config, stage.section.model) if isinstance(stage, Learning) else None
    if found is not None:
        config, forms = found
        stage.update(config)
        stage.assumed = [told(forms)]
