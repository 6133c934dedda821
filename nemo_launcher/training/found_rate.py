# SPDX-License-Identifier: Apache-2.0
"""The learning rate of a job whose `model.optim.lr` is `find`: found by a range test once, and kept for later starts.

Checkpoints keep it in their record. Before the first checkpoint, a file in the results folder does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.adapters.automatic import automatic_values
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.config.automatic import AUTO, RATE, with_values
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections import Learning
from nemo_launcher.config.training_length import planned_steps
from nemo_launcher.config.training_options import option_problems
from nemo_launcher.data.records import count_records
from nemo_launcher.data.samples import Sample
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import Base
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.range_test_file import RANGE_TEST_NAME, RangeTestContent, read_range_test
from nemo_launcher.training.automatic import with_kept_values
from nemo_launcher.training.nemo.range_test import RangeTest, run_range_test
from nemo_launcher.training.record import TrainingRecord, identity_of


def with_found_rate(
    job: Loaded[Learning],
    record: TrainingRecord,
    base: Base,
    adapters: AdapterSet,
    train: Sequence[Sample],
    validation: Sequence[Sample],
) -> Loaded[Learning]:
    """Return a job with the learning rate that a range test suggests, or one of `auto` if it suggests none.

    The rate is set in the record too. All ranks must call this and get the same rate. Raises UserError if the rate
    contradicts other settings, or if there is none.
    """
    path = Path(job.section.exp_manager.explicit_log_dir) / RANGE_TEST_NAME
    identity = identity_of(record)
    rate = ranks.decide_on_rank_zero(lambda: _kept(path, identity))
    if rate is not None:
        print(f"{RATE}={rate:g}, found by an earlier start of this training ({path.name})", flush=True)
    else:
        rate = _found(job, run_range_test(job, base, adapters, train, validation), path, identity)
    settled = with_kept_values(job, {RATE: rate}, record)
    problems = option_problems(settled)
    if problems:
        raise UserError(problems)
    return settled


def _found(job: Loaded[Learning], test: RangeTest, path: Path, identity: str) -> float:
    """Return the rate to train with after a range test, and keep it unless a signal has ended the test."""
    steps = len(test.rates)
    if test.suggestion is not None and not test.stopped:
        rate = test.suggestion
        print(f"{RATE}={rate:g}, suggested by a range test of {steps} steps ({path})", flush=True)
    else:
        rate = _automatic(job)
        print(f"the range test of {steps} steps suggests no learning rate: {RATE}={rate:g}, as for auto", flush=True)
    if ranks.rank() == 0 and not test.stopped:
        RangeTestContent(rate, test.suggestion is not None, test.rates, test.losses, identity).write(path)
    return rate


def _kept(path: Path, identity: str) -> float | None:
    """Return the rate that an earlier start of this training kept; None if there is none."""
    content = read_range_test(path)
    return content.learning_rate if content is not None and content.training == identity else None


def _automatic(job: Loaded[Learning]) -> float:
    """Return the rate that `auto` stands for. Raises UserError if the optimizer has none."""
    records = sum(count_records(path) for path in job.section.model.data.train_ds)
    steps = planned_steps(job.section, records) or 0
    rate = automatic_values(with_values(job.values, {RATE: AUTO}), steps).get(RATE)
    if not isinstance(rate, float) or not math.isfinite(rate):
        what = "the range test suggests no learning rate, and auto has none for this optimizer"
        raise UserError(Problem(RATE, what, f"{RATE}=0.01, or another number"))
    return rate
