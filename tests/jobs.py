# SPDX-License-Identifier: Apache-2.0
"""Jobs of the tests' tiny models: configurations, and scripts in separate processes."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nemo_launcher.adapters.sections import AdapterLearning, AdapterModel, Ia3Learning
from nemo_launcher.config.load import Loaded, load
from nemo_launcher.config.sections import Learning
from tests.engine import BOTTLENECK, TEMPLATE

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "launcher_scripts"
HUNG_SECONDS = 600.0  # ten times the slowest test on two cores


def job_config(base: Path, data: Path, results: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a training job's section as written by the launcher, with all values resolved.

    changes: dotted keys and their values; None under `model.adapter_tuning` gives an IA3 job.
    """
    config = OmegaConf.create(
        {
            "run": {"name": "squad_tiny", "results_dir": str(results), "task_name": "squad"},
            "trainer": {
                "devices": 1,
                "num_nodes": 1,
                "accelerator": "cpu",
                "precision": 32,
                "logger": False,
                "enable_checkpointing": False,
                "use_distributed_sampler": False,
                "max_epochs": 2,
                "max_steps": -1,
                "log_every_n_steps": 1,
                "val_check_interval": 0.5,
                "accumulate_grad_batches": 1,
                "gradient_clip_val": 1.0,
                "resume_from_checkpoint": None,
            },
            "exp_manager": {
                "explicit_log_dir": str(results / "results"),
                "exp_dir": None,
                "name": "megatron_gpt_adapter",
                "create_wandb_logger": False,
                "wandb_logger_kwargs": {"project": "tiny", "name": "squad_tiny"},
                "resume_if_exists": True,
                "resume_ignore_no_checkpoint": True,
                "create_checkpoint_callback": True,
                "checkpoint_callback_params": {
                    "monitor": "val_loss",
                    "save_top_k": 5,
                    "mode": "min",
                    "save_nemo_on_train_end": False,
                    "filename": "megatron_gpt_adapter_learn--{val_loss:.3f}-{step}",
                    "model_parallel_size": 1,
                    "save_best_model": True,
                },
            },
            "model": _model_section(base, data, results),
        }
    )
    for key, value in (changes or {}).items():
        OmegaConf.update(config, key, value, force_add=True)
    if config.model.adapter_tuning is None:
        del config.model.adapter_tuning
    return OmegaConf.to_container(config, resolve=True)


def loaded(config: Any) -> Loaded[Learning]:
    """Return a training job's section as passed on by its script, without keys of `model` that only NeMo has."""
    values: Any = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    known = {field.name for field in fields(AdapterModel)}
    values = values | {"model": {key: value for key, value in values["model"].items() if key in known}}
    return load(values, AdapterLearning if values["model"].get("adapter_tuning") is not None else Ia3Learning)


def _model_section(base: Path, data: Path, results: Path) -> dict[str, Any]:
    return {
        "seed": 1234,
        "nemo_path": str(results / "results" / "adapter.nemo"),
        "virtual_prompt_style": "no-prompts",
        "encoder_seq_length": 256,
        "gradient_as_bucket_view": False,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "restore_path": None,
        "language_model_path": str(base),
        "existing_tasks": [],
        "new_tasks": ["squad"],
        "task_templates": [
            {
                "taskname": "squad",
                "prompt_template": TEMPLATE,
                "total_virtual_tokens": 0,
                "virtual_token_splits": [],
                "truncate_field": None,
                "answer_only_loss": True,
                "answer_field": "answer",
            }
        ],
        "adapter_tuning": dict(BOTTLENECK),
        "nemo_compat": False,
        "data": {
            "train_ds": [str(data / "squad_train.jsonl")],
            "validation_ds": [str(data / "squad_val.jsonl")],
            "add_eos": True,
            "shuffle": True,
            "num_workers": 0,
            "pin_memory": False,
            "max_dropped_share": 0.0,
            "share_prefix": True,
            "pack": True,
            "layout": "fixed",
        },
        "optim": {
            "name": "fused_adam",
            "lr": 0.02,
            "weight_decay": 0.01,
            "betas": [0.9, 0.98],
            "sched": {
                "name": "CosineAnnealing",
                "warmup_steps": 2,
                "constant_steps": 0,
                "min_lr": 0.0,
                "monitor": "val_loss",
                "reduce_on_plateau": False,
            },
        },
    }


def evaluation_config(base: Path, adapter: Path, data: Path, results: Path, **changes: Any) -> dict[str, Any]:
    """Return an evaluation job's section as written by the launcher; `changes` replace top-level keys."""
    return {
        "run": {"name": "eval_squad_tiny", "results_dir": str(results), "task_name": "squad"},
        "trainer": {"devices": 1, "num_nodes": 1, "accelerator": "cpu", "precision": 32},
        "inference": {
            "greedy": True,
            "top_k": 0,
            "top_p": 0.9,
            "temperature": 1.0,
            "add_BOS": None,
            "tokens_to_generate": 8,
            "repetition_penalty": 1.2,
            "min_tokens_to_generate": 0,
            "batch_size": 4,
        },
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "language_model_path": str(base),
        "adapter_model_file": str(adapter),
        "pred_file_path": str(results / "results" / "predictions.txt"),
        "ground_truth_file_path": str(data / "squad_test_ground_truth.jsonl"),
        "data_paths": [str(data / "squad_test.jsonl")],
        "split_string": "answer:",
        "compare_with_base": False,
        "training_summary_path": None,
        "summary_path": None,
    } | changes


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    """Write `<job>_hydra.yaml`; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# adapter_learning\n" + OmegaConf.to_yaml(OmegaConf.create(dict(config))), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class Job:
    """The result of a script: its exit status (negative: killed by that signal), standard output and standard error."""

    status: int
    output: str


def run_script(
    name: str, config: Mapping[str, Any], folder: Path, *, before: Callable[..., None] | None = None, args: tuple = ()
) -> Job:
    """Run `launcher_scripts/<name>.py` in its own process with `config` written to `folder`.

    before: called first in that process with `args` (a module-level function that interferes with the job).
    """
    path = write_config(folder / f"{name}_hydra.yaml", config)
    return run_process(_script, (str(SCRIPTS / f"{name}.py"), str(path), before, args), folder / f"{name}.log")


def run_process(function: Callable[..., None], args: tuple, log: Path) -> Job:
    """Call a module's function in its own process, with output to `log`.

    The process is forked from a server that has imported the engine's dependencies but computed nothing, which saves
    their start-up time.
    """
    return ended(begun(function, args, log), log, time.monotonic() + HUNG_SECONDS)


def begun(function: Callable[..., None], args: tuple, log: Path) -> BaseProcess:
    """Start the process of run_process. The log is there from now on, whenever the process ends."""
    log.write_bytes(b"")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    process = context.Process(target=_with_output_in, args=(log, function, args))
    process.start()
    return process


def ended(process: BaseProcess, log: Path, deadline: float) -> Job:
    """Wait for a process and return its result; at `deadline` it is killed, which its output reports."""
    process.join(timeout=max(0.0, deadline - time.monotonic()))
    if process.exitcode is None:
        process.kill()
        process.join()
        with log.open("a", encoding="utf-8") as file:
            file.write("\nkilled: it had not ended in time\n")
    assert process.exitcode is not None
    return Job(process.exitcode, log.read_text(encoding="utf-8"))


def _with_output_in(log: Path, function: Callable[..., None], args: tuple) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    function(*args)


def _script(script: str, config: str, before: Callable[..., None] | None, args: tuple) -> None:
    sys.argv = [script, config]
    if before is not None:
        before(*args)
    runpy.run_path(script, run_name="__main__")
