# SPDX-License-Identifier: Apache-2.0
"""Replace `auto` in a training job by numbers, unless the launcher has: it may not have seen the data."""

from __future__ import annotations

from collections.abc import Mapping

from nemo_launcher.adapters.automatic import automatic_values
from nemo_launcher.config.automatic import FIND, automatic_keys, with_values
from nemo_launcher.config.load import Loaded, load_checked
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.config.sections import Learning
from nemo_launcher.config.training_length import planned_steps
from nemo_launcher.config.training_options import option_problems
from nemo_launcher.data.records import count_records
from nemo_launcher.errors import UserError
from nemo_launcher.training.record import TrainingRecord


def with_numbers(job: Loaded[Learning]) -> Loaded[Learning]:
    """Return a job with numbers for `auto`. Raises UserError if they contradict other settings."""
    if not automatic_keys(job.values):
        return job
    steps = planned_steps(job.section, sum(count_records(path) for path in job.section.model.data.train_ds))
    settled = _changed(job, automatic_values(job.values, steps or 0))
    problems = option_problems(settled)
    if problems:
        raise UserError(problems)
    return settled


def with_kept_values(
    job: Loaded[Learning], kept: Mapping[str, object] | None, record: TrainingRecord
) -> Loaded[Learning]:
    """Return a job with the numbers of the training that it resumes (Start.kept), and set them in its record."""
    if not kept:
        return job
    record["config"] = with_values(record["config"], kept)
    return _changed(job, kept)


def described(job: Loaded[Learning], keys: list[str], *, kept: bool) -> str:
    """Return a line about the numbers of these keys; kept: whether they are those of the training that is resumed."""
    numbers = [f"{key}={value_of(job.values, key)}" for key in keys if value_of(job.values, key) != FIND]
    return f"{'kept' if kept else 'auto'}: {', '.join(numbers)}" if numbers else ""


def _changed(job: Loaded[Learning], values: Mapping[str, object]) -> Loaded[Learning]:
    return load_checked(with_values(job.values, values), type(job.section))
