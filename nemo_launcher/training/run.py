"""The training job: `<job>_hydra.yaml` in, adapter `.nemo` and training_summary.json out."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_launcher import ranks
from nemo_launcher.adapters.archive import new_adapters
from nemo_launcher.checkpoint.base import Base, load_base
from nemo_launcher.data.cache import cache_folders, cached_samples
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files import finite_or_none, write_json
from nemo_launcher.memory import peak_memory_gib
from nemo_launcher.models import parallel
from nemo_launcher.models.compilation import check_torch_compile
from nemo_launcher.models.sizes import ParallelSizes
from nemo_launcher.precision import dtype_of
from nemo_launcher.progress_file import PROGRESS_NAME
from nemo_launcher.quiet import quiet_libraries
from nemo_launcher.startup import quick_imports


def train(config: DictConfig) -> None:
    """Run one adapter_learning or ia3_learning job from its resolved configuration."""
    model_config = config.model
    parallel.check_world(config.trainer.devices, config.trainer.num_nodes)
    dtype = dtype_of(config.trainer.precision, "trainer.precision")
    if model_config.get("torch_compile"):
        check_torch_compile(parallel.local_device(), "model.torch_compile")
    print(f"loading the base model {model_config.language_model_path}", flush=True)
    base = load_base(
        model_config.language_model_path,
        dtype=dtype,
        sizes=ParallelSizes.from_section(model_config),
        family=config.run.get("model_family"),
    )
    adapters = new_adapters(base, OmegaConf.to_container(model_config, resolve=True))
    train_samples = _samples(config, "train_ds", base, shuffled=bool(model_config.data.get("shuffle", True)))
    validation_samples = _samples(config, "validation_ds", base, shuffled=False)
    print(f"{len(train_samples)} training and {len(validation_samples)} validation samples", flush=True)

    # These imports take their time; a mistake in the files above is reported before them.
    with quick_imports():
        from nemo.utils.exp_manager import exp_manager

        from nemo_launcher.training.callbacks import TrainingProgress
        from nemo_launcher.training.model import AdapterLearningModel
        from nemo_launcher.training.preemption import StopOnSignal
        from nemo_launcher.training.trainer import make_trainer

    quiet_libraries()
    results = Path(config.exp_manager.explicit_log_dir)
    summary_path, progress_path = results / "training_summary.json", results / PROGRESS_NAME
    trainer = make_trainer(config.trainer, [TrainingProgress(progress_path), StopOnSignal()])
    with _kept_in_place([Path(model_config.nemo_path), summary_path, progress_path]):
        exp_manager(trainer, _exp_manager_config(config))
    quiet_libraries()  # exp_manager turns Lightning's messages on again
    model = AdapterLearningModel(model_config, trainer, base, adapters, train_samples, validation_samples)
    trained = adapters.num_parameters()
    total = trained + base.num_parameters
    print(
        f"training {trained:,} of {total:,} parameters ({trained / total:.3%}), {model.total_steps()} steps", flush=True
    )
    trainer.fit(model)
    summary = {
        "trainable_parameters": trained,
        "trainable_share": trained / total,
        **model.figures.rates(),
        "peak_memory_gib": peak_memory_gib(),
        "steps": trainer.global_step,
        "best_val_loss": model.best_val_loss,
        "adapter_path": str(model_config.nemo_path),
    }
    if trainer.is_global_zero and model.figures.samples:
        write_json(summary_path, finite_or_none(summary))
    print(f"adapter written: {model_config.nemo_path}", flush=True)


@contextlib.contextmanager
def _kept_in_place(paths: list[Path]) -> Iterator[None]:
    """Keep files of an earlier run where they are, though exp_manager moves all files in its folder to run_N/.

    Whatever happens in between, a copy is left in a folder beside them, and the next start puts it back. Rank 0 does
    it, as it is the one that moves and writes files.
    """
    if ranks.rank() > 0:
        yield
        return
    kept = {path: path.parent / ".kept" / path.name for path in paths}
    for path, copy in kept.items():
        if path.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(path, copy)
    yield
    for path, copy in kept.items():
        if copy.exists() and not path.exists():
            os.replace(copy, path)
        copy.unlink(missing_ok=True)
        if copy.parent.exists() and not any(copy.parent.iterdir()):
            copy.parent.rmdir()


def _samples(job: DictConfig, key: str, base: Base, *, shuffled: bool) -> Sequence[Any]:
    config = job.model
    data = config.data
    if not data[key]:
        raise UserError(Problem(f"model.data.{key}", "names no file", f"model.data.{key}=[/path/to/data.jsonl]"))
    templates = [TaskTemplate.from_config(template) for template in config.task_templates]
    tasks = set(config.get("existing_tasks") or []) | set(config.get("new_tasks") or [])
    unknown = tasks - {template.taskname for template in templates}
    if unknown:
        raise UserError(Problem("model.task_templates", f"has no template for the task {sorted(unknown)[0]!r}"))
    encoder = base.family.prompt_encoder(
        base.tokenizer,
        base.shape,
        data,
        encoder_seq_length=config.get("encoder_seq_length"),
        nemo_compat=config.nemo_compat,
    )
    return cached_samples(
        list(data[key]),
        templates,
        encoder,
        max_dropped_share=float(data.get("max_dropped_share", 0.0)),
        folders=cache_folders(data.get("cache_dir"), data[key][0], job.exp_manager.explicit_log_dir),
        with_prefixes=shuffled and base.family.shares_prefixes and bool(data.get("share_prefix", True)),
    )


def _exp_manager_config(config: DictConfig) -> dict[str, Any]:
    values: dict[str, Any] = OmegaConf.to_container(config.exp_manager, resolve=True)
    if config.trainer.get("resume_from_checkpoint"):
        values["resume_from_checkpoint"] = config.trainer.resume_from_checkpoint
    # Ours measures throughput itself, and nobody reads a step timer's log.
    values.setdefault("log_step_timing", False)
    values.setdefault("log_tflops_per_sec_per_gpu", False)
    values.setdefault("create_tensorboard_logger", False)
    checkpoints = values.setdefault("checkpoint_callback_params", {})
    checkpoints.setdefault("save_nemo_on_train_end", False)
    checkpoints.setdefault("verbose", False)
    checkpoints["model_parallel_size"] = 1  # a checkpoint is one file, whatever the parallel sizes
    os.makedirs(values["explicit_log_dir"], exist_ok=True)
    return values
