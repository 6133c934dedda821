# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation."""

from __future__ import annotations

from pathlib import Path

from nemo_launcher.errors import Problem
from nemo_launcher.launcher.stages import Evaluation


def check_report(stage: Evaluation) -> list[Problem]:
    """Return a problem for a report that would not be an HTML file: a later report may replace it."""
    path = stage.section.report_path
    if path is None or Path(path).suffix == ".html":
        return []
    key = stage.key("report_path")
    return [Problem(key, f"{path} is not the name of an HTML file", f"{key}={Path(path).with_suffix('.html')}")]
