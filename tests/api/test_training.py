# SPDX-License-Identifier: Apache-2.0
"""train: the launcher's results and mistakes as Python values, and interruption."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher import JobError, Model, UserError, train
from tests.engine import write_squad

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    """The configuration of a short training on the tiny base."""
    data = write_squad(tmp_path / "data")
    model = {
        "language_model_path": tiny_base,
        "tensor_model_parallel_size": 1,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "data": {
            "train_ds": [str(data / "squad_train.jsonl")],
            "validation_ds": [str(data / "squad_val.jsonl")],
            "num_workers": 0,
        },
    }
    trainer = {"devices": 1, "accelerator": "cpu", "precision": 32, "max_epochs": 1, "val_check_interval": 1.0}
    run = {"model_train_name": "tiny", "results_dir": tmp_path / "results"}
    return {"adapter_learning": {"run": run, "trainer": trainer, "model": model}}


def test_it_returns_the_adapter_and_the_summary(
    settings: dict[str, Any], tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    result = train(["adapter_learning=llama/squad"], settings, show=shown.append)
    assert result.summary["steps"] == 2
    assert result.outputs == {"adapter_learning": [result.adapter]}
    assert "step 2 of 2" in "".join(shown)
    assert capsys.readouterr().out == ""
    record = {"taskname": "squad", "context": "Anna lives in the inn.", "question": "where?", "answer": "the inn"}
    assert Model.load(tiny_base, adapter=result.adapter).score([record])[0].answer_tokens > 0


def test_all_mistakes_are_in_one_exception(settings: dict[str, Any]) -> None:
    settings["adapter_learning"]["model"] |= {"global_batch_size": 0, "langage_model_path": "x"}
    with pytest.raises(UserError) as error:
        train(["adapter_learning=llama/squad"], settings, quiet=True)
    where = [problem.where.split(" ")[0] for problem in error.value.problems]
    assert {"adapter_learning.model.langage_model_path", "adapter_learning.model.global_batch_size"} <= set(where)
    assert not Path(settings["adapter_learning"]["run"]["results_dir"]).exists()


@pytest.mark.parametrize(
    ("more", "where"),
    [
        (["stages=[data_preparation]"], "stages"),
        (["debug=True"], "debug"),
        (["-m", "adapter_learning.model.seed=1,2"], "settings"),
    ],
)
def test_what_is_not_one_training_is_refused(settings: dict[str, Any], more: list[str], where: str) -> None:
    with pytest.raises(UserError) as error:
        train(["adapter_learning=llama/squad"], settings, more, quiet=True)
    assert [problem.where for problem in error.value.problems] == [where]


def test_a_failed_job_is_an_exception_with_its_message(settings: dict[str, Any]) -> None:
    settings["adapter_learning"]["model"]["encoder_seq_length"] = 8
    shown: list[str] = []
    with pytest.raises(JobError, match="prompts are longer than 8 tokens") as error:
        train(["adapter_learning=llama/squad"], settings, show=shown.append)
    assert "".join(shown).count("prompts are longer than 8 tokens") == 1  # not again at the launcher's end
    assert f"exit status 2; its log: {error.value.log}" in "".join(shown)
    assert (error.value.stage, error.value.status) == ("adapter_learning", 2)
    assert error.value.log is not None
    assert error.value.log.is_file()


def test_an_interrupt_stops_the_training_with_a_checkpoint(settings: dict[str, Any]) -> None:
    """As a notebook does it: the signal reaches this process alone."""
    settings["adapter_learning"]["trainer"] |= {"max_epochs": 1000}
    shown: list[str] = []

    def interrupt_once(text: str) -> None:
        if ": step " in text and not any(": step " in piece for piece in shown):
            os.kill(os.getpid(), signal.SIGINT)
        shown.append(text)

    before = (signal.getsignal(signal.SIGINT), {thread.name for thread in threading.enumerate()})
    with pytest.raises(KeyboardInterrupt):
        train(["adapter_learning=llama/squad"], settings, show=interrupt_once)
    assert (signal.getsignal(signal.SIGINT), {thread.name for thread in threading.enumerate()}) == before
    assert "checkpoint" in "".join(shown)
    (folder,) = Path(settings["adapter_learning"]["run"]["results_dir"]).glob("results/checkpoints")
    assert list(folder.iterdir())
