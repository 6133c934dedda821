# SPDX-License-Identifier: Apache-2.0
"""The libraries of a training's loggers, which the launcher and the job import before anything else starts."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from nemo_launcher.config.sections.exp_manager import ExpManager
from nemo_launcher.errors import Problem
from nemo_launcher.files.foreign import first_line

LIBRARIES = {"create_wandb_logger": "wandb", "create_mlflow_logger": "mlflow"}
"""The libraries of loggers that not every installation has, by the switch of the logger."""


def logger_problems(manager: ExpManager, key: Callable[[str], str] = str) -> list[Problem]:
    """Return a problem for each logger that is turned on and whose library cannot be imported here.

    key: converts a dotted key within the stage into the full key for messages.
    """
    problems = []
    for switch, library in LIBRARIES.items():
        what = import_error(library) if getattr(manager, switch) else None
        if what is not None:
            where = key(f"exp_manager.{switch}")
            problems.append(Problem(where, what, f"pip install {library}, or {where}=False"))
    return problems


def import_error(library: str) -> str | None:
    """Return why a library cannot be imported; None if it can."""
    try:
        importlib.import_module(library)
    except Exception as error:  # a library that does not fit others raises anything
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            return f"{library} is not installed"
        return f"{library} is installed but cannot be imported: {first_line(error)}"
    return None
