# SPDX-License-Identifier: Apache-2.0
"""Several ranks for tests: groups of processes, and optimizer steps that must not depend on parallel sizes."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.config.traversal import Traversal
from nemo_launcher.data.batching import Collate
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.sizes import ParallelSizes
from nemo_launcher.training.step import forward_backward
from tests.engine import random_tree, randomize
from tests.jobs import HUNG_SECONDS, SCRIPTS, Job, _script, begun, ended, write_config
from tests.methods import model_section
from tests.t5 import random_samples

TOLERANCE = {"rtol": 0, "atol": 1e-5}
"""Between the numbers of several ranks and those of one process."""
LEARNING_RATE = 1e-3  # Adam amplifies differences of small gradients to this size


def run_world(ranks: int, function: Callable[..., None], args: tuple, folder: Path) -> list[Job]:
    """Call a module's function in `ranks` processes that form one job, like torchrun.

    They are forked from the server of tests.jobs.run_process. Processes still running after HUNG_SECONDS are killed,
    which their output reports.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"rank_{rank}.log" for rank in range(ranks)]
    with reserved_port() as port:
        started = [begun(_rank, (rank, ranks, port, function, args), log) for rank, log in enumerate(logs)]
        deadline = time.monotonic() + HUNG_SECONDS
        return [ended(process, log, deadline) for process, log in zip(started, logs, strict=True)]


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port of this machine that only a process told of it takes.

    It is bound, not listened on: a listener that reuses addresses, as torch's store does, may bind it too. The system
    gives it to no one else meanwhile, such as another world that starts at the same time.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


def _rank(rank: int, ranks: int, port: int, function: Callable[..., None], args: tuple) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    function(*args)


def run_job(
    ranks: int, name: str, config: Any, folder: Path, before: Callable[..., None] | None = None, *args: Any
) -> list[Job]:
    """Run `launcher_scripts/<name>.py` on several ranks; before: called first in each, with `args`."""
    path = write_config(folder / f"{name}_hydra.yaml", config)
    return run_world(ranks, _script, (str(SCRIPTS / f"{name}.py"), str(path), before, args), folder)


# --- optimisation steps -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A few optimizer steps at given parallel sizes.

    method: a `type` or ia3; batches: samples in each step; tuning: changes of `adapter_tuning`; options: of
    ParallelSizes; adapter: an archive to start from; traversal: how trees of common prefixes are executed.
    """

    base: Path
    family: str
    method: str
    tensor: int = 1
    pipeline: int = 1
    micro_batch_size: int = 2
    batches: tuple[int, ...] = (5, 1)
    tuning: Mapping[str, Any] = field(default_factory=dict, hash=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    adapter: Path | None = None
    traversal: Traversal = "breadth"

    def alone(self) -> Case:
        """The same steps in one process, where all branches of a tree run at once."""
        return replace(self, tensor=1, pipeline=1, options={}, traversal="breadth")

    @property
    def config(self) -> dict[str, Any]:
        """The `model` section."""
        return model_section(self.method, **self.tuning)

    def samples(self, vocab_size: int) -> list[Any]:
        """The samples of all steps."""
        count = sum(self.batches)
        return random_tree(3, vocab_size, count) if self.family == "gpt" else random_samples(count, seed=3)


def run_case(case: Case, start: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the complete results of the steps: losses, gradients and their norms, adapter before and after.

    start: complete initial adapter weights; None: those of the archive, or random ones (in one process).
    """
    base = load_base(case.base, sizes=ParallelSizes(case.tensor, case.pipeline, **case.options))
    adapters = AdapterSet(base.model, base.shape, case.config)
    initial = copied(adapters.state_dict())
    if case.adapter is not None:
        start = read_adapter(case.adapter)[1]
    if start is None:
        randomize(adapters)
    else:
        adapters.load_state_dict(start, "start")
    adapters.train()
    result: dict[str, Any] = {"initial": initial, "start": copied(adapters.state_dict()), "steps": []}
    optimizer = torch.optim.AdamW([{"params": adapters.parameters()}], LEARNING_RATE, weight_decay=0.01)
    share = base.family.shares_prefixes
    ranks = parallel.data_rank(), parallel.data_size()
    collate = Collate(
        Layout.one_after_the_other(case.micro_batch_size),
        share,
        *ranks,
        pack=base.family.pack,
        keep_groups=case.traversal == "depth",
        traversal=case.traversal,
        pack_rows=base.family.pack_rows,
    )
    samples = case.samples(base.tokenizer.vocab_size)
    for number, size in enumerate(case.batches):
        batch, samples = collate(samples[:size]), samples[size:]
        optimizer.zero_grad()
        torch.manual_seed(number)
        loss = forward_backward(base.model, batch, backward=True)
        adapters.sum_gradients()
        step = {"loss": float(loss), "gradients": whole_gradients(adapters)}
        adapters.clip_gradients(0.05)
        step["clipped"] = whole_gradients(adapters)
        result["steps"].append(step)
        optimizer.step()
    with torch.no_grad():
        result["validation"] = float(forward_backward(base.model, collate(case.samples(50)[:3]), backward=False))
    return result | {"end": copied(adapters.state_dict()), "numbers": adapters.num_parameters()}


def copied(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {key: {name: tensor.clone() for name, tensor in tensors.items()} for key, tensors in state.items()}


def whole_gradients(adapters: AdapterSet) -> dict[str, dict[str, Tensor]]:
    own = {
        key: {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in adapter.named_parameters()}
        for key, adapter in adapters.adapters.items()
    }
    return copied(parallel.merge_stages(adapters.gather(own)))


def run_cases(folder: Path, cases: list[Case]) -> None:
    """Run the cases in sequence on several ranks, from the starts in `folder`; each rank saves its results there."""
    results = []
    starts = torch.load(folder / "starts.pt", weights_only=True)
    for case, start in zip(cases, starts, strict=True):
        results.append(run_case(case, start))
        destroy_groups()
    torch.save(results, folder / f"results_{torch.distributed.get_rank()}.pt")


def destroy_groups() -> None:
    """Destroy Megatron-core's process groups, so that the next case may have other sizes.

    parallel_state only forgets most of them; each Gloo group would keep a thread that wakes up a hundred times a
    second.
    """
    groups = [group for group in parallel_state._global_process_group_list or [] if group is not None]
    parallel_state.destroy_model_parallel()
    for group in groups:
        with contextlib.suppress(ValueError):  # parallel_state has destroyed it already
            torch.distributed.destroy_process_group(group)


def results_of(ranks: int, cases: Sequence[tuple[Case, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """Run cases on `ranks` processes, each from its start; return the results of each rank."""
    torch.save([start for _, start in cases], folder / "starts.pt")
    jobs = run_world(ranks, run_cases, (folder, [case for case, _ in cases]), folder)
    assert all(job.status == 0 for job in jobs), "\n".join(f"status {job.status}: {job.output}" for job in jobs)
    return [torch.load(folder / f"results_{rank}.pt", weights_only=True) for rank in range(ranks)]
