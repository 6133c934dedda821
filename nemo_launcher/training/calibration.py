# SPDX-License-Identifier: Apache-2.0
"""Measurement of the cost of rows (runtime.row_costs): a few layers of the base, with adapters, on random tokens.

It takes seconds, once for each machine, model shape, method and dtype; the user's cache folder keeps the result.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import Base
from nemo_launcher.files.foreign import first_line
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.sizes import described_sizes
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.gpu_memory import gpu_size
from nemo_launcher.runtime.row_costs import FIXED, Calibration, RowCosts, cpu_name
from nemo_launcher.training.random_rows import cleared_gradients, random_row, run_rows
from nemo_launcher.training.row_memory import fitting_tokens

_LENGTHS = (16, 64, 256, 1024)  # tokens of the rows
_SAMPLE_TOKENS, _ANSWER_TOKENS = 16, 2
_LAYERS = 4  # of each stack, fewer in smaller models
_SECONDS = 6.0  # longer rows are not measured if they would take more time in all
_ROUNDS = 2  # the fastest counts
_WORTH_TOKENS = 250_000  # a shorter training would hardly gain the seconds that measuring takes


def calibrated_layout(base: Base, layout: Layout, method: str, tokens: float) -> Layout:
    """Return the layout with this machine's costs of rows, from the cache or measured now. All ranks must call this.

    method: the adapter method. tokens: those of all samples that will be trained; if there are few, nothing is
    measured on a CPU. If measuring fails, or an earlier process was killed by it, the fixed rules apply. On a GPU, the
    rows that fit are measured (training.row_memory). Nothing is measured in a model that is split over ranks, whose
    micro-batches run one after the other.
    """
    if base.device.type != "cpu":
        fitting = fitting_tokens(base)
        if fitting is not None:
            print(f"a row of about {fitting:,} tokens would fit into {gpu_size()}", flush=True)
        return layout.calibrated(replace(FIXED, fitting_tokens=fitting))
    if parallel.tensor_size() > 1 or parallel.pipeline_size() > 1:
        return layout
    found = ranks.broadcast_from_rank_zero(lambda: _costs(base, layout, method, tokens).as_dict())
    return layout.calibrated(RowCosts.from_dict(found) or FIXED)


def _costs(base: Base, layout: Layout, method: str, tokens: float) -> RowCosts:
    """Return the costs in the cache, or measure and store them if the training is long enough."""
    stacks = base.family.stacks(base.model, base.shape)
    wanted = Calibration(
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        model=f"{described_sizes({stack.name: stack.shape for stack in stacks})} {method}",
        dtype=str(base.dtype),
        torch=torch.__version__,
    )
    known = wanted.read()
    if known is not None:
        return known
    if tokens < _WORTH_TOKENS or not _is_typical(base):
        return FIXED
    if wanted.was_killed():
        print(f"an earlier measurement of the cost of rows was killed: {_RULES}", flush=True)
        return FIXED
    start = time.perf_counter()
    try:
        with wanted.in_progress():
            costs = measured_costs(base, layout)
    except Exception as error:  # training can do without it, whatever fails
        print(f"measuring the cost of rows failed ({first_line(error)}): {_RULES}", flush=True)
        return FIXED
    kept = _stored(wanted, costs)
    print(f"measured the cost of rows on this machine in {time.perf_counter() - start:.1f} s, {kept}", flush=True)
    return costs


def _is_typical(base: Base) -> bool:
    """Return whether the costs of this training's rows hold for others: gradients pass through all kinds of layers.

    With adapters in the last layer alone, or in a T5's decoder alone, they would be too low.
    """
    first = next(iter(base.family.stacks(base.model, base.shape)))
    below = list(first.layers)[:-1]
    return not below or any(_has_adapters(layer) for layer in below)


_RULES = "rows are cut by fixed rules this time"


def _stored(wanted: Calibration, costs: RowCosts) -> str:
    try:
        wanted.write(costs)
    except OSError as error:
        return f"but {wanted.path.parent} is not writable ({error.strerror or error})"
    except UserError as error:
        return f"but not kept: {first_line(error)}"
    return f"kept in {wanted.path}"


def measured_costs(base: Base, layout: Layout) -> RowCosts:
    """Return the measured costs of each possible concurrency of a layout, scaled to all layers of the base.

    Gradients of the adapters are cleared. Raises TimeoutError on a machine that is too busy to measure anything.
    """
    choices = {choice.threads: choice for choice in layout.possible()}
    seconds: dict[int, list[float]] = {threads: [] for threads in choices}
    parameters = [parameter for parameter in base.model.parameters() if parameter.requires_grad]
    start = time.perf_counter()
    with _few_layers(base) as factor, cleared_gradients(parameters):
        for place, length in enumerate(_LENGTHS):
            spent = time.perf_counter() - start
            if place > 1 and spent + _expected(seconds, place) / factor > _SECONDS:
                break
            if spent > _SECONDS:
                raise TimeoutError(f"one row took {spent:.0f} s: the machine is busy")
            for threads, choice in choices.items():
                seconds[threads].append(factor * _seconds_of_rows(base, length, choice))
    lengths = _LENGTHS[: min(map(len, seconds.values()))]
    return RowCosts(lengths, {threads: _ascending(row) for threads, row in seconds.items()})


def _expected(seconds: Mapping[int, Sequence[float]], place: int) -> float:
    """Return about how long it takes to measure the next length."""
    growth = _LENGTHS[place] / _LENGTHS[place - 1]
    return (_ROUNDS + 1) * growth * sum(row[-1] for row in seconds.values())


def _ascending(row: list[float]) -> tuple[float, ...]:
    """Return the seconds without those that noise made larger than the seconds of a longer row."""
    return tuple(min(row[place:]) for place in range(len(row)))


def _seconds_of_rows(base: Base, length: int, choice: Concurrency) -> float:
    """Return the seconds of one row of `length` tokens for each worker."""
    rows = [
        random_row(base, length, seed, sample_tokens=_SAMPLE_TOKENS, answer_tokens=_ANSWER_TOKENS)
        for seed in range(choice.workers)
    ]

    def seconds() -> float:
        start = time.perf_counter()
        run_rows(base, rows)
        return time.perf_counter() - start

    seconds()  # packs weights and compiles products
    return min(seconds() for _ in range(_ROUNDS))


@contextlib.contextmanager
def _few_layers(base: Base) -> Iterator[float]:
    """Leave only a few layers in each stack of the model; yield the ratio of all layers to these.

    They are the last layer, whose class may differ, and those with adapters before it. None of them recomputes: a
    training without recomputation uses the costs too.
    """
    recomputing: list[nn.Module] = []
    removed: list[tuple[nn.ModuleList, list[nn.Module]]] = []
    left = total = 0
    try:
        for stack in base.family.stacks(base.model, base.shape):
            layers = stack.layers
            assert isinstance(layers, nn.ModuleList)
            every = list(layers)
            removed.append((layers, every))
            trained = [layer for layer in every[:-1] if _has_adapters(layer)]
            kept = [*(trained or every[:-1])[-(_LAYERS - 1) :], every[-1]]
            _replace(layers, kept)
            recomputing += (layer for layer in kept if getattr(layer, "recomputes", False))
            left, total = left + len(kept), total + len(every)
        for layer in recomputing:
            layer.recomputes = False  # type: ignore[assignment]
        yield total / left
    finally:
        for layer in recomputing:
            layer.recomputes = True  # type: ignore[assignment]
        for layers, every in removed:
            _replace(layers, every)


def _has_adapters(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _replace(layers: nn.ModuleList, modules: list[nn.Module]) -> None:
    del layers[:]
    layers.extend(modules)
