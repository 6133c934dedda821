# SPDX-License-Identifier: Apache-2.0
"""Throughput: steps of a GPU are timed by events in its work, which the host reads later."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.training.figures import TrainingFigures, mark

BATCH = GlobalBatch([], num_micro_batches=1, num_samples=4, answer_tokens=8, sample_tokens=100)


class FakeEvent:
    """An event of a GPU that reaches it after `milliseconds` of work."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds, self.waited = milliseconds, False

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: FakeEvent) -> float:
        assert end.waited, "an event that was not reached has no time"
        return end.milliseconds - self.milliseconds


def test_steps_of_a_gpu_are_read_when_somebody_asks() -> None:
    figures = TrainingFigures()
    events: list[Any] = [FakeEvent(each) for each in (0, 500, 600, 1100)]
    figures.add(BATCH, events[0], events[1])
    figures.add(BATCH, events[2], events[3])
    assert not any(event.waited for event in events)
    assert figures.rates()["tokens_per_second"] == 200
    assert figures.summary()["training_seconds"] == 1.0


def test_steps_of_a_cpu_are_timed_by_its_clock() -> None:
    figures = TrainingFigures()
    figures.add(BATCH, 10.0, 12.0)
    assert figures.rates()["samples_per_second"] == 2
    assert isinstance(mark(torch.device("cpu")), float)


def test_there_is_no_rate_before_the_first_step() -> None:
    assert set(TrainingFigures().rates().values()) == {None}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_mark_of_a_gpu_is_an_event() -> None:
    assert isinstance(mark(torch.device("cuda")), torch.cuda.Event)
