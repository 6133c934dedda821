# SPDX-License-Identifier: Apache-2.0
"""Parallel sizes change nothing in an optimisation step: losses, gradients, weights are those of one process."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron.frozen_layer import FrozenLayer
from nemo_launcher.megatron.sizes import ParallelSizes
from nemo_launcher.training.step import forward_backward
from tests import oracle, t5
from tests.engine import tiny_gpt_nemo
from tests.methods import METHODS, with_setting
from tests.shared import shared_path
from tests.t5 import random_samples
from tests.world import TOLERANCE, Case, results_of, run_case, run_world

pytestmark = pytest.mark.integration

STACKS = [("encoder", "decoder"), ("decoder", "encoder")]


def assert_same(result: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Check that losses, gradients before and after clipping, and initial and final weights are equal."""
    for mine, theirs in zip(result["steps"], wanted["steps"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        torch.testing.assert_close(mine["gradients"], theirs["gradients"], **TOLERANCE)
        torch.testing.assert_close(mine["clipped"], theirs["clipped"], **TOLERANCE)
    for name in ("initial", "start", "end"):
        torch.testing.assert_close(
            result[name], wanted[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert result["validation"] == pytest.approx(wanted["validation"], rel=1e-5)
    assert result["numbers"] == wanted["numbers"]


alone = functools.cache(run_case)  # a case may be the single process of several worlds


class Steps:
    """Cases by name, run in one process and with several ranks."""

    def __init__(self, ranks: int, cases: dict[str, Case], folder: Path) -> None:
        self.cases = cases
        starts = [(case, self.single(name)["start"]) for name, case in cases.items()]
        self.results = results_of(ranks, starts, folder)

    def single(self, name: str) -> dict[str, Any]:
        return alone(self.cases[name].alone())

    def check(self, name: str) -> None:
        place = list(self.cases).index(name)
        for results in self.results:
            assert_same(results[place], self.single(name))


def cases_of_two(base_of: Callable[[str], Path]) -> dict[str, Case]:
    """Each method in each base, divided; stages and replicas are alike for all methods, so each has two bases."""
    cases = {}
    bases = {"gpt": "gpt", "gpt_llama": "gpt", "t5": "t5", "t5_hft5": "t5"}
    for number, method in enumerate(METHODS):
        for place, (base, family) in enumerate(bases.items()):
            cases[f"{base}-{method}-tp2"] = Case(base_of(base), family, method, tensor=2)
            name, pipeline = ("pp2", 2) if (place + number) % 2 else ("dp2", 1)
            cases[f"{base}-{method}-{name}"] = Case(base_of(base), family, method, pipeline=pipeline)
    gpt = base_of("gpt")
    for method in with_setting("adapter_dropout"):
        cases[f"dropout-{method}-tp2"] = Case(gpt, "gpt", method, tensor=2, tuning={"adapter_dropout": 0.3})
    for method in with_setting("dropout_position"):
        tuning = {"adapter_dropout": 0.3, "dropout_position": "pre"}
        cases[f"dropout-pre-{method}-tp2"] = Case(base_of("gpt_llama"), "gpt", method, tensor=2, tuning=tuning)
    for method in with_setting("norm_position"):
        cases[f"post-{method}-tp2"] = Case(gpt, "gpt", method, tensor=2, tuning={"norm_position": "post"})
    for method in METHODS:
        for base, family in {"gpt_llama": "gpt", "t5": "t5", "t5_hft5": "t5"}.items():
            name = f"sequence-{base}-{method}-tp2"
            cases[name] = Case(base_of(base), family, method, tensor=2, options={"sequence_parallel": True})
        for name, tensor in {"tp2": 2, "dp2": 1}.items():
            case = Case(base_of("gpt_llama"), "gpt", method, tensor, traversal="depth", micro_batch_size=1)
            cases[f"depth-{method}-{name}"] = case
    for method, layers, (stack, other) in zip(METHODS, cycle("01"), cycle(STACKS)):
        # the other pipeline stage has no adapters
        cases[f"layers-{layers}-gpt_llama-{method}-pp2"] = Case(
            base_of("gpt_llama"), "gpt", method, pipeline=2, tuning={"layers": layers}
        )
        cases[f"layers-{stack}-t5-{method}-pp2"] = Case(
            base_of("t5"), "t5", method, pipeline=2, tuning={"layers": {stack: "1", other: "none"}}
        )
        cases[f"layers-sequence-gpt_llama-{method}-tp2"] = Case(
            base_of("gpt_llama"), "gpt", method, 2, tuning={"layers": 1}, options={"sequence_parallel": True}
        )
    for size in (1, 8):
        cases[f"micro_batch_{size}-dp2"] = Case(gpt, "gpt", "parallel_adapter", micro_batch_size=size)
    return cases


def cases_of_four(base_of: Callable[[str], Path]) -> dict[str, Case]:
    cases = {}
    families = cycle([("gpt_llama", "gpt"), ("t5_hft5", "t5")])
    for method, (stack, other) in zip(METHODS, cycle(STACKS)):
        for name, sizes in {"tp2dp2": (2, 1), "tp2pp2": (2, 2), "pp2dp2": (1, 2)}.items():
            base, family = next(families)
            cases[f"{base}-{method}-{name}"] = Case(base_of(base), family, method, *sizes)
        sequence = {"sequence_parallel": True}
        cases[f"sequence-gpt-{method}-tp4"] = Case(base_of("gpt"), "gpt", method, tensor=4, options=sequence)
        cases[f"sequence-t5-{method}-tp2pp2"] = Case(base_of("t5"), "t5", method, 2, 2, options=sequence)
        cases[f"t5-{method}-pp4"] = Case(base_of("t5"), "t5", method, pipeline=4, options={"split_rank": 2})
        # one of four stages has adapters
        tuning = {"layers": {stack: "1", other: "none"}}
        options = {"split_rank": 2}
        cases[f"layers-{stack}-t5-{method}-pp4"] = Case(
            base_of("t5"), "t5", method, pipeline=4, tuning=tuning, options=options
        )
        cases[f"layers-gpt_llama-{method}-tp2pp2"] = Case(
            base_of("gpt_llama"), "gpt", method, 2, 2, tuning={"layers": "1"}
        )
    return cases


def base_of(folder: Path, name: str) -> Path:
    """Return NVIDIA's base with this name, or one of our own if it does not exist."""
    with contextlib.suppress(pytest.skip.Exception):
        return shared_path(f"oracle/base_{name}.nemo")
    path = folder / f"base_{name}.nemo"
    if not path.exists():
        changes = {"num_decoder_layers": 2, "num_heads": 4, "tied": name == "t5"}
        t5.tiny_base(path, **changes) if name.startswith("t5") else tiny_gpt_nemo(path)
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def steps_of_two(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    return Steps(2, cases_of_two(partial(base_of, bases)), tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def steps_of_four(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    return Steps(4, cases_of_four(partial(base_of, bases)), tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("name", cases_of_two(Path))
def test_steps_of_two_ranks(name: str, steps_of_two: Steps) -> None:
    steps_of_two.check(name)


@pytest.mark.parametrize("name", cases_of_four(Path))
def test_steps_of_four_ranks(name: str, steps_of_four: Steps) -> None:
    steps_of_four.check(name)


def record_modes(folder: Path, case: Case, start: dict[str, Any]) -> None:
    """Save whether gradients were enabled in the layers of this rank."""
    modes, compute = [], FrozenLayer.compute

    def recording(layer: FrozenLayer, *args: Any, **kwargs: Any) -> Any:
        modes.append(torch.is_grad_enabled())
        return compute(layer, *args, **kwargs)

    FrozenLayer.compute = recording  # type: ignore[method-assign]
    base = load_base(case.base, sizes=ParallelSizes(case.tensor, case.pipeline, **case.options))
    adapters = AdapterSet(base.model, base.shape, case.config)
    adapters.load_state_dict(start, "start")
    batch = Collate(Layout.one_after_the_other(2), False, pack=base.family.pack)(random_samples(4))
    forward_backward(base.model, batch, backward=True)
    torch.save(sorted(set(modes)), folder / f"modes_{torch.distributed.get_rank()}.pt")


def test_stages_below_the_first_adapter_run_without_gradients(bases: Path, tmp_path: Path) -> None:
    """Also those that receive hidden states from another stage: the decoder's first layer is the third stage."""
    tuning = {"layers": {"encoder": "none", "decoder": "1"}}
    case = Case(base_of(bases, "t5"), "t5", "ia3", pipeline=4, tuning=tuning, options={"split_rank": 2})
    jobs = run_world(4, record_modes, (tmp_path, case, alone(case.alone())["start"]), tmp_path)
    assert all(job.status == 0 for job in jobs), "\n".join(job.output for job in jobs)
    modes = [torch.load(tmp_path / f"modes_{rank}.pt", weights_only=True) for rank in range(4)]
    assert modes == [[False], [False], [False], [True]]


def test_the_comparison_can_fail(steps_of_two: Steps) -> None:
    """The gradient of another micro-batch is not close enough."""
    first, second = steps_of_two.single("gpt-ia3-tp2")["steps"]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(first["gradients"], second["gradients"], **TOLERANCE)


def test_archives_that_nemo_wrote_at_tensor_parallel_2(tmp_path: Path) -> None:
    """A base and adapters of NeMo at the parallel sizes of its archives."""
    cases = {}
    for kind, method in oracle.KINDS.items():
        for family in ("gpt", "t5"):
            base, adapter = (shared_path(f"oracle/{name}_{family}_tp2.nemo") for name in ("base", kind))
            cases[f"{kind}_{family}"] = Case(base, family, method, tensor=2, tuning={"adapter_dim": 8}, adapter=adapter)
    steps = Steps(2, cases, tmp_path)
    for name in cases:
        steps.check(name)
