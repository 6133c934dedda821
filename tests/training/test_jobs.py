"""Whole training jobs, in processes of their own: what they leave, and what a kill -9 costs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import load_adapter, read_adapter
from nemo_launcher.checkpoint.base import load_base
from nemo_launcher.progress_file import read_progress
from nemo_launcher.training.checkpoint_file import read_checkpoint
from tests.cpp import needs_cpp
from tests.engine import squad_records, write_jsonl, write_squad
from tests.jobs import SCRIPTS, Job, job_config, run_script, write_config

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squad(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that ran to its end undisturbed: two epochs of four steps, validated every two."""
    folder = tmp_path_factory.mktemp("finished")
    job = train(tiny_base, data, folder)
    assert job.status == 0, job.output
    return folder


def train(
    base: Path, data: Path, folder: Path, changes: Mapping[str, Any] | None = None, *, kill: tuple | None = None
) -> Job:
    """Run a training job in `folder`; kill: a function that interferes with it (below), and its argument."""
    before, args = (kill[0], kill[1:]) if kill else (None, ())
    return run_script("train", job_config(base, data, folder, changes), folder, before=before, args=args)


def adapter_of(folder: Path) -> dict[str, Any]:
    return read_adapter(folder / "results/adapter.nemo")[1]


def checkpoints_of(folder: Path) -> dict[str, Any]:
    paths = (folder / "results/checkpoints").glob("*.ckpt")
    return {path.name: read_checkpoint(path) for path in paths}


def last_checkpoint_of(folder: Path) -> dict[str, Any]:
    (last,) = [value for name, value in checkpoints_of(folder).items() if name.endswith("-last.ckpt")]
    return last


def val_losses_of(folder: Path) -> dict[int, float]:
    """Return the validation loss of each step that a checkpoint was kept of."""
    names = [path.name for path in (folder / "results/checkpoints").glob("*.ckpt")]
    found = [re.search(r"val_loss=([\d.]+)-step=(\d+)", name) for name in names]
    return {int(match[2]): float(match[1]) for match in found if match}


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results/training_summary.json").read_text())


# --- a job ------------------------------------------------------------------------------------------------------


def test_a_job_leaves_adapter_summary_and_checkpoints(finished: Path, tiny_base: Path) -> None:
    summary = summary_of(finished)
    assert summary["steps"] == 8
    assert summary["trainable_parameters"] == 1280
    assert 0 < summary["trainable_share"] < 0.1
    assert summary["adapter_path"] == str(finished / "results/adapter.nemo")
    assert min(summary[key] for key in ("samples_per_second", "tokens_per_second", "peak_memory_gib")) > 0
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


def test_the_best_adapter_is_kept_when_training_goes_wrong(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Trained on wrong answers, the validation loss falls at first and rises again; the lowest one is exported."""
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [r | {"answer": "qqq zzz"} for r in squad_records(16)])
    job = train(tiny_base, data, tmp_path, {"model.data.train_ds": [str(wrong)], "model.optim.lr": 0.3})
    assert job.status == 0, job.output
    losses = val_losses_of(tmp_path)
    best = min(losses, key=losses.__getitem__)
    assert 2 < best < 8
    (wanted,) = [c["state_dict"] for name, c in checkpoints_of(tmp_path).items() if f"step={best}.ckpt" in name]
    torch.testing.assert_close(adapter_of(tmp_path), wanted, rtol=0, atol=0)
    assert summary_of(tmp_path)["best_val_loss"] == pytest.approx(losses[best], abs=1e-3)


def test_a_worse_adapter_is_not_exported_on_the_way(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """As above, but killed after the validation that was worse: the best one so far lies there."""
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [r | {"answer": "qqq zzz"} for r in squad_records(16)])
    changes = {"model.data.train_ds": [str(wrong)], "model.optim.lr": 1.0}
    assert train(tiny_base, data, tmp_path, changes, kill=(kill_at_step, 7)).status == -signal.SIGKILL
    losses = val_losses_of(tmp_path)
    best = min(losses, key=losses.__getitem__)
    assert best < max(losses)
    (wanted,) = [c["state_dict"] for name, c in checkpoints_of(tmp_path).items() if f"step={best}.ckpt" in name]
    torch.testing.assert_close(adapter_of(tmp_path), wanted, rtol=0, atol=0)


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
    """At a rate that moves nothing what comes out is what went in."""
    changes = {"model.restore_path": str(finished / "results/adapter.nemo"), "model.optim.lr": 1e-30}
    job = train(tiny_base, data, tmp_path, changes)
    assert job.status == 0, job.output
    torch.testing.assert_close(adapter_of(tmp_path), adapter_of(finished), rtol=0, atol=1e-20)


def test_a_finished_job_started_again_changes_nothing(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    def outcome() -> list[Any]:
        files = [(tmp_path / "results" / name).read_bytes() for name in ("adapter.nemo", "training_summary.json")]
        return [*files, sorted(checkpoints_of(tmp_path))]

    assert train(tiny_base, data, tmp_path).status == 0
    before = outcome()
    job = train(tiny_base, data, tmp_path)
    assert job.status == 0, job.output
    assert outcome() == before


# --- torch.compile ----------------------------------------------------------------------------------------------


def compile_with(compiler: str, caches: str) -> None:
    """Let torch.compile in this process use this C++ compiler, and nothing compiled earlier."""
    from torch._inductor import config

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = caches
    config.cpp.cxx = (None, compiler)  # where CXX goes when it is imported


@needs_cpp
def test_a_compiled_job_gives_the_same_adapter(finished: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, {"model.torch_compile": True})
    assert job.status == 0, job.output
    torch.testing.assert_close(adapter_of(tmp_path), adapter_of(finished), rtol=1e-3, atol=1e-4)


def test_a_job_without_compiler_says_so_before_it_reads_anything(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    interfere = (compile_with, str(tmp_path / "g++"), str(tmp_path / "compiled"))
    job = train(tiny_base, data, tmp_path, {"model.torch_compile": True}, kill=interfere)
    assert job.status == 2
    assert "model.torch_compile: torch.compile does not work on this machine: InvalidCxxCompiler" in job.output
    assert "model.torch_compile=False; a CPU needs g++" in job.output
    assert "loading the base model" not in job.output


# --- a killed job -----------------------------------------------------------------------------------------------


def kill_at_step(step: int) -> None:
    """Let this process die by SIGKILL when it begins the optimisation step of this number (from 0)."""
    from nemo_launcher.training.model import AdapterLearningModel

    original = AdapterLearningModel.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step


def kill_while_saving(step: int) -> None:
    """Let this process die by SIGKILL when half of the `-last` checkpoint of this step is written."""
    from lightning.pytorch import Trainer

    original = Trainer.save_checkpoint

    def save_checkpoint(self: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
        original(self, filepath, *args, **kwargs)
        if self.global_step == step and str(filepath).endswith("-last.ckpt"):
            os.truncate(filepath, os.path.getsize(filepath) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.save_checkpoint = save_checkpoint


def resumed(base: Path, data: Path, folder: Path, kill: tuple, changes: Mapping[str, Any] | None = None) -> Job:
    """Run a job that gets killed, then the same job again; return the second."""
    killed = train(base, data, folder, changes, kill=kill)
    assert killed.status == -signal.SIGKILL, killed.output
    job = train(base, data, folder, changes)
    assert job.status == 0, job.output
    return job


def assert_same_outcome(folder: Path, wanted: Path) -> None:
    torch.testing.assert_close(adapter_of(folder), adapter_of(wanted), rtol=0, atol=0)
    mine, theirs = last_checkpoint_of(folder), last_checkpoint_of(wanted)
    torch.testing.assert_close(mine["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    assert mine["global_step"] == theirs["global_step"] == 8
    assert mine["optimizer_states"][0]["param_groups"] == theirs["optimizer_states"][0]["param_groups"]
    assert summary_of(folder)["best_val_loss"] == summary_of(wanted)["best_val_loss"]


@pytest.mark.parametrize(
    ("kill", "goes_on_at"),
    [
        pytest.param((kill_at_step, 3), 2, id="in_the_first_epoch"),
        pytest.param((kill_at_step, 4), 4, id="between_epochs"),
        pytest.param((kill_at_step, 7), 6, id="in_the_second_epoch"),
        pytest.param((kill_while_saving, 4), 4, id="while_saving"),
    ],
)
def test_a_killed_job_goes_on_as_if_nothing_had_happened(
    kill: tuple, goes_on_at: int, finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    job = resumed(tiny_base, data, tmp_path, kill)
    assert f"resuming at step {goes_on_at} " in job.output
    assert_same_outcome(tmp_path, finished)


def test_a_job_killed_before_its_first_checkpoint_starts_anew(
    finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    job = resumed(tiny_base, data, tmp_path, (kill_at_step, 1))
    assert "resuming" not in job.output
    assert_same_outcome(tmp_path, finished)


def test_adapter_dropout_goes_on_where_it_was(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {"model.adapter_tuning.adapter_dropout": 0.1}
    job = train(tiny_base, data, tmp_path / "whole", changes)
    assert job.status == 0, job.output
    resumed(tiny_base, data, tmp_path / "killed", (kill_at_step, 3), changes)
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


def test_a_killed_job_leaves_a_whole_adapter(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    killed = train(tiny_base, data, tmp_path, kill=(kill_at_step, 3))
    assert killed.status == -signal.SIGKILL
    load_adapter(tmp_path / "results/adapter.nemo", load_base(tiny_base))


def test_a_job_killed_twice_leaves_a_whole_adapter(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    for _ in range(2):
        killed = train(tiny_base, data, tmp_path, kill=(kill_at_step, 3))
        assert killed.status == -signal.SIGKILL
    load_adapter(tmp_path / "results/adapter.nemo", load_base(tiny_base))


# --- when training ends -----------------------------------------------------------------------------------------


def test_early_stopping_ends_training(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {
        "exp_manager.create_early_stopping_callback": True,
        "exp_manager.early_stopping_callback_params": {"monitor": "val_loss", "patience": 1, "min_delta": 100.0},
    }
    job = train(tiny_base, data, tmp_path, changes)
    assert job.status == 0, job.output
    assert summary_of(tmp_path)["steps"] == 4  # no validation is 100 better than the first, at step 2


def test_resume_from_checkpoint_goes_on_from_a_chosen_one(
    finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    (checkpoint,) = (finished / "results/checkpoints").glob("*step=4.ckpt")
    job = train(tiny_base, data, tmp_path, {"trainer.resume_from_checkpoint": str(checkpoint)})
    assert job.status == 0, job.output
    assert "resuming at step 4 " in job.output
    torch.testing.assert_close(adapter_of(tmp_path), adapter_of(finished), rtol=0, atol=0)


def test_raising_max_epochs_goes_on_from_a_finished_run(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    assert train(tiny_base, data, tmp_path / "grown", {"trainer.max_epochs": 1}).status == 0
    job = train(tiny_base, data, tmp_path / "grown", {"trainer.max_epochs": 2})
    assert job.status == 0, job.output
    assert last_checkpoint_of(tmp_path / "grown")["global_step"] == 8


# --- stopped by a signal ----------------------------------------------------------------------------------------


def signal_in_step(number: int, step: int) -> None:
    """Send this process a signal while it computes `step` (counted from 1)."""
    from nemo_launcher.training.model import AdapterLearningModel

    original = AdapterLearningModel.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step + 1 == step:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["USR1", "TERM", "INT"],
)
def test_a_signal_stops_with_a_checkpoint_and_the_job_goes_on_from_it(
    number: int, status: int, finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    stopped = train(tiny_base, data, tmp_path, kill=(signal_in_step, number, 3))
    assert stopped.status == status, stopped.output
    assert "stopped after step 3; checkpoint" in stopped.output
    assert "Traceback" not in stopped.output
    job = train(tiny_base, data, tmp_path)
    assert job.status == 0, job.output
    assert "resuming at step 3 " in job.output
    assert_same_outcome(tmp_path, finished)


def signal_while_loading(*numbers: int) -> None:
    """Send this process signals while the base model is loaded."""
    import nemo_launcher.training.run as run

    original = run.load_base

    def load_base(*args: Any, **kwargs: Any) -> Any:
        for number in numbers:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    run.load_base = load_base


def test_a_warning_while_the_base_is_loaded_is_acted_upon_before_the_first_step(
    finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    early = (signal_while_loading, signal.SIGUSR1)
    first = train(tiny_base, data, tmp_path, kill=early)
    assert (first.status, "USR1: stopped after step 0" in first.output) == (75, True), first.output
    second = train(tiny_base, data, tmp_path, kill=early)
    assert (second.status, "not a single step was done in two starts" in second.output) == (1, True), second.output
    assert train(tiny_base, data, tmp_path, kill=(signal_in_step, signal.SIGUSR1, 3)).status == 75
    third = train(tiny_base, data, tmp_path, kill=early)
    assert (third.status, "stopped after step 3; checkpoint" in third.output) == (75, True), third.output
    assert train(tiny_base, data, tmp_path).status == 0
    assert_same_outcome(tmp_path, finished)


def test_term_while_the_base_is_loaded_ends_at_once(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, kill=(signal_while_loading, signal.SIGTERM, signal.SIGTERM))
    assert (job.status, "TERM: stopped" in job.output, "Traceback" in job.output) == (143, True, False), job.output


def signal_again_while_saving(number: int, step: int) -> None:
    """Send this process a signal in a step, and again while its checkpoint is written."""
    from lightning.pytorch import Trainer

    signal_in_step(number, step)
    original = Trainer.save_checkpoint

    def save_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.global_step == step:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    Trainer.save_checkpoint = save_checkpoint


def test_a_second_term_does_not_disturb_the_checkpoint(
    finished: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    stopped = train(tiny_base, data, tmp_path, kill=(signal_again_while_saving, signal.SIGTERM, 3))
    assert (stopped.status, "stopped after step 3; checkpoint" in stopped.output) == (143, True), stopped.output
    assert "resuming at step 3 " in train(tiny_base, data, tmp_path).output
    assert_same_outcome(tmp_path, finished)
