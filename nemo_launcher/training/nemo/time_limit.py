# SPDX-License-Identifier: Apache-2.0
"""Time limits of a run: the smaller of `trainer.max_time` and `exp_manager.max_time_per_run`.

Both apply to one run, so a requeued job gets its full time again. Lightning's Timer counts trainer.max_time over all
runs, and a requeued job would find it used up; NeMo's StatelessTimer, which NVIDIA's pretraining scripts use instead,
counts it per run, as here.
"""

from __future__ import annotations

import sys
import time

from lightning.pytorch import Callback, LightningModule, Trainer

from nemo_launcher import exit_status
from nemo_launcher.config.training_options import seconds_of
from nemo_launcher.megatron import parallel
from nemo_launcher.training.nemo.checkpointing import checkpoints_of

KEYS = ("trainer.max_time", "exp_manager.max_time_per_run")


class TimeLimit(Callback):
    """Saves a checkpoint and ends the process between two steps when the time is up.

    limits: the values of KEYS, None for no limit. The exit status requeues the job, or is 1 if the next start would
    stop at the same step.
    """

    def __init__(self, *limits: str | None) -> None:
        given = [(seconds_of(text) or 0, f"{key}={text}") for key, text in zip(KEYS, limits, strict=True) if text]
        self._seconds, self._named = min(given, default=(0, ""))
        self._start = time.monotonic()
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._first_step = time.monotonic(), trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        """Stop if the limit has passed on any rank."""
        if not self._named or not parallel.all_reduce_max(int(time.monotonic() - self._start >= self._seconds)):
            return
        checkpoints, saved = checkpoints_of(trainer), ""
        if checkpoints is not None and trainer.global_step:
            saved = checkpoints.save_for_next_start(trainer)
        if trainer.is_global_zero:
            where = f"checkpoint {saved}" if saved else "no checkpoint is saved"
            print(f"{self._named}: stopped after step {trainer.global_step}; {where}", flush=True)
        if trainer.global_step == self._first_step or not saved:
            print("a requeued job would stop at the same step: give it more time", file=sys.stderr, flush=True)
            raise SystemExit(exit_status.FAILED)
        raise SystemExit(exit_status.STOPPED)
