# SPDX-License-Identifier: Apache-2.0
"""Keeping libraries' start-up chatter out of a job's log, so that what the job says can be seen."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from nemo_launcher.runtime.deferred import is_deferred

_LEVELS = {
    "lightning.pytorch": logging.WARNING,
    "lightning.fabric": logging.WARNING,
    "megatron": logging.ERROR,
    "nv_one_logger": logging.CRITICAL,  # NeMo's telemetry, which warns that it is switched off
}


def quiet_libraries() -> None:
    """Show only warnings of Lightning and errors of NeMo and Megatron; NEMO_LAUNCHER_VERBOSE=1 changes nothing.

    Takes effect on what is imported so far; libraries set their levels on import, so it may be called again.
    """
    if os.environ.get("NEMO_LAUNCHER_VERBOSE") == "1":
        return
    # torch reads it when it is imported: the stack of each rank that finds the store gone, after another's error
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    if "nemo.utils" in sys.modules:
        sys.modules["nemo.utils"].logging.setLevel(logging.ERROR)
    if "transformers" in sys.modules and not is_deferred("transformers"):
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
