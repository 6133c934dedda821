# SPDX-License-Identifier: Apache-2.0
"""Complete training jobs in separate processes, and their outputs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter, read_adapter
from nemo_launcher.families.base import load_base
from nemo_launcher.runtime.progress_file import read_progress
from tests.cpp import needs_cpp
from tests.jobs import REPOSITORY, SCRIPTS, job_config, write_config
from tests.training.runs import (
    adapter_of,
    checkpoints_in,
    checkpoints_of,
    kill_at_step,
    last_checkpoint_of,
    summary_of,
    train,
    val_losses_of,
    wrong_answers,
)
from tests.world import run_job

pytestmark = pytest.mark.integration


# --- a job ----------------------------------------------------------------------------------------------------------


def test_a_job_leaves_adapter_summary_and_checkpoints(finished: Path, tiny_base: Path) -> None:
    summary = summary_of(finished)
    assert summary["steps"] == 8
    assert summary["trainable_parameters"] == 1280
    assert 0 < summary["trainable_share"] < 0.1
    assert summary["adapter_path"] == str(finished / "results/adapter.nemo")
    assert min(summary[key] for key in ("samples_per_second", "tokens_per_second", "peak_memory_gib")) > 0
    assert 0 < summary["training_seconds"] < 600
    reference = (REPOSITORY / "docs/reference.md").read_text(encoding="utf-8")
    table = re.split(r"`training_summary.json`, .*", reference, maxsplit=1)[1].split("\n\nAn evaluation", 1)[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))
    assert named - {"best_val_accuracy"} == summary.keys()  # that one only where a metric is followed
    load_adapter(finished / "results/adapter.nemo", load_base(tiny_base))
    assert last_checkpoint_of(finished)["global_step"] == 8


def test_a_job_tells_how_far_it_is(finished: Path) -> None:
    state = read_progress(finished / "results/progress.json")
    assert state is not None
    assert (state.step, state.max_steps, state.seconds_left) == (8, 8, 0.0)
    assert state.val_loss == pytest.approx(val_losses_of(finished)[8], abs=1e-3)


def test_the_loss_goes_down(finished: Path) -> None:
    losses = val_losses_of(finished)
    assert sorted(losses) == [2, 4, 6, 8]
    assert losses[8] < losses[6] < losses[4] < losses[2]
    assert summary_of(finished)["best_val_loss"] == pytest.approx(losses[8], abs=1e-3)


def test_checkpoints_hold_adapter_tensors_alone(finished: Path) -> None:
    wanted = {key: set(tensors) for key, tensors in adapter_of(finished).items()}
    for checkpoint in checkpoints_of(finished).values():
        assert {key: set(tensors) for key, tensors in checkpoint["state_dict"].items()} == wanted


def test_the_adapter_is_the_best_checkpoint(finished: Path) -> None:
    torch.testing.assert_close(adapter_of(finished), last_checkpoint_of(finished)["state_dict"], rtol=0, atol=0)


def best_checkpoint_of(folder: Path) -> tuple[int, Any]:
    """Return step and adapter of the checkpoint with the lowest validation loss."""
    losses = val_losses_of(folder)
    best = min(losses, key=losses.__getitem__)
    (weights,) = [c["state_dict"] for name, c in checkpoints_of(folder).items() if f"step={best}.ckpt" in name]
    return best, weights


def test_the_best_adapter_is_kept_when_training_goes_wrong(misled: Path) -> None:
    """The adapter with the lowest validation loss is exported."""
    best, wanted = best_checkpoint_of(misled)
    assert 2 < best < 8
    torch.testing.assert_close(adapter_of(misled), wanted, rtol=0, atol=0)
    assert summary_of(misled)["best_val_loss"] == pytest.approx(val_losses_of(misled)[best], abs=1e-3)


def test_a_worse_adapter_is_not_exported_on_the_way(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Like above, but killed after a worse validation: the best adapter so far is there."""
    changes = wrong_answers(tmp_path, 1.0)
    assert train(tiny_base, data, tmp_path, changes, (kill_at_step, 7)).status == -signal.SIGKILL
    best, wanted = best_checkpoint_of(tmp_path)
    assert best < max(val_losses_of(tmp_path))
    torch.testing.assert_close(adapter_of(tmp_path), wanted, rtol=0, atol=0)


def test_the_best_adapter_is_kept_without_its_checkpoint(
    misled: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """save_top_k=0 keeps no best checkpoint; the best adapter was exported at its validation."""
    none = {"exp_manager.checkpoint_callback_params.save_top_k": 0}
    assert train(tiny_base, data, tmp_path, wrong_answers(tmp_path, 0.3) | none).status == 0
    assert len(checkpoints_in(tmp_path)) == 1
    torch.testing.assert_close(adapter_of(tmp_path), adapter_of(misled), rtol=0, atol=0)


def test_the_script_runs_by_itself_from_any_folder(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {"trainer.max_steps": 1, "trainer.max_epochs": 1}
    config = write_config(tmp_path / "train_hydra.yaml", job_config(tiny_base, data, tmp_path / "run", changes))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", str(SCRIPTS / "train.py"), str(config)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training: step 1 of 1" in done.stdout
    assert (tmp_path / "run/results/adapter.nemo").is_file()


def test_ia3_job(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, {"model.adapter_tuning": None})
    assert job.status == 0, job.output
    assert summary_of(tmp_path)["trainable_parameters"] == 160
    state = adapter_of(tmp_path)
    assert len(state) == 6
    assert all(not torch.equal(value["scalers"], torch.ones(value["scalers"].shape)) for value in state.values())
    assert "adapter_tuning" not in read_adapter(tmp_path / "results/adapter.nemo")[0]


def test_bf16_job(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, {"trainer.precision": "bf16"})
    assert job.status == 0, job.output
    tensors = [tensor for adapter in adapter_of(tmp_path).values() for tensor in adapter.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in tensors)
    losses = val_losses_of(tmp_path)
    assert losses[8] < losses[2]


def test_restore_path_goes_on_from_an_adapter(finished: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """With a learning rate without effect, the result equals the input."""
    changes = {"model.restore_path": str(finished / "results/adapter.nemo"), "model.optim.lr": 1e-30}
    job = train(tiny_base, data, tmp_path, changes)
    assert job.status == 0, job.output
    torch.testing.assert_close(adapter_of(tmp_path), adapter_of(finished), rtol=0, atol=1e-20)


# --- torch.compile --------------------------------------------------------------------------------------------------


def compile_with(compiler: str, caches: str) -> None:
    """Make torch.compile in this process use this C++ compiler and no earlier results."""
    from torch._inductor import config

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = caches
    config.cpp.cxx = (None, compiler)  # CXX is read into it at import


@needs_cpp
def test_a_compiled_job_gives_the_same_adapter(finished: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, {"model.torch_compile": True})
    assert job.status == 0, job.output
    torch.testing.assert_close(adapter_of(tmp_path), adapter_of(finished), rtol=1e-3, atol=1e-4)


def test_a_job_without_compiler_says_so_before_it_reads_anything(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    interfere = (compile_with, str(tmp_path / "g++"), str(tmp_path / "compiled"))
    job = train(tiny_base, data, tmp_path, {"model.torch_compile": True}, interfere)
    assert job.status == 2
    assert "model.torch_compile: torch.compile does not work on this machine: InvalidCxxCompiler" in job.output
    assert "model.torch_compile=False; a CPU needs g++" in job.output
    assert "loading the base model" not in job.output


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trainer.val_check_interval": 5}, "trainer.val_check_interval: is 5 steps, but an epoch has 4"),
        ({"trainer.limit_val_batches": 0.01}, "trainer.limit_val_batches: 0.01 of 2 batches is less than one"),
        ({"trainer.accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches"),
        ({"trainer.max_epochs": 0}, "trainer.max_epochs"),
        (
            {"model.nemo_compat": True, "model.global_batch_size": 32},
            "model.global_batch_size: 32, but there are 16 training records",
        ),
    ],
)
def test_options_that_train_or_validate_nothing_are_refused(
    changes: dict[str, Any], told: str, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    job = train(tiny_base, data, tmp_path, changes)
    assert job.status == 2, job.output
    assert told in job.output
    assert "Traceback" not in job.output
    assert not (tmp_path / "results/adapter.nemo").exists()


def test_both_nemo_files_are_written_by_two_tensor_ranks(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """All ranks also take part in writing the second file, which has the base's fingerprint."""
    saved = "exp_manager.checkpoint_callback_params"
    changes = {
        "trainer.devices": 2,
        "model.tensor_model_parallel_size": 2,
        "trainer.max_epochs": 1,
        f"{saved}.save_nemo_on_train_end": True,
        f"{saved}.always_save_nemo": True,
    }
    jobs = run_job(2, "train", job_config(tiny_base, data, tmp_path, changes), tmp_path)
    assert [job.status for job in jobs] == [0, 0], jobs[0].output
    second = read_adapter(tmp_path / "results/checkpoints/megatron_gpt_adapter.nemo")
    first = read_adapter(tmp_path / "results/adapter.nemo")
    torch.testing.assert_close(second[1], first[1], rtol=0, atol=0)
    assert second[0]["base_fingerprint"] == first[0]["base_fingerprint"]
