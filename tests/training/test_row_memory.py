# SPDX-License-Identifier: Apache-2.0
"""Rows as long as the memory of a GPU allows, for which a rule of bytes per token stands here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.data.batching import Collate, GlobalBatch
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.samples import Sample
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.megatron.attention import PackedAttention, is_one_kernel_a_row
from nemo_launcher.runtime import gpu_memory
from nemo_launcher.runtime.row_costs import FIXED, RowCosts
from nemo_launcher.training import base_setup, calibration, random_rows, row_memory
from nemo_launcher.training.step import forward_backward
from tests import t5
from tests.engine import adapted, named_gradients, tiny_gpt_nemo
from tests.methods import METHODS, model_section
from tests.training.trees import branches

pytestmark = pytest.mark.unit
BYTES, CONSTANT = 1000, 70_000


class Gpu:
    """A GPU with some free bytes, in which a row takes BYTES for each token and CONSTANT besides."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, free: float, largest: float = float("inf"), masks: float = 1e-6
    ) -> None:
        self.rows: list[int] = []
        self.largest = largest
        run = row_memory.run_rows

        def noted(base: Base, rows: Sequence[Any]) -> None:
            self.rows += [row.num_computed_tokens for row in rows]
            if self.rows[-1] > self.largest:
                raise row_memory.DoesNotFitError(0, "CUDA out of memory")
            run(base, rows)

        def peak(function: Callable[[], object]) -> int:
            function()
            return BYTES * self.rows[-1] + CONSTANT

        monkeypatch.setattr(row_memory, "run_rows", noted)
        monkeypatch.setattr(row_memory, "peak_of", peak)
        monkeypatch.setattr(row_memory, "free_bytes", lambda: free)
        monkeypatch.setattr(row_memory, "free_cached", lambda: None)
        monkeypatch.setattr(row_memory, "MAX_LOGITS", 0)
        monkeypatch.setattr(row_memory, "_MASK_BYTES", masks)
        monkeypatch.setattr(row_memory, "fills_rows", lambda base: True)


@pytest.mark.parametrize("make", [tiny_gpt_nemo, t5.tiny_base])
def test_two_peaks_give_the_tokens_that_fit(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters = adapted(make(tmp_path / "base.nemo"), model_section(METHODS[0]))
    optimizer = 12 * sum(parameter.numel() for parameter in adapters.parameters())
    gpu = Gpu(monkeypatch, free=(5000 * BYTES + CONSTANT + optimizer) / 0.8)
    found = row_memory.fitting_tokens(base)
    assert len(set(gpu.rows)) == 3
    assert found == 4096  # a multiple of 1,024
    monkeypatch.setattr(row_memory, "_MASK_BYTES", 1)  # 2,791 tokens: 1000 * n + n * n bytes
    assert row_memory.fitting_tokens(base) == 1024
    assert all(parameter.grad is None for parameter in adapters.parameters())


def test_random_samples_are_within_positions_and_vocabulary(tmp_path: Path) -> None:
    """A GPU that is given another index fails for good."""
    base = load_base(tiny_gpt_nemo(tmp_path / "base.nemo"))
    few = replace(base, shape=replace(base.shape, max_position_embeddings=12, vocab_size=20))
    row: Any = random_rows.random_row(few, 100, 0, sample_tokens=128, answer_tokens=20)
    assert int(row.position_ids.max()) < 12
    assert int(row.tokens.max()) < 20


@pytest.mark.parametrize(("largest", "found"), [(1500, 1024), (600, 512), (100, 1)])
def test_a_row_that_does_not_fit_is_a_limit(
    largest: int, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters = adapted(tiny_gpt_nemo(tmp_path / "base.nemo"), model_section(METHODS[0]))
    Gpu(monkeypatch, free=1e9, largest=largest)
    assert row_memory.fitting_tokens(base) == found
    assert all(parameter.grad is None for parameter in adapters.parameters())


def test_peaks_that_do_not_grow_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = adapted(tiny_gpt_nemo(tmp_path / "base.nemo"), model_section(METHODS[0]))
    Gpu(monkeypatch, free=1e9)
    monkeypatch.setattr(row_memory, "peak_of", lambda function: 5)
    assert row_memory.fitting_tokens(base) is None


@pytest.mark.parametrize("kind", ["gpt", "t5"])
def test_only_attention_of_one_kernel_a_row_is_measured(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of groups grow with the square of their tokens, which rows of unrelated samples do not show."""
    base, _ = adapted((t5.tiny_base if kind == "t5" else tiny_gpt_nemo)(tmp_path / "base.nemo"), model_section("ia3"))
    monkeypatch.setattr(row_memory, "run_rows", lambda *_: pytest.fail("measured"))
    assert row_memory.fitting_tokens(base) is None
    modules = [module for module in base.model.modules() if isinstance(module, PackedAttention)]
    for module in modules:
        module.uses_flex = True
    assert is_one_kernel_a_row(base.model)
    modules[-1].prefixes.append(lambda: None)  # as learned keys and values are added
    assert not is_one_kernel_a_row(base.model)
    modules[-1].prefixes.clear()
    modules[-1].uses_flex = False  # as with a softcap
    assert not is_one_kernel_a_row(base.model)


def test_a_resumed_training_uses_what_was_measured_only_where_it_would_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = adapted(tiny_gpt_nemo(tmp_path / "base.nemo"), model_section("ia3"))
    kept = RowCosts(fitting_tokens=5000)
    plain = Layout.one_after_the_other(4)
    on_gpu = replace(base, device=torch.device("cuda"))
    assert not base_setup._hold_here(kept, on_gpu, plain)  # as after a change to attention_backend=sdpa
    for module in base.model.modules():
        if isinstance(module, PackedAttention):
            module.uses_flex = True
    assert base_setup._hold_here(kept, on_gpu, plain)
    assert not base_setup._hold_here(kept, base, plain)
    with monkeypatch.context() as patch:
        patch.setattr(base_setup.ranks, "gather_objects", lambda own: [("a", own), ("b", False)])
        assert not base_setup._hold_here(kept, on_gpu, plain)  # all replicas must cut a batch alike
    for name in ("tensor_size", "pipeline_size"):
        with monkeypatch.context() as patch:
            patch.setattr(row_memory.parallel, name, lambda: 2)
            assert not base_setup._hold_here(kept, on_gpu, plain)
    of_cpu = RowCosts((16, 64), {1: (1.0, 2.0)})
    assert base_setup._hold_here(of_cpu, base, plain)
    assert not base_setup._hold_here(of_cpu, on_gpu, plain)
    assert base_setup._hold_here(FIXED, on_gpu, plain)


def test_the_smallest_gpu_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All replicas must cut a batch alike."""
    base, _ = adapted(tiny_gpt_nemo(tmp_path / "base.nemo"), model_section(METHODS[0]))
    Gpu(monkeypatch, free=1e8)
    others: list[tuple[str, int | None]] = [("a", 9000), ("b", 700)]
    monkeypatch.setattr(row_memory.ranks, "gather_objects", lambda own: [("here", own), *others])
    assert row_memory.fitting_tokens(base) == 700
    others.append(("c", None))
    assert row_memory.fitting_tokens(base) is None
    others.pop()
    monkeypatch.setattr(row_memory, "fills_rows", lambda base: False)  # on this rank alone
    others.append(("here", 700))
    assert row_memory.fitting_tokens(base) is None


def test_only_a_gpu_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(tiny_gpt_nemo(tmp_path / "base.nemo"))
    monkeypatch.setattr(calibration, "fitting_tokens", lambda base: 5000)
    plain = Layout.one_after_the_other(4)
    assert calibration.calibrated_layout(base, plain, "ia3", 0) == plain
    on_gpu = replace(base, device=torch.device("cuda"))
    assert calibration.calibrated_layout(on_gpu, plain, "ia3", 0).costs == RowCosts(fitting_tokens=5000)


def rows(samples: Sequence[Sample], layout: Layout, base: Base, *, shares: bool) -> GlobalBatch:
    return Collate(layout, shares, pack=base.family.pack, keep_groups=True)(samples)


@pytest.mark.parametrize(("family", "shares"), [("gpt", True), ("gpt", False), ("t5", False)])
def test_rows_are_filled_with_what_fits(family: str, shares: bool, tmp_path: Path) -> None:
    make, few = (t5.tiny_base, t5.random_samples) if family == "t5" else (tiny_gpt_nemo, None)
    base, adapters = adapted(make(tmp_path / "base.nemo"), model_section(METHODS[0]))
    samples: Sequence[Sample] = few(12, 58) if few else branches(12, prefix=20)
    plain = Layout.one_after_the_other(2)
    found = {}
    for fitting in (None, 60, 100_000):
        layout = plain if fitting is None else plain.calibrated(RowCosts(fitting_tokens=fitting))
        batch = rows(samples, layout, base, shares=shares)
        sizes = [micro.num_computed_tokens for micro in batch.micro_batches]
        longest = max(sample.num_input_tokens for sample in samples)
        assert fitting is None or max(sizes) <= max(longest, fitting)
        for parameter in adapters.parameters():
            parameter.grad = None
        loss = float(forward_backward(base.model, batch, backward=True))
        found[fitting] = len(sizes), loss, named_gradients(adapters)
    assert found[100_000][0] == 1 < found[60][0]
    for count, loss, gradients in found.values():
        assert count >= 1
        assert loss == pytest.approx(found[None][1], rel=1e-5)
        torch.testing.assert_close(gradients, found[None][2], rtol=1e-3, atol=1e-5)


def test_a_row_is_no_longer_than_a_gpu_needs_unless_micro_batch_size_says_so() -> None:
    layout = Layout.one_after_the_other(8).calibrated(RowCosts(fitting_tokens=1_000_000))
    assert layout.most_tokens(8, 180) == 16_384
    assert layout.most_tokens(8, 4096) == 8 * 4096
    small = Layout.one_after_the_other(8).calibrated(RowCosts(fitting_tokens=1000))
    assert small.most_tokens(8, 180) == 1000
    assert small.most_tokens(8, 1500) == 1500
    assert Layout.one_after_the_other(8).most_tokens(8, 180) == 8 * 180


def test_a_checkpoint_keeps_it() -> None:
    costs = RowCosts(fitting_tokens=5000)
    assert RowCosts.from_dict(costs.as_dict()) == costs
    assert RowCosts.from_dict({"lengths": [], "seconds": {}}) == FIXED
    for wrong in (0, -5, True, 2**40, "7", 1.5, [3]):
        assert RowCosts.from_dict({"lengths": [], "seconds": {}, "fitting_tokens": wrong}) is None


def test_free_memory_counts_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 20)
    assert gpu_memory.free_bytes() == 130


def test_a_peak_is_what_the_function_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 500)
    assert gpu_memory.peak_of(lambda: calls.append("run")) == 480
    assert calls == ["reset", "run"]
