"""Time limits of the training's own: `trainer.max_time` over all its runs, `exp_manager.max_time_per_run` for each."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nemo_launcher.core.training_options import seconds_of
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.models import parallel
from nemo_launcher.signals import EXIT_STOPPED

TOTAL, PER_RUN = "trainer.max_time", "exp_manager.max_time_per_run"


class TimeLimit(Callback):
    """Saves a checkpoint and ends the process when the time is up, between two steps.

    limits: of TOTAL and PER_RUN, as the configuration has them; None: no limit. The status is the one that puts the job
    back into the queue. A training whose total time is used up is refused at its next start.
    """

    def __init__(self, total: str | None, per_run: str | None) -> None:
        self.limits = {
            key: (str(text), seconds_of(text) or 0) for key, text in ((TOTAL, total), (PER_RUN, per_run)) if text
        }
        self.seconds_before = 0.0
        self._start = time.monotonic()
        self._first_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds that were trained in all runs."""
        return {"seconds": self.seconds_before + time.monotonic() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from an earlier run's seconds."""
        self.seconds_before = float(state_dict["seconds"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count. Raises UserError when the total time is used up already."""
        self._start, self._first_step = time.monotonic(), trainer.global_step
        if self._is_up(TOTAL) and trainer.global_step < pl_module.total_steps():
            what = f"{self.limits[TOTAL][0]} is used up: {self.seconds_before:.0f} s were trained"
            raise UserError(Problem(TOTAL, what, f"go on with more, or without a limit: {TOTAL}=null"))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop where a limit has passed on any rank."""
        if not self.limits:
            return
        passed = [key for key in self.limits if self._is_up(key)]
        if not parallel.largest(len(passed)):
            return
        callback: Any = trainer.checkpoint_callback
        saved = ""
        if callback is not None and callback.save_last and trainer.global_step:
            callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
            saved = str(callback.last_model_path)
        key = passed[0] if passed else next(iter(self.limits))
        if trainer.is_global_zero:
            where = f"checkpoint {saved}" if saved else "no checkpoint is kept"
            print(f"{key}={self.limits[key][0]}: stopped after step {trainer.global_step}; {where}", flush=True)
        if trainer.global_step == self._first_step or not saved:
            print("put back into the queue it would stop there again: give it more time", file=sys.stderr, flush=True)
            raise SystemExit(1)
        raise SystemExit(EXIT_STOPPED)

    def _is_up(self, key: str) -> bool:
        if key not in self.limits:
            return False
        seconds = time.monotonic() - self._start
        return seconds + (self.seconds_before if key == TOTAL else 0.0) >= self.limits[key][1]
