"""A training that is killed, stopped or started again: it goes on as if nothing had happened, or says why not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.training.checkpoint_file import read_checkpoint, write_checkpoint
from tests.engine import squad_records, tiny_gpt_nemo, write_jsonl, write_squad
from tests.jobs import Job, job_config, run_script
from tests.world import run_job

pytestmark = pytest.mark.integration

EVENTS_BEFORE_KILL = 17
"""Of `killing`, in each start: enough for a step and its checkpoint, few enough for another place each time."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squad(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one_epoch(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of one epoch; tests copy it."""
    folder = tmp_path_factory.mktemp("one_epoch") / "job"
    assert train(tiny_base, data, folder, {"trainer.max_epochs": 1}).status == 0
    return folder


def train(base: Path, data: Path, folder: Path, changes: Mapping[str, Any] | None = None, interfere: tuple = ()) -> Job:
    before, args = (interfere[0], interfere[1:]) if interfere else (None, ())
    return run_script("train", job_config(base, data, folder, changes), folder, before=before, args=args)


def adapter_of(folder: Path) -> dict[str, Any]:
    return read_adapter(folder / "results/adapter.nemo")[1]


def checkpoints_in(folder: Path) -> list[Path]:
    return sorted((folder / "results/checkpoints").iterdir())


def names_in(folder: Path) -> list[str]:
    return [path.name for path in checkpoints_in(folder)]


def last_of(folder: Path) -> Path:
    (last,) = (path for path in checkpoints_in(folder) if path.name.endswith("-last.ckpt"))
    return last


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows: (step, value) of each figure."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "results"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name != "hp_metric"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results/training_summary.json").read_text())


def moved(source: Path, tmp_path: Path) -> Path:
    """Return a copy of a job's folder, which its training goes on in."""
    return Path(shutil.copytree(source, tmp_path / "job"))


# --- killed -----------------------------------------------------------------------------------------------------


def killing(after: int) -> None:
    """Let this process die by SIGKILL around its `after`th step, validation batch, export, checkpoint or summary."""
    from nemo_launcher.training import checkpointing, model, run

    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            count()
            result = original(*args, **kwargs)
            count()
            return result

        setattr(owner, name, wrapper)

    for name in ("training_step", "validation_step", "export"):
        counted(model.AdapterLearningModel, name)
    counted(checkpointing, "write_checkpoint")
    counted(checkpointing.PlainCheckpointIO, "remove_checkpoint")
    counted(run, "write_json")


CADENCES: dict[str, dict[str, Any]] = {
    "each_step": {"trainer.val_check_interval": 1, "exp_manager.checkpoint_callback_params.save_top_k": 2},
    "by_steps": {
        "trainer.max_epochs": -1,
        "trainer.max_steps": 7,
        "trainer.val_check_interval": 1.0,
        "exp_manager.checkpoint_callback_params.every_n_train_steps": 1,
        "model.adapter_tuning.adapter_dropout": 0.1,
    },
}


@pytest.mark.parametrize("cadence", CADENCES)
def test_killed_again_and_again_it_ends_as_an_undisturbed_one(
    cadence: str, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """Adapter, checkpoints, logged figures and summary: each start dies a few events after where it began."""
    changes = CADENCES[cadence] | {"exp_manager.create_tensorboard_logger": True}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(tiny_base, data, whole, changes).status == 0
    for start in range(20):
        job = train(tiny_base, data, killed, changes, (killing, EVENTS_BEFORE_KILL + start))
        if job.status != -signal.SIGKILL:
            break
    assert start > 2
    assert job.status == 0, job.output
    torch.testing.assert_close(adapter_of(killed), adapter_of(whole), rtol=0, atol=0)
    assert names_in(killed) == names_in(whole)
    assert logged(killed) == logged(whole)
    for key in ("steps", "best_val_loss"):
        assert summary_of(killed)[key] == summary_of(whole)[key]


def test_a_validation_that_a_stop_left_out_is_done_first(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Stopped in the last validation, behind the last step: nothing is trained, and all that follows is done."""
    changes = {"trainer.max_epochs": 1, "trainer.val_check_interval": 1.0}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(tiny_base, data, whole, changes).status == 0
    assert train(tiny_base, data, stopped, changes, (stop_in_validation,)).status == 75
    assert not (stopped / "results/adapter.nemo").exists()
    job = train(tiny_base, data, stopped, changes)
    assert job.status == 0, job.output
    assert "resuming at step 4 " in job.output
    torch.testing.assert_close(adapter_of(stopped), adapter_of(whole), rtol=0, atol=0)
    assert names_in(stopped) == names_in(whole)


def stop_in_validation() -> None:
    """Send this process SIGUSR1 when it begins to validate its last step."""
    from nemo_launcher.training.model import AdapterLearningModel

    original = AdapterLearningModel.on_validation_epoch_start

    def begin(self: Any) -> None:
        if not self.trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGUSR1)
        original(self)

    AdapterLearningModel.on_validation_epoch_start = begin


# --- finished ---------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_training_says_so_and_touches_nothing(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    before = files_of(folder / "results")
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})
    assert (job.status, job.output) == (
        0,
        f"training is finished: 4 steps; nothing is done, the adapter is {folder}/results/adapter.nemo\n",
    )
    assert files_of(folder / "results") == before


def test_what_a_finished_training_lacks_is_made_again(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    wanted = adapter_of(folder)
    for name in ("adapter.nemo", "training_summary.json"):
        (folder / "results" / name).unlink()
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})
    assert job.status == 0, job.output
    torch.testing.assert_close(adapter_of(folder), wanted, rtol=0, atol=0)
    summary = summary_of(folder)
    assert (summary["steps"], summary["samples_per_second"]) == (4, None)


def test_a_damaged_adapter_of_a_finished_training_is_made_again(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    path = folder / "results/adapter.nemo"
    path.write_bytes(path.read_bytes()[:3000])
    assert train(tiny_base, data, folder, {"trainer.max_epochs": 1}).status == 0
    torch.testing.assert_close(adapter_of(folder), adapter_of(one_epoch), rtol=0, atol=0)


def test_copies_of_checkpoints_that_the_user_made_stay(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    last = last_of(folder)
    shutil.copy(checkpoints_in(folder)[0], last.with_name("mine.ckpt"))
    shutil.copy(last, last.with_name(last.name.replace("step=4", "step=3")))  # as a killed run leaves it
    os.utime(last)
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 2})
    assert job.status == 0, job.output
    names = names_in(folder)
    assert "mine.ckpt" in names
    assert not any("step=3" in name for name in names)


@pytest.mark.parametrize("interval", [0.5, 1.0], ids=["in_the_epoch", "at_its_end"])
def test_an_early_stopped_training_stays_stopped(interval: float, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {
        "trainer.val_check_interval": interval,
        "trainer.max_epochs": 4,
        "exp_manager.create_early_stopping_callback": True,
        "exp_manager.early_stopping_callback_params": {"monitor": "val_loss", "patience": 1, "min_delta": 100.0},
    }
    assert train(tiny_base, data, tmp_path, changes).status == 0
    steps = summary_of(tmp_path)["steps"]
    assert steps == (4 if interval == 0.5 else 8)
    job = train(tiny_base, data, tmp_path, changes)
    assert job.status == 0
    assert f"training is finished: {steps} steps (ended by early stopping)" in job.output


def test_fewer_steps_than_are_done_are_refused(one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = moved(one_epoch, tmp_path)
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1, "trainer.max_steps": 3})
    assert job.status == 2
    assert "trainer.max_steps: 4 steps are done, it ends training at 3" in job.output


# --- which checkpoint -------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_set_aside_for_the_next_one(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    last = last_of(folder)
    damage(last)
    (folder / "results/checkpoints" / "left-unfinished").touch()  # a marker of NeMo's
    shutil.copy(folder / "results/checkpoints" / last.name.replace("-last", ""), last.with_name("other-last.ckpt"))
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})
    assert job.status == 0, job.output
    assert f"{last} is damaged (its checksum is wrong); it is set aside as {last.name}.damaged" in job.output
    assert "resuming at step 4 " in job.output
    assert names_in(folder).count(last.name) == 1
    assert "other-last.ckpt" not in names_in(folder)


def test_none_whole_is_said_at_every_start(one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = moved(one_epoch, tmp_path)
    for path in checkpoints_in(folder):
        damage(path)
    for _ in range(2):
        job = train(tiny_base, data, folder)
        assert job.status == 2
        assert "no checkpoint is whole: 3 damaged" in job.output
        assert f"start over: remove {folder}/results" in job.output


class Payload:
    """Unpickled, it leaves a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("named", [True, False], ids=["resume_from_checkpoint", "in_the_folder"])
def test_a_pickled_checkpoint_is_refused_by_name(named: bool, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / ("old.ckpt" if named else "job/results/checkpoints/x-last.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": Payload(tmp_path / "run")}, path)
    changes = {"trainer.resume_from_checkpoint": str(path)} if named else {}
    job = train(tiny_base, data, tmp_path / "job", changes)
    assert job.status == 2
    assert f"{path}: cannot be resumed: it is one of torch.save's" in job.output
    assert "model.restore_path" in job.output
    assert not (tmp_path / "run").exists()


# --- with what it was trained -----------------------------------------------------------------------------------


def test_settings_that_decide_the_result_are_refused_by_name(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    changes = {"model.seed": 5, "model.optim.lr": 0.5, "model.global_batch_size": 8, "trainer.max_epochs": 2}
    job = train(tiny_base, data, folder, changes)
    assert job.status == 2
    assert "model.seed: 1234 -> 5" in job.output
    assert "model.optim.lr: 0.02 -> 0.5" in job.output
    assert "model.global_batch_size: 4 -> 8" in job.output
    assert "max_epochs" not in job.output


def test_data_that_changed_under_the_same_path_are_refused(one_epoch: Path, tiny_base: Path, tmp_path: Path) -> None:
    folder, data = moved(one_epoch, tmp_path), write_squad(tmp_path / "data")
    write_jsonl(data / "squad_train.jsonl", squad_records(16, seed=7))
    job = train(tiny_base, data, folder)
    assert job.status == 2
    assert f"model.data.train_ds: {data}/squad_train.jsonl: its content changed" in job.output
    assert "validation_ds" not in job.output
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})  # done, but not with these data
    assert job.status == 2
    assert "its content changed" in job.output


def test_another_base_is_refused_and_a_moved_one_is_not(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    other = tiny_gpt_nemo(tmp_path / "other/base.nemo", seed=3)
    job = train(other, data, folder)
    assert job.status == 2
    assert "is another base than the one trained on: its weights are sha256:" in job.output
    job = train(Path(shutil.copy(tiny_base, tmp_path / "moved.nemo")), data, folder)
    assert job.status == 0, job.output
    assert summary_of(folder)["steps"] == 8


def test_other_threads_are_said(one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = moved(one_epoch, tmp_path)
    last = last_of(folder)
    content = read_checkpoint(last)
    content["record"]["environment"] |= {"threads": 99, "torch": "2.0"}
    write_checkpoint(last, content)
    os.utime(last, ns=(2**62, 2**62))
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 2})
    assert job.status == 0, job.output
    assert "threads 99 -> 1: the last digits may differ from a run without a break" in job.output
    assert "torch 2.0 -> " in job.output


# --- limits and figures that end it -----------------------------------------------------------------------------


def slowly(seconds: float) -> None:
    """Let each step of this process take at least so long."""
    import time

    from nemo_launcher.training.model import AdapterLearningModel

    original = AdapterLearningModel.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        time.sleep(seconds)
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step


def test_the_time_of_a_run_ends_it_with_the_status_that_requeues(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    changes = {"exp_manager.max_time_per_run": "00:00:00:01"}
    job = train(tiny_base, data, tmp_path, changes, (slowly, 1.0))
    assert job.status == 75, job.output
    assert f"max_time_per_run=00:00:00:01: stopped after step 1; checkpoint {last_of(tmp_path)}" in job.output
    assert "adapter written" not in job.output
    assert not (tmp_path / "results/training_summary.json").exists()
    job = train(tiny_base, data, tmp_path, changes, (slowly, 1.0))
    assert (job.status, "stopped after step 2" in job.output) == (75, True), job.output


def test_each_start_has_its_whole_time_and_the_smaller_limit_counts(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    """Put back into the queue again and again, a training with trainer.max_time comes to its end."""
    changes = {"trainer.max_time": "00:00:00:01", "exp_manager.max_time_per_run": "01:00:00"}
    for step in (1, 2):
        job = train(tiny_base, data, tmp_path, changes | {"trainer.max_epochs": 1}, (slowly, 1.0))
        assert (job.status, f"trainer.max_time=00:00:00:01: stopped after step {step}" in job.output) == (75, True)
    assert train(tiny_base, data, tmp_path, changes | {"trainer.max_epochs": 1}).status == 0
    assert summary_of(tmp_path)["steps"] == 4


def test_time_that_is_too_short_for_a_step_does_not_go_back_into_the_queue(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    changes = {"trainer.max_time": "00:00:00:01", "trainer.max_epochs": 1}
    assert train(tiny_base, data, tmp_path, changes, (slowly, 1.0)).status == 75
    job = train(tiny_base, data, tmp_path, changes, (out_of_time,))
    assert job.status == 1
    assert "stopped after step 1; " in job.output
    assert "give it more time" in job.output


def out_of_time() -> None:
    """Let this process believe that an hour has passed when it begins to train."""
    from nemo_launcher.training.time_limit import TimeLimit

    original = TimeLimit.on_train_start

    def begin(self: Any, *args: Any) -> None:
        original(self, *args)
        self._start -= 3600

    TimeLimit.on_train_start = begin


# --- not to go on -----------------------------------------------------------------------------------------------

ANEW = {"exp_manager.resume_if_exists": False}


@pytest.mark.parametrize("left", ["checkpoints", "adapter"])
def test_work_is_not_replaced_by_a_training_that_starts_over(
    left: str, one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    for path in checkpoints_in(folder) if left == "adapter" else [folder / "results/training_summary.json"]:
        path.unlink()
    before = files_of(folder / "results")
    job = train(tiny_base, data, folder, ANEW | {"trainer.max_epochs": 1})
    assert job.status == 2
    assert f"exp_manager.resume_if_exists: False would start over and replace what is in {folder}/results" in job.output
    assert ("3 checkpoint(s)" in job.output, "the finished adapter" in job.output) == (
        left == "checkpoints",
        left == "adapter",
    )
    assert "loading the base model" not in job.output
    assert files_of(folder / "results") == before


def test_the_ways_out_of_starting_over_are_accepted(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    assert "resuming at step 4" in train(tiny_base, data, folder, {"trainer.max_epochs": 2}).output
    shutil.rmtree(folder / "results")
    job = train(tiny_base, data, folder, ANEW | {"trainer.max_epochs": 1})
    assert (job.status, "resuming" in job.output) == (0, False)


def test_a_finished_adapter_without_checkpoints_is_not_replaced(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    shutil.rmtree(folder / "results/checkpoints")
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 1})
    assert job.status == 2
    assert "there is no checkpoint to go on from" in job.output
    assert adapter_of(folder).keys() == adapter_of(one_epoch).keys()


def test_a_job_that_the_queue_starts_again_goes_on_all_the_same(
    tiny_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ANEW | {"exp_manager.max_time_per_run": "00:00:00:01", "trainer.max_epochs": 1}
    assert train(tiny_base, data, tmp_path, changes, (queued, 7, 0, 1.0)).status == 75
    for job_id, restart in ((8, 1), (7, 0)):  # another job; the same, started by hand in its allocation
        assert train(tiny_base, data, tmp_path, changes, (queued, job_id, restart)).status == 2
    job = train(tiny_base, data, tmp_path, changes, (queued, 7, 1))
    assert job.status == 0, job.output
    assert "the queue has started this job again: it goes on from" in job.output
    assert "resuming at step 1 " in job.output


def queued(job_id: int, restart: int, seconds: float = 0.0) -> None:
    """Let this process be one of a job of Slurm's."""
    os.environ.update(SLURM_JOB_ID=str(job_id), SLURM_RESTART_COUNT=str(restart))
    slowly(seconds)


def test_a_loss_that_is_not_finite_keeps_what_was_there(
    one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folder = moved(one_epoch, tmp_path)
    adapter, names = (folder / "results/adapter.nemo").read_bytes(), names_in(folder)
    job = train(tiny_base, data, folder, {"trainer.max_epochs": 2}, (spoil_weights, 5))
    assert job.status == 2
    assert f"training, step 6: the loss is nan; training stops, {last_of(folder)} and " in job.output
    assert f"{folder}/results/adapter.nemo stay as they are" in job.output
    assert "lower model.optim.lr" in job.output
    assert "Traceback" not in job.output
    assert ((folder / "results/adapter.nemo").read_bytes(), names_in(folder)) == (adapter, names)


def test_nothing_is_said_to_be_kept_where_nothing_is_saved(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, {"model.optim.lr": 1e30, "model.optim.sched.warmup_steps": 0})
    assert job.status == 2
    assert "training stops, and nothing is saved yet" in job.output
    assert not list((tmp_path / "results").rglob("*.ckpt"))


def test_a_base_that_is_cut_short_in_use_is_named(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    base = Path(shutil.copy(tiny_base, tmp_path / "base.nemo"))
    job = train(base, data, tmp_path / "job", {}, (cut_short, str(base)))
    assert job.status == 2
    assert f"{base}: was cut short while it is in use" in job.output


def cut_short(path: str) -> None:
    """Cut a file short in place when this process begins its third step."""
    from nemo_launcher.training.model import AdapterLearningModel

    original = AdapterLearningModel.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 2:
            os.truncate(path, 20_000)
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step


def spoil_weights(step: int) -> None:
    """Make a weight of this process's adapter NaN after the optimisation step of this number (from 1)."""
    from nemo_launcher.training.model import AdapterLearningModel

    original = AdapterLearningModel.on_train_batch_end

    def on_train_batch_end(self: Any, *args: Any) -> None:
        original(self, *args)
        if self.trainer.global_step == step:
            self.adapters.parameters()[0].data.fill_(float("nan"))

    AdapterLearningModel.on_train_batch_end = on_train_batch_end


# --- several ranks ----------------------------------------------------------------------------------------------


def test_both_nemo_files_are_written_by_two_tensor_ranks(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """All ranks take part in the second file too, and it has the base's fingerprint."""
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


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trainer.val_check_interval": 5}, "trainer.val_check_interval: 5 steps, but an epoch has 4"),
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


def test_the_best_adapter_is_kept_without_its_checkpoint(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """save_top_k=0 keeps no best checkpoint; the best adapter is the one exported at its validation."""
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [r | {"answer": "qqq zzz"} for r in squad_records(16)])
    changes = {"model.data.train_ds": [str(wrong)], "model.optim.lr": 0.3}
    assert train(tiny_base, data, tmp_path / "kept", changes).status == 0
    none = {"exp_manager.checkpoint_callback_params.save_top_k": 0}
    assert train(tiny_base, data, tmp_path / "none", changes | none).status == 0
    assert len(checkpoints_in(tmp_path / "none")) == 1
    torch.testing.assert_close(adapter_of(tmp_path / "none"), adapter_of(tmp_path / "kept"), rtol=0, atol=0)


def test_one_wandb_run_over_all_starts(one_epoch: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = moved(one_epoch, tmp_path)
    changes = {"exp_manager.create_wandb_logger": True, "exp_manager.wandb_logger_kwargs.mode": "offline"}
    ids = []
    for epochs in (2, 3):
        job = train(tiny_base, data, folder, changes | {"trainer.max_epochs": epochs})
        assert job.status == 0, job.output
        ids.append(json.loads((folder / "results/wandb_run.json").read_text())["id"])
    assert ids[0] == ids[1]
    runs = list((folder / "results/wandb").glob(f"offline-run-*-{ids[0]}"))
    assert len(runs) >= 1
    assert len(list((folder / "results/wandb").glob("offline-run-*"))) == len(runs)
