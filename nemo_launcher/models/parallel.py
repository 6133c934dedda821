"""Process groups: torch.distributed and Megatron-core's, for one process as for many."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.tensor_parallel.random import initialize_rng_tracker

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.models.cpu_megatron import run_on_cpu

Value = TypeVar("Value")


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
            run_on_cpu()
            initialize_rng_tracker(inference_rng_tracker=True)
    return device


def tensor_rank() -> int:
    """This process's rank among those that share each layer."""
    return parallel_state.get_tensor_model_parallel_rank()


def tensor_size() -> int:
    """How many processes share each layer."""
    return parallel_state.get_tensor_model_parallel_world_size()


def tensor_part(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """Return a copy of this tensor-parallel rank's part of a whole tensor.

    Raises UserError when the dimension does not divide over the ranks.
    """
    size, ranks = tensor.size(dimension), tensor_size()
    if size % ranks:
        what = f"{ranks} does not divide a dimension of {size} (adapter_dim, heads or feed-forward size)"
        raise UserError(Problem("tensor_model_parallel_size", what))
    return tensor.narrow(dimension, tensor_rank() * (size // ranks), size // ranks).clone()


def gather_tensor_parts(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """Return the whole tensor of which every tensor-parallel rank holds a part; all of them must call it."""
    if tensor_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(tensor_size())]
    dist.all_gather(parts, tensor.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dimension)


def pipeline_size() -> int:
    """How many pipeline stages there are."""
    return parallel_state.get_pipeline_model_parallel_world_size()


def merge_stages(state: dict[str, Value]) -> dict[str, Value]:
    """Return the union of what the pipeline stages hold; all of them must call it."""
    if pipeline_size() == 1:
        return state
    states: list[dict[str, Value]] = [{} for _ in range(pipeline_size())]
    dist.all_gather_object(states, state, group=parallel_state.get_pipeline_model_parallel_group())
    return {key: value for stage in states for key, value in stage.items()}


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
