# SPDX-License-Identifier: Apache-2.0
"""Process groups of torch.distributed and Megatron-core, for one or more processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import initialize_rng_tracker

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.megatron.cpu_megatron import patch_megatron_for_cpu
from nemo_launcher.megatron.single_group import share_world_group
from nemo_launcher.megatron.sizes import ParallelSizes
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.gpus import gpu_number

Key = TypeVar("Key")
Value = TypeVar("Value")


def initialize(sizes: ParallelSizes) -> torch.device:
    """Create the process groups once and return this process's device.

    Raises UserError if the sizes do not divide the number of processes, or if the existing groups have other sizes.
    """
    device = local_device()
    ranks.init_process_group()
    sizes.check(dist.get_world_size())
    if not parallel_state.model_parallel_is_initialized():
        ranks.barrier()  # otherwise each group would wait up to half an hour for a rank that has ended
        with share_world_group():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=sizes.tensor, pipeline_model_parallel_size=sizes.pipeline
            )
        # Tensor-parallel ranks need no separate random states: only adapters draw, the same on all ranks.
        initialize_rng_tracker(inference_rng_tracker=True)
        if device.type == "cpu" and sizes.tensor * sizes.pipeline > 1:
            patch_megatron_for_cpu()
    made, asked = (tensor_size(), pipeline_size()), (sizes.tensor, sizes.pipeline)
    if made != asked or dist.get_world_size() != tensor_size() * pipeline_size() * data_size():
        what = f"(tensor, pipeline) parallel groups of {made} with {data_size()} replicas exist, not {asked}"
        raise UserError(Problem("tensor_model_parallel_size", what, "load models of other sizes in another process"))
    return device


def check_world(devices: int, num_nodes: int) -> None:
    """Raise UserError unless the `trainer` section's number of processes was started."""
    started = ranks.world_size()
    if started != devices * num_nodes:
        what = f"{devices} devices on {num_nodes} node(s) need {devices * num_nodes} processes; {started} were started"
        raise UserError(Problem("trainer.devices", what, "start the job through its _submission.sh, or change devices"))


def tensor_rank() -> int:
    """Return this process's tensor-parallel rank."""
    return int(parallel_state.get_tensor_model_parallel_rank())


def tensor_size() -> int:
    """Return the number of tensor-parallel ranks."""
    return int(parallel_state.get_tensor_model_parallel_world_size())


def tensor_part(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """Return a copy of this tensor-parallel rank's part of a complete tensor.

    Raises UserError if the ranks cannot split the dimension evenly.
    """
    size, ranks = tensor.size(dimension), tensor_size()
    if size % ranks:
        what = f"{ranks} does not divide a dimension of {size} (adapter_dim, heads or feed-forward size)"
        raise UserError(Problem("tensor_model_parallel_size", what))
    return tensor.narrow(dimension, tensor_rank() * (size // ranks), size // ranks).clone()


def gather_tensor_parts(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """Return the complete tensor, gathered from all tensor-parallel ranks, which must all call this."""
    if tensor_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(tensor_size())]
    dist.all_gather(parts, tensor.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dimension)


def sum_over_tensor_parts(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over the tensor-parallel ranks, which must all call this."""
    value = value.to(local_device())
    if tensor_size() > 1:
        dist.all_reduce(value, group=parallel_state.get_tensor_model_parallel_group())
    return value


def sum_over_all(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over replicas and pipeline stages of a value that is equal on tensor-parallel ranks."""
    if data_size() > 1:
        dist.all_reduce(value, group=parallel_state.get_data_parallel_group())
    if pipeline_size() > 1:
        dist.all_reduce(value, group=parallel_state.get_pipeline_model_parallel_group())
    return value


def all_reduce_max(number: int) -> int:
    """Return the maximum over all ranks."""
    if dist.get_world_size() == 1:
        return number
    value = torch.tensor(number, device=local_device())
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)


def sum_over_model(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over the ranks of one model replica (tensor and pipeline parallel)."""
    value = value.to(local_device())
    if tensor_size() * pipeline_size() > 1:
        dist.all_reduce(value, group=parallel_state.get_model_parallel_group())
    return value


def sum_over_replicas(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum gradients over the model replicas, in place; a missing gradient counts as zero."""
    _sum_gradients(parameters, parallel_state.get_data_parallel_group())


def sum_over_tensor_ranks(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum gradients over the tensor-parallel ranks, in place; a missing gradient counts as zero."""
    _sum_gradients(parameters, parallel_state.get_tensor_model_parallel_group())


def _sum_gradients(parameters: Sequence[torch.nn.Parameter], group: dist.ProcessGroup) -> None:
    if group.size() == 1 or not parameters:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat, group=group)
    for parameter, grad in zip(parameters, flat.split([grad.numel() for grad in grads]), strict=True):
        parameter.grad = grad.view_as(parameter)


def total_norm(split: Sequence[torch.Tensor], replicated: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of a gradient over all ranks, [].

    split: tensors that tensor-parallel ranks split; replicated: tensors that are equal on all of them. A pipeline stage
    without adapters has neither.
    """
    gradients = [*split, *replicated]
    device = gradients[0].device if gradients else local_device()
    squares = torch.stack([_sum_of_squares(split, device), _sum_of_squares(replicated, device)])
    if tensor_size() > 1:
        dist.all_reduce(squares[0], group=parallel_state.get_tensor_model_parallel_group())
    total = squares.sum()
    if pipeline_size() > 1:
        dist.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
    return total.sqrt()


def _sum_of_squares(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    if not tensors:
        return torch.zeros((), device=device)
    return torch.nn.utils.get_total_norm(tensors).square()


def pipeline_size() -> int:
    """Return the number of pipeline stages."""
    return int(parallel_state.get_pipeline_model_parallel_world_size())


def pipeline_rank() -> int:
    """Return this process's pipeline stage."""
    return int(parallel_state.get_pipeline_model_parallel_rank())


def merge_stages(state: Mapping[Key, Value]) -> dict[Key, Value]:
    """Return the union of the pipeline stages' dictionaries; all stages must call this.

    Tensors must be in main memory (AdapterSet.gather), since they are pickled.
    """
    return _merged(state, parallel_state.get_pipeline_model_parallel_group())


def merge_replicas(state: dict[Key, Value]) -> dict[Key, Value]:
    """Return the union of the model replicas' dictionaries; all ranks must call this.

    Replicas that answer a share of the questions each may end hours apart.
    """
    ranks.barrier()
    return _merged(state, parallel_state.get_data_parallel_group())


def _merged(state: Mapping[Key, Value], group: dist.ProcessGroup) -> dict[Key, Value]:
    if group.size() == 1:
        return dict(state)
    states: list[dict[Key, Value]] = [{} for _ in range(group.size())]
    dist.all_gather_object(states, state, group=group)
    return {key: value for part in states for key, value in part.items()}


def data_rank() -> int:
    """Return this process's rank among the model replicas."""
    return int(parallel_state.get_data_parallel_rank())


def data_size() -> int:
    """Return the number of model replicas."""
    return int(parallel_state.get_data_parallel_world_size())


def is_first_stage() -> bool:
    """Return whether this process holds the embedding."""
    return bool(parallel_state.is_pipeline_first_stage())


def is_last_stage() -> bool:
    """Return whether this process holds the head."""
    return bool(parallel_state.is_pipeline_last_stage())


def local_device() -> torch.device:
    """Return this process's device: its GPU, if there is one and the job may use it.

    Raises UserError if the node has fewer GPUs than processes.
    """
    if not ranks.uses_gpu():
        return torch.device("cpu")
    device = torch.device("cuda", gpu_number())
    torch.cuda.set_device(device)
    return device
