# SPDX-License-Identifier: Apache-2.0
"""Lightning's learning rate range test: steps with a rate that rises exponentially, until the loss diverges.

Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3. Rates,
smoothing, the end at a diverging loss and the suggestion are Lightning's. Its `Tuner.lr_find` is not used: it sets the
trainer's callbacks aside, and with them the handling of signals, runs validations, exports the adapter at its end,
writes a checkpoint into the current folder and always shows its own bar. An ordinary fit with Lightning's callback and
schedule gives the same curve (tests/training/test_range_test.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner.lr_finder import _ExponentialLR, _LRCallback, _LRFinder
from lightning.pytorch.utilities.seed import isolate_rng

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.config.automatic import TEST_RATES, TEST_STEPS
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections import Learning
from nemo_launcher.data.samples import Sample
from nemo_launcher.families.base import Base
from nemo_launcher.runtime import signals
from nemo_launcher.runtime.progress import Progress
from nemo_launcher.runtime.quiet import quiet_libraries
from nemo_launcher.runtime.row_costs import FIXED
from nemo_launcher.training.nemo.model import AdapterLearningModel
from nemo_launcher.training.nemo.preemption import received_by_any_rank
from nemo_launcher.training.nemo.trainer import make_trainer


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The result of a range test, the same on all ranks."""

    rates: list[float]
    """The learning rate of each step."""
    losses: list[float]
    """The smoothed loss of each step, in nats per answer token; not finite where the training had diverged."""
    suggestion: float | None
    """The rate at which the smoothed loss fell fastest; None if there are too few finite losses."""
    stopped: bool
    """Whether a signal ended the test."""


def run_range_test(
    job: Loaded[Learning], base: Base, adapters: AdapterSet, train: Sequence[Sample], validation: Sequence[Sample]
) -> RangeTest:
    """Run the range test on the training data. All ranks must call this.

    It repeats the data if they have fewer than TEST_STEPS global batches, without validations and checkpoints. The
    adapters, which are part of the base's model, and the state of random numbers are the same afterwards as before.
    validation: not tested, but hidden states that the training needs are stored (model.data.cache_hidden).
    """
    quiet_libraries()
    config, schedule = job.section, job.section.model.optim.sched
    lowest, highest = TEST_RATES
    lowest = max(lowest, 0.0 if schedule is None else schedule.min_lr)
    length = replace(config.trainer, max_epochs=-1, max_steps=TEST_STEPS, val_check_interval=1.0)
    length = replace(length, check_val_every_n_epoch=1, limit_val_batches=0, num_sanity_val_steps=0)
    # Worker processes would outlive the test.
    data = replace(config.model.data, num_workers=0)
    model = replace(config.model, data=data, optim=replace(config.model.optim, lr=lowest, sched=None))
    curve = _LRCallback(TEST_STEPS)
    watch = _Watch(curve)
    trainer = make_trainer(length, [curve, watch], Path(config.exp_manager.explicit_log_dir))
    settings = Loaded(model, job.values["model"])
    with _left_unchanged(adapters):
        # Costs of rows that the test measured and kept would change the rows of a short training.
        tested = _TestedModel(settings, trainer, base, adapters, train, validation, FIXED.as_dict())
        tested.highest_rate = highest
        if len(tested.train_loader):
            trainer.fit(tested)
    finder = _LRFinder("exponential", lowest, highest, TEST_STEPS)
    rates, losses = list(map(float, curve.lrs)), list(map(float, curve.losses))
    finder.results = {"lr": rates, "loss": losses}
    return RangeTest(rates, losses, finder.suggestion(), watch.stopped)


class _TestedModel(AdapterLearningModel):
    """The model of a training, which neither validates nor exports anything."""

    highest_rate = max(TEST_RATES)

    def configure_optimizers(self) -> Any:
        """Return the optimizer of `model.optim`, with a rate that rises with each step."""
        optimizer = super().configure_optimizers()
        schedule = _ExponentialLR(optimizer, self.highest_rate, TEST_STEPS)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Stop at a loss that is not finite, which a high rate may lead to; it is the same on all ranks."""
        if not self._skipped and not math.isfinite(self._loss):
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Export nothing."""

    def cpu(self) -> _TestedModel:
        """Stay on the device: Lightning moves a model to the CPU at the end of a fit, but the training follows."""
        return self


class _Watch(Callback):
    """Shows the progress of a range test, and ends it after the step in which any rank received a signal."""

    def __init__(self, curve: _LRCallback) -> None:
        self.stopped = False
        self._curve = curve
        self._progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only record signals from now on: the training that follows acts on them before its first step."""
        signals.defer()
        self._progress = Progress("learning rate range test", TEST_STEPS) if trainer.is_global_zero else None

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Show the step; stop at a signal."""
        if self._progress is not None:
            self._progress.advance(1, rate=f"{self._curve.lrs[-1]:.1e}", loss=f"{self._curve.losses[-1]:.3f}")
        if received_by_any_rank():
            self.stopped = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Terminate the progress bar's line."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Terminate the progress bar's line before the error is printed."""
        self._end()

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.close()


@contextlib.contextmanager
def _left_unchanged(adapters: AdapterSet) -> Iterator[None]:
    """Restore this rank's adapter weights and the state of random numbers at the end, whatever happens."""
    parameters = list(adapters.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with isolate_rng():
            yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None
