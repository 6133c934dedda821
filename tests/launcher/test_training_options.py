# SPDX-License-Identifier: Apache-2.0
"""Tables of refused options, and of options that may change between two starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_launcher.config.resume_rules import describe, refused_changes
from nemo_launcher.config.training_options import option_problems, seconds_of
from nemo_launcher.config.traversal import allows_depth
from tests.jobs import job_config, loaded

pytestmark = pytest.mark.unit

SAVED = "exp_manager.checkpoint_callback_params"


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    config = OmegaConf.create(job_config(Path("/base.nemo"), Path("/data"), Path("/results")))
    config.exp_manager.checkpoint_callback_params = {"monitor": "val_loss", "save_top_k": 5}
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True)
    return OmegaConf.to_container(config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer.max_epochs": None, "trainer.max_steps": 5, "trainer.max_time": "00:01:00:00"},
        {"trainer.val_check_interval": 5, "trainer.check_val_every_n_epoch": None},
        {"trainer.limit_val_batches": 0},
        {"trainer.limit_train_batches": 0.5, "trainer.limit_val_batches": 7.0},
        {f"{SAVED}.every_n_train_steps": 5},
        {f"{SAVED}.train_time_interval": "00:10:00"},
        {f"{SAVED}.monitor": None, f"{SAVED}.save_top_k": 1},
        {"exp_manager.create_early_stopping_callback": True},
    ],
)
def test_options_with_an_effect_are_accepted(changes: dict[str, Any]) -> None:
    assert option_problems(loaded(changed(changes))) == []


@pytest.mark.parametrize(
    ("changes", "where", "fix"),
    [
        ({"trainer.max_epochs": 0}, "trainer.max_epochs", "trainer.max_epochs=4"),
        ({"trainer.max_steps": 0}, "trainer.max_steps", "trainer.max_steps=1000"),
        ({"trainer.max_epochs": -1, "trainer.max_time": "00:01:00:00"}, "trainer.max_epochs", "trainer.max_epochs=4"),
        ({"trainer.accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches", "global_batch_size"),
        ({"trainer.limit_val_batches": 7.5}, "trainer.limit_val_batches", "trainer.limit_val_batches=7"),
        ({"trainer.limit_train_batches": 0}, "trainer.limit_train_batches", "=1.0"),
        ({"trainer.val_check_interval": 0}, "trainer.val_check_interval", "trainer.val_check_interval=1.0"),
        ({"trainer.val_check_interval": -1}, "trainer.val_check_interval", "trainer.val_check_interval=1.0"),
        ({"trainer.val_check_interval": 1.5}, "trainer.val_check_interval", "trainer.val_check_interval=2"),
        ({"trainer.check_val_every_n_epoch": None}, "trainer.val_check_interval", "=100"),
        ({"trainer.max_time": "abc"}, "trainer.max_time", "00:04:00:00"),
        ({"trainer.max_time": "00:00:00:00"}, "trainer.max_time", "00:04:00:00"),
        ({"exp_manager.max_time_per_run": "5x"}, "exp_manager.max_time_per_run", "00:04:00:00"),
        ({"exp_manager.max_time_per_run": "25:61:00"}, "exp_manager.max_time_per_run", "00:04:00:00"),
        ({f"{SAVED}.train_time_interval": "10"}, f"{SAVED}.train_time_interval", "00:04:00:00"),
        ({f"{SAVED}.every_n_train_steps": 5, f"{SAVED}.every_n_epochs": 1}, f"{SAVED}.every_n_epochs", "=null"),
        ({f"{SAVED}.monitor": None}, f"{SAVED}.monitor", "=val_loss"),
        ({"model.optim.name": "novograd", "model.tensor_model_parallel_size": 2}, "model.optim.name", "=fused_adam"),
        ({"model.optim.name": "sgd", "model.optim.betas": [0.9, 0.98]}, "model.optim.betas", "=null"),
        ({"model.optim.sched.name": "StepLR"}, "model.optim.sched.name", "=CosineAnnealing"),
        ({"model.optim.sched.name": "ReduceLROnPlateau"}, "model.optim.sched.name", "=CosineAnnealing"),
        (
            {"model.optim.sched.name": "NoamHoldAnnealing", "model.optim.sched.warmup_steps": 0},
            "model.optim.sched.warmup_steps",
            "=50",
        ),
        (
            {"model.optim.sched.name": "WarmupPolicy", "model.optim.sched.constant_steps": 5},
            "model.optim.sched.constant_steps",
            "=0",
        ),
        ({"exp_manager.name": "a/b"}, "exp_manager.name", "=a-b"),
        ({f"{SAVED}.filename": "a/{step}"}, f"{SAVED}.filename", "a-{step}"),
        ({"trainer.logger": True}, "trainer.logger", "trainer.logger=False"),
        ({"trainer.enable_checkpointing": True}, "trainer.enable_checkpointing", "=False"),
        ({"trainer.use_distributed_sampler": True}, "trainer.use_distributed_sampler", "=False"),
        ({"exp_manager.log_tflops_per_sec_per_gpu": True}, "exp_manager.log_tflops_per_sec_per_gpu", "=False"),
    ],
)
def test_options_without_one_are_refused(changes: dict[str, Any], where: str, fix: str) -> None:
    (problem,) = option_problems(loaded(changed(changes)))
    assert problem.where == where
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"model.data.share_prefix": False}, "model.data.share_prefix=True"),
        ({"model.data.pack": False}, "model.data.pack=True"),
        ({"model.nemo_compat": True}, "model.nemo_compat=False"),
        ({"model.pipeline_model_parallel_size": 2}, "model.pipeline_model_parallel_size=1"),
        ({"model.sequence_parallel": True, "model.tensor_model_parallel_size": 2}, "model.sequence_parallel=False"),
        ({"run.model_family": "t5"}, "model.data.traversal=auto"),
    ],
)
def test_depth_is_refused_by_name_where_it_is_impossible(changes: dict[str, Any], fix: str) -> None:
    problems = option_problems(loaded(changed(changes | {"model.data.traversal": "depth"})))
    assert [(problem.where, problem.fix) for problem in problems if "depth" in problem.what] == [
        ("model.data.traversal", fix)
    ]
    for traversal in ("auto", "breadth"):
        job = loaded(changed(changes | {"model.data.traversal": traversal}))
        assert not any("traversal" in problem.where for problem in option_problems(job))
        assert allows_depth(job.section.model) == (fix == "model.data.traversal=auto")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("01:02:03:04", 93784), ("00:00:05", 5), ("5x", None), ("00:61:00", None), ("24:00:00", None), ("1:2", None)],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


def test_what_decides_the_result_is_named_and_the_rest_taken_over() -> None:
    before = changed({"model.seed": 1, "model.data.train_ds": ["a"], "trainer.devices": 1, "model.optim.lr": 0.1})
    after = changed(
        {
            "model.seed": 2,
            "model.data.train_ds": ["b"],
            "trainer.devices": 4,
            "model.optim.lr": 0.1,
            "trainer.max_epochs": 9,
            "trainer.max_time_limit": 5,  # starts like a key that may change, but is another key
            "exp_manager.wandb_logger_kwargs.project": "x",
        }
    )
    keys = refused_changes(before, after)
    assert keys == ["trainer.max_time_limit", "model.seed", "model.data.train_ds"]
    assert "model.seed (1 -> 2)" in describe(before, after, keys)
