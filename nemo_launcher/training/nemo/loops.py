# SPDX-License-Identifier: Apache-2.0
"""Lightning's training loops, changed to resume exactly where a checkpoint was saved.

Lightning restores counters whose values depend on the hook in which a checkpoint was saved, and then skips or repeats
validations, epoch ends and logged steps (nemo_toolkit's SkipResumeTrainingValidationLoop skips one more). Here a
checkpoint stores the number of steps done, whether the last step was validated, and whether its epoch was ended; all
counters follow from these. One batch is one optimizer step (trainer.accumulate_grad_batches is 1).

These loops are private to Lightning: no public hook can run a validation or an epoch end that was still due when the
checkpoint was saved. All code that depends on them is in this file; tests/upstream/test_lightning.py tests it.
"""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from nemo_launcher.training.position import Position


def use_resumable_loops(trainer: Trainer, after_step: Callable[[Trainer], None] = lambda _: None) -> None:
    """Give a trainer the loops of this module.

    after_step: called when a step is done and logged, before its validation.
    """
    loop = ResumableFitLoop(trainer, trainer.min_epochs, trainer.max_epochs)
    loop.epoch_loop = ResumableEpochLoop(trainer, trainer.min_steps, trainer.max_steps, after_step)
    trainer.fit_loop = loop


class ResumableEpochLoop(_TrainingEpochLoop):
    """Trains the batches of an epoch, after running a validation that was due when the checkpoint was saved."""

    def __init__(
        self, trainer: Trainer, min_steps: int | None, max_steps: int, after_step: Callable[[Trainer], None]
    ) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.after_step = after_step
        self.validation_due = False  # set when training resumes
        self.validated_step = -1
        self.is_validation_next = False  # after the step that just ended
        self.is_epoch_complete = False  # with that step

    @property
    def _is_validation_done(self) -> bool:
        return not self.validation_due

    def on_run_start(self, data_fetcher: object) -> None:
        """Determine whether a validation was due when the checkpoint was saved."""
        super().on_run_start(data_fetcher)
        if self.restarting:
            unvalidated = self.validated_step != self.global_step and self.batch_progress.current.ready > 0
            self.validation_due = unvalidated and self._should_check_val_fx(data_fetcher)
            self._batches_that_stepped = self.global_step - self.validation_due  # its step is not counted yet
            self.val_loop.restarting = False  # a validation starts at its first batch

    def advance(self, data_fetcher: object) -> None:
        """Train one batch, unless a validation is due (on_advance_end)."""
        if not self.validation_due:
            self._restarting = False
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: object) -> None:
        """Run the validation if it is due."""
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
    """Trains epochs, after ending an epoch whose end was still due when the checkpoint was saved."""

    catching_up = False
    """Whether all steps are done, but a validation or the end of the epoch is still due."""

    @property
    def skip(self) -> bool:
        """Never skip a finished training: its end (on_train_end) is still due."""
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
    """Set the counters in a checkpoint's `loops["fit_loop"]` to a position, before Lightning loads them.

    batches: the batches that are trained in an epoch (limit_train_batches applied).
    """
    epoch, batch = position.epoch_and_batch(batches)
    fit, steps = trainer.fit_loop, {"epoch_loop.batch_progress", "epoch_loop.scheduler_progress"}
    for key in steps:
        loops[key]["total"] = dict.fromkeys(loops[key]["total"], position.step)
        loops[key]["current"] = dict.fromkeys(loops[key]["current"], batch)
    loops["epoch_loop.batch_progress"]["is_last_batch"] = batch == batches
    begun = epoch + 1 if batch else epoch  # Lightning continues an epoch that is started but not processed
    loops["epoch_progress"]["current"] = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loops["epoch_progress"]["total"] = dict(loops["epoch_progress"]["current"])
    loops["epoch_loop.state_dict"] = {"_batches_that_stepped": position.step}
    epoch_loop = fit.epoch_loop
    epoch_loop.validated_step = position.step if position.validated else -1
    # After its last step, or an early stop, an epoch must still be ended.
    ended = position.epochs_ended > epoch
    over = 0 <= trainer.max_steps <= position.step or bool(position.stopped)
    fit.catching_up = bool(batch) and not ended and (over or batch == batches)


def position_of(trainer: Trainer, stopped: str) -> Position:
    """Return a trainer's position, in any hook that saves checkpoints."""
    fit_loop = trainer.fit_loop
    validated = fit_loop.epoch_loop.validated_step == trainer.global_step
    return Position(trainer.global_step, validated, fit_loop.epoch_progress.current.processed, stopped)
