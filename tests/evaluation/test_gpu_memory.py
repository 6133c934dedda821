# SPDX-License-Identifier: Apache-2.0
"""A GPU whose memory runs out, which an error stands for, or that the weights do not fit into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.families import base as base_module
from nemo_launcher.families.gpt.generation import GPTDecoding
from nemo_launcher.megatron import parallel
from nemo_launcher.runtime.gpu_memory import check_weights
from tests.engine import adapted
from tests.jobs import evaluation_config, job_config, run_script
from tests.methods import model_section
from tests.training.trees import branches

SAMPLED = Sampling(tokens_to_generate=5, greedy=False, top_k=0, seed=3)


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let the memory run out where more samples than this run."""
    step: Callable[..., Tensor] = GPTDecoding.step

    def limited(self: GPTDecoding, tokens: Sequence[int], joining: range) -> Tensor:
        if len(tokens) + len(joining) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, tokens, joining)

    monkeypatch.setattr(GPTDecoding, "step", limited)


@pytest.mark.unit
@pytest.mark.parametrize("most", [1, 3, 5])
def test_answers_are_the_same_in_smaller_batches(
    most: int, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base, _ = adapted(tiny_base, model_section("ia3"))
    samples = branches(9)
    wanted = generate(base, samples, SAMPLED, batch_size=6)
    kept: dict[int, list[int]] = {}
    finished: list[int] = []
    limit(monkeypatch, most)
    found = generate(base, samples, SAMPLED, batch_size=6, keep=kept.__setitem__, report=finished.append)
    assert found == wanted == [kept[place] for place in range(9)]
    assert sum(finished) == 9
    assert capfd.readouterr().err.count("the memory of the GPU ran out") == {1: 2, 3: 1, 5: 1}[most]


@pytest.mark.unit
def test_memory_that_runs_out_later_loses_no_answer(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = adapted(tiny_base, model_section("ia3"))
    samples = branches(9)
    wanted = generate(base, samples, SAMPLED, batch_size=3)
    step, calls = GPTDecoding.step, []

    def later(self: GPTDecoding, tokens: Sequence[int], joining: range) -> Tensor:
        calls.append(len(joining))
        if len(calls) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, tokens, joining)

    kept: list[int] = []
    monkeypatch.setattr(GPTDecoding, "step", later)
    assert generate(base, samples, SAMPLED, batch_size=3, keep=lambda place, _: kept.append(place)) == wanted
    assert sorted(kept) == [*range(9)]


@pytest.mark.unit
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_cannot_be_halved_is_an_error(ranks: int, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = adapted(tiny_base, model_section("ia3"))
    limit(monkeypatch, 0)
    monkeypatch.setattr(parallel, "tensor_size", lambda: ranks)
    what = "an answer to 71 tokens does not fit" if ranks == 1 else "4 answers at a time do not fit"
    with pytest.raises(UserError, match=what):
        generate(base, branches(4), SAMPLED, batch_size=4)


@pytest.mark.unit
def test_weights_that_do_not_fit_are_told_before_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * gib, 24 * gib))
    check_weights(20 * gib, "base.nemo")
    with pytest.raises(UserError) as caught:
        check_weights(30 * gib, "base.nemo")
    (large,) = caught.value.problems
    assert large.what == "needs 30.0 GiB for its weights on each GPU, which has 24.0 GiB, of which 20.0 GiB are free"
    assert "tensor_model_parallel_size" in large.fix
    assert "nvidia-smi" not in large.fix
    with pytest.raises(UserError, match="nvidia-smi"):
        check_weights(22 * gib, "base.nemo")


def run_out(*_: Any, **__: Any) -> None:
    raise RuntimeError("CUDA error: out of memory\nmore")


def without_memory() -> None:
    base_module.use_packed_weights = run_out


@pytest.mark.integration
@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_a_job_ends_without_a_traceback(job: str, adapter: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    config = job_config(tiny_base, data, tmp_path)
    if job == "evaluate":
        config = evaluation_config(tiny_base, adapter, data, tmp_path)
    ended = run_script(job, config, tmp_path, before=without_memory)
    assert ended.status == 2, ended.output
    assert (
        "the memory of the GPU ran out: CUDA error: out of memory more\n    -> set model.data.layout=" in ended.output
    )
    assert "Traceback" not in ended.output
