# SPDX-License-Identifier: Apache-2.0
"""Check that the library of a training's logger is installed."""

from __future__ import annotations

import importlib.util

from nemo_launcher.errors import Problem
from nemo_launcher.launcher.stages import Learning


def check_mlflow(stage: Learning) -> list[Problem]:
    """Return a problem if the training logs to MLflow and mlflow cannot be imported here."""
    if not stage.section.exp_manager.create_mlflow_logger or importlib.util.find_spec("mlflow") is not None:
        return []
    key = stage.key("exp_manager.create_mlflow_logger")
    what = "mlflow is not installed; this project does not install it, as its versions exclude some that are pinned"
    return [Problem(key, what, f"pip install mlflow, or {key}=False")]
