"""The training job's model: a frozen base with trainable adapters, as one of nemo_toolkit's ModelPTs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from nemo.core import ModelPT
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import BatchSampler, DataLoader

from nemo_launcher.adapters.archive import save_adapter, save_safetensors
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.checkpoint.base import Base
from nemo_launcher.data.batching import Collate, GlobalBatch, PrefixShuffleSampler
from nemo_launcher.models import parallel
from nemo_launcher.models.attention import set_attention_backend
from nemo_launcher.models.compilation import set_torch_compile
from nemo_launcher.models.frozen_layer import recompute_layers
from nemo_launcher.training.base_dropout import set_base_dropout
from nemo_launcher.training.loss_scale import LossScale
from nemo_launcher.training.optimization import optimization_config
from nemo_launcher.training.step import forward_backward
from nemo_launcher.training.workers import Workers


class AdapterLearningModel(ModelPT):
    """Trains the adapters of one method in a frozen model.

    cfg: the stage's `model` section; adapters: in the base's model. A batch is a global batch, already cut into packed
    micro-batches. Only adapters are in the optimizer, in checkpoints and in the exported `.nemo`. Source of the form:
    NeMo 1.20, MegatronGPTBaseAdapterModel.
    """

    def __init__(
        self,
        cfg: DictConfig,
        trainer: Trainer,
        base: Base,
        adapters: AdapterSet,
        train: Sequence[Any],
        validation: Sequence[Any],
    ) -> None:
        super().__init__(cfg, trainer)
        self.frozen_model, self.family, self.base_fingerprint = base.model, base.family, base.fingerprint
        self.base_settings = base.settings
        self.loss_scale = LossScale(base.dtype)
        size = int(cfg.micro_batch_size)
        if cfg.nemo_compat:
            set_base_dropout(base.model, base.config)
            self.workers = Workers(1, size)  # the loss depends on the cut, the base's dropout on the order
        else:
            self.workers = Workers.for_micro_batches(size, base.device, base.dtype)
        for stack in base.family.stacks(base.model, base.shape):
            recompute_layers(
                stack.layers,
                cfg.get("activations_checkpoint_granularity"),
                cfg.get("activations_checkpoint_method"),
                cfg.get("activations_checkpoint_num_layers"),
            )
        set_attention_backend(base.model, str(cfg.get("attention_backend", "sdpa")))
        set_torch_compile(base.model, bool(cfg.get("torch_compile")))
        self.adapters = adapters
        self.train_samples, self.validation_samples = train, validation
        self.best_val_loss: float | None = None
        self.figures = TrainingFigures()
        self._validation_losses: list[tuple[float, int]] = []  # loss and answer tokens of each batch
        self._train_dl = self._loader(train, shuffle=bool(cfg.data.get("shuffle", True)), drop_last=cfg.nemo_compat)
        self._validation_dl = self._loader(validation, shuffle=False, drop_last=False)

    # --- data ---------------------------------------------------------------------------------------------------

    def _loader(self, samples: Sequence[Any], *, shuffle: bool, drop_last: bool) -> DataLoader[Any]:
        data = self.cfg.data
        share = self.family.shares_prefixes and bool(data.get("share_prefix", True))
        ranks = parallel.data_rank(), parallel.data_size()
        size = int(self.cfg.global_batch_size)
        sampler = PrefixShuffleSampler(
            samples, shuffle=shuffle, share_prefix=share, seed=int(self.cfg.seed), global_batch_size=size
        )
        workers = int(data.get("num_workers", 0))
        return DataLoader(
            samples,
            batch_sampler=BatchSampler(sampler, size, drop_last),
            collate_fn=Collate(
                self.workers.size,
                share,
                *ranks,
                pack=self.family.pack,
                keep_groups=bool(data.get("pack", True)) and not self.cfg.nemo_compat,
                workers=self.workers.count,
                row_tokens=self.workers.row_tokens,
            ),
            num_workers=workers,
            pin_memory=bool(data.get("pin_memory", False)) and torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def transfer_batch_to_device(self, batch: GlobalBatch, device: torch.device, _: int) -> GlobalBatch:
        """Move this rank's micro-batches to the device."""
        return batch.to(device)

    def setup_training_data(self, train_data_config: Any) -> None:
        """The samples are given to the constructor; there is nothing to set up."""

    def setup_validation_data(self, val_data_config: Any) -> None:
        """The samples are given to the constructor; there is nothing to set up."""

    @classmethod
    def list_available_models(cls) -> None:
        """No pretrained adapters are published."""

    # --- steps --------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> AdapterLearningModel:
        """Switch the adapters' dropout; the frozen base stays in eval mode (nemo_compat: follows, as in NeMo)."""
        super().train(mode)
        self.frozen_model.train(mode and bool(self.cfg.nemo_compat))
        self.adapters.train(mode)
        return self

    def training_step(self, batch: GlobalBatch, batch_idx: int) -> torch.Tensor:
        """Run forward and backward over the global batch and return its loss (nats per answer token)."""
        start = time.perf_counter()
        # The gradients are made here, micro-batch by micro-batch, so Lightning's own zero_grad and backward do nothing.
        self._optimizer.zero_grad(set_to_none=True)
        # Dropout depends on seed, step and rank alone, so a resumed run draws what an uninterrupted one would.
        ranks = parallel.data_rank() * parallel.pipeline_size() + parallel.pipeline_rank()
        if self.adapters.sequence_parallel:  # else tensor-parallel ranks have the same tokens and draw the same
            ranks = ranks * parallel.tensor_size() + parallel.tensor_rank()
        seed = hash((int(self.cfg.seed), self.trainer.global_step, ranks)) % 2**63
        torch.manual_seed(seed)
        compat, scale = bool(self.cfg.nemo_compat), self.loss_scale.value
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
        if not self.loss_scale.unscale(self.adapters.parameters()):
            print(f"step {self.trainer.global_step}: fp16 overflow, skipped; loss scale {self.loss_scale.value:g}")
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
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm over all ranks (nemo_compat: each rank by its own, as NeMo 1.20 under Lightning)."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.adapters.parameters(), gradient_clip_val)
        elif self.cfg.nemo_compat:
            torch.nn.utils.clip_grad_norm_(self.adapters.parameters(), gradient_clip_val)
        else:
            self.adapters.clip_gradients(gradient_clip_val)

    def validation_step(self, batch: GlobalBatch, batch_idx: int) -> None:
        """Add one batch to the validation loss."""
        compat = bool(self.cfg.nemo_compat)
        loss = forward_backward(self.frozen_model, batch, backward=False, nemo_compat=compat, workers=self.workers)
        self._validation_losses.append((float(loss), batch.answer_tokens))

    def on_validation_epoch_end(self, sync_metrics: bool = False) -> None:
        """Log `val_loss`: the mean over all answer tokens (nemo_compat: over batches, as NeMo)."""
        losses, self._validation_losses = self._validation_losses, []
        if not losses:
            return
        if self.cfg.nemo_compat:
            loss = sum(loss for loss, _ in losses) / len(losses)
        else:
            loss = sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)
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
        return super().setup_optimization(optimization_config(self.cfg.optim, self.total_steps()), optim_kwargs)

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
        checkpoint["loss_scale"] = self.loss_scale.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped; a longer max_steps or max_epochs takes effect on the schedule."""
        self.best_val_loss = checkpoint.get("best_val_loss")
        self.loss_scale.load_state_dict(checkpoint["loss_scale"])
        self._go_on_inside_epoch(checkpoint)
        if not self.cfg.nemo_compat:
            for scheduler in checkpoint.get("lr_schedulers", []):
                scheduler["max_steps"] = self.total_steps()

    def whole_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's state by adapter and parameter name, whole tensors; all ranks must call it."""
        state = optimizer.state_dict()
        fields = sorted({field for entry in state["state"].values() for field in entry})
        whole = {}
        for field in fields:
            own = {
                key: {name: state["state"][index][field] for name, index in names.items() if index in state["state"]}
                for key, names in self._optimizer_indices().items()
            }
            whole[field] = parallel.merge_stages(self.adapters.gather(own) if field != "step" else own)
        return {"param_groups": state["param_groups"], "state": whole}

    def own_optimizer_state(self, optimizer: torch.optim.Optimizer, whole: Mapping[str, Any]) -> dict[str, Any]:
        """Return this rank's part of a whole state, as `optimizer.load_state_dict` takes it."""
        state: dict[int, dict[str, Any]] = {}
        for field, values in whole["state"].items():
            own = self.adapters.part(values) if field != "step" else values
            for key, names in self._optimizer_indices().items():
                for name, index in names.items():
                    state.setdefault(index, {})[field] = own[key][name]
        groups = optimizer.state_dict()["param_groups"]
        saved = [{**group, "params": mine["params"]} for group, mine in zip(whole["param_groups"], groups, strict=True)]
        return {"state": state, "param_groups": saved}

    def _optimizer_indices(self) -> dict[str, dict[str, int]]:
        """Return the place of every adapter parameter in the optimizer."""
        counter = itertools.count()
        return {
            key: {name: next(counter) for name, _ in adapter.named_parameters()}
            for key, adapter in self.adapters.adapters.items()
        }

    def _go_on_inside_epoch(self, checkpoint: Mapping[str, Any]) -> None:
        """Leave out the samples that the checkpoint's epoch has seen: Lightning does not move the sampler itself.

        Checkpoints are saved after a validation. One at the end of an epoch says that the epoch is not over yet, and
        Lightning 2.4 would train one more batch in it or validate on what a used-up loader has left; so it is made to
        say that the next epoch begins.
        """
        loops = checkpoint["loops"]["fit_loop"]
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        done = batches["current"]["completed"]
        if done >= len(self._train_dl):
            epochs["current"] = dict.fromkeys(epochs["current"], epochs["current"]["ready"])
            batches["current"] = dict.fromkeys(batches["current"], 0)
            batches["is_last_batch"] = False
            return
        sampler = self._train_dl.batch_sampler.sampler
        sampler.set_epoch(checkpoint["epoch"])
        sampler.skip = done * int(self.cfg.global_batch_size)

    def on_train_start(self) -> None:
        """Let a resumed run's first step have the rate of today's schedule, not the one it was stopped at."""
        super().on_train_start()
        if self._scheduler is not None and self.trainer.global_step and not self.cfg.nemo_compat:
            scheduler = self._scheduler["scheduler"]
            for group, rate in zip(self._optimizer.param_groups, scheduler.get_lr(), strict=True):
                group["lr"] = rate

    def on_train_end(self) -> None:
        """Export the final adapter: the best one when checkpoints keep the best (NeMo restores it before this)."""
        super().on_train_end()
        self.export()

    def export(self) -> None:
        """Write the adapter `.nemo` to model.nemo_path, whole or not at all, and a safetensors copy beside it.

        All ranks must call it.
        """
        state = self.state_dict()
        if self.trainer.is_global_zero:
            config: Any = OmegaConf.to_container(self.cfg, resolve=True)
            # The archive holds one file whatever the sizes it was trained at.
            config |= {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
            config["existing_tasks"] = [*(config.get("existing_tasks") or []), *config["new_tasks"]]
            config |= {"base_fingerprint": self.base_fingerprint, "base_settings": self.base_settings}
            save_adapter(self.cfg.nemo_path, config, state)
            save_safetensors(Path(self.cfg.nemo_path).with_suffix(".safetensors"), config, state)


class TrainingFigures:
    """What training cost so far in this process: samples, tokens and seconds inside training steps."""

    def __init__(self) -> None:
        self.samples = self.sample_tokens = self.computed_tokens = 0
        self.seconds = 0.0

    def add(self, batch: GlobalBatch, *, start: float) -> None:
        """Count one step that began at `start` (time.perf_counter)."""
        self.seconds += time.perf_counter() - start
        self.samples += batch.num_samples
        self.sample_tokens += batch.sample_tokens
        self.computed_tokens += batch.computed_tokens

    def rates(self) -> dict[str, float]:
        """Return samples_per_second, tokens_per_second (of the samples) and computed_tokens_per_second (a replica)."""
        seconds = max(self.seconds, 1e-9)
        return {
            "samples_per_second": self.samples / seconds,
            "tokens_per_second": self.sample_tokens / seconds,
            "computed_tokens_per_second": self.computed_tokens / seconds,
        }
