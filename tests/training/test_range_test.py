# SPDX-License-Identifier: Apache-2.0
"""`model.optim.lr=find`: Lightning's range test before a training, which then is the one with the rate it suggests."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.tuner import Tuner

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.adapters.registry import methods
from nemo_launcher.config.automatic import TEST_RATES, TEST_STEPS
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.families.base import load_base
from nemo_launcher.runtime.range_test_file import RANGE_TEST_NAME, RangeTestContent, read_range_test
from nemo_launcher.training.nemo.range_test import RangeTest, run_range_test
from tests import t5
from tests.engine import random_tree
from tests.jobs import Job, job_config, loaded, run_script
from tests.methods import at_other_sites, model_section
from tests.training.models import make_model
from tests.training.runs import (
    adapter_of,
    assert_same_outcome,
    last_checkpoint_of,
    moved,
    names_in,
    signal_in_step,
    summary_of,
    train,
)
from tests.world import run_job

FIND = {"model.optim.lr": "find"}
SHORT = {"trainer.max_epochs": 1}
FEW = 30
"""Steps of a range test in which the number of steps does not matter."""
BEGINS, KEPT = "learning rate range test: step", "found by an earlier start of this training"


def content_of(folder: Path) -> RangeTestContent:
    content = read_range_test(folder / "results" / RANGE_TEST_NAME)
    assert content is not None
    return content


@pytest.fixture(scope="module")
def found(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job of two epochs of four steps after a range test. Treat as read-only."""
    folder = tmp_path_factory.mktemp("found")
    job = train(tiny_base, data, folder, FIND, (steps, FEW))
    assert job.status == 0, job.output
    rate = content_of(folder).learning_rate
    assert BEGINS in job.output
    assert job.output.count(f"model.optim.lr={rate:g}, suggested by a range test of {FEW} steps (") == 1
    assert names_in(folder)
    return folder


def steps(number: int, interfere: Callable[..., None] | None = None, *args: int) -> None:
    """Set the number of steps of this process's range test; below 13, Lightning cannot suggest a rate.

    interfere: called afterwards, with `args`.
    """
    from nemo_launcher.training.nemo import range_test

    range_test.TEST_STEPS = number
    if interfere is not None:
        interfere(*args)


# --- the test -------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_it_is_lightnings(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates, losses and suggestion of Lightning's own Tuner.lr_find, on the same model and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nemo_launcher.training.nemo.range_test.TEST_STEPS", FEW)
    samples = random_tree(0, 300, 40)
    changes = {"trainer.max_epochs": -1, "trainer.max_steps": FEW, "trainer.num_sanity_val_steps": 0}
    changes |= {"model.optim.sched": None, "model.optim.lr": 0.5, "model.data.shuffle": False}
    changes |= {"trainer.val_check_interval": 1.0, "trainer.check_val_every_n_epoch": 1000}
    config = job_config(tiny_base, tmp_path, tmp_path, changes)
    model, trainer = make_model(config, load_base(tiny_base), samples, samples, [])
    wanted = Tuner(trainer).lr_find(model, num_training=FEW, update_attr=False)
    assert wanted is not None
    base = load_base(tiny_base)
    model, _ = make_model(config, base, samples, samples, [])
    mine = run_range_test(loaded(config), base, model.adapters, samples, samples)
    assert mine.rates == pytest.approx(wanted.results["lr"], rel=1e-12)
    assert mine.losses == pytest.approx(wanted.results["loss"], rel=1e-6)
    assert mine.suggestion == pytest.approx(wanted.suggestion(), rel=1e-12)
    assert mine.suggestion is not None
    assert TEST_RATES[0] < mine.suggestion < TEST_RATES[1]


def outcome(base_file: Path, folder: Path, changes: Mapping[str, Any]) -> RangeTest:
    """Run a range test; check that weights, gradients and the state of random numbers are those of before."""
    base, samples = load_base(base_file), random_tree(0, 300, 24)
    config = job_config(base_file, folder, folder, changes)
    model, _ = make_model(config, base, samples, samples, [])
    torch.manual_seed(7)
    weights, state = [each.detach().clone() for each in model.adapters.parameters()], torch.get_rng_state()
    test = run_range_test(loaded(config), base, model.adapters, samples, samples)
    torch.testing.assert_close(list(model.adapters.parameters()), weights, rtol=0, atol=0)
    assert all(each.grad is None for each in model.adapters.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(folder.rglob("*.nemo"))
    assert not list(folder.rglob("*.ckpt"))
    return test


@pytest.mark.unit
def test_it_changes_nothing_and_starts_above_the_final_rate(tiny_base: Path, tmp_path: Path) -> None:
    test = outcome(tiny_base, tmp_path, {"model.optim.sched.min_lr": 1e-4})
    assert test.rates[0] == 1e-4
    assert len(test.rates) == len(test.losses) == TEST_STEPS
    assert not test.stopped


@pytest.mark.unit
def test_it_ends_where_the_loss_is_not_finite(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_launcher.training.nemo.range_test.TEST_RATES", (1e-8, 1e38))
    test = outcome(tiny_base, tmp_path, {"trainer.gradient_clip_val": None})
    assert len(test.rates) < TEST_STEPS
    assert test.suggestion in test.rates


# --- the training after it ------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_training_is_that_with_the_number(found: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    rate = content_of(found).learning_rate
    given = train(tiny_base, data, tmp_path, {"model.optim.lr": rate})
    assert given.status == 0, given.output
    assert_same_outcome(found, tmp_path)
    assert summary_of(found)["learning_rate"] == rate
    assert read_adapter(found / "results/adapter.nemo")[0]["optim"]["lr"] == rate
    assert value_of(last_checkpoint_of(found)["record"]["config"], "model.optim.lr") == rate
    assert names_in(found) == names_in(tmp_path)
    page = (found / "results/report.html").read_text()
    assert "Learning rate range test" in page
    assert "suggested by the test" in page


def config_of(method: str, base: Path, data: Path, folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's section for a method, of one epoch; the T5 has `t5` in its file's name."""
    make = t5.training_config if "t5" in base.name else job_config
    files = {"model.data.train_ds": [str(data / "squad_train.jsonl")]}
    files |= {"model.data.validation_ds": [str(data / "squad_val.jsonl")]}
    outputs = {"model.nemo_path": str(folder / "results/adapter.nemo")}
    config = loaded(make(base, data, folder, SHORT | files | outputs | changes)).values
    config["model"] = {key: value for key, value in config["model"].items() if not key.endswith("_tuning")}
    config["model"] |= {key: value for key, value in model_section(method).items() if key != "seed"}
    return config


@pytest.fixture(scope="module")
def t5_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5.tiny_base(tmp_path_factory.mktemp("t5") / "t5.nemo")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "family"), [*zip(at_other_sites(), cycle(["tiny_base"])), (at_other_sites()[0], "t5_base")]
)
def test_methods_and_families(
    method: str, family: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base, rate = request.getfixturevalue(family), "find"
    for folder in (tmp_path / "found", tmp_path / "given"):
        job = run_script(
            "train", config_of(method, base, data, folder, {"model.optim.lr": rate}), folder, before=steps, args=(FEW,)
        )
        assert job.status == 0, job.output
        rate = content_of(tmp_path / "found").learning_rate
    torch.testing.assert_close(adapter_of(tmp_path / "found"), adapter_of(tmp_path / "given"), rtol=0, atol=0)
    assert content_of(tmp_path / "found").is_suggestion


@pytest.mark.integration
@pytest.mark.parametrize("sizes", [{}, {"model.pipeline_model_parallel_size": 2}], ids=["data", "pipeline"])
def test_two_ranks(sizes: dict[str, Any], tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """Ranks with different rates would end with other weights than those that are given one."""
    rate: object = "find"
    for folder in (tmp_path / "found", tmp_path / "given"):
        changes = SHORT | sizes | {"trainer.devices": 2, "model.optim.lr": rate}
        jobs = run_job(2, "train", job_config(tiny_base, data, folder, changes), folder, steps, FEW)
        assert [job.status for job in jobs] == [0, 0], [job.output for job in jobs]
        rate = content_of(tmp_path / "found").learning_rate
    torch.testing.assert_close(adapter_of(tmp_path / "found"), adapter_of(tmp_path / "given"), rtol=0, atol=0)


# --- no suggestion --------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_without_a_suggestion_the_rate_of_auto_is_used(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = train(tiny_base, data, tmp_path, FIND | SHORT, (steps, 8))
    assert job.status == 0, job.output
    rate = methods()["parallel_adapter"].settings.LEARNING_RATES.few
    assert f"the range test of 8 steps suggests no learning rate: model.optim.lr={rate:g}, as for auto" in job.output
    assert (content_of(tmp_path).learning_rate, content_of(tmp_path).is_suggestion) == (rate, False)
    assert summary_of(tmp_path)["learning_rate"] == rate


@pytest.mark.integration
def test_without_a_suggestion_and_a_rate_of_auto_the_user_has_to_give_one(
    tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    sgd = {"model.optim.name": "sgd", "model.optim.betas": None}
    job = train(tiny_base, data, tmp_path, FIND | SHORT | sgd, (steps, 8))
    assert job.status == 2
    assert "auto has none for this optimizer" in job.output
    assert "Traceback" not in job.output
    assert train(tiny_base, data, tmp_path, FIND | SHORT | sgd, (steps, FEW)).status == 0


# --- later starts ---------------------------------------------------------------------------------------------------


def kill(step: int, in_range_test: bool = False) -> None:
    """Kill this process with SIGKILL at the start of a step (from 0) of the range test or of the training."""
    from nemo_launcher.training.nemo.model import AdapterLearningModel

    original = AdapterLearningModel.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step and (type(self) is not AdapterLearningModel) == in_range_test:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, batch_idx)

    AdapterLearningModel.training_step = training_step


@pytest.mark.integration
@pytest.mark.parametrize(
    ("at", "tests_again", "told"),
    [
        pytest.param((20, True), True, "suggested by a range test", id="in_the_range_test"),
        pytest.param((1,), False, KEPT, id="before_the_first_checkpoint"),
        pytest.param((5,), False, "kept: model.optim.lr=", id="after_the_first_checkpoint"),
    ],
)
def test_a_killed_job_goes_on_with_the_same_rate(
    at: tuple, tests_again: bool, told: str, found: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    killed = train(tiny_base, data, tmp_path, FIND, (steps, FEW, kill, *at))
    assert killed.status == -signal.SIGKILL, killed.output
    job = train(tiny_base, data, tmp_path, FIND, (steps, FEW))
    assert job.status == 0, job.output
    assert (BEGINS in job.output) == tests_again
    assert told in job.output
    assert_same_outcome(tmp_path, found)


@pytest.mark.integration
def test_the_kept_rate_is_that_of_this_training_alone(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    killed = (steps, FEW, kill, 0)
    assert train(tiny_base, data, tmp_path, FIND, killed).status == -signal.SIGKILL
    path = tmp_path / "results" / RANGE_TEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": 0.0123}))
    longer = train(tiny_base, data, tmp_path, FIND | {"trainer.max_epochs": 3}, killed)
    assert "model.optim.lr=0.0123, found by an earlier start" in longer.output
    other = train(tiny_base, data, tmp_path, FIND | {"model.seed": 3}, (steps, FEW))
    assert other.status == 0, other.output
    assert BEGINS in other.output
    assert content_of(tmp_path).learning_rate == summary_of(tmp_path)["learning_rate"] != 0.0123


@pytest.mark.integration
def test_a_longer_training_keeps_the_rate(found: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    folder = moved(found, tmp_path)
    (folder / "results" / RANGE_TEST_NAME).unlink()
    job = train(tiny_base, data, folder, FIND | {"trainer.max_epochs": 3})
    assert job.status == 0, job.output
    assert "resuming at step 8" in job.output
    assert BEGINS not in job.output
    assert summary_of(folder)["learning_rate"] == content_of(found).learning_rate


@pytest.mark.integration
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)], ids=["TERM", "USR1"])
def test_a_signal_ends_the_range_test(number: int, status: int, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job: Job = train(tiny_base, data, tmp_path, FIND, (signal_in_step, number, 20))
    assert job.status == status, job.output
    assert "stopped after step 0; there is no checkpoint" in job.output
    assert "Traceback" not in job.output
    assert not (tmp_path / "results" / RANGE_TEST_NAME).exists()
