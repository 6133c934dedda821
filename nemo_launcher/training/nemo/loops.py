# SPDX-License-Identifier: Apache-2.0
"""Lightning's training loops, made to go on from a checkpoint exactly where it was saved.

Lightning restores counters that stand differently at each place where a checkpoint can be saved, and then skips or
repeats validations, epoch ends and logged steps (nemo_toolkit's SkipResumeTrainingValidationLoop skips one more). Here
a checkpoint says how many steps are done, whether the validation behind the last one is, and whether the epoch's end
is; the counters follow from that. One batch is one optimizer step (trainer.accumulate_grad_batches is 1).

These loops are private to Lightning: no public hook can run a validation, or the end of an epoch, that a checkpoint
lacks. All that leans on them is in this file, and tested in tests/upstream/test_lightning.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from nemo_launcher.training.position import Position


def use_resumable_loops(trainer: Trainer, after_step: Callable[[Trainer], None] = lambda _: None) -> None:
    """Give a trainer the loops of this module; after_step: called when a step is done and logged, not yet validated."""
    loop = ResumableFitLoop(trainer, trainer.min_epochs, trainer.max_epochs)
    loop.epoch_loop = ResumableEpochLoop(trainer, trainer.min_steps, trainer.max_steps, after_step)
    trainer.fit_loop = loop


class ResumableEpochLoop(_TrainingEpochLoop):
    """Trains the batches of an epoch, and first catches up on a validation that a checkpoint lacks."""

    def __init__(
        self, trainer: Trainer, min_steps: int | None, max_steps: int, after_step: Callable[[Trainer], None]
    ) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.after_step = after_step
        self.validation_due = False  # found when going on from a checkpoint
        self.validated_step = -1
        self.is_validation_next = False  # behind the step that just ended
        self.is_epoch_complete = False  # with that step

    @property
    def _is_validation_done(self) -> bool:
        return not self.validation_due

    def on_run_start(self, data_fetcher: object) -> None:
        """Find out whether the checkpoint was saved ahead of a validation that is due."""
        super().on_run_start(data_fetcher)
        if self.restarting:
            unvalidated = self.validated_step != self.global_step and self.batch_progress.current.ready > 0
            self.validation_due = unvalidated and self._should_check_val_fx(data_fetcher)
            self._batches_that_stepped = self.global_step - self.validation_due  # its step is not counted yet
            self.val_loop.restarting = False  # a validation is done from its first batch on

    def advance(self, data_fetcher: object) -> None:
        """Train one batch; only validate (on_advance_end) where that is due."""
        if not self.validation_due:
            self._restarting = False
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: object) -> None:
        """Validate, where it is due."""
        if not self.validation_due:
            self.is_validation_next = self._should_check_val_fx(data_fetcher)
            progress = self.batch_progress
            self.is_epoch_complete = (
                progress.is_last_batch or progress.current.ready == self.trainer.num_training_batches
            )
            self.after_step(self.trainer)
        super().on_advance_end(data_fetcher)
        self.validation_due = False


class ResumableFitLoop(_FitLoop):
    """Trains epochs, and first catches up on the end of one that a checkpoint lacks."""

    catching_up = False
    """Whether the steps are all done, and a validation or the end of the epoch is not."""

    @property
    def skip(self) -> bool:
        """Nothing is skipped: training that is done still has its end to do (on_train_end)."""
        return self.max_batches == 0

    @property
    def done(self) -> bool:
        """Whether training ends here."""
        return not self.catching_up and super().done

    def advance(self) -> None:
        """Run one epoch, or the rest of one."""
        super().advance()
        # Lightning does less at the end of an epoch that began in another process
        self._restarting = self.catching_up = False


def set_loop_counters(trainer: Trainer, position: Position, batches: int, loops: dict[str, object]) -> None:
    """Set the counters of a checkpoint's `loops["fit_loop"]` to a position; batches: of an epoch, those left out aside.

    Called before Lightning loads them.
    """
    epoch, batch = position.epoch_and_batch(batches)
    fit, steps = trainer.fit_loop, {"epoch_loop.batch_progress", "epoch_loop.scheduler_progress"}
    for key in steps:
        loops[key]["total"] = dict.fromkeys(loops[key]["total"], position.step)
        loops[key]["current"] = dict.fromkeys(loops[key]["current"], batch)
    loops["epoch_loop.batch_progress"]["is_last_batch"] = batch == batches
    begun = epoch + 1 if batch else epoch  # Lightning goes on inside an epoch that is begun and not processed
    loops["epoch_progress"]["current"] = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loops["epoch_progress"]["total"] = dict(loops["epoch_progress"]["current"])
    loops["epoch_loop.state_dict"] = {"_batches_that_stepped": position.step}
    epoch_loop: Any = fit.epoch_loop
    epoch_loop.validated_step = position.step if position.validated else -1
    # At its last step, or stopped ahead of it, an epoch still has to end.
    ended = position.epochs_ended > epoch
    over = 0 <= trainer.max_steps <= position.step or bool(position.stopped)
    fit.catching_up = bool(batch) and not ended and (over or batch == batches)


def position_of(trainer: Trainer, stopped: str) -> Position:
    """Return where a trainer stands, at any of the hooks in which checkpoints are saved."""
    fit_loop: Any = trainer.fit_loop
    validated = fit_loop.epoch_loop.validated_step == trainer.global_step
    return Position(trainer.global_step, validated, fit_loop.epoch_progress.current.processed, stopped)
