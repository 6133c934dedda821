# SPDX-License-Identifier: Apache-2.0
"""Measuring the cost of rows changes nothing but the layout of batches, and never stops a training."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.data.batching import Collate
from nemo_launcher.data.layout import Concurrency, Layout
from nemo_launcher.families.base import Base
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.megatron.frozen_layer import recompute_layers
from nemo_launcher.runtime.row_costs import FIXED, RowCosts, cache_folder
from nemo_launcher.training import calibration, random_rows
from nemo_launcher.training.base_setup import tokens_to_train
from nemo_launcher.training.calibration import _ascending, _few_layers, calibrated_layout, measured_costs
from tests import t5
from tests.data.batches import paragraphs
from tests.engine import adapted, gradients_of, random_tree, tiny_gpt_nemo
from tests.methods import METHODS, model_section

pytestmark = pytest.mark.unit

LAYOUT = Layout((Concurrency(2, 4, 1),), row_tokens=512)
MEASURED = RowCosts((16, 64), {1: (0.001, 0.002), 2: (0.001, 0.0015)})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def base(tiny_base: Path) -> Base:
    return adapted(tiny_base, model_section("ia3"))[0]


@pytest.mark.parametrize("name", METHODS)
def test_each_concurrency_is_measured_and_the_model_stays_as_it_was(name: str, tmp_path: Path) -> None:
    deep = tiny_gpt_nemo(tmp_path / "base.nemo", num_hidden_layers=7)
    base, adapters = adapted(deep, model_section(name))
    adapters.train()
    samples = random_tree(3, base.shape.vocab_size, count=5)
    layers = list(base.model.decoder.layers)
    before = gradients_of(base, adapters, samples, micro_batch_size=5)
    for parameter in adapters.parameters():
        parameter.grad = None
    costs = measured_costs(base, LAYOUT)
    assert set(costs.seconds or {}) == {1, 2}
    assert costs.lengths[:2] == (16, 64)
    assert list(base.model.decoder.layers) == layers
    assert all(parameter.grad is None for parameter in adapters.parameters())
    after = gradients_of(base, adapters, samples, micro_batch_size=5)
    assert after[0] == before[0]
    assert all(torch.equal(after[1][key], before[1][key]) for key in before[1])


def test_a_few_layers_with_adapters_stand_for_all(tmp_path: Path) -> None:
    base, _ = adapted(tiny_gpt_nemo(tmp_path / "base.nemo", num_hidden_layers=7), model_section("ia3", layers="0-3"))
    layers = list(base.model.decoder.layers)
    with _few_layers(base) as factor:
        assert list(base.model.decoder.layers) == [*layers[1:4], layers[6]]
        assert factor == 7 / 4
    with pytest.raises(RuntimeError), _few_layers(base):
        raise RuntimeError
    assert list(base.model.decoder.layers) == layers


def test_recomputed_layers_are_measured_as_others(tmp_path: Path) -> None:
    base, _ = adapted(tiny_gpt_nemo(tmp_path / "base.nemo", num_hidden_layers=3), model_section("ia3"))
    recompute_layers(base.model.decoder.layers, "full", "block", 2)
    with _few_layers(base):
        assert not any(layer.recomputes for layer in base.model.decoder.layers)
    assert [layer.recomputes for layer in base.model.decoder.layers] == [True, True, False]


def test_adapters_in_the_last_layer_alone_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its costs would be too low for other trainings of this base."""
    monkeypatch.setattr(calibration, "measured_costs", lambda *_: MEASURED)
    for layers, found in (("2", LAYOUT), ("1-2", LAYOUT.calibrated(MEASURED))):
        path = tiny_gpt_nemo(tmp_path / f"{layers}.nemo", num_hidden_layers=3)
        base, _ = adapted(path, model_section("ia3", layers=layers))
        assert calibrated_layout(base, LAYOUT, "ia3", 1e6) == found


def test_a_longer_row_costs_no_less() -> None:
    assert _ascending([3.0, 2.0, 5.0, 4.0]) == (2.0, 2.0, 4.0, 4.0)


def test_both_stacks_of_a_t5_are_measured(tmp_path: Path) -> None:
    base, _ = adapted(t5.tiny_base(tmp_path / "t5.nemo"), model_section("ia3"))
    layers = [list(stack.layers) for stack in base.family.stacks(base.model, base.shape)]
    assert measured_costs(base, LAYOUT).is_calibrated
    assert [list(stack.layers) for stack in base.family.stacks(base.model, base.shape)] == layers


def test_a_machine_is_measured_once(
    base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = calibrated_layout(base, LAYOUT, "ia3", 1e6)
    assert first.costs.is_calibrated
    assert [choice.workers for choice in first.choices] == [2, 1]
    assert capsys.readouterr().out.count("measured the cost of rows") == 1
    monkeypatch.setattr(calibration, "measured_costs", lambda *_: pytest.fail("measured again"))
    assert calibrated_layout(base, LAYOUT, "ia3", 1e6) == first
    assert capsys.readouterr().out == ""


def test_a_short_training_measures_nothing_but_uses_what_is_known(
    base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrated_layout(base, LAYOUT, "ia3", 1e4) == LAYOUT
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(calibration, "measured_costs", lambda *_: MEASURED)
    assert calibrated_layout(base, LAYOUT, "ia3", 1e6).costs == MEASURED
    assert calibrated_layout(base, LAYOUT, "ia3", 1e4).costs == MEASURED


@pytest.mark.parametrize(
    ("steps", "epochs", "passes"), [(-1, 3, 12 * 3), (2, -1, 2 * 8), (2, 3, 2 * 8), (100, 2, 12 * 2), (-1, None, 12)]
)
def test_the_length_of_a_training_in_tokens(steps: int, epochs: int | None, passes: int) -> None:
    samples = paragraphs([12])
    assert tokens_to_train(samples, 8, steps, epochs) == passes * samples[0].num_input_tokens


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, IndexError, AssertionError])
def test_a_failure_leaves_the_fixed_rules(
    error: type[Exception], base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> RowCosts:
        raise error("out of memory")

    monkeypatch.setattr(calibration, "measured_costs", fail)
    assert calibrated_layout(base, LAYOUT, "ia3", 1e6) == LAYOUT
    assert "out of memory" in capsys.readouterr().out
    monkeypatch.setattr(calibration, "measured_costs", lambda *_: MEASURED)
    assert calibrated_layout(base, LAYOUT, "ia3", 1e6).costs == MEASURED  # a failure is not remembered


def test_a_failure_leaves_no_gradients(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of the training would add to them."""
    original, layers = random_rows.run_side_by_side, list(base.model.decoder.layers)
    runs = iter(range(100))

    def fail_later(*args: Any, **options: Any) -> object:
        if next(runs) == 2:
            raise RuntimeError("out of memory")
        return original(*args, **options)

    monkeypatch.setattr(random_rows, "run_side_by_side", fail_later)
    assert calibrated_layout(base, LAYOUT, "ia3", 1e6) == LAYOUT
    assert next(runs) == 3
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert list(base.model.decoder.layers) == layers


def test_a_killed_measurement_leaves_the_fixed_rules_once(
    base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "measured_costs", lambda *_: MEASURED)
    monkeypatch.setattr(calibration.Calibration, "was_killed", lambda *_: True)
    assert calibrated_layout(base, LAYOUT, "ia3", 1e6).costs == FIXED
    assert capsys.readouterr().out.count("killed") == 1
    monkeypatch.undo()


def test_a_cache_folder_that_cannot_be_written_is_said(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "measured_costs", lambda *_: MEASURED)
    cache_folder().parent.mkdir()
    cache_folder().write_text("a file where the folder should be", encoding="utf-8")
    assert calibrated_layout(base, LAYOUT, "ia3", 1e6).costs == MEASURED
    assert f"{cache_folder()} is not writable" in capsys.readouterr().out
    assert stat.S_ISREG(cache_folder().stat().st_mode)


@pytest.mark.parametrize(("speedup", "rows"), [(1.9, 1), (1.0, 2)])
def test_one_large_tree_gets_all_threads_if_that_is_faster(speedup: float, rows: int) -> None:
    """Two workers would both compute the long prefix."""
    instruction = list(range(1000, 1300))
    samples = [
        replace(sample, input_ids=instruction + sample.input_ids, answer_start=338) for sample in paragraphs([12])
    ]
    one = (0.016, 0.064, 1.024)
    costs = RowCosts((16, 64, 1024), {1: one, 2: tuple(value / speedup for value in one)})
    batch = Collate(LAYOUT.calibrated(costs), True, pack=pack, keep_groups=True)(samples)
    assert len(batch.micro_batches) == rows


def test_another_concurrency_needs_a_clear_gain() -> None:
    samples = paragraphs([1] * 16)
    for speedup, workers in ((1.0, 2), (2.1, 2), (4.0, 1)):
        costs = RowCosts((16, 64), {1: (0.016, 0.064), 2: (0.016 / speedup, 0.064 / speedup)})
        batch = Collate(LAYOUT.calibrated(costs), True, pack=pack, keep_groups=True)(samples)
        assert batch.workers == workers
