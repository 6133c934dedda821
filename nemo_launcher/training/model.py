# SPDX-License-Identifier: Apache-2.0
"""The training job's model: a frozen base with trainable adapters, as one of nemo_toolkit's ModelPTs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from nemo.core import ModelPT
from omegaconf import OmegaConf
from torch.utils.data import BatchSampler, DataLoader

from nemo_launcher.adapters.archive import read_adapter, save_adapter, save_safetensors
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.config.literal import literal_config
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.data.batching import Collate, GlobalBatch, PrefixShuffleSampler
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import Base
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.attention import set_attention_backend
from nemo_launcher.megatron.compilation import set_torch_compile
from nemo_launcher.megatron.frozen_layer import recompute_layers
from nemo_launcher.megatron.seeded_dropout import seed_from
from nemo_launcher.runtime import ranks
from nemo_launcher.training import finite
from nemo_launcher.training.base_dropout import set_base_dropout
from nemo_launcher.training.figures import TrainingFigures
from nemo_launcher.training.loops import go_on_at, position_of
from nemo_launcher.training.loss_scale import LossScale
from nemo_launcher.training.optimization import optimization_config
from nemo_launcher.training.position import Position
from nemo_launcher.training.step import forward_backward
from nemo_launcher.training.workers import Workers


class AdapterLearningModel(ModelPT):
    """Trains the adapters of one method in a frozen model.

    job: the stage's `model` section; adapters: in the base's model. A batch is a global batch, already cut into packed
    micro-batches. Only adapters are in the optimizer, in checkpoints and in the exported `.nemo`. Source of the form:
    NeMo 1.20, MegatronGPTBaseAdapterModel.
    """

    def __init__(
        self,
        job: Loaded[Ia3Model],
        trainer: Trainer,
        base: Base,
        adapters: AdapterSet,
        train: Sequence[object],
        validation: Sequence[object],
    ) -> None:
        super().__init__(literal_config(job.values), trainer)
        self.settings = settings = job.section
        self.frozen_model, self.family, self.base_fingerprint = base.model, base.family, base.fingerprint
        self.base_settings, self.base_checksum = base.settings, base.checksum
        self._base_changed = base.changed_in_use
        self.loss_scale = LossScale(base.dtype)
        size = settings.micro_batch_size
        if settings.nemo_compat:
            set_base_dropout(base.model, base.config)
            self.workers = Workers(1, size)  # the loss depends on the cut, the base's dropout on the order
        else:
            self.workers = Workers.for_micro_batches(size, base.device, base.dtype)
        for stack in base.family.stacks(base.model, base.shape):
            recompute_layers(
                stack.layers,
                settings.activations_checkpoint_granularity,
                settings.activations_checkpoint_method,
                settings.activations_checkpoint_num_layers,
            )
        set_attention_backend(base.model, settings.attention_backend)
        set_torch_compile(base.model, settings.torch_compile)
        self.adapters = adapters
        self.train_samples, self.validation_samples = train, validation
        self.best_val_loss: float | None = None
        self.record: dict[str, Any] = {}
        """What decides the result (training.record), for checkpoints."""
        self._figures_before: dict[str, torch.Tensor] = {}  # the last logged ones of the run that is resumed
        self._loss = self._gradient_norm = torch.zeros(())  # of the last step
        self._skipped = False  # the last step: fp16 overflow
        self.figures = TrainingFigures()
        self._validation_losses: list[tuple[float, int]] = []  # loss and answer tokens of each batch
        self._train_dl = self._loader(train, shuffle=settings.data.shuffle, drop_last=settings.nemo_compat)
        self._validation_dl = self._loader(validation, shuffle=False, drop_last=False)

    # --- data ---------------------------------------------------------------------------------------------------

    def _loader(self, samples: Sequence[Any], *, shuffle: bool, drop_last: bool) -> DataLoader[Any]:
        data = self.settings.data
        share = self.family.shares_prefixes and data.share_prefix
        replica = parallel.data_rank(), parallel.data_size()
        size = self.settings.global_batch_size
        sampler = PrefixShuffleSampler(
            samples, shuffle=shuffle, share_prefix=share, seed=self.settings.seed, global_batch_size=size
        )
        workers = data.num_workers
        return DataLoader(
            samples,
            batch_sampler=BatchSampler(sampler, size, drop_last),
            collate_fn=Collate(
                self.workers.size,
                share,
                *replica,
                pack=self.family.pack,
                keep_groups=data.pack and not self.settings.nemo_compat,
                workers=self.workers.count,
                row_tokens=self.workers.row_tokens,
            ),
            num_workers=workers,
            pin_memory=data.pin_memory and parallel.local_device().type == "cuda",
            persistent_workers=workers > 0,
        )

    def transfer_batch_to_device(self, batch: GlobalBatch, device: torch.device, _: int) -> GlobalBatch:
        """Move this rank's micro-batches to the device."""
        return batch.to(device)

    def setup_training_data(self, train_data_config: object) -> None:
        """The samples are given to the constructor; there is nothing to set up."""

    def setup_validation_data(self, val_data_config: object) -> None:
        """The samples are given to the constructor; there is nothing to set up."""

    @classmethod
    def list_available_models(cls) -> None:
        """No pretrained adapters are published."""

    # --- steps --------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> AdapterLearningModel:
        """Switch the adapters' dropout; the frozen base stays in eval mode (nemo_compat: follows, as in NeMo)."""
        super().train(mode)
        self.frozen_model.train(mode and self.settings.nemo_compat)
        self.adapters.train(mode)
        return self

    def training_step(self, batch: GlobalBatch, batch_idx: int) -> torch.Tensor:
        """Run forward and backward over the global batch and return its loss (nats per answer token)."""
        start = time.perf_counter()
        # The gradients are made here, micro-batch by micro-batch, so Lightning's own zero_grad and backward do nothing.
        self._optimizer.zero_grad(set_to_none=True)
        # Dropout depends on seed, step and rank alone, so a resumed run draws what an uninterrupted one would.
        number = parallel.data_rank() * parallel.pipeline_size() + parallel.pipeline_rank()
        if self.adapters.sequence_parallel:  # else tensor-parallel ranks have the same tokens and draw the same
            number = number * parallel.tensor_size() + parallel.tensor_rank()
        seed = seed_from(self.settings.seed, self.trainer.global_step, number)
        torch.manual_seed(seed)
        compat, scale = self.settings.nemo_compat, self.loss_scale.value
        loss = forward_backward(
            self.frozen_model,
            batch,
            backward=True,
            nemo_compat=compat,
            loss_scale=scale,
            seed=seed,
            workers=self.workers,
        )
        self.adapters.sum_gradients()
        self._skipped = not self.loss_scale.unscale(self.adapters.parameters())
        if self._skipped:
            print(f"step {self.trainer.global_step}: fp16 overflow, skipped; loss scale {self.loss_scale.value:g}")
        self._loss = loss.detach()
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)  # else the seconds would be those of the launches
        self.figures.add(batch, start=start)
        self.log("reduced_train_loss", loss, prog_bar=True, batch_size=1)
        self.log("lr", self._optimizer.param_groups[0]["lr"], batch_size=1)
        self.log("global_step", float(self.trainer.global_step), batch_size=1)
        return loss

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients exist already (training_step)."""

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Gradients were cleared before they were made (training_step)."""

    def configure_gradient_clipping(
        self, optimizer: object, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm over all ranks (nemo_compat: each rank by its own, as NeMo 1.20 under Lightning)."""
        if gradient_clip_val and not self.settings.nemo_compat:
            self._gradient_norm = self.adapters.clip_gradients(gradient_clip_val)
            return
        self._gradient_norm = self.adapters.gradient_norm()
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.adapters.parameters(), gradient_clip_val)

    def on_train_batch_end(self, outputs: object, batch: GlobalBatch, batch_idx: int) -> None:
        """Stop at the first figure that is not finite: no checkpoint or adapter has been written since."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.loss_scale.exhausted:
            raise finite.overflow(self.trainer.global_step, self.kept)
        if not self._skipped:
            finite.check_step(self.trainer.global_step, self._loss, self._gradient_norm, self.kept)

    def validation_step(self, batch: GlobalBatch, batch_idx: int) -> None:
        """Add one batch to the validation loss."""
        compat = self.settings.nemo_compat
        loss = forward_backward(self.frozen_model, batch, backward=False, nemo_compat=compat, workers=self.workers)
        self._validation_losses.append((float(loss), batch.answer_tokens))

    def on_validation_epoch_end(self, sync_metrics: bool = False) -> None:
        """Log `val_loss`: the mean over all answer tokens (nemo_compat: over batches, as NeMo)."""
        losses, self._validation_losses = self._validation_losses, []
        if not losses:
            return
        if self.settings.nemo_compat:
            loss = sum(loss for loss, _ in losses) / len(losses)
        else:
            loss = sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)
        finite.check_validation(self.trainer.global_step, loss, self.kept)
        self.log("val_loss", loss, prog_bar=True, batch_size=1)
        if self.trainer.sanity_checking:
            return
        best = self.best_val_loss is None or loss < self.best_val_loss
        if best:
            self.best_val_loss = loss
        if best or not self._saves_best:
            self.export()

    # --- optimizer ----------------------------------------------------------------------------------------------

    def setup_optimizer_param_groups(self) -> None:
        """Only adapter parameters are optimised; weight decay applies to all of them, as in NeMo."""
        self._optimizer_param_groups = [{"params": self.adapters.parameters()}]

    def setup_optimization(self, optim_config: object = None, optim_kwargs: object = None) -> Any:
        """Build optimizer and scheduler from `model.optim` through nemo_toolkit's registries."""
        return super().setup_optimization(optimization_config(self.settings.optim, self.total_steps()), optim_kwargs)

    def total_steps(self) -> int:
        """Return the optimizer steps of the whole training."""
        steps = int(self.trainer.max_steps)
        epochs = self.trainer.max_epochs
        if epochs is not None and epochs >= 0:
            in_epochs = epochs * self.steps_per_epoch()
            steps = min(steps, in_epochs) if steps >= 0 else in_epochs
        return steps

    @property
    def train_batches(self) -> int:
        """The global batches of the training data."""
        return len(self._train_dl)

    @property
    def validation_batches(self) -> int:
        """The global batches of the validation data."""
        return len(self._validation_dl)

    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of an epoch."""
        batches, limit = self.train_batches, self.trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    # --- checkpoints --------------------------------------------------------------------------------------------

    @property
    def _saves_best(self) -> bool:
        callback = self.trainer.checkpoint_callback
        return bool(getattr(callback, "save_best_model", False))

    def state_dict(self, *args: Any, **kwargs: Any) -> AdapterState:
        """Return the adapters alone, in NeMo's form."""
        return self.adapters.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, object], strict: bool = True, assign: bool = False) -> None:
        """Load the adapters; anything absent or superfluous is an error."""
        self.adapters.load_state_dict(state_dict, "checkpoint")

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Add where training stands, and what it is."""
        finite.check_weights(self.trainer.global_step, checkpoint["state_dict"], self.kept)
        self._check_base()
        callback: Any = self.trainer.checkpoint_callback
        position = position_of(self.trainer, "early stopping" if self.trainer.should_stop else "")
        checkpoint["position"] = position.as_dict()
        checkpoint["finished"] = bool(getattr(callback, "finished", False))
        checkpoint["figures"] = dict(self.trainer.callback_metrics)
        checkpoint["record"] = self.record
        checkpoint["best_val_loss"] = self.best_val_loss
        checkpoint["loss_scale"] = self.loss_scale.state_dict()

    def kept(self) -> str:
        """Say what a training that stops now leaves."""
        callback: Any = self.trainer.checkpoint_callback
        names = [getattr(callback, name, "") for name in ("last_model_path", "best_model_path")]
        there = dict.fromkeys(str(path) for path in (*names, self.settings.nemo_path) if path and Path(path).is_file())
        return f"{' and '.join(there)} stay as they are" if there else "and nothing is saved yet"

    def _check_base(self) -> None:
        """Raise UserError, before anything is written, where the base's file was overwritten since it was loaded."""
        if self.trainer.is_global_zero and self._base_changed():
            where = f"model.language_model_path: {self.settings.language_model_path}"
            what = f"was overwritten while it is in use (found at step {self.trainer.global_step}); training stops"
            raise UserError(Problem(where, f"{what}, {self.kept()}", "put the base back and launch again"))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped; a longer max_steps or max_epochs takes effect on the schedule."""
        self.best_val_loss = checkpoint["best_val_loss"]
        self.loss_scale.load_state_dict(checkpoint["loss_scale"])
        self._figures_before = checkpoint["figures"]
        position, batches = Position(**checkpoint["position"]), self.steps_per_epoch()
        go_on_at(self.trainer, position, batches, checkpoint["loops"]["fit_loop"])
        epoch, batch = position.epoch_and_batch(batches)
        sampler: Any = self._train_dl.batch_sampler.sampler  # Lightning does not move it
        sampler.set_epoch(epoch)
        sampler.skip = batch % batches * self.settings.global_batch_size
        self.trainer.should_stop = bool(position.stopped)
        self.trainer.num_sanity_val_steps = 0
        if not self.settings.nemo_compat:
            for scheduler in checkpoint.get("lr_schedulers", []):
                if "max_steps" in scheduler:
                    scheduler["max_steps"] = self.total_steps()

    def load_best(self, path: str) -> None:
        """Take over the weights of the best checkpoint.

        Where that is not kept, or damaged, they are those of the best adapter as it was exported; before any
        validation, and where neither is there, the last ones stay. Rank 0 reads for all: weights of which each rank has
        a part must not be of different steps.
        """
        state = ranks.from_rank_zero(lambda: self._best_weights(path))
        if state is not None:
            self.load_state_dict(state)
        elif self.best_val_loss is not None:
            what = f"the best weights (val_loss {self.best_val_loss:.4f}) are not there any more"
            print(f"{what}: the adapter is that of step {self.trainer.global_step}", flush=True)
            self.best_val_loss = None  # which is not this adapter's

    def _best_weights(self, path: str) -> AdapterState | None:
        with contextlib.suppress(UserError, FileNotFoundError):
            if path:
                state: AdapterState = self.trainer.strategy.load_checkpoint(path)["state_dict"]
                self.adapters.check(state, path)
                return state
        if self.best_val_loss is not None:
            with contextlib.suppress(UserError):
                state = read_adapter(self.settings.nemo_path)[1]
                self.adapters.check(state, self.settings.nemo_path)
                return state
        return None

    def on_fit_start(self) -> None:
        """Let a resumed run know the figures that the last one logged, as its checkpoints are named by them."""
        super().on_fit_start()
        self.trainer.callback_metrics.update(self._figures_before)

    def on_train_start(self) -> None:
        """Let a resumed run's first step have the rate of today's schedule, not the one it was stopped at."""
        super().on_train_start()
        scheduler: Any = None if self._scheduler is None else self._scheduler["scheduler"]
        # torch's own compute a rate from the one before, NeMo's from the number of the step
        if hasattr(scheduler, "max_steps") and self.trainer.global_step and not self.settings.nemo_compat:
            for group, rate in zip(self._optimizer.param_groups, scheduler.get_lr(), strict=True):
                group["lr"] = rate

    def on_train_end(self) -> None:
        """Export the final adapter: the best one when checkpoints keep the best (they restore it before this)."""
        super().on_train_end()
        self.export(at_end=True)

    def export(self, *, at_end: bool = False) -> None:
        """Write the adapter `.nemo` to model.nemo_path, whole or not at all, and a safetensors copy beside it.

        at_end: of training. All ranks must call it. Raises UserError for weights that are not finite.
        """
        state = self.state_dict()
        finite.check_weights(self.trainer.global_step, state, self.kept)
        self._check_base()
        if self.trainer.is_global_zero:
            config: Any = OmegaConf.to_container(self.cfg, resolve=True)
            # The archive holds one file whatever the sizes it was trained at.
            config |= {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
            config["existing_tasks"] = [*(self.settings.existing_tasks or []), *self.settings.new_tasks]
            config |= {"base_fingerprint": self.base_fingerprint, "base_settings": self.base_settings}
            config["base_checksum"] = self.base_checksum
            callback: Any = self.trainer.checkpoint_callback
            second = callback.second_nemo(at_end=at_end) if hasattr(callback, "second_nemo") else None
            for path in (self.settings.nemo_path, *([second] if second else [])):
                save_adapter(path, config, state)
            save_safetensors(Path(self.settings.nemo_path).with_suffix(".safetensors"), config, state)
