# SPDX-License-Identifier: Apache-2.0
"""The training job: `<job>_hydra.yaml` in, adapter `.nemo` and training_summary.json out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_launcher.adapters.archive import new_adapters
from nemo_launcher.config.training_length import count_records, length_problems
from nemo_launcher.config.training_options import option_problems
from nemo_launcher.data.cache import cache_folders, cached_samples
from nemo_launcher.data.tasks import check_tasks, have_records
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.files.atomic import finite_or_none, write_json
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.compilation import check_torch_compile
from nemo_launcher.megatron.sizes import ParallelSizes
from nemo_launcher.runtime.agreement import check_same
from nemo_launcher.runtime.memory import peak_memory_gib
from nemo_launcher.runtime.precision import dtype_of
from nemo_launcher.runtime.progress_file import PROGRESS_NAME, SUMMARY_NAME
from nemo_launcher.runtime.quiet import quiet_libraries
from nemo_launcher.runtime.startup import quick_imports
from nemo_launcher.training.data_workers import naming_dead_workers
from nemo_launcher.training.record import record_of_base, record_of_job, seen_by_rank
from nemo_launcher.training.resume import Start, check_base, find_start


def train(config: DictConfig) -> None:
    """Run one adapter_learning or ia3_learning job from its resolved configuration."""
    model_config = config.model
    plain: Any = OmegaConf.to_container(config, resolve=True)
    problems = option_problems(plain)
    if problems:
        raise UserError(problems)
    parallel.check_world(config.trainer.devices, config.trainer.num_nodes)
    dtype = dtype_of(config.trainer.precision, "trainer.precision")
    if model_config.get("torch_compile"):
        check_torch_compile(parallel.local_device(), "model.torch_compile")
    _check_data(config)
    record = record_of_job(config)
    check_same(lambda: seen_by_rank(record))
    start = find_start(config, record)
    if start.finished:
        print(start.finished, flush=True)
        return
    print(f"loading the base model {model_config.language_model_path}", flush=True)
    base = load_base(
        model_config.language_model_path,
        dtype=dtype,
        sizes=ParallelSizes.from_section(model_config),
        family=config.run.get("model_family"),
    )
    record["base"] = record_of_base(base)
    check_base(start, record["base"], config)
    settings: Any = OmegaConf.to_container(model_config, resolve=True)
    if start.path is not None:  # the checkpoint holds the weights, wherever they came from at first
        settings["restore_path"] = None
    adapters = new_adapters(base, settings)
    train_samples = _samples(config, "train_ds", base, shuffled=bool(model_config.data.get("shuffle", True)))
    validation_samples = _samples(config, "validation_ds", base, shuffled=False)
    print(f"{len(train_samples)} training and {len(validation_samples)} validation samples", flush=True)

    # These imports take their time; a mistake in the files above is reported before them.
    with quick_imports():
        from nemo_launcher.training.callbacks import TrainingProgress
        from nemo_launcher.training.experiment import add_loggers, callbacks_of
        from nemo_launcher.training.model import AdapterLearningModel
        from nemo_launcher.training.preemption import StopOnSignal
        from nemo_launcher.training.trainer import make_trainer

    quiet_libraries()
    results = Path(config.exp_manager.explicit_log_dir)
    results.mkdir(parents=True, exist_ok=True)
    stop_on_signal = StopOnSignal(resumes=bool(config.exp_manager.get("resume_if_exists")))
    callbacks = [TrainingProgress(results / PROGRESS_NAME), stop_on_signal, *callbacks_of(config)]
    trainer = make_trainer(config.trainer, callbacks, results)
    add_loggers(trainer, config, start)
    model = AdapterLearningModel(model_config, trainer, base, adapters, train_samples, validation_samples)
    model.record = record
    trained = adapters.num_parameters()
    total = trained + base.num_parameters
    print(
        f"training {trained:,} of {total:,} parameters ({trained / total:.3%}), {model.total_steps()} steps", flush=True
    )
    _check_length(start, model, config.trainer)
    with naming_dead_workers(model.kept):
        trainer.fit(model, ckpt_path=start.path)
    summary = {
        "trainable_parameters": trained,
        "trainable_share": trained / total,
        **model.figures.rates(),
        "peak_memory_gib": peak_memory_gib(),
        "steps": trainer.global_step,
        "best_val_loss": model.best_val_loss,
        "adapter_path": str(model_config.nemo_path),
    }
    if trainer.is_global_zero:
        write_json(results / SUMMARY_NAME, finite_or_none(summary))
    print(f"adapter written: {model_config.nemo_path}", flush=True)


def _check_length(start: Start, model: Any, trainer: DictConfig) -> None:
    """Raise UserError when there is not a step to train, more are done than asked for, or none would be validated."""
    problems = []
    if model.train_batches == 0:
        fix = "lower model.global_batch_size, or give more samples"
        problems.append(Problem("model.data.train_ds", "holds fewer samples than a global batch", fix))
    for key, batches in (("limit_train_batches", model.train_batches), ("limit_val_batches", model.validation_batches)):
        limit = trainer.get(key)
        if isinstance(limit, float) and 0 < limit < 1 and int(batches * limit) == 0:
            what = f"{limit} of {batches} batches is less than one"
            problems.append(Problem(f"trainer.{key}", what, f"trainer.{key}={round(1 / batches + 0.005, 2)}"))
    if problems:
        raise UserError(problems)
    steps, per_epoch, interval = model.total_steps(), model.steps_per_epoch(), trainer.get("val_check_interval")
    by_epoch = "check_val_every_n_epoch" not in trainer or trainer.check_val_every_n_epoch is not None
    if by_epoch and interval is not None and interval > per_epoch and trainer.get("limit_val_batches") != 0:
        what = f"{interval} steps are more than the {per_epoch} of an epoch: nothing would be validated"
        fix = f"trainer.val_check_interval={per_epoch}, or 1.0 for the end of each epoch"
        raise UserError(Problem("trainer.val_check_interval", what, fix))
    if start.step > steps:
        key = "trainer.max_epochs" if trainer.max_steps in (None, -1) else "trainer.max_steps"
        what = f"{start.step} steps are done, it ends training at {steps}"
        raise UserError(Problem(key, what, f"raise {key}, or train in another folder"))


def _check_data(config: DictConfig) -> None:
    """Raise UserError unless there is something to train on, all of it readable."""
    problems = []
    for key in ("train_ds", "validation_ds"):
        if not config.model.data[key]:
            fix = f"model.data.{key}=[/path/to/data.jsonl]"
            problems.append(Problem(f"model.data.{key}", "names no file", fix))
        for path in config.model.data[key]:
            if not Path(path).is_file():
                what = "is a folder, not a file" if Path(path).is_dir() else "no such file"
                problems.append(Problem(f"model.data.{key}: {path}", what, "check the path"))
    if not problems:
        records = sum(count_records(Path(path)) for path in config.model.data.train_ds)
        plain: Any = OmegaConf.to_container(config, resolve=True)
        problems = length_problems(plain, records) if records else []
    if problems:
        raise UserError(problems)
    templates = _templates(config.model)
    for path in dict.fromkeys([*config.model.data.train_ds, *config.model.data.validation_ds]):
        problems += check_tasks(path, templates, for_train=True, nemo_compat=bool(config.model.nemo_compat))
    if problems:
        raise UserError(problems)
    size = config.model.global_batch_size
    if not have_records(config.model.data.train_ds, size):
        print(f"train_ds has fewer records than a global batch ({size}): an epoch is one smaller step", flush=True)


def _templates(config: DictConfig) -> list[TaskTemplate]:
    """Return the templates of the tasks, all of which have one."""
    templates = [TaskTemplate.from_config(template) for template in config.task_templates]
    tasks = set(config.get("existing_tasks") or []) | set(config.get("new_tasks") or [])
    unknown = tasks - {template.taskname for template in templates}
    if unknown:
        raise UserError(Problem("model.task_templates", f"has no template for the task {sorted(unknown)[0]!r}"))
    return templates


def _samples(job: DictConfig, key: str, base: Base, *, shuffled: bool) -> Sequence[Any]:
    config = job.model
    data = config.data
    encoder = base.family.prompt_encoder(
        base.tokenizer,
        base.shape,
        data,
        encoder_seq_length=config.get("encoder_seq_length"),
        nemo_compat=config.nemo_compat,
    )
    return cached_samples(
        list(data[key]),
        _templates(config),
        encoder,
        max_dropped_share=float(data.get("max_dropped_share", 0.0)),
        folders=cache_folders(data.get("cache_dir"), data[key][0], job.exp_manager.explicit_log_dir),
        with_prefixes=shuffled and base.family.shares_prefixes and bool(data.get("share_prefix", True)),
    )
