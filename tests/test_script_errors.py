# SPDX-License-Identifier: Apache-2.0
"""Mistakes in a job's input: status 2, a message without a traceback, and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import save_adapter
from tests.engine import BOTTLENECK, adapted, squad_records, write_jsonl, write_squad
from tests.jobs import evaluation_config, job_config, run_script

pytestmark = pytest.mark.integration

Change = Callable[[dict[str, Any], Path], None]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """An earlier job's adapter where this job would write its own."""
    path = tmp_path / "results/adapter.nemo"
    save_adapter(path, {"seed": 1}, {"key": {"weight": torch.ones(3)}})
    return path


def refused(script: str, config: dict[str, Any], folder: Path) -> str:
    """Run a script that must refuse; return its output."""
    job = run_script(script, config, folder)
    assert "Traceback" not in job.output, job.output
    assert job.status == 2, job.output
    return job.output


def copy_base(config: dict[str, Any], folder: Path, size: int | None = None) -> Path:
    path = folder / "cut.nemo"
    path.write_bytes(Path(config["model"]["language_model_path"]).read_bytes()[:size])
    config["model"]["language_model_path"] = str(path)
    return path


def replace_line(config: dict[str, Any], folder: Path, key: str, number: int, line: str) -> None:
    """Replace line `number` of a data file by `line`."""
    path = Path(config["model"]["data"][key][0])
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path = folder / "changed.jsonl"
    path.write_text("\n".join(lines) + "\n")
    config["model"]["data"][key] = [str(path)]


def without_question(config: dict[str, Any], folder: Path) -> None:
    records = squad_records(4)
    del records[2]["question"]
    records[2]["qestion"] = "Where?"
    config["model"]["data"]["train_ds"] = [str(write_jsonl(folder / "changed.jsonl", records))]


def set_key(dotted: str, value: Any) -> Change:
    def change(config: dict[str, Any], folder: Path) -> None:
        *parents, last = dotted.split(".")
        for key in parents:
            config = config[key]
        config[last] = value

    return change


TRAINING_MISTAKES: dict[str, tuple[Change, list[str]]] = {
    "base_absent": (set_key("model.language_model_path", "/nowhere/base.nemo"), ["/nowhere/base.nemo", "no such"]),
    "base_truncated": (lambda config, folder: copy_base(config, folder, 5000), ["cut.nemo", "is truncated"]),
    "base_empty": (lambda config, folder: copy_base(config, folder, 0), ["cut.nemo", "is truncated"]),
    "json_broken": (
        lambda config, folder: replace_line(config, folder, "train_ds", 3, '{"taskname": "squad", '),
        ["changed.jsonl:3", "not JSON"],
    ),
    "json_broken_in_validation": (
        lambda config, folder: replace_line(config, folder, "validation_ds", 2, "[]"),
        ["changed.jsonl:2", "not an object"],
    ),
    "data_absent": (set_key("model.data.train_ds", ["/nowhere/train.jsonl"]), ["/nowhere/train.jsonl", "no such"]),
    "field_absent": (without_question, ["changed.jsonl:3", "no field 'question'", "did you mean 'qestion'?"]),
    "task_unknown": (set_key("model.new_tasks", ["squat"]), ["model.task_templates", "squat"]),
    "method_unknown": (
        set_key("model.adapter_tuning.type", "paralel_adapter"),
        ["model.adapter_tuning.type", "did you mean 'parallel_adapter'?"],
    ),
    "settings_wrong": (
        set_key("model.adapter_tuning", BOTTLENECK | {"adapter_dim": 0, "norm_position": "before"}),
        ["adapter_dim: must be at least 1, not 0", "norm_position: the text 'before' is not a choice"],
    ),
    "precision_unknown": (set_key("trainer.precision", "bf61"), ["trainer.precision", "did you mean 'bf16'?"]),
    "restore_path_absent": (set_key("model.restore_path", "/nowhere/a.nemo"), ["/nowhere/a.nemo", "no such"]),
}


@pytest.mark.parametrize("mistake", TRAINING_MISTAKES)
def test_training_refuses(mistake: str, tiny_base: Path, earlier: Path, tmp_path: Path) -> None:
    change, words = TRAINING_MISTAKES[mistake]
    config = job_config(tiny_base, write_squad(tmp_path / "data"), tmp_path)
    change(config, tmp_path)
    before = earlier.read_bytes()
    output = refused("train", config, tmp_path)
    assert all(word in output for word in words), output
    assert earlier.read_bytes() == before
    assert not (tmp_path / "results/training_summary.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_training_on_a_gpu_that_is_not_there(tiny_base: Path, tmp_path: Path) -> None:
    changes = {"trainer.accelerator": "gpu"}
    output = refused("train", job_config(tiny_base, write_squad(tmp_path / "data"), tmp_path, changes), tmp_path)
    assert "trainer.accelerator" in output


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(set_key("model.optim.name", "fused_adamm"), id="optimizer"),
        pytest.param(set_key("model.optim.sched.name", "CosineAnealing"), id="schedule"),
        pytest.param(set_key("model.global_batch_size", 0), id="batch_size"),
        pytest.param(set_key("trainer.max_epoch", 3), id="trainer_key"),
        pytest.param(set_key("model.data.train_ds", []), id="no_files"),
    ],
)
def test_training_refuses_settings_too(change: Change, tiny_base: Path, earlier: Path, tmp_path: Path) -> None:
    config = job_config(tiny_base, write_squad(tmp_path / "data"), tmp_path)
    change(config, tmp_path)
    refused("train", config, tmp_path)


# --- samples that are too long ----------------------------------------------------------------------------------


def with_long_samples(tiny_base: Path, folder: Path, share: float) -> dict[str, Any]:
    """A job with ten samples, three of which exceed the model's length."""
    records = squad_records(10)
    for record in records[:3]:
        record["context"] = record["context"] + " word" * 300
    data = write_squad(folder / "data")
    write_jsonl(data / "squad_train.jsonl", records)
    return job_config(tiny_base, data, folder, {"model.data.max_dropped_share": share, "trainer.max_epochs": 1})


def test_too_many_dropped_samples_are_refused(tiny_base: Path, earlier: Path, tmp_path: Path) -> None:
    before = earlier.read_bytes()
    output = refused("train", with_long_samples(tiny_base, tmp_path, 0.2), tmp_path)
    assert "3 of 10 prompts are longer than 256 tokens" in output
    assert "model.data.max_dropped_share=0.3" in output
    assert earlier.read_bytes() == before


def test_as_many_dropped_samples_as_allowed_are_told(tiny_base: Path, tmp_path: Path) -> None:
    job = run_script("train", with_long_samples(tiny_base, tmp_path, 0.3), tmp_path)
    assert job.status == 0, job.output
    assert "Dropped: 3 of 10 prompts" in job.output
    assert "7 training and 6 validation samples" in job.output
    assert json.loads((tmp_path / "results/training_summary.json").read_text())["steps"] == 2


# --- evaluation, conversion, preparation ------------------------------------------------------------------------


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    config = job_config(tiny_base, tmp_path / "data", tmp_path)["model"]
    save_adapter(tmp_path / "trained.nemo", config, adapted(tiny_base, config)[1].state_dict())
    return tmp_path / "trained.nemo"


EVALUATION_MISTAKES: dict[str, tuple[Change, list[str]]] = {
    "adapter_absent": (set_key("adapter_model_file", "/nowhere/a.nemo"), ["/nowhere/a.nemo", "no such"]),
    "base_absent": (set_key("language_model_path", "/nowhere/base.nemo"), ["/nowhere/base.nemo", "no such"]),
    "questions_absent": (set_key("data_paths", ["/nowhere/test.jsonl"]), ["/nowhere/test.jsonl", "no such"]),
    "truth_absent": (set_key("ground_truth_file_path", "/nowhere/truth.jsonl"), ["/nowhere/truth.jsonl", "no such"]),
    "precision_unknown": (set_key("trainer.precision", "fp8"), ["trainer.precision", "fp8"]),
    "no_room": (set_key("inference.tokens_to_generate", 300), ["tokens are left for a prompt"]),
}


@pytest.mark.parametrize("mistake", EVALUATION_MISTAKES)
def test_evaluation_refuses(mistake: str, tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    change, words = EVALUATION_MISTAKES[mistake]
    config = evaluation_config(tiny_base, adapter, write_squad(tmp_path / "data"), tmp_path)
    change(config, tmp_path)
    output = refused("evaluate", config, tmp_path)
    assert all(word in output for word in words), output
    assert not (tmp_path / "results").exists()


def test_evaluation_refuses_answers_of_other_questions(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "data")
    truths = (data / "squad_test_ground_truth.jsonl").read_text().splitlines()[:-1]
    (data / "squad_test_ground_truth.jsonl").write_text("\n".join(truths) + "\n")
    output = refused("evaluate", evaluation_config(tiny_base, adapter, data, tmp_path), tmp_path)
    assert "5 answers for 6 questions" in output


def test_evaluation_refuses_an_adapter_of_another_base(tiny_base: Path, tmp_path: Path) -> None:
    config = job_config(tiny_base, tmp_path / "data", tmp_path)["model"]
    state = adapted(tiny_base, config)[1].state_dict()
    wide = {key: {n: torch.cat([t, t], -1) for n, t in tensors.items()} for key, tensors in state.items()}
    save_adapter(tmp_path / "wide.nemo", config, wide)
    data = write_squad(tmp_path / "data")
    output = refused("evaluate", evaluation_config(tiny_base, tmp_path / "wide.nemo", data, tmp_path), tmp_path)
    assert "wide.nemo: model.language_model.encoder.layers.0:adapter_1" in output
    assert "(4, 64)" in output


def test_conversion_refuses_an_absent_model_and_keeps_the_old_base(tmp_path: Path) -> None:
    (tmp_path / "base.nemo").write_bytes(b"old")
    section = {"hf_model_path": "/nowhere/llama", "nemo_path": str(tmp_path / "base.nemo"), "precision": None}
    run = {"name": "convert", "results_dir": str(tmp_path), "model_train_name": "llama"}
    output = refused("convert_hf2nemo", {"run": run, "model": section}, tmp_path)
    assert "/nowhere/llama" in output
    assert (tmp_path / "base.nemo").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("script", "config", "word"),
    [
        ("prepare_data", {"source_dir": "x"}, "output_dir"),
        pytest.param("convert_hf2nemo", {"model": {"hf_model_path": "x"}}, "nemo_path"),
        pytest.param("train", {"model": {}}, "trainer"),
        pytest.param("evaluate", {"run": {}}, "adapter_model_file"),
    ],
)
def test_absent_keys_are_named(script: str, config: dict[str, Any], word: str, tmp_path: Path) -> None:
    assert word in refused(script, config, tmp_path)
