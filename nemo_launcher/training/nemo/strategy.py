# SPDX-License-Identifier: Apache-2.0
"""Lightning's strategy for any number of ranks: groups and gradients are Megatron-core's and the model's business."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.optim import Optimizer

from nemo_launcher.files.foreign import reading
from nemo_launcher.training.nemo.checkpointing import PlainCheckpointIO
from nemo_launcher.training.optimizer_state import own_optimizer_state, whole_optimizer_state


class MegatronStrategy(DDPStrategy):
    """DDPStrategy without its wrapper: the model sums gradients itself (parallel.sum_over_replicas).

    Ranks come from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, whoever set them. Optimizer state is
    saved whole, by adapter and parameter name, so that a run goes on at other parallel sizes.
    """

    def __init__(self) -> None:
        super().__init__(cluster_environment=TorchElasticEnvironment(), checkpoint_io=PlainCheckpointIO())

    def configure_ddp(self) -> None:
        """Leave the module unwrapped."""

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state, put together from all ranks."""
        return whole_optimizer_state(self.lightning_module.adapters, optimizer)

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Give each optimizer this rank's part of the saved state; raises UserError for one that does not fit."""
        with reading("the optimizer's state in the checkpoint", "go on from another checkpoint, or train anew"):
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                optimizer.load_state_dict(own_optimizer_state(self.lightning_module.adapters, optimizer, state))

    @property
    def root_device(self) -> torch.device:
        """This process's device."""
        return self.parallel_devices[self.local_rank]
