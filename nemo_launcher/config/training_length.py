# SPDX-License-Identifier: Apache-2.0
"""The length of an epoch and the checks that depend on it, for the launcher and the job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nemo_launcher.config.sections import Learning
from nemo_launcher.errors import Problem

_CHUNK = 1 << 22
_SPACES = (b"\n", b"\r", b" ", b"\t", b"\v", b"\f")


def count_records(path: Path) -> int:
    """Return the number of non-empty lines of a JSON Lines file. Raises OSError."""
    count, last = 0, b""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            whole, newline, rest = (last + chunk).rpartition(b"\n")
            last = rest
            if newline:
                count += _lines(whole)
    return count + bool(last.strip())


def _lines(text: bytes) -> int:
    if text[:1].isspace() or any(b"\n" + space in text for space in _SPACES) or not text:  # perhaps a blank line
        return sum(1 for line in text.split(b"\n") if line.strip())
    return text.count(b"\n") + 1


def epoch_batches(config: Learning, records: int) -> int:
    """Return the number of global batches in an epoch of `records` samples. config: a learning stage's section."""
    whole, rest = divmod(records, config.model.global_batch_size)
    batches = whole + (rest > 0 and not config.model.nemo_compat)
    limit = config.trainer.limit_train_batches
    if limit is None:
        return batches
    if isinstance(limit, float) and limit <= 1:
        return int(batches * limit)
    return min(batches, int(limit))


def planned_steps(config: Learning, records: int | None) -> int | None:
    """Return the optimizer steps of a training on `records` samples; None if that is unknown."""
    trainer = config.trainer
    steps = trainer.max_steps if trainer.max_steps not in (None, -1) else None
    if trainer.max_epochs is None or trainer.max_epochs == -1:
        return steps
    if records is None:
        return None
    in_epochs = trainer.max_epochs * epoch_batches(config, records)
    return in_epochs if steps is None else min(steps, in_epochs)


def length_problems(config: Learning, records: int, key: Callable[[str], str] = str) -> list[Problem]:
    """Return problems if an epoch of `records` samples is too short for a global batch or a validation."""
    trainer, model = config.trainer, config.model
    batches = epoch_batches(config, records)
    if batches == 0 and trainer.limit_train_batches == 0:
        return []  # reported by option_problems
    if batches == 0:
        where = key("model.global_batch_size")
        micro = min(model.micro_batch_size, max(1, records))
        what = f"{model.global_batch_size}, but there are {records} training records: an epoch has no batch"
        return [Problem(where, what, f"{where}={micro} {key('model.micro_batch_size')}={micro}, or more data")]
    interval, where = trainer.val_check_interval, key("trainer.val_check_interval")
    by_epoch = trainer.check_val_every_n_epoch is not None
    if by_epoch and interval is not None and interval > batches and interval > 1:
        every = key("trainer.check_val_every_n_epoch")
        what = f"is {interval} steps, but an epoch has {batches}: validation would never run"
        return [Problem(where, what, f"{where}=1.0 for one at the end of each epoch, or add {every}=null")]
    return []
