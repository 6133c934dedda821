# SPDX-License-Identifier: Apache-2.0
"""Checkpointing and exit on a signal, so that no training is lost when a job's time is up."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from nemo_launcher import exit_status
from nemo_launcher.megatron import parallel
from nemo_launcher.runtime import signals
from nemo_launcher.training.nemo.checkpointing import checkpoints_of

NO_STEP_NAME = ".stopped_before_a_step"
"""Marker file beside the checkpoints: the last start was stopped before it completed a step."""
_ENDS = 100  # above the number of any signal


class StopOnSignal(Callback):
    """Saves a checkpoint and ends the process after the step in which any rank received a signal.

    Signals are checked before each training and validation batch; one that arrived earlier takes effect before the
    first step. The job script requeues the job only if its exit status is that of USR1. resumes: whether a later launch
    resumes from the checkpoint (exp_manager.resume_if_exists).
    """

    def __init__(self, *, resumes: bool = True) -> None:
        self.first_step = 0
        self._goes_on = "the same job" if resumes else "exp_manager.resume_if_exists=True"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which would stop without a checkpoint."""
        self.first_step = trainer.global_step
        signals.defer()

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        """Stop between two steps."""
        self._stop_if_asked(trainer)
        if trainer.global_step == self.first_step + 1 and trainer.is_global_zero:
            _remove_no_step_marker(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: object) -> None:
        """Stop during a validation: the step before it is done and counted."""
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        received = received_by_any_rank()
        if not received:
            return
        saved = self._save(trainer)
        if trainer.is_global_zero:
            where = f"checkpoint {saved}; {self._goes_on} resumes from it" if saved else "there is no checkpoint"
            print(f"{signal.Signals(received).name}: stopped after step {trainer.global_step}; {where}", flush=True)
        if received != signal.SIGUSR1:
            raise SystemExit(exit_status.of_signal(received))
        # rank 0 decides for all ranks
        obstacle = self._obstacle_to_requeue(trainer) if trainer.is_global_zero else ""
        if obstacle:
            print(obstacle, file=sys.stderr, flush=True)
        raise SystemExit(exit_status.FAILED if parallel.all_reduce_max(int(bool(obstacle))) else exit_status.STOPPED)

    def _obstacle_to_requeue(self, trainer: Trainer) -> str:
        """Return why a requeued job would stop in the same way again; empty if it would not."""
        marker = _no_step_marker(trainer)
        if marker is None:
            return "no checkpoint is saved: set exp_manager.create_checkpoint_callback=True to let the job resume"
        if trainer.global_step > self.first_step:
            _remove_no_step_marker(trainer)
            return ""
        if marker.exists():
            return "two starts did not complete a single step: give the job a longer run.time_limit"
        with contextlib.suppress(OSError):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        return ""

    def _save(self, trainer: Trainer) -> str:
        """Save a checkpoint, unless no step was done since the one resumed from; return its path."""
        checkpoints = checkpoints_of(trainer)
        if checkpoints is None or trainer.global_step == 0:
            return ""
        if trainer.global_step == self.first_step and trainer.ckpt_path:
            return str(trainer.ckpt_path)
        return checkpoints.save_for_next_start(trainer)


def received_by_any_rank() -> int:
    """Return the signal to handle. One that ends the job takes precedence over one that requeues it."""
    number = signals.received()
    return parallel.all_reduce_max(number + _ENDS * (number in signals.ENDING)) % _ENDS


def _no_step_marker(trainer: Trainer) -> Path | None:
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    return None if folder is None else Path(folder) / NO_STEP_NAME


def _remove_no_step_marker(trainer: Trainer) -> None:
    marker = _no_step_marker(trainer)
    if marker is not None:
        with contextlib.suppress(OSError):
            marker.unlink(missing_ok=True)
