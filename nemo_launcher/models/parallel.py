"""Process groups: torch.distributed and Megatron-core's, for one process as for many."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
            os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")  # Lightning reads them
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


def is_first_rank() -> bool:
    """Whether this process is the one that writes and prints."""
    return dist.get_rank() == 0


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


def sum_over_all(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over replicas and pipeline stages of a value that tensor-parallel ranks agree on."""
    if data_size() > 1:
        dist.all_reduce(value, group=parallel_state.get_data_parallel_group())
    if pipeline_size() > 1:
        dist.all_reduce(value, group=parallel_state.get_pipeline_model_parallel_group())
    return value


def largest(number: int) -> int:
    """Return the largest of the numbers that all ranks give."""
    if dist.get_world_size() == 1:
        return number
    value = torch.tensor(number, device=_local_device())
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)


def sum_over_model(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over the ranks that hold one model together (tensor and pipeline parallel)."""
    value = value.to(_local_device())
    if tensor_size() * pipeline_size() > 1:
        dist.all_reduce(value, group=parallel_state.get_model_parallel_group())
    return value


def sum_over_replicas(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add up the gradients of all model replicas, in place; one that is absent counts as zero."""
    if data_size() == 1 or not parameters:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat, group=parallel_state.get_data_parallel_group())
    for parameter, grad in zip(parameters, flat.split([grad.numel() for grad in grads]), strict=True):
        parameter.grad = grad.view_as(parameter)


def total_norm(split: Sequence[torch.Tensor], replicated: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of a gradient over all ranks, [].

    split: tensors of which each tensor-parallel rank holds a part; replicated: tensors that all of them hold alike.
    """
    device = next(iter([*split, *replicated]), torch.empty(0)).device
    squares = torch.stack([_sum_of_squares(split, device), _sum_of_squares(replicated, device)])
    if tensor_size() > 1:
        dist.all_reduce(squares[0], group=parallel_state.get_tensor_model_parallel_group())
    total = squares.sum()
    if pipeline_size() > 1:
        dist.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
    return total.sqrt()


def _sum_of_squares(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    return torch.stack([torch.zeros((), device=device), *(t.float().square().sum() for t in tensors)]).sum()


def pipeline_size() -> int:
    """How many pipeline stages there are."""
    return parallel_state.get_pipeline_model_parallel_world_size()


def pipeline_rank() -> int:
    """This process's pipeline stage."""
    return parallel_state.get_pipeline_model_parallel_rank()


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
