# SPDX-License-Identifier: Apache-2.0
"""Micro-batches that do not fit into a GPU's memory, which an error at a chosen place stands for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_launcher.data.batching import Collate, CollateNumbered, GlobalBatch
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.row_tree import RowForest
from nemo_launcher.data.samples import Batch, Sample
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.runtime.row_costs import FIXED, RowCosts
from nemo_launcher.training import depth_first, step
from nemo_launcher.training import fitting as fitting_module
from nemo_launcher.training.fitting import DoesNotFitError, Fitting, fits
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.step import forward_backward
from tests import t5
from tests.engine import adapted, named_gradients
from tests.jobs import job_config
from tests.methods import model_section
from tests.training.models import Recorder, make_model
from tests.training.test_choice_loss import gpt_choices
from tests.training.trees import branches

pytestmark = pytest.mark.unit

Rule = Callable[[Batch, int], bool]
"""Whether a row does not fit, by the row and the number of rows before it."""


class Limited:
    """Raises torch's error instead of computing a row that does not fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Rule, error: type[Exception] | None = None) -> None:
        self.failures, self.sizes, self.fails = 0, list[int](), fails
        self.error = torch.OutOfMemoryError if error is None else error
        for module, name in ((step, "run_model"), (depth_first, "run_row")):
            monkeypatch.setattr(module, name, self._limited(getattr(module, name)))

    def _limited(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(model: Any, row: Batch, *more: Any) -> Tensor:
            self.sizes.append(row.num_computed_tokens)
            if self.fails(row, len(self.sizes) - 1):
                self.failures += 1
                raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
            return function(model, row, *more)

        return run


def larger_than(tokens: int) -> Rule:
    return lambda row, _: row.num_computed_tokens > tokens


def at(*numbers: int) -> Rule:
    return lambda _, before: before in numbers


def collated(
    base: Base, samples: Sequence[Sample], size: int, *, share: bool = False, traversal: Any = "breadth"
) -> tuple[GlobalBatch, Fitting]:
    cut = Collate(
        Layout.one_after_the_other(size),
        share,
        pack=base.family.pack,
        keep_groups=share,
        traversal=traversal,
        pack_rows=base.family.pack_rows,
    )
    collate = CollateNumbered(cut)
    return collate(list(enumerate(samples))), Fitting(samples, collate)


def result(base: Base, adapters: Any, batch: GlobalBatch, **options: Any) -> tuple[float, dict[str, Tensor]]:
    for parameter in adapters.parameters():
        parameter.grad = None
    loss = forward_backward(base.model, batch, backward=True, seed=3, **options)
    return float(loss), named_gradients(adapters)


def assert_equal(found: tuple[float, dict[str, Tensor]], wanted: tuple[float, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=5e-6)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {"share": True},
    "depth": {"share": True, "traversal": "depth"},
}


@pytest.mark.parametrize("fails", [at(0), at(1), at(0, 1), larger_than(45)], ids=["1st", "2nd", "twice", "size"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_without_the_failure(
    case: str, fails: Rule, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base, adapters = adapted(tiny_base, model_section("parallel_adapter"))
    samples = branches(16, prefix=20, own=12)
    batch, fitting = collated(base, samples, 5, **CASES[case])
    assert any(isinstance(micro, RowForest) for micro in batch.micro_batches) == (case == "depth")
    wanted = result(base, adapters, batch)
    with monkeypatch.context() as patch:
        limited = Limited(patch, fails)
        found = result(base, adapters, batch, fitting=fitting)
        assert limited.failures > 0
        failures, told = limited.failures, capfd.readouterr().err
        assert told.count("\n") == 1
        assert "micro-batches have at most" in told
        assert "model.micro_batch_size" in told
        assert_equal(found, wanted)

        assert_equal(result(base, adapters, batch, fitting=fitting), wanted)  # a later step
        assert limited.failures == failures
        assert capfd.readouterr().err == ""
    kept = fitting.kept(RowCosts(fitting_tokens=10**6)).fitting_tokens
    assert kept is not None
    assert 0 < kept < 10**6  # a training that resumes begins with rows that fit
    assert fitting.kept(FIXED) == FIXED
    unfailed = collated(base, samples, 5)[1]
    assert unfailed.kept(RowCosts(fitting_tokens=7)).fitting_tokens == 7


@pytest.fixture(scope="module")
def t5_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5.tiny_base(tmp_path_factory.mktemp("t5") / "base.nemo")


def test_a_t5_is_cut_too(t5_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapters = adapted(t5_base, model_section("ia3"))
    batch, fitting = collated(base, t5.random_samples(6), 6)
    wanted = result(base, adapters, batch)
    limited = Limited(monkeypatch, larger_than(batch.computed_tokens // 2))
    assert_equal(result(base, adapters, batch, fitting=fitting), wanted)
    assert limited.failures


@pytest.mark.parametrize("share", [False, True])
def test_answer_choices_stay_with_their_record(share: bool, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapters = adapted(tiny_base, model_section("ia3"))
    batch, fitting = collated(base, gpt_choices(5), 5, share=share)
    loss = TrainingLoss(unlikelihood=True, length_norm=True)
    wanted = result(base, adapters, batch, loss=loss)
    limited = Limited(monkeypatch, at(0, 2))
    assert_equal(result(base, adapters, batch, loss=loss, fitting=fitting), wanted)
    assert limited.failures == 2


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA driver error: out of memory",
    ],
)
def test_the_libraries_of_a_gpu_have_errors_of_their_own(text: str) -> None:
    with pytest.raises(DoesNotFitError) as caught, fits(2):
        raise RuntimeError(text)
    assert caught.value.index == 2


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="device-side assert"), fits(0):
        raise RuntimeError("CUDA error: device-side assert triggered")


def test_the_memory_of_the_failed_attempt_is_freed_first(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapters = adapted(tiny_base, model_section("ia3"))
    batch, fitting = collated(base, branches(4), 4)
    tensor = torch.zeros(3)
    held = weakref.ref(tensor)
    states: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: states.append(held() is None))
    run = step.run_model

    def holds(model: Any, row: Batch, activations: Tensor | None = None) -> Tensor:
        if activations is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(model, row)

    waiting = [tensor]
    del tensor
    monkeypatch.setattr(step, "run_model", lambda model, row: holds(model, row, waiting.pop() if waiting else None))
    result(base, adapters, batch, fitting=fitting)
    assert states == [True]


def test_a_single_sample_that_does_not_fit_is_named(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapters = adapted(tiny_base, model_section("ia3"))
    long = replace(branches(1, prefix=90)[0], source="data.jsonl:7")
    batch, fitting = collated(base, [*branches(3, prefix=8), long], 4)
    Limited(monkeypatch, larger_than(60))
    with pytest.raises(UserError) as caught:
        result(base, adapters, batch, fitting=fitting)
    (problem,) = caught.value.problems
    assert problem.where == "data.jsonl:7"
    assert problem.what.startswith(f"a sample of {long.num_input_tokens} tokens does not fit")
    for key in ("max_seq_length", "activations_checkpoint_granularity=full", "trainer.precision"):
        assert key in problem.fix
    assert all(parameter.grad is None for parameter in adapters.parameters())


@pytest.mark.parametrize("reason", ["nemo_compat", "tensor"])
def test_micro_batches_that_must_stay_are_not_cut(
    reason: str, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = adapted(tiny_base, model_section("ia3"))
    samples = branches(4)
    batch, _ = collated(base, samples, 4)
    collate = CollateNumbered(Collate(Layout.one_after_the_other(4), False, pack=base.family.pack))
    fitting = Fitting(samples, collate, may_cut=reason != "nemo_compat")
    Limited(monkeypatch, at(0))
    if reason == "tensor":
        monkeypatch.setattr(fitting_module.parallel, "tensor_size", lambda: 2)
    with pytest.raises(UserError, match=r"a micro-batch of 4 samples does not fit .* is not cut") as caught:
        fitting.run(lambda cut: step.run_side_by_side(base.model, cut, loss_of, backward=True, seed=0), batch)
    assert caught.value.problems[0].where == "model.micro_batch_size"


def loss_of(logits: Tensor, micro: Batch) -> Tensor:
    return logits.sum()


def test_a_training_goes_on_with_the_loss_of_one_that_fits(
    tiny_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of steps and of validations, with batches from worker processes."""
    base = load_base(tiny_base)
    losses = []
    for number, limit in enumerate((10**6, 25)):
        changes = {"trainer.max_epochs": 2, "model.data.num_workers": 1, "model.data.layout": "fixed"}
        config = job_config(tiny_base, data, tmp_path / str(number), changes)
        recorder = Recorder()
        samples = list(branches(12, prefix=9, own=12))
        model, trainer = make_model(config, base, samples, samples[:4], [recorder])
        with monkeypatch.context() as patch:
            limited = Limited(patch, larger_than(limit))
            trainer.fit(model)
        model.adapters.detach()
        losses.append([*recorder.losses, *recorder.val_losses])
        assert (limited.failures > 0) == (number == 1)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
