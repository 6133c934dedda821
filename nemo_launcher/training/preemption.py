"""Stopping on a signal with a checkpoint, so that nothing is lost when a job's time is up."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nemo_launcher.models import parallel
from nemo_launcher.script import EXIT_INTERRUPTED, EXIT_STOPPED

# What ends training after its current step, and the exit status that tells why. Slurm sends USR1 ahead of the time
# limit (`--signal`), and the job script puts the job back into the queue on that status alone.
STATUS = {signal.SIGUSR1: EXIT_STOPPED, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: EXIT_INTERRUPTED}


class StopOnSignal(Callback):
    """Saves a checkpoint and ends the process after the step in which a signal arrived at any rank.

    It is looked at before each training batch and each validation batch. A second signal has its default effect.
    """

    def __init__(self) -> None:
        self.received = 0  # the signal's number
        self.first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which would only stop."""
        self.first_step = trainer.global_step
        for number in STATUS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop between two steps."""
        self._stop_if_asked(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop in a validation: the step before it is done and counted."""
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        received = parallel.largest(self.received)
        if not received:
            return
        status, name = STATUS[signal.Signals(received)], signal.Signals(received).name
        saved = self._save(trainer)
        if trainer.is_global_zero:
            where = f"checkpoint {saved}" if saved else "no checkpoint is kept (exp_manager)"
            print(
                f"{name}: stopped after step {trainer.global_step}; {where}; the same job goes on from it", flush=True
            )
        if status == EXIT_STOPPED and trainer.global_step == self.first_step:
            # put back into the queue it would stop here for ever
            status = 1
            print("not a single step was done in the time there was: give the job more", file=sys.stderr, flush=True)
        raise SystemExit(status)

    def _save(self, trainer: Trainer) -> str:
        callback: Any = trainer.checkpoint_callback
        if callback is None or trainer.global_step == 0:
            return ""
        callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
        return str(callback.last_model_path)
