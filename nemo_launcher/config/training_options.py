# SPDX-License-Identifier: Apache-2.0
"""Check options of `trainer` and `exp_manager` that would have no effect, a wrong effect, or end in a crash.

The launcher runs the checks before anything is queued, and the job again, as its configuration may have been edited.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from nemo_launcher.config import hidden_states
from nemo_launcher.config.automatic import AUTO, FIND, TEST_RATES
from nemo_launcher.config.choice_loss import choice_loss_problems
from nemo_launcher.config.ignored import LEARNING
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.mixture import mixture_problems
from nemo_launcher.config.optimizers import OPTIMIZERS, SCHEDULES, OptimizerEntry
from nemo_launcher.config.overrides import override
from nemo_launcher.config.sections import Learning
from nemo_launcher.config.sections.exp_manager import EarlyStopping, ExpManager
from nemo_launcher.config.sections.learning import Ia3Model, LearningTrainer
from nemo_launcher.config.sections.optimizer import Optimizer
from nemo_launcher.config.traversal import traversal_problems
from nemo_launcher.config.without_effect import refused
from nemo_launcher.errors import Problem

_DURATION = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}):(\d{1,2})")

_HIGHEST_TESTED = "the highest rate of the range test"

KeyOf = Callable[[str], str]


def seconds_of(text: str) -> int | None:
    """Parse `DD:HH:MM:SS` or `HH:MM:SS` into seconds; return None for any other text."""
    match = _DURATION.fullmatch(str(text))
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def option_problems(job: Loaded[Learning], key: KeyOf = str) -> list[Problem]:
    """Return what is wrong with a stage's `trainer`, `exp_manager` and optimizer options.

    key: converts a dotted key within the stage into the full key for messages.
    """
    trainer, manager, model = job.section.trainer, job.section.exp_manager, job.section.model
    return [
        *_length(trainer, key),
        *_validation(trainer, key),
        *_durations(trainer, manager, key),
        *_callbacks(trainer, manager, key),
        *refused(job.values, LEARNING[0], key),
        *_optimizer(model, key),
        *_schedule(model.optim, key),
        *hidden_states.setting_problems(model, key),
        *traversal_problems(job.section, key),
        *mixture_problems(model, key),
        *choice_loss_problems(model, key),
    ]


def _length(trainer: LearningTrainer, key: KeyOf) -> list[Problem]:
    problems = []
    for name, value, example in (("max_epochs", trainer.max_epochs, 4), ("max_steps", trainer.max_steps, 1000)):
        if value == 0:
            problems.append(
                Problem(key(f"trainer.{name}"), "0 would train nothing", f"{key(f'trainer.{name}')}={example}")
            )
    if trainer.max_epochs in (None, -1) and trainer.max_steps in (None, -1):
        what = "neither max_epochs nor max_steps is set, but the learning rate schedule needs the number of steps"
        problems.append(Problem(key("trainer.max_epochs"), what, f"{key('trainer.max_epochs')}=4"))
    return problems


def _validation(trainer: LearningTrainer, key: KeyOf) -> list[Problem]:
    problems = []
    limits = {"limit_train_batches": trainer.limit_train_batches, "limit_val_batches": trainer.limit_val_batches}
    for name, value in limits.items():
        if value is None:
            continue
        if not 0 <= value <= 1 and value != int(value):
            what = f"{value} is neither a share (0.0 to 1.0) nor a number of batches"
            problems.append(Problem(key(f"trainer.{name}"), what, f"{key(f'trainer.{name}')}={max(1, int(value))}"))
        elif value == 0 and name == "limit_train_batches":
            problems.append(
                Problem(key(f"trainer.{name}"), "0 would train nothing", f"{key(f'trainer.{name}')}=1.0 for all")
            )
    interval, where = trainer.val_check_interval, key("trainer.val_check_interval")
    every_epoch = trainer.check_val_every_n_epoch is not None
    if interval is not None and (interval <= 0 or (interval > 1 and interval != int(interval))):
        what = f"{interval} is neither a share of an epoch (above 0.0, up to 1.0) nor a number of steps"
        problems.append(Problem(where, what, f"{where}={max(1, round(interval)) if interval > 1 else 1.0}"))
    elif not every_epoch and (interval is None or (isinstance(interval, float) and interval <= 1)):
        what = f"must be a whole number of steps with {key('trainer.check_val_every_n_epoch')}=null"
        problems.append(Problem(where, what, f"{where}=100, or {key('trainer.check_val_every_n_epoch')}=1"))
    return problems


def _durations(trainer: LearningTrainer, manager: ExpManager, key: KeyOf) -> list[Problem]:
    interval = manager.checkpoint_callback_params.train_time_interval
    given = {
        "trainer.max_time": trainer.max_time,
        "exp_manager.max_time_per_run": manager.max_time_per_run,
        "exp_manager.checkpoint_callback_params.train_time_interval": interval,
    }
    problems = []
    for name, value in given.items():
        if value is not None and not seconds_of(value):
            fix = f'{key(name)}="00:04:00:00" for four hours (days:hours:minutes:seconds)'
            problems.append(Problem(key(name), f"{value!r} is not a time", fix))
    return problems


def _callbacks(trainer: LearningTrainer, manager: ExpManager, key: KeyOf) -> list[Problem]:
    problems = []
    top = "exp_manager.checkpoint_callback_params"
    saved = manager.checkpoint_callback_params
    for where, value in (("exp_manager.name", manager.name), (f"{top}.filename", saved.filename)):
        if "/" in str(value or ""):
            fix = override(key(where), str(value).replace("/", "-"))
            problems.append(Problem(key(where), f"{value!r} must be a file name without /", fix))
    triggers = [
        name for name in ("every_n_epochs", "every_n_train_steps", "train_time_interval") if getattr(saved, name)
    ]
    if len(triggers) > 1:
        what = f"only one of {' and '.join(triggers)} may be set"
        problems.append(Problem(key(f"{top}.{triggers[0]}"), what, f"{key(f'{top}.{triggers[0]}')}=null"))
    monitor = saved.monitor
    if monitor is None and saved.save_top_k not in (-1, 0, 1):
        what = f"without it save_top_k={saved.save_top_k} has nothing to rank checkpoints by"
        problems.append(Problem(key(f"{top}.monitor"), what, f"{key(f'{top}.monitor')}=val_loss"))
    if manager.create_early_stopping_callback:
        watched = (manager.early_stopping_callback_params or EarlyStopping()).monitor
        where = key("exp_manager.early_stopping_callback_params.monitor")
        if watched == "val_loss" and trainer.limit_val_batches == 0:
            what = f"there is no val_loss with {key('trainer.limit_val_batches')}=0"
            problems.append(Problem(where, what, f"{key('trainer.limit_val_batches')}=1.0"))
    return problems


def _optimizer(model: Ia3Model, key: KeyOf) -> list[Problem]:
    optim, where = model.optim, key("model.optim.name")
    name = optim.name
    entry = OPTIMIZERS.get(name, OptimizerEntry())
    problems = [
        Problem(key(f"model.optim.{setting}"), f"{name} has no {setting}", f"{key(f'model.optim.{setting}')}=null")
        for setting in entry.unsupported
        if getattr(optim, setting) is not None
    ]
    if optim.lr == AUTO and not entry.steps_by_rate:
        rate = key("model.optim.lr")
        problems.append(Problem(rate, f"{AUTO} is a rate for Adam, not for {name}", f"{rate}=0.01, or another number"))
    if model.tensor_model_parallel_size != 1 and entry.needs_whole_tensors:
        what = f"{name} needs whole tensors, which tensor parallelism splits"
        fix = f"{where}=fused_adam, or {key('model.tensor_model_parallel_size')}=1"
        problems.append(Problem(where, what, fix))
    return problems


def _schedule(optim: Optimizer, key: KeyOf) -> list[Problem]:
    schedule, top, problems = optim.sched, "model.optim.sched", []
    if schedule is None:
        return []
    name, steps, ratio = schedule.name, key(f"{top}.warmup_steps"), key(f"{top}.warmup_ratio")
    if schedule.warmup_steps not in (None, AUTO) and schedule.warmup_ratio is not None:
        what = f"{steps} and {ratio} both set the length of the warm-up"
        problems.append(Problem(ratio, what, f"{steps}=null, or {ratio}=null"))
    rate, least = optim.lr, schedule.min_lr
    highest, named = (rate, key("model.optim.lr")) if rate != FIND else (max(TEST_RATES), _HIGHEST_TESTED)
    if highest != AUTO and least > highest:
        where = key(f"{top}.min_lr")
        problems.append(Problem(where, f"{least} is above {named}, {highest}", f"{where}=0.0"))
    entry = SCHEDULES[name]
    if entry.unusable:
        where = key(f"{top}.name")
        problems.append(Problem(where, f"{name} {entry.unusable}", f"{where}=CosineAnnealing"))
    elif entry.needs_warmup and not schedule.warmup_steps and not schedule.warmup_ratio:
        problems.append(Problem(steps, f"{name} needs a warm-up", f"{steps}=50"))
    if schedule.constant_steps and not entry.constant_steps and not entry.unusable:
        where = key(f"{top}.constant_steps")
        problems.append(Problem(where, f"{name} has no constant_steps", f"{where}=0"))
    return problems
