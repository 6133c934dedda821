# SPDX-License-Identifier: Apache-2.0
"""A model and its trainer in this process, and what each step gave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from nemo_launcher.adapters.archive import new_adapters
from nemo_launcher.config.load import Loaded
from nemo_launcher.families.base import Base
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.training.nemo.model import AdapterLearningModel
from nemo_launcher.training.nemo.trainer import make_trainer
from tests.jobs import loaded


class Recorder(Callback):
    """Records inputs and results of each optimizer step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.val_losses: list[float] = []
        self.rates: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(float(trainer.callback_metrics["reduced_train_loss"]))

    def on_before_optimizer_step(self, trainer: Trainer, module: AdapterLearningModel, optimizer: Any) -> None:
        grads = [parameter.grad for parameter in module.adapters.parameters()]
        self.rates.append(optimizer.param_groups[0]["lr"])  # the logged rate is rounded to fp32
        self.norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        if not trainer.sanity_checking:
            self.val_losses.append(float(trainer.callback_metrics["val_loss"]))


def make_model(
    config: dict[str, Any],
    base: Base,
    train: Sequence[GPTSample],
    validation: Sequence[GPTSample],
    callbacks: Sequence[Any],
) -> tuple[AdapterLearningModel, Trainer]:
    job = loaded(config)
    trainer = make_trainer(job.section.trainer, callbacks, Path(job.section.run.results_dir))
    settings = Loaded(job.section.model, job.values["model"])
    adapters = new_adapters(base, settings.values)
    return AdapterLearningModel(settings, trainer, base, adapters, train, validation), trainer
