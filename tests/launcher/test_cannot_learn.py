# SPDX-License-Identifier: Apache-2.0
"""Warnings at launch about trainings that would learn little or nothing, each with a key and value that ends it."""

from __future__ import annotations

import json
import re

import pytest

from nemo_launcher.launcher.suggestions import suggested
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

MODEL, TRAINER = "adapter_learning.model", "adapter_learning.trainer"
RECORD = {"taskname": "squad", "context": "c", "question": "q", "answer": "a"}
SIXTEEN = [f"{MODEL}.global_batch_size=8", f"{MODEL}.optim.sched.warmup_steps=2"]
"""A sound training of 200 records: 4 epochs of 25 steps."""


@pytest.fixture
def ready(workplace: Workplace) -> Workplace:
    """A workplace with 200 training records."""
    for name, number in (("train", 200), ("validation", 10)):
        path = workplace.root / f"{name}.jsonl"
        path.write_text((json.dumps(RECORD) + "\n") * number)
        workplace.arguments.append(f"{MODEL}.data.{name}_ds=[{path}]")
    workplace.arguments += ["debug=True", *SIXTEEN]
    return workplace


def test_a_sound_training_has_no_warning(launch: Launch, ready: Workplace) -> None:
    result = launch(*ready.arguments)
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([f"{MODEL}.optim.lr=10"], "times above this method's usual rate"),
        ([f"{MODEL}.optim.lr=1e-7"], "times below this method's usual rate"),
        ([f"{MODEL}.optim.lr=find", f"{TRAINER}.max_steps=40"], "a range test of 100 steps, but training has only 40"),
        ([f"{MODEL}.optim.sched.warmup_steps=100"], "training has 100 steps: the learning rate never reaches"),
        (
            [f"{MODEL}.optim.sched.warmup_steps=null", f"+{MODEL}.optim.sched.warmup_ratio=1.0"],
            "the learning rate never reaches",
        ),
        ([f"{MODEL}.global_batch_size=400"], "there are 200 training records: every step uses all of them"),
        ([f"{TRAINER}.max_steps=4"], "training has only 4 steps"),
        ([f"{TRAINER}.max_epochs=1", f"{MODEL}.global_batch_size=40"], "training has only 5 steps"),
        ([f"{TRAINER}.max_steps=500"], "is 500, but training ends after 100 steps"),
        ([f"{TRAINER}.max_steps=50", f"{TRAINER}.max_epochs=3"], "is 3, or 75 steps, but training ends after"),
    ],
)
def test_the_warning_comes_once_and_its_fix_ends_it(
    launch: Launch, ready: Workplace, arguments: list[str], told: str
) -> None:
    result = launch(*ready.arguments, *arguments)
    assert result.err.count(told) == 1
    given = suggested(result.err.split(told)[1].split("\n\n")[0])
    assert given
    again = launch(*ready.arguments, *arguments, *given)
    assert again.status == 0, again.err
    assert told not in again.err, (given, again.err)


def test_a_low_rate_is_told_by_method(launch: Launch, ready: Workplace) -> None:
    """The same rate may suit adapters and not IA3; the rates of SGD are on another scale."""
    arguments = [text.replace("adapter_learning", "ia3_learning") for text in ready.arguments]
    ia3 = launch("stages=[ia3_learning]", *arguments, "ia3_learning.model.optim.lr=1e-4")
    assert "times below this method's usual rate" in ia3.err
    adapters = launch(*ready.arguments, f"{MODEL}.optim.lr=1e-4")
    assert adapters.err == ""
    sgd = [f"{MODEL}.optim.name=sgd", f"{MODEL}.optim.betas=null", f"{MODEL}.optim.lr=0.5"]
    assert launch(*ready.arguments, *sgd).err == ""


def test_a_rate_of_zero_is_refused(launch: Launch, ready: Workplace) -> None:
    result = launch(*ready.arguments, f"{MODEL}.optim.lr=0")
    assert result.status == 2
    assert f"{MODEL}.optim.lr=" in result.err


def test_an_unused_number_of_epochs_is_told_only_if_given(launch: Launch, ready: Workplace) -> None:
    """conf/ sets max_epochs, so max_steps alone is a complete wish."""
    result = launch(*ready.arguments, f"{TRAINER}.max_steps=50")
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize(
    "change",
    [
        *(f"model.optim.lr={number}" for number in ("1e-300", "1e300", "1.7e308", "5e-324")),
        "model.optim.weight_decay=1e300",
        "model.optim.sched.min_lr=1e300",
        "+model.optim.sched.warmup_ratio=1e300",
        "model.data.mixture={weights: {squad: 1e300}}",
        "model.data.mixture={temperature: 1e300}",
        "trainer.limit_val_batches=1e300",
        "trainer.val_check_interval=1e300",
        "trainer.gradient_clip_val=1e300",
    ],
)
def test_no_message_has_hundreds_of_digits(launch: Launch, ready: Workplace, change: str) -> None:
    plus, name = ("+", change[1:]) if change.startswith("+") else ("", change)
    result = launch(*ready.arguments, f"{plus}adapter_learning.{name}")
    assert "Traceback" not in result.err
    assert not re.search(r"[\d,]{25}", result.out + result.err), result.out + result.err
