"""Options of `trainer` and `exp_manager` that would have no effect, another one than documented, or end in a crash.

One table for the launcher, before anything is queued, and for the job, whose configuration may have been edited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from nemo_launcher.errors import Problem, did_you_mean

LOGGED = ("val_loss", "reduced_train_loss", "lr", "global_step", "epoch", "step")
"""The figures that training logs: what a checkpoint may monitor."""
WHOLE_TENSOR_OPTIMIZERS = ("novograd", "adafactor")
"""They keep one number for a tensor, or one for a row."""
_DURATION = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}):(\d{1,2})")

Section = Mapping[str, Any]
KeyOf = Callable[[str], str]


def seconds_of(text: str) -> int | None:
    """Return the seconds of `DD:HH:MM:SS` or `HH:MM:SS`; None for anything else."""
    match = _DURATION.fullmatch(str(text))
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def option_problems(config: Section, key: KeyOf = str) -> list[Problem]:
    """Return what is wrong with the options of one stage's `trainer` and `exp_manager` sections.

    key: turns a dotted key below the stage into the one a user writes.
    """
    trainer, manager = config["trainer"], config["exp_manager"]
    return [
        *_length(trainer, key),
        *_validation(trainer, key),
        *_durations(trainer, manager, key),
        *_callbacks(trainer, manager, key),
        *_switched_off(trainer, manager, key),
        *_optimizer(config.get("model") or {}, key),
        *_schedule((config.get("model") or {}).get("optim") or {}, key),
    ]


def _length(trainer: Section, key: KeyOf) -> list[Problem]:
    problems = []
    for name, example in (("max_epochs", "4"), ("max_steps", "1000")):
        if trainer.get(name) == 0:
            problems.append(
                Problem(key(f"trainer.{name}"), "0 would train nothing", f"{key(f'trainer.{name}')}={example}")
            )
    if trainer.get("max_epochs") in (None, -1) and trainer.get("max_steps") in (None, -1):
        what = "neither max_epochs nor max_steps ends training, and the learning rate follows the number of steps"
        problems.append(Problem(key("trainer.max_epochs"), what, f"{key('trainer.max_epochs')}=4"))
    if trainer.get("accumulate_grad_batches", 1) != 1:
        what = "must be 1: model.micro_batch_size and model.global_batch_size set the accumulation"
        fix = f"{key('trainer.accumulate_grad_batches')}=1, and raise {key('model.global_batch_size')} instead"
        problems.append(Problem(key("trainer.accumulate_grad_batches"), what, fix))
    return problems


def _validation(trainer: Section, key: KeyOf) -> list[Problem]:
    problems = []
    for name in ("limit_train_batches", "limit_val_batches"):
        value = trainer.get(name)
        if value is None:
            continue
        if not 0 <= value <= 1 and value != int(value):
            what = f"{value} is neither a share (0.0 to 1.0) nor a number of batches"
            problems.append(Problem(key(f"trainer.{name}"), what, f"{key(f'trainer.{name}')}={max(1, int(value))}"))
        elif value == 0 and name == "limit_train_batches":
            problems.append(
                Problem(key(f"trainer.{name}"), "0 would train nothing", f"{key(f'trainer.{name}')}=1.0 for all")
            )
    interval, where = trainer.get("val_check_interval"), key("trainer.val_check_interval")
    every_epoch = "check_val_every_n_epoch" not in trainer or trainer["check_val_every_n_epoch"] is not None
    if interval is not None and (interval <= 0 or (interval > 1 and interval != int(interval))):
        what = f"{interval} is neither a share of an epoch (above 0.0, up to 1.0) nor a number of steps"
        problems.append(Problem(where, what, f"{where}={max(1, round(interval)) if interval > 1 else 1.0}"))
    elif not every_epoch and (interval is None or (isinstance(interval, float) and interval <= 1)):
        what = f"with {key('trainer.check_val_every_n_epoch')}=null it counts steps: a whole number"
        problems.append(Problem(where, what, f"{where}=100, or {key('trainer.check_val_every_n_epoch')}=1"))
    return problems


def _durations(trainer: Section, manager: Section, key: KeyOf) -> list[Problem]:
    saved = manager.get("checkpoint_callback_params") or {}
    given = {
        "trainer.max_time": trainer.get("max_time"),
        "exp_manager.max_time_per_run": manager.get("max_time_per_run"),
        "exp_manager.checkpoint_callback_params.train_time_interval": saved.get("train_time_interval"),
    }
    problems = []
    for name, value in given.items():
        if value is not None and not seconds_of(value):
            fix = f'{key(name)}="00:04:00:00" for four hours (days:hours:minutes:seconds)'
            problems.append(Problem(key(name), f"{value!r} is no time", fix))
    return problems


def _callbacks(trainer: Section, manager: Section, key: KeyOf) -> list[Problem]:
    problems = []
    top = "exp_manager.checkpoint_callback_params"
    saved = manager.get("checkpoint_callback_params") or {}
    triggers = [name for name in ("every_n_epochs", "every_n_train_steps", "train_time_interval") if saved.get(name)]
    if len(triggers) > 1:
        what = f"only one of {' and '.join(triggers)} can say when a checkpoint is saved"
        problems.append(Problem(key(f"{top}.{triggers[0]}"), what, f"{key(f'{top}.{triggers[0]}')}=null"))
    monitor = saved.get("monitor", "val_loss")
    if monitor is None and saved.get("save_top_k", 3) not in (-1, 0, 1):
        what = f"without it save_top_k={saved.get('save_top_k', 3)} has nothing to rank checkpoints by"
        problems.append(Problem(key(f"{top}.monitor"), what, f"{key(f'{top}.monitor')}=val_loss"))
    elif monitor is not None and monitor not in LOGGED:
        problems.append(Problem(key(f"{top}.monitor"), f"nothing logs {monitor!r}", did_you_mean(monitor, LOGGED)))
    if manager.get("create_early_stopping_callback"):
        stopping = manager.get("early_stopping_callback_params") or {}
        where, watched = key("exp_manager.early_stopping_callback_params.monitor"), stopping.get("monitor", "val_loss")
        if watched not in LOGGED:
            problems.append(Problem(where, f"nothing logs {watched!r}", did_you_mean(watched, LOGGED)))
        elif watched == "val_loss" and trainer.get("limit_val_batches") == 0:
            what = f"there is no val_loss with {key('trainer.limit_val_batches')}=0"
            problems.append(Problem(where, what, f"{key('trainer.limit_val_batches')}=1.0"))
    return problems


def _switched_off(trainer: Section, manager: Section, key: KeyOf) -> list[Problem]:
    """Options that another part of the job is in charge of."""
    problems = [
        Problem(key(f"trainer.{name}"), f"must be False: {why}", f"{key(f'trainer.{name}')}=False")
        for name, why in (
            ("logger", "exp_manager.create_tensorboard_logger and create_wandb_logger make the loggers"),
            ("enable_checkpointing", "exp_manager.create_checkpoint_callback makes the checkpoints"),
            ("use_distributed_sampler", "the data loader deals samples out by data-parallel rank"),
            ("replace_sampler_ddp", "the data loader deals samples out by data-parallel rank"),
        )
        if trainer.get(name)
    ]
    if manager.get("log_tflops_per_sec_per_gpu"):
        where = key("exp_manager.log_tflops_per_sec_per_gpu")
        problems.append(Problem(where, "nothing here counts them", f"{where}=False"))
    return problems


def _optimizer(model: Section, key: KeyOf) -> list[Problem]:
    name = (model.get("optim") or {}).get("name")
    if model.get("tensor_model_parallel_size", 1) == 1 or name not in WHOLE_TENSOR_OPTIMIZERS:
        return []
    where = key("model.optim.name")
    what = f"{name} computes with whole tensors, of which tensor-parallel ranks hold parts"
    return [Problem(where, what, f"{where}=fused_adam, or {key('model.tensor_model_parallel_size')}=1")]


def _schedule(optim: Section, key: KeyOf) -> list[Problem]:
    schedule, top, problems = optim.get("sched") or {}, "model.optim.sched", []
    if schedule.get("warmup_steps") is not None and schedule.get("warmup_ratio") is not None:
        steps, ratio = key(f"{top}.warmup_steps"), key(f"{top}.warmup_ratio")
        what = f"{steps} and {ratio} both say how long the warm-up is"
        problems.append(Problem(ratio, what, f"{steps}=null, or {ratio}=null"))
    monitor = schedule.get("monitor")
    if monitor is not None and monitor not in LOGGED:
        where = key(f"{top}.monitor")
        problems.append(Problem(where, f"nothing logs {monitor!r}", did_you_mean(monitor, LOGGED)))
    return problems
