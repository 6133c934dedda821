# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run, with secrets masked."""

from __future__ import annotations

from nemo_launcher.files.foreign_yaml import dump_yaml
from nemo_launcher.reports.html import Html, element, folded, section
from nemo_launcher.reports.masking import masked
from nemo_launcher.reports.runs import Run

_MAX_CHARACTERS = 100_000


def configuration(run: Run) -> Html:
    """Return the section with the resolved configuration."""
    text = dump_yaml(masked(run.values, run.stage))
    shown = text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "\n... (cut)"
    return section(
        "Configuration",
        element("p", f"Every value of the stage {run.stage}, resolved. Values that may be secret are shown as ***."),
        folded("Show the configuration", element("pre", shown, tabindex="0")),
    )
