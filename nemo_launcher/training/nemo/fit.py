# SPDX-License-Identifier: Apache-2.0
"""One training through Lightning and nemo_toolkit, from the base and the samples to the trained adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.config.layers import ALL, described
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.optimizers import OPTIMIZERS
from nemo_launcher.config.sections import Learning
from nemo_launcher.config.sections.learning import LearningTrainer
from nemo_launcher.data.samples import Sample
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.validation import ValidationMetrics
from nemo_launcher.families.base import Base
from nemo_launcher.runtime.memory import peak_memory_gib
from nemo_launcher.runtime.progress_file import PROGRESS_NAME
from nemo_launcher.runtime.quiet import quiet_libraries
from nemo_launcher.training.best_values import BestValues
from nemo_launcher.training.data_workers import report_dead_workers
from nemo_launcher.training.nemo.callbacks import TrainingProgress
from nemo_launcher.training.nemo.experiment import add_loggers, callbacks_of
from nemo_launcher.training.nemo.model import AdapterLearningModel
from nemo_launcher.training.nemo.preemption import StopOnSignal
from nemo_launcher.training.nemo.trainer import make_trainer
from nemo_launcher.training.record import TrainingRecord
from nemo_launcher.training.resume import Start


def fit(
    job: Loaded[Learning],
    start: Start,
    base: Base,
    adapters: AdapterSet,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    record: TrainingRecord,
    metrics: ValidationMetrics | None,
) -> dict[str, object]:
    """Train the adapters from `start` on, export them, and return the values of training_summary.json.

    adapters: part of the base's model. record: what checkpoints store about the job (training.record). metrics: those
    of each validation, if any. Raises UserError if there is nothing to train, and SystemExit if a signal or a time
    limit stops training.
    """
    quiet_libraries()
    config = job.section
    results = Path(config.exp_manager.explicit_log_dir)
    results.mkdir(parents=True, exist_ok=True)
    stop_on_signal = StopOnSignal(resumes=config.exp_manager.resume_if_exists)
    callbacks = [TrainingProgress(results / PROGRESS_NAME), stop_on_signal, *callbacks_of(job)]
    trainer = make_trainer(config.trainer, callbacks, results)
    add_loggers(trainer, config.exp_manager, start)
    settings = Loaded(config.model, job.values["model"])
    model = AdapterLearningModel(settings, trainer, base, adapters, train, validation, start.row_costs)
    model.record, model.metrics = record, metrics
    model.best = BestValues.of(config.exp_manager)
    trained = adapters.num_parameters()
    total = trained + base.num_parameters
    layers = adapters.settings.layers
    where = "" if layers == ALL else f" in layers {described(layers)}"
    share = f"{trained:,} of {total:,} parameters ({trained / total:.3%})"
    print(f"training {share}{where}, {model.total_steps()} steps", flush=True)
    if adapters.absent:
        print(f"the base is a mixture of experts: without {', '.join(adapters.absent)}", flush=True)
    _check_length(start, model, config.trainer)
    with report_dead_workers(model.describe_saved):
        trainer.fit(model, ckpt_path=start.path)
    not_fallen = model.validation_loss.not_fallen()
    if not_fallen is not None:
        rate = adapters.settings.LEARNING_RATES.of(model.total_steps())
        print(f"{not_fallen}; try {_what_helps(config, rate)}", flush=True)
    return {
        "trainable_parameters": trained,
        "trainable_share": trained / total,
        **model.figures.summary(),
        "peak_memory_gib": peak_memory_gib(),
        "steps": trainer.global_step,
        "learning_rate": config.model.optim.lr,
        "warmup_steps": None if config.model.optim.sched is None else config.model.optim.sched.warmup_steps,
        **model.best.summary(),
        "adapter_path": config.model.nemo_path,
    }


def _what_helps(config: Learning, rate: float) -> str:
    """Return what to try after a training that learned nothing. rate: the method's usual learning rate."""
    optim, key = config.model.optim, "model.optim.lr"
    tuned = [f"{key}={rate:g}"] if OPTIMIZERS[optim.name].steps_by_rate and optim.lr != rate else [f"another {key}"]
    length = "trainer.max_steps" if config.trainer.max_epochs in (None, -1) else "trainer.max_epochs"
    return f"{', '.join(tuned)}, a higher {length}, and check that the answers follow from the prompts"


def _check_length(start: Start, model: AdapterLearningModel, trainer: LearningTrainer) -> None:
    """Raise UserError if there are no steps to train, too many are done already, or no validation would run."""
    problems = []
    train, validation = len(model.train_loader), len(model.validation_loader)
    if train == 0:
        fix = "lower model.global_batch_size, or add samples"
        problems.append(Problem("model.data.train_ds", "holds fewer samples than a global batch", fix))
    for key, batches in (("limit_train_batches", train), ("limit_val_batches", validation)):
        limit = getattr(trainer, key)
        if isinstance(limit, float) and 0 < limit < 1 and int(batches * limit) == 0:
            what = f"{limit} of {batches} batches is less than one"
            problems.append(Problem(f"trainer.{key}", what, f"trainer.{key}={round(1 / batches + 0.005, 2)}"))
    if problems:
        raise UserError(problems)
    steps, per_epoch, interval = model.total_steps(), model.steps_per_epoch(), trainer.val_check_interval
    by_epoch = trainer.check_val_every_n_epoch is not None
    if by_epoch and interval is not None and interval > per_epoch and trainer.limit_val_batches != 0:
        what = f"{interval} steps exceed the {per_epoch} steps of an epoch: no validation would run"
        fix = f"trainer.val_check_interval={per_epoch}, or 1.0 for the end of each epoch"
        raise UserError(Problem("trainer.val_check_interval", what, fix))
    if start.step > steps:
        key = "trainer.max_epochs" if trainer.max_steps in (None, -1) else "trainer.max_steps"
        what = f"training would end at step {steps}, but {start.step} steps are done already"
        raise UserError(Problem(key, what, f"raise {key}, or train in another folder"))
