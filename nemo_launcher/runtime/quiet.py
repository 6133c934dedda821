# SPDX-License-Identifier: Apache-2.0
"""Suppression of libraries' start-up messages, which would hide a job's own."""

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
    "nv_one_logger": logging.CRITICAL,  # NeMo's telemetry, which warns that it is disabled
}


def quiet_libraries() -> None:
    """Show only warnings of Lightning and errors of NeMo and Megatron, unless NEMO_LAUNCHER_VERBOSE=1.

    This affects libraries imported so far. They set their levels on import, so call it again after further imports.
    """
    if os.environ.get("NEMO_LAUNCHER_VERBOSE") == "1":
        return
    # Read at torch's import: hides the stack trace of each rank that loses the store after another rank's error.
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
