# SPDX-License-Identifier: Apache-2.0
"""Warnings about trainings that would learn nothing: rates, warm-ups, batches and lengths that cannot be intended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.config.automatic import AUTO, RATE
from nemo_launcher.config.optimizers import OPTIMIZERS
from nemo_launcher.config.training_length import epoch_batches
from nemo_launcher.errors import Problem
from nemo_launcher.launcher.estimate import steps_of_range_test, training_records, training_steps
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stages import Learning

FAR_RATE = 30.0
"""A rate is unusual if it is more than this factor above or below the method's own (Settings.LEARNING_RATES)."""
MAX_SHOWN_TIMES = 1_000_000_000
"""The largest factor that a warning writes out."""
FEW_STEPS = 8
"""Trainings with fewer steps are warned about."""
ENOUGH_STEPS = 24
"""The number of steps that the warning about few steps aims at."""


def cannot_learn(stage: Learning, probe: LaunchProbe, overrides: Sequence[str]) -> Iterator[Problem]:
    """Yield a warning for each setting with which a training would learn little or nothing."""
    steps, records = training_steps(stage, probe), training_records(stage, probe)
    yield from _far_rate(stage, steps)
    if steps is not None and steps_of_range_test(stage) > steps:
        what = f"runs a range test of {steps_of_range_test(stage)} steps, but training has only {steps}"
        yield Problem(stage.key(RATE), what, f"{stage.key(RATE)}={AUTO}, which takes no time")
    if steps is not None and steps > 0:
        yield from _long_warmup(stage, steps)
    batch = stage.section.model.global_batch_size
    if records and records < batch:
        what = f"is {batch}, but there are {records} training records: every step uses all of them"
        yield Problem(stage.key("model.global_batch_size"), what, _smaller_batch(stage, records))
    elif steps is not None and 0 < steps < FEW_STEPS:
        yield _few_steps(stage, steps, records)
    if records:
        yield from _unused_length(stage, records, overrides)


def _far_rate(stage: Learning, steps: int | None) -> Iterator[Problem]:
    optim = stage.section.model.optim
    if isinstance(optim.lr, str) or not OPTIMIZERS[optim.name].steps_by_rate:
        return
    usual = settings_of(stage.config["model"]).LEARNING_RATES.of(steps or 0)
    factor = optim.lr / usual
    if max(factor, 1 / factor) > FAR_RATE:
        key, where = stage.key("model.optim.lr"), "above" if factor > 1 else "below"
        effect = "training will probably diverge" if factor > 1 else "training will hardly change the model"
        times = max(factor, 1 / factor)
        often = f"{times:,.0f}" if times <= MAX_SHOWN_TIMES else f"more than {MAX_SHOWN_TIMES:,}"
        what = f"is {optim.lr:g}, {often} times {where} this method's usual rate: {effect}"
        yield Problem(key, what, f"{key}=auto")


def _long_warmup(stage: Learning, steps: int) -> Iterator[Problem]:
    schedule = stage.section.model.optim.sched
    if schedule is None:
        return
    if schedule.warmup_steps == AUTO:
        return
    name = "warmup_steps" if schedule.warmup_steps else "warmup_ratio"
    warmup = schedule.warmup_steps or (schedule.warmup_ratio or 0.0) * steps
    if warmup >= steps:
        key, value = stage.key(f"model.optim.sched.{name}"), getattr(schedule, name)
        what = f"is {value}, but training has {steps} steps: the learning rate never reaches its full value"
        yield Problem(key, what, f"{key}={AUTO if name == 'warmup_steps' else 0.1}")


def _smaller_batch(stage: Learning, records: int) -> str:
    """Return the keys and values of a batch that fits about eight times into the records, if there are so many."""
    replicas = _replicas(stage)
    micro = min(stage.section.model.micro_batch_size, max(1, records // (8 * replicas)))
    batch = micro * replicas * max(1, records // (8 * micro * replicas))
    return f"{stage.key('model.global_batch_size')}={batch} {stage.key('model.micro_batch_size')}={micro}"


def _replicas(stage: Learning) -> int:
    model = stage.section.model
    ranks = model.tensor_model_parallel_size * model.pipeline_model_parallel_size
    return max(1, stage.devices * stage.num_nodes // ranks)


def _few_steps(stage: Learning, steps: int, records: int | None) -> Problem:
    trainer = stage.section.trainer
    by_epochs = records and trainer.max_epochs not in (None, -1)
    per_epoch = epoch_batches(stage.section, records) if by_epochs and records else 0
    if per_epoch and trainer.max_epochs is not None and trainer.max_epochs * per_epoch == steps:
        key, value = stage.key("trainer.max_epochs"), math.ceil(ENOUGH_STEPS / per_epoch)
    else:
        key, value = stage.key("trainer.max_steps"), ENOUGH_STEPS
    what = f"training has only {steps} step{'s' if steps > 1 else ''}, in which it will learn little"
    return Problem(key, what, f"{key}={value}, or a smaller {stage.key('model.global_batch_size')}")


def _unused_length(stage: Learning, records: int, overrides: Sequence[str]) -> Iterator[Problem]:
    """Yield a warning if one of max_epochs and max_steps ends training before the other has any effect.

    max_epochs is only warned about if it is on the command line, because conf/ sets it.
    """
    trainer = stage.section.trainer
    epochs, steps = trainer.max_epochs, trainer.max_steps
    per_epoch = epoch_batches(stage.section, records)
    if epochs in (None, -1) or steps in (None, -1) or epochs is None or steps is None or not per_epoch:
        return
    in_epochs = epochs * per_epoch
    names = {name: stage.key(f"trainer.{name}") for name in ("max_epochs", "max_steps")}
    if steps > in_epochs:
        what = f"is {steps}, but training ends after {in_epochs} steps, with {names['max_epochs']}={epochs}"
        yield Problem(names["max_steps"], what, f"{names['max_epochs']}=-1 to train for {steps} steps")
    elif steps < in_epochs and any(text.lstrip("+").startswith(f"{names['max_epochs']}=") for text in overrides):
        what = f"is {epochs}, or {in_epochs} steps, but training ends after {names['max_steps']}={steps}"
        yield Problem(names["max_epochs"], what, f"{names['max_steps']}=-1 to train for {epochs} epochs")
