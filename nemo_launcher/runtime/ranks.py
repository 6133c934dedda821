# SPDX-License-Identifier: Apache-2.0
"""The processes of one job: process-group setup and rank-0 output.

Every process learns its rank from the environment that torchrun, srun and bcprun set (RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR, MASTER_PORT); without it there is one process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import parse_json
from nemo_launcher.runtime import gpus
from nemo_launcher.runtime.gpu_devices import has_gpu

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

# Gloo raises a plain RuntimeError with these texts; NCCL and the store have their own error types.
_LOST = re.compile(
    r"gloo/transport.*(closed by peer|reset by peer|Broken pipe|Connection refused|Socket closed|Read error)", re.S
)
LEAVE_SECONDS = 5  # torchrun, srun and Kubernetes end the ranks that wait for one that has failed
PATIENCE = timedelta(days=7)
"""How long ranks wait for each other where one may take much longer: longer than any job.

Gloo notices at once that a rank has ended. NCCL does not, so that its own limit of minutes stays.
"""
Value = TypeVar("Value")
_local_first_calls = itertools.count()  # calls of local_rank_zero_first
_decisions = itertools.count()
_may_use_gpu = True
_store: Store | None = None  # torch.distributed's key-value store; None for a single process
_patient: ProcessGroup | None = None  # all ranks, on Gloo, with PATIENCE


def rank() -> int:
    """Return this process's global rank."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes in the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def init_process_group() -> None:
    """Create torch.distributed's process group once: NCCL for GPU tensors, Gloo for CPU tensors."""
    global _store, _patient
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if uses_gpu() else "gloo"
    if world_size() == 1:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")  # Lightning reads them
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return

    def rendezvous() -> tuple[Store, ProcessGroup]:
        store: Store
        store, number, size = next(iter(dist.rendezvous("env://")))
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=number, world_size=size)
        return store, dist.new_group(backend="gloo", timeout=PATIENCE)

    _store, _patient = _interruptible(rendezvous)


def _interruptible(wait: Callable[[], Value]) -> Value:
    """Return the result of `wait`, run in a thread: Python handles no signal while torch waits."""
    outcome: Future[Value] = Future()

    def run() -> None:
        try:
            outcome.set_result(wait())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="waiting for ranks", daemon=True).start()
    return outcome.result()


def use_accelerator(name: str, where: str = "trainer.accelerator", fix: str = "trainer.accelerator=cpu") -> None:
    """Let this process compute on an accelerator: gpu, cuda, cpu or auto.

    where: the key that names it; fix: how to choose the CPU. Raises UserError if a GPU is requested and torch can use
    none, or none that is this process's own. A GPU that `auto` cannot use is told on standard error.
    """
    global _may_use_gpu
    _may_use_gpu = name != "cpu"
    if uses_gpu():
        gpus.check_gpu()
    elif name in ("gpu", "cuda"):
        what, mend = gpus.none_usable()
        raise UserError(Problem(where, f"is {name}, but {what}", f"{mend}, or {fix}" if mend else fix))
    elif _may_use_gpu and rank() == 0 and has_gpu():
        print(f"computing on the CPU: {' ('.join(filter(None, gpus.none_usable()))})", file=sys.stderr, flush=True)


def uses_gpu() -> bool:
    """Return whether this process computes on a GPU: one is available, and trainer.accelerator is not cpu."""
    import torch

    return _may_use_gpu and torch.cuda.is_available()


def mute_nonzero_ranks() -> None:
    """Silence standard output except on rank 0, and create the process group so that errors are printed once."""
    if world_size() == 1:
        return
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open as long as the process lives)
    # Read at torch's import: hides its stack traces when a connection ends.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    init_process_group()


def is_first_report(message: str, *, without_store: bool = False) -> bool:
    """Return whether this rank is the first to report an error, which is printed once.

    without_store: the result if the store has ended with rank 0, which reports its own error unless it was killed.
    """
    if _store is None:
        return True
    try:
        return bool(_store.add(f"said/{message}", 1) == 1)
    except RuntimeError:
        return without_store


def leave_together() -> None:
    """Let rank 0, which holds the store, outlive the others, for LEAVE_SECONDS at most.

    Each rank calls it before it ends because of a mistake that the others find as well. One of them may be behind, and
    still has to read from the store what rank 0 decided: with the store gone, it would only report a lost rank.
    """
    if _store is None:
        return
    with contextlib.suppress(RuntimeError):  # rank 0 has ended, or another rank has not in that time
        if rank() > 0:
            _store.set(f"left/{rank()}", "")
        else:
            others = [f"left/{number}" for number in range(1, world_size())]
            _interruptible(lambda: _store.wait(others, timedelta(seconds=LEAVE_SECONDS)))


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error means only that another rank has ended and its connection was lost."""
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or _LOST.search(str(error)) is not None


@contextlib.contextmanager
def local_rank_zero_first() -> Iterator[None]:
    """Run the body in local rank 0 of each node first; the others wait until it ends, even by an exception.

    All ranks must call this equally often.
    """
    if _store is None:
        yield
        return
    done = f"done/{next(_local_first_calls)}/{platform.node()}"
    leads = int(os.environ.get("LOCAL_RANK", "0")) == 0
    # RuntimeError: the store has ended with rank 0, or local rank 0 takes too long; the other ranks go on.
    if not leads:
        with contextlib.suppress(RuntimeError):
            _interruptible(lambda: _store.wait([done], timedelta(hours=1)))
    try:
        yield
    finally:
        if leads:
            with contextlib.suppress(RuntimeError):
                _store.set(done, "")


def decide_on_rank_zero(decide: Callable[[], Value]) -> Value:
    """Return on every rank the result of `decide` on rank 0, a JSON object.

    All ranks must call this equally often. A UserError on rank 0 is raised on all ranks.
    """
    if _store is None:
        return decide()
    key = f"decided/{next(_decisions)}"
    if rank() == 0:
        try:
            answer: dict[str, Any] = {"value": decide()}
        except UserError as error:
            answer = {"problems": [[problem.where, problem.what, problem.fix] for problem in error.problems]}
        _store.set(key, json.dumps(answer))
    else:
        _interruptible(lambda: _store.wait([key], PATIENCE))
        answer = parse_json(_store.get(key), "rank 0")
    if "problems" in answer:
        raise UserError([Problem(*problem) for problem in answer["problems"]])
    value: Value = answer["value"]
    return value


def barrier() -> None:
    """Wait for all ranks, however long; raise an error as soon as one of them has ended (is_lost_connection)."""
    if _store is None:
        return
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.zeros(()), group=_patient)


def gather_objects(value: Value) -> list[tuple[str, Value]]:
    """Return the values of all ranks in rank order, each with its node's name; all ranks must call this.

    Tensors must be in main memory: each rank would rebuild those of a GPU on that GPU.
    """
    mine = (platform.node(), value)
    if _store is None:
        return [mine]
    import torch.distributed as dist

    all_values: list[tuple[str, Value] | None] = [None] * world_size()
    dist.all_gather_object(all_values, mine, group=_patient)
    return [found for found in all_values if found is not None]


def broadcast_from_rank_zero(make: Callable[[], Value]) -> Value:
    """Return on every rank the result of `make` on rank 0, tensors on the CPU; all ranks must call this."""
    if _store is None:
        return make()
    import torch.distributed as dist

    values: list[Value | None] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(values, src=0, group=_patient)
    (value,) = values
    assert value is not None
    return value


def destroy_process_group() -> None:
    """Wait for all ranks, then destroy the process groups."""
    import torch.distributed as dist

    if _store is not None:
        barrier()
        dist.destroy_process_group()
