"""Process groups: torch.distributed and Megatron-core's, for one process as for many."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.tensor_parallel.random import initialize_rng_tracker


def initialize(
    *, tensor_model_parallel_size: int = 1, pipeline_model_parallel_size: int = 1, seed: int = 1234
) -> torch.device:
    """Create the process groups once and return this process's device.

    The ranks come from the environment that torchrun, srun and bcprun set (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
    MASTER_PORT); without it this is a world of one.
    """
    device = _local_device()
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor_model_parallel_size,
            pipeline_model_parallel_size=pipeline_model_parallel_size,
        )
        if device.type == "cuda":
            model_parallel_cuda_manual_seed(seed)
        else:
            initialize_rng_tracker(inference_rng_tracker=True)
    return device


def tensor_rank() -> int:
    """This process's rank among those that share each layer."""
    return parallel_state.get_tensor_model_parallel_rank()


def tensor_size() -> int:
    """How many processes share each layer."""
    return parallel_state.get_tensor_model_parallel_world_size()


def data_rank() -> int:
    """This process's rank among the model replicas."""
    return parallel_state.get_data_parallel_rank()


def data_size() -> int:
    """How many model replicas there are."""
    return parallel_state.get_data_parallel_world_size()


def is_first_stage() -> bool:
    """Whether this process holds the embedding."""
    return parallel_state.is_pipeline_first_stage()


def is_last_stage() -> bool:
    """Whether this process holds the head."""
    return parallel_state.is_pipeline_last_stage()


def _local_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
