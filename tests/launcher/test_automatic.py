# SPDX-License-Identifier: Apache-2.0
"""`auto` in model.optim becomes numbers at launch: in the job's file, in the line about a training, and on resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_launcher.adapters.registry import methods
from nemo_launcher.config.automatic import warmup_steps
from tests.workplace import MAKE_ADAPTER, Launch, Workplace

pytestmark = pytest.mark.unit

MODEL, TRAINER = "adapter_learning.model", "adapter_learning.trainer"
RECORD = {"taskname": "squad", "context": "c", "question": "q", "answer": "a"}
CHECKPOINT = """
(path.parent / "checkpoints").mkdir(exist_ok=True)
(path.parent / "checkpoints" / "one.ckpt").write_text("")
"""


@pytest.fixture
def data(workplace: Workplace) -> Workplace:
    """A workplace with 160 training records."""
    for name in ("train", "validation"):
        path = workplace.root / f"{name}.jsonl"
        path.write_text((json.dumps(RECORD) + "\n") * 160)
        workplace.arguments.append(f"{MODEL}.data.{name}_ds=[{path}]")
    workplace.arguments += [f"{MODEL}.global_batch_size=16", f"{MODEL}.micro_batch_size=8"]
    return workplace


def optim_of(workplace: Workplace) -> dict[str, Any]:
    (file,) = workplace.results.rglob("*_hydra.yaml")
    found: dict[str, Any] = yaml.safe_load(file.read_text())["model"]["optim"]
    return found


def test_the_file_and_the_line_have_numbers(launch: Launch, data: Workplace) -> None:
    result = launch(*data.arguments, "debug=True")
    assert result.status == 0, result.err
    optim = optim_of(data)
    rate = methods()["parallel_adapter"].settings.LEARNING_RATES.few
    assert (optim["lr"], optim["sched"]["warmup_steps"]) == (rate, 4)
    assert f"40 steps, learning rate {rate:g} and warm-up 4 (auto)" in result.out


def test_numbers_depend_on_the_method_and_the_steps(launch: Launch, data: Workplace) -> None:
    rates = set()
    for kind in (name for name, method in methods().items() if method.has_block):
        for epochs in (4, 400):
            given = [f"{MODEL}.adapter_tuning.type={kind}", f"{TRAINER}.max_epochs={epochs}"]
            assert launch(*data.arguments, *given, "debug=True").status == 0
            settings, optim = methods()[kind].settings, optim_of(data)
            assert optim["lr"] == settings.LEARNING_RATES.of(epochs * 10)
            assert optim["sched"]["warmup_steps"] == (4 if epochs == 4 else 50)
            rates.add(optim["lr"])
    assert len(rates) > 1


def test_an_explicit_number_stays(launch: Launch, data: Workplace) -> None:
    given = [f"{MODEL}.optim.lr=2e-4", f"{MODEL}.optim.sched.warmup_steps=7"]
    result = launch(*data.arguments, *given, "debug=True")
    assert result.status == 0
    assert (optim_of(data)["lr"], optim_of(data)["sched"]["warmup_steps"]) == (2e-4, 7)
    assert "(auto)" not in result.out


def test_a_ratio_replaces_the_automatic_warmup(launch: Launch, data: Workplace) -> None:
    result = launch(*data.arguments, f"{MODEL}.optim.sched.warmup_ratio=0.2", "debug=True")
    assert result.status == 0, result.err
    assert optim_of(data)["sched"]["warmup_steps"] is None


def test_without_data_the_job_decides(launch: Launch, workplace: Workplace) -> None:
    assert launch(*workplace.arguments, "debug=True").status == 0
    assert (optim_of(workplace)["lr"], optim_of(workplace)["sched"]["warmup_steps"]) == ("auto", "auto")


def test_data_prepared_at_launch_counts(launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_launcher.data.squad import SquadBuilder

    def prepare(self: object, source: Path, output: Path, **_: object) -> None:
        output.mkdir(parents=True, exist_ok=True)
        for name in ("squad_train.jsonl", "squad_val.jsonl"):
            (output / name).write_text((json.dumps(RECORD) + "\n") * 640)

    monkeypatch.setattr(SquadBuilder, "prepare", prepare)
    result = launch(*workplace.arguments, f"data_dir={workplace.root}/data")
    assert result.status == 0, result.err
    assert optim_of(workplace)["sched"]["warmup_steps"] == 4
    assert "warm-up 4 (auto)" in result.out


def test_a_resumed_training_keeps_its_numbers(launch: Launch, data: Workplace) -> None:
    data.stub("train.py", MAKE_ADAPTER + CHECKPOINT)
    assert launch(*data.arguments).status == 0
    before = optim_of(data)
    longer = launch(*data.arguments, f"{TRAINER}.max_epochs=400")
    assert longer.status == 0, longer.err
    assert optim_of(data) == before
    other = launch(*data.arguments, f"{MODEL}.optim.lr=2e-4")
    assert other.status == 2
    assert f"model.optim.lr ({before['lr']} -> 0.0002)" in other.err


def test_an_earlier_training_with_explicit_numbers_is_not_continued_unasked(launch: Launch, data: Workplace) -> None:
    data.stub("train.py", MAKE_ADAPTER + CHECKPOINT)
    assert launch(*data.arguments, f"{MODEL}.optim.lr=2e-4").status == 0
    other = launch(*data.arguments)
    assert other.status == 2
    assert f"continue it with {MODEL}.optim.lr=0.0002; or train in another folder" in other.err


def test_a_rate_for_another_optimizer_has_to_be_given(launch: Launch, data: Workplace) -> None:
    sgd = [f"{MODEL}.optim.name=sgd", f"{MODEL}.optim.betas=null"]
    result = launch(*data.arguments, *sgd, "debug=True")
    assert result.status == 2
    assert "auto is a rate for Adam, not for sgd" in result.err
    assert launch(*data.arguments, *sgd, f"{MODEL}.optim.lr=0.01", "debug=True").status == 0


@pytest.mark.parametrize(("steps", "warmup"), [(0, 1), (1, 1), (16, 1), (40, 4), (500, 50), (5000, 50)])
def test_warmup(steps: int, warmup: int) -> None:
    assert warmup_steps(steps) == warmup


def test_a_range_test_is_left_to_the_job_and_told(launch: Launch, data: Workplace) -> None:
    result = launch(*data.arguments, f"{MODEL}.optim.lr=find", f"{TRAINER}.max_epochs=20", "debug=True")
    assert result.status == 0, result.err
    assert (optim_of(data)["lr"], optim_of(data)["sched"]["warmup_steps"]) == ("find", 20)
    assert "a learning rate range test of 100 steps (find), 200 steps, warm-up 20 (auto)" in result.out


def test_a_resumed_training_is_not_tested_again(launch: Launch, data: Workplace) -> None:
    data.stub("train.py", MAKE_ADAPTER + CHECKPOINT)
    finds = f"{MODEL}.optim.lr=find"
    assert launch(*data.arguments, finds).status == 0
    again = launch(*data.arguments, finds)
    assert again.status == 0, again.err
    assert "range test" not in again.out
    other = launch(*data.arguments)
    assert other.status == 2
    assert f"continue it with {MODEL}.optim.lr=find; or train in another folder" in other.err


def test_a_final_rate_above_any_that_is_tested_is_refused(launch: Launch, data: Workplace) -> None:
    result = launch(*data.arguments, f"{MODEL}.optim.lr=find", f"{MODEL}.optim.sched.min_lr=2", "debug=True")
    assert result.status == 2
    assert "2 is above the highest rate of the range test, 1.0" in result.err
