# SPDX-License-Identifier: Apache-2.0
"""The model of a training job: a frozen base with trainable adapters, as a ModelPT of nemo_toolkit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from nemo.core import ModelPT

from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.config.literal import literal_config
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.data.samples import Sample
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.validation import ValidationMetrics
from nemo_launcher.families.base import Base
from nemo_launcher.training import finite
from nemo_launcher.training.base_setup import tokens_to_train, training_layout
from nemo_launcher.training.best_values import BestValues
from nemo_launcher.training.checkpoint_content import TrainingContent
from nemo_launcher.training.export import write_adapter
from nemo_launcher.training.figures import TrainingFigures, ValidationLoss, mark
from nemo_launcher.training.loading import BatchLoader, make_loaders
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.loss_scale import LossScale
from nemo_launcher.training.nemo.loops import position_of, set_loop_counters
from nemo_launcher.training.nemo.optimization import optimization_config
from nemo_launcher.training.position import Position
from nemo_launcher.training.record import TrainingRecord
from nemo_launcher.training.step import forward_backward, step_seed


class AdapterLearningModel(ModelPT):
    """Trains the adapters of one method in a frozen model.

    job: the stage's `model` section; adapters: part of the base's model; row_costs: those of the training to resume.

    A batch is a global batch, already cut into packed micro-batches. Only adapters are in the optimizer, in checkpoints
    and in the exported `.nemo`. Source of the format: NeMo 1.20, MegatronGPTBaseAdapterModel.
    """

    def __init__(
        self,
        job: Loaded[Ia3Model],
        trainer: Trainer,
        base: Base,
        adapters: AdapterSet,
        train: Sequence[Sample],
        validation: Sequence[Sample],
        row_costs: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(literal_config(job.values), trainer)
        self.settings = settings = job.section
        self.base, self.frozen_model = base, base.model
        self.loss_scale = LossScale(base.dtype)
        self.training_loss = TrainingLoss.from_settings(settings)
        tokens = tokens_to_train(train, settings.global_batch_size, int(trainer.max_steps), trainer.max_epochs)
        self.layout = training_layout(base, settings, adapters.method.name, tokens, row_costs)
        self.adapters = adapters
        self.metrics: ValidationMetrics | None = None  # of each validation
        self.best = BestValues()
        self.record: TrainingRecord = {}  # what determines the result (training.record), for checkpoints
        self._figures_before: dict[str, torch.Tensor] = {}  # last logged metrics of the run that is resumed
        self._loss = self._gradient_norm = torch.zeros(())  # both of the last step
        self._skipped = False  # whether the last step overflowed in fp16
        self.figures = TrainingFigures()
        self.validation_loss = ValidationLoss()
        results = Path(trainer.default_root_dir)
        self.train_loader, self.validation_loader = make_loaders(
            base, settings, self.layout, train, validation, results
        )

    # --- data ---------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> BatchLoader:
        """Return the training batches for Lightning."""
        return self.train_loader

    def val_dataloader(self) -> BatchLoader:
        """Return the validation batches for Lightning."""
        return self.validation_loader

    def transfer_batch_to_device(self, batch: GlobalBatch, device: torch.device, _: int) -> GlobalBatch:
        """Move this rank's micro-batches to the device."""
        return batch.to(device)

    def setup_training_data(self, train_data_config: object) -> None:
        """Do nothing: the constructor receives the samples."""

    setup_validation_data = setup_training_data

    @classmethod
    def list_available_models(cls) -> None:
        """Return nothing: no pretrained adapters are published."""

    # --- steps --------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> AdapterLearningModel:
        """Set the mode of the adapters. The frozen base stays in eval mode; with nemo_compat it follows, as in NeMo."""
        super().train(mode)
        self.frozen_model.train(mode and self.settings.nemo_compat)
        self.adapters.train(mode)
        return self

    def training_step(self, batch: GlobalBatch, batch_idx: int) -> torch.Tensor:
        """Run forward and backward over the global batch and return its loss (nats per answer token)."""
        start = mark(self.base.device)
        # Gradients are computed here, per micro-batch, so Lightning's zero_grad and backward do nothing.
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad(set_to_none=True)
        step, own_tokens = self.trainer.global_step, self.adapters.sequence_parallel
        seed = step_seed(self.settings.seed, step, sequence_parallel=own_tokens)
        torch.manual_seed(seed)
        model, fitting, scale = self.frozen_model, self.train_loader.fitting, self.loss_scale.value
        loss = forward_backward(
            model, batch, backward=True, loss=self.training_loss, loss_scale=scale, seed=seed, fitting=fitting
        )
        self.adapters.sum_gradients()
        self._skipped = not self.loss_scale.unscale(self.adapters.parameters())
        if self._skipped:
            print(f"step {self.trainer.global_step}: fp16 overflow, skipped; loss scale {self.loss_scale.value:g}")
        self._loss = loss.detach()
        self.figures.add(batch, start, mark(loss.device))
        self.log("reduced_train_loss", loss, prog_bar=True, batch_size=1)
        self.log("lr", optimizer.param_groups[0]["lr"], batch_size=1)
        self.log("global_step", float(self.trainer.global_step), batch_size=1)
        return loss

    def backward(self, loss: torch.Tensor, *args: object, **kwargs: object) -> None:
        """Do nothing: training_step has computed the gradients."""

    def optimizer_zero_grad(self, *args: object, **kwargs: object) -> None:
        """Do nothing: training_step has cleared the gradients."""

    def configure_gradient_clipping(
        self, optimizer: object, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm over all ranks; with nemo_compat each rank by its own, as NeMo 1.20 under Lightning does."""
        if gradient_clip_val and not self.settings.nemo_compat:
            self._gradient_norm = self.adapters.clip_gradients(gradient_clip_val)
            return
        self._gradient_norm = self.adapters.gradient_norm()
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.adapters.parameters(), gradient_clip_val)

    def on_train_batch_end(self, outputs: object, batch: GlobalBatch, batch_idx: int) -> None:
        """Stop if the loss or the gradient norm is not finite, before a checkpoint or an adapter is written."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.loss_scale.exhausted:
            raise finite.overflow(self.trainer.global_step, self.describe_saved)
        if not self._skipped:
            finite.check_step(self.trainer.global_step, self._loss, self._gradient_norm, self.describe_saved)

    def validation_step(self, batch: GlobalBatch, batch_idx: int) -> None:
        """Add one batch to the validation loss."""
        fitting = self.validation_loader.fitting
        loss = forward_backward(self.frozen_model, batch, backward=False, loss=self.training_loss, fitting=fitting)
        self.validation_loss.add(loss, batch.answer_tokens)

    def on_validation_epoch_end(self, sync_metrics: bool = False) -> None:
        """Log the metrics, and `val_loss`: the mean over all answer tokens, or with nemo_compat over batches."""
        is_first = self.trainer.sanity_checking
        loss = self.validation_loss.take(nemo_compat=self.settings.nemo_compat, before_training=is_first)
        if loss is None:
            return
        finite.check_validation(self.trainer.global_step, loss, self.describe_saved)
        self.log("val_loss", loss, prog_bar=True, batch_size=1)
        if is_first:
            return
        figures = {} if self.metrics is None else self.metrics.figures(self.base)
        self.log_dict(figures, prog_bar=True, batch_size=1)
        if self.best.add(loss, figures) or not self._saves_best:
            self.export()

    # --- optimizer ----------------------------------------------------------------------------------------------

    def setup_optimizer_param_groups(self) -> None:
        """Optimize the adapter parameters only; weight decay applies to all of them, as in NeMo."""
        self._optimizer_param_groups = [{"params": self.adapters.parameters()}]

    def setup_optimization(self, optim_config: object = None, optim_kwargs: object = None) -> object:
        """Build optimizer and scheduler from `model.optim` through nemo_toolkit's registries."""
        return super().setup_optimization(optimization_config(self.settings.optim, self.total_steps()), optim_kwargs)

    def total_steps(self) -> int:
        """Return the number of optimizer steps in the whole training."""
        steps = int(self.trainer.max_steps)
        epochs = self.trainer.max_epochs
        if epochs is not None and epochs >= 0:
            in_epochs = epochs * self.steps_per_epoch()
            steps = min(steps, in_epochs) if steps >= 0 else in_epochs
        return steps

    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps in an epoch."""
        batches, limit = len(self.train_loader), self.trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    # --- checkpoints --------------------------------------------------------------------------------------------

    @property
    def _saves_best(self) -> bool:
        callback = self.trainer.checkpoint_callback
        return bool(getattr(callback, "save_best_model", False))

    def state_dict(self, *args: object, **kwargs: object) -> AdapterState:
        """Return the adapters' weights only, in NeMo's format."""
        return self.adapters.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, object], strict: bool = True, assign: bool = False) -> None:
        """Load the adapters' weights. Missing and unexpected keys raise UserError."""
        self.adapters.load_state_dict(state_dict, "checkpoint")

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Add position, record and metrics of the training to a checkpoint."""
        finite.check_weights(self.trainer.global_step, checkpoint["state_dict"], self.describe_saved)
        self._check_base()
        callback = self.trainer.checkpoint_callback
        position = position_of(self.trainer, "early stopping" if self.trainer.should_stop else "")
        checkpoint["position"] = position.as_dict()
        checkpoint["finished"] = bool(getattr(callback, "finished", False))
        checkpoint["figures"] = dict(self.trainer.callback_metrics)
        checkpoint["record"] = self.record
        checkpoint |= self.best.as_dict()
        checkpoint["loss_scale"] = self.loss_scale.state_dict()
        checkpoint["row_costs"] = self.train_loader.fitting.kept(self.layout.costs).as_dict()

    def describe_saved(self) -> str:
        """Return a text about the files that exist if training stops now."""
        callback = self.trainer.checkpoint_callback
        names = [getattr(callback, name, "") for name in ("last_model_path", "best_model_path")]
        there = dict.fromkeys(str(path) for path in (*names, self.settings.nemo_path) if path and Path(path).is_file())
        return f"{' and '.join(there)} remain unchanged" if there else "and nothing is saved yet"

    def _check_base(self) -> None:
        """Raise UserError, before anything is written, if the base file was overwritten since it was loaded."""
        if self.trainer.is_global_zero and self.base.changed_in_use():
            where = f"model.language_model_path: {self.settings.language_model_path}"
            what = f"was overwritten while it is in use (found at step {self.trainer.global_step}); training stops"
            raise UserError(Problem(where, f"{what}, {self.describe_saved()}", "put the base back and launch again"))

    def on_load_checkpoint(self, checkpoint: TrainingContent) -> None:
        """Restore the state of training. A longer max_steps or max_epochs takes effect in the schedule."""
        self.best.restore(checkpoint["best_val_loss"], checkpoint.get("best_monitored"))
        self.loss_scale.load_state_dict(checkpoint["loss_scale"])
        self._figures_before = checkpoint["figures"]
        position, batches = Position(**checkpoint["position"]), self.steps_per_epoch()
        set_loop_counters(self.trainer, position, batches, checkpoint["loops"]["fit_loop"])
        epoch, batch = position.epoch_and_batch(batches)
        self.train_loader.start_at(epoch, batch % batches)
        self.trainer.should_stop = bool(position.stopped)
        self.trainer.num_sanity_val_steps = 0
        if not self.settings.nemo_compat:
            for scheduler in checkpoint.get("lr_schedulers", []):
                if "max_steps" in scheduler:
                    scheduler["max_steps"] = self.total_steps()

    def on_fit_start(self) -> None:
        """Restore the metrics that the resumed run logged last: checkpoint names contain them."""
        super().on_fit_start()
        self.trainer.callback_metrics.update(self._figures_before)

    def on_train_start(self) -> None:
        """Give the first step of a resumed run the learning rate of the present schedule, not the saved one."""
        super().on_train_start()
        scheduler = self.lr_schedulers()
        # torch's schedulers derive a rate from the previous one, NeMo's from the step
        if hasattr(scheduler, "max_steps") and self.trainer.global_step and not self.settings.nemo_compat:
            optimizer = self.optimizers(use_pl_optimizer=False)
            for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
                group["lr"] = rate

    def on_train_end(self) -> None:
        """Export the final adapter: the best one if checkpoints keep the best, which restore it before this hook."""
        super().on_train_end()
        self.export(at_end=True)

    def export(self, *, at_end: bool = False) -> None:
        """Write the adapter `.nemo` to model.nemo_path atomically, and a safetensors copy beside it.

        at_end: whether training has ended. All ranks must call this. Raises UserError for weights that are not finite.
        """
        state = self.state_dict()
        finite.check_weights(self.trainer.global_step, state, self.describe_saved)
        self._check_base()
        if self.trainer.is_global_zero:
            callback = self.trainer.checkpoint_callback
            second = callback.extra_nemo_path(at_end=at_end) if hasattr(callback, "extra_nemo_path") else None
            write_adapter(self.cfg, self.settings, self.base, state, second)
