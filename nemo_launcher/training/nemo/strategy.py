# SPDX-License-Identifier: Apache-2.0
"""Lightning's strategy for any number of ranks. Megatron-core makes the groups; the model sums gradients."""

from __future__ import annotations

import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.optim import Optimizer

from nemo_launcher.files.foreign import reading
from nemo_launcher.training.checkpoint_content import TrainingContent
from nemo_launcher.training.nemo.checkpointing import PlainCheckpointIO
from nemo_launcher.training.optimizer_state import OptimizerState, own_optimizer_state, whole_optimizer_state


class MegatronStrategy(DDPStrategy):
    """DDPStrategy without its wrapper module: the model sums gradients itself (parallel.sum_over_replicas).

    Ranks come from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, whichever launcher set them. Optimizer
    state is saved as complete tensors by adapter and parameter name, so that a run can resume at other parallel sizes.
    """

    def __init__(self) -> None:
        super().__init__(cluster_environment=TorchElasticEnvironment(), checkpoint_io=PlainCheckpointIO())

    def configure_ddp(self) -> None:
        """Leave the module unwrapped."""

    def optimizer_state(self, optimizer: Optimizer) -> OptimizerState:
        """Return the optimizer's state, gathered from all ranks."""
        return whole_optimizer_state(self.lightning_module.adapters, optimizer)

    def load_optimizer_state_dict(self, checkpoint: TrainingContent) -> None:
        """Load this rank's part of the saved state into each optimizer. Raises UserError if it does not fit."""
        with reading("the optimizer's state in the checkpoint", "resume from another checkpoint, or start anew"):
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                optimizer.load_state_dict(own_optimizer_state(self.lightning_module.adapters, optimizer, state))

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""
        return self.parallel_devices[self.local_rank]
