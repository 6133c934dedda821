"""Keeping libraries' start-up chatter out of a job's log, so that what the job says can be seen."""

from __future__ import annotations

import logging
import os
import warnings

_LEVELS = {
    "lightning.pytorch": logging.WARNING,
    "lightning.fabric": logging.WARNING,
    "megatron": logging.ERROR,
    "nv_one_logger": logging.ERROR,  # NeMo's telemetry, which warns that it is switched off
}


def quiet_libraries() -> None:
    """Show only warnings of Lightning and errors of NeMo; NEMO_LAUNCHER_VERBOSE=1 leaves everything as it is.

    NeMo's own log goes to nemo_error_log.txt and lightning_logs.txt in the results folder all the same.
    """
    if os.environ.get("NEMO_LAUNCHER_VERBOSE") == "1":
        return
    warnings.filterwarnings("ignore")
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.ERROR)
