"""The training job's model: a frozen base with trainable adapters, as one of nemo_toolkit's ModelPTs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from nemo.core import ModelPT
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import BatchSampler, DataLoader

from nemo_launcher.adapters.archive import read_adapter, save_adapter
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.checkpoint.base import Base
from nemo_launcher.data.batching import PrefixShuffleSampler, micro_batches
from nemo_launcher.families import Family
from nemo_launcher.training.step import StepResult, forward_backward


class AdapterLearningModel(ModelPT):
    """Trains the adapters of one method in a frozen model.

    cfg: the stage's `model` section. A batch is a global batch, already cut into packed micro-batches. Only adapters
    are in the optimizer, in checkpoints and in the exported `.nemo`. Source of the form: NeMo 1.20,
    MegatronGPTBaseAdapterModel.
    """

    def __init__(
        self, cfg: DictConfig, trainer: Trainer, base: Base, train: Sequence[Any], validation: Sequence[Any]
    ) -> None:
        super().__init__(cfg, trainer)
        self.frozen_model, self.family = base.model, base.family
        torch.manual_seed(cfg.seed)
        self.adapters = AdapterSet(base.model, base.shape, OmegaConf.to_container(cfg, resolve=True))
        if cfg.get("restore_path"):
            self.adapters.load_state_dict(read_adapter(cfg.restore_path)[1], str(cfg.restore_path))
        self.train_samples, self.validation_samples = train, validation
        self.best_val_loss: float | None = None
        self.figures = TrainingFigures()
        self._validation_results: list[StepResult] = []
        self._train_dl = self._loader(train, shuffle=bool(cfg.data.get("shuffle", True)), drop_last=cfg.nemo_compat)
        self._validation_dl = self._loader(validation, shuffle=False, drop_last=False)

    # --- data ---------------------------------------------------------------------------------------------------

    def _loader(self, samples: Sequence[Any], *, shuffle: bool, drop_last: bool) -> DataLoader[Any]:
        data = self.cfg.data
        share = self.family.shares_prefixes and bool(data.get("share_prefix", True))
        sampler = PrefixShuffleSampler(samples, shuffle=shuffle, share_prefix=share, seed=int(self.cfg.seed))
        workers = int(data.get("num_workers", 0))
        return DataLoader(
            samples,
            batch_sampler=BatchSampler(sampler, int(self.cfg.global_batch_size), drop_last),
            collate_fn=_Collate(self.family, int(self.cfg.micro_batch_size), share),
            num_workers=workers,
            pin_memory=bool(data.get("pin_memory", False)) and torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def transfer_batch_to_device(self, batch: list[Any], device: torch.device, _: int) -> list[Any]:
        """Move every micro-batch to the device."""
        return [micro.to(device) for micro in batch]

    def setup_training_data(self, train_data_config: Any) -> None:
        """The samples are given to the constructor; there is nothing to set up."""

    def setup_validation_data(self, val_data_config: Any) -> None:
        """The samples are given to the constructor; there is nothing to set up."""

    @classmethod
    def list_available_models(cls) -> None:
        """No pretrained adapters are published."""

    # --- steps --------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> AdapterLearningModel:
        """Switch the adapters' dropout; the frozen base stays in eval mode whatever the trainer says."""
        super().train(mode)
        self.frozen_model.eval()
        self.adapters.train(mode)
        return self

    def training_step(self, batch: list[Any], batch_idx: int) -> torch.Tensor:
        """Run forward and backward over the global batch and return its loss (nats per answer token)."""
        start = time.perf_counter()
        # The gradients are made here, micro-batch by micro-batch, so Lightning's own zero_grad and backward do nothing.
        self._optimizer.zero_grad(set_to_none=True)
        result = forward_backward(self.frozen_model, batch, backward=True, nemo_compat=self.cfg.nemo_compat)
        self.figures.add(result, samples=sum(micro.lengths.numel() for micro in batch), start=start)
        loss = result.loss_sum / result.answer_tokens
        self.log("reduced_train_loss", loss, prog_bar=True, batch_size=1)
        self.log("lr", self._optimizer.param_groups[0]["lr"], batch_size=1)
        self.log("global_step", float(self.trainer.global_step), batch_size=1)
        return loss

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients exist already (training_step)."""

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Gradients were cleared before they were made (training_step)."""

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """Add one batch to the validation loss."""
        result = forward_backward(self.frozen_model, batch, backward=False, nemo_compat=self.cfg.nemo_compat)
        self._validation_results.append(result)

    def on_validation_epoch_end(self, sync_metrics: bool = False) -> None:
        """Log `val_loss`: the mean over all answer tokens (nemo_compat: over batches, as NeMo)."""
        results, self._validation_results = self._validation_results, []
        if not results:
            return
        if self.cfg.nemo_compat:
            loss = sum(float(result.loss_sum) / result.answer_tokens for result in results) / len(results)
        else:
            loss = sum(float(r.loss_sum) for r in results) / sum(r.answer_tokens for r in results)
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

    def setup_optimization(self, optim_config: Any = None, optim_kwargs: Any = None) -> Any:
        """Build optimizer and scheduler from `model.optim` through nemo_toolkit's registries."""
        config = OmegaConf.create(OmegaConf.to_container(self.cfg.optim, resolve=True))
        if config.name in _FUSED:
            # NeMo's names for Apex's fused kernels; torch's own fused implementation computes the same update.
            config.name, config.fused = _FUSED[config.name], True
        if config.get("sched"):
            config.sched.max_steps = self.total_steps()
        return super().setup_optimization(config, optim_kwargs)

    def total_steps(self) -> int:
        """Return the optimizer steps of the whole training."""
        steps = int(self.trainer.max_steps)
        epochs = self.trainer.max_epochs
        if epochs is not None and epochs >= 0:
            per_epoch = len(self._train_dl)
            limit = self.trainer.limit_train_batches
            per_epoch = min(per_epoch, limit) if isinstance(limit, int) else int(per_epoch * limit)
            steps = min(steps, epochs * per_epoch) if steps >= 0 else epochs * per_epoch
        return steps

    # --- checkpoints --------------------------------------------------------------------------------------------

    @property
    def _saves_best(self) -> bool:
        callback = self.trainer.checkpoint_callback
        return bool(getattr(callback, "save_best_model", False))

    def state_dict(self, *args: Any, **kwargs: Any) -> AdapterState:
        """Return the adapters alone, in NeMo's form."""
        return self.adapters.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> None:
        """Load the adapters; anything absent or superfluous is an error."""
        self.adapters.load_state_dict(state_dict, "checkpoint")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the best loss so far, so that a resumed run does not export a worse adapter over a better one."""
        checkpoint["best_val_loss"] = self.best_val_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped; a longer max_steps or max_epochs takes effect on the schedule."""
        self.best_val_loss = checkpoint.get("best_val_loss")
        if not self.cfg.nemo_compat:
            for scheduler in checkpoint.get("lr_schedulers", []):
                scheduler["max_steps"] = self.total_steps()

    def on_fit_start(self) -> None:
        """Take up the epoch where a resumed run stopped inside it: Lightning does not move the sampler itself."""
        super().on_fit_start()
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        if self.trainer.fit_loop.epoch_loop.restarting and not progress.is_last_batch:
            sampler = self._train_dl.batch_sampler.sampler
            sampler.skip = progress.current.ready * int(self.cfg.global_batch_size)

    def on_train_end(self) -> None:
        """Export the final adapter: the best one when checkpoints keep the best (NeMo restores it before this)."""
        super().on_train_end()
        self.export()

    def export(self) -> None:
        """Write the adapter `.nemo` to model.nemo_path, whole or not at all."""
        if self.trainer.is_global_zero:
            config = OmegaConf.to_container(self.cfg, resolve=True)
            save_adapter(
                Path(self.cfg.nemo_path), {str(key): value for key, value in config.items()}, self.state_dict()
            )


_FUSED = {"fused_adam": "adamw", "distributed_fused_adam": "adamw"}


class _Collate:
    """Turns the samples of a global batch into packed micro-batches (picklable, for data-loading workers)."""

    def __init__(self, family: Family, micro_batch_size: int, share_prefix: bool) -> None:
        self.pack: Callable[..., Any] = family.pack
        self.micro_batch_size, self.share_prefix = micro_batch_size, share_prefix

    def __call__(self, samples: list[Any]) -> list[Any]:
        cut = micro_batches(samples, self.micro_batch_size, share_prefix=self.share_prefix)
        return [self.pack(micro, share_prefix=self.share_prefix) for micro in cut]


class TrainingFigures:
    """What training cost so far in this process: samples, tokens and seconds inside training steps."""

    def __init__(self) -> None:
        self.samples = self.sample_tokens = self.computed_tokens = 0
        self.seconds = 0.0

    def add(self, result: StepResult, *, samples: int, start: float) -> None:
        """Count one step that began at `start` (time.perf_counter)."""
        self.seconds += time.perf_counter() - start
        self.samples += samples
        self.sample_tokens += result.sample_tokens
        self.computed_tokens += result.computed_tokens

    def rates(self) -> dict[str, float]:
        """Return samples_per_second, tokens_per_second (of the samples) and computed_tokens_per_second."""
        seconds = max(self.seconds, 1e-9)
        return {
            "samples_per_second": self.samples / seconds,
            "tokens_per_second": self.sample_tokens / seconds,
            "computed_tokens_per_second": self.computed_tokens / seconds,
        }
