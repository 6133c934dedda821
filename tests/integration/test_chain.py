"""Conversion, training and evaluation one after another through main.py, on tiny random models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.adapters.archive import read_adapter
from tests import t5
from tests.engine import save_llama, squad_records

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.integration
# What a machine without GPUs needs beside the documented choices.
LAPTOP = "trainer.devices=1", "trainer.accelerator=cpu", "trainer.precision=32"


def write_squad_source(folder: Path) -> Path:
    """Write train-v1.1.json and dev-v1.1.json in the format of SQuAD v1.1."""
    folder.mkdir(parents=True)
    for name, seed in (("train", 0), ("dev", 1)):
        paragraphs: dict[str, list[dict[str, Any]]] = {}
        for number, record in enumerate(squad_records(12, seed)):
            answer = {"text": record["answer"], "answer_start": record["context"].index(record["answer"])}
            entry = {"id": f"{name}-{number}", "question": record["question"], "answers": [answer]}
            paragraphs.setdefault(record["context"], []).append(entry)
        articles = [{"title": name, "paragraphs": [{"context": c, "qas": q} for c, q in paragraphs.items()]}]
        (folder / f"{name}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    return folder


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "main.py"), *arguments]
    command += [f"base_results_dir={quoted(folder / 'results')}", f"data_dir={quoted(folder / 'data')}"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def quoted(path: Path) -> str:
    """Quote a path for Hydra's command line."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def chain(
    folder: Path, family: str, converter: str, method: str, *extra: str, cluster_type: str = "interactive"
) -> subprocess.CompletedProcess[str]:
    """Launch all three stages on a tiny model in `folder`/hf and SQuAD in `folder`/data."""
    stage = f"{method}_learning"
    arguments = [
        f"cluster_type={cluster_type}",
        f"stages=[conversion_hf2nemo,{stage},evaluation]",
        f"conversion_hf2nemo={converter}",
        f"conversion_hf2nemo.model.hf_model_path={quoted(folder / 'hf')}",
        "conversion_hf2nemo.run.model_train_name=tiny",
        f"{stage}={family}/squad",
        f"evaluation={method}_{family}/squad",
    ]
    for section in (stage, "evaluation"):
        arguments += [f"{section}.run.model_train_name=tiny", *(f"{section}.{setting}" for setting in LAPTOP)]
    arguments += [f"{stage}.model.tensor_model_parallel_size=1", "evaluation.tensor_model_parallel_size=1"]
    arguments += [f"{stage}.model.global_batch_size=8", f"{stage}.model.micro_batch_size=4"]
    arguments += [f"{stage}.trainer.max_epochs=1", f"{stage}.trainer.val_check_interval=1.0"]
    arguments += [f"{stage}.model.data.num_workers=0", "evaluation.inference.tokens_to_generate=4"]
    return launch(folder, *arguments, *extra)


@pytest.mark.parametrize("method", ["adapter", "ia3"])
def test_a_llama_from_hugging_face_to_predictions(method: str, tmp_path: Path) -> None:
    save_llama(tmp_path / "hf")
    write_squad_source(tmp_path / "data")
    done = chain(tmp_path, "llama", "hf", method)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results/tiny"
    config, _ = read_adapter(results / f"{method}_learning_squad/results/megatron_llama_{method}.nemo")
    assert config["base_fingerprint"].startswith("sha256:")
    predictions = (results / f"{method}_learning_squad_eval/results/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in predictions] == [f"dev-{number}" for number in range(12)]
    assert (tmp_path / "data/prompt_data/v1.1/squad_train.jsonl").is_file()  # prepared at launch


def test_a_t5_from_hugging_face_to_predictions(tmp_path: Path) -> None:
    t5.save_t5(tmp_path / "hf")
    write_squad_source(tmp_path / "data")
    done = chain(tmp_path, "t5", "hf_t5", "adapter", "++adapter_learning.model.data.decoder_starts_with_pad=True")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "results/tiny/adapter_learning_squad_eval/results"
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 12


def test_a_failed_stage_stops_the_chain_and_keeps_its_status(tmp_path: Path) -> None:
    save_llama(tmp_path / "hf")
    write_squad_source(tmp_path / "data")
    done = chain(tmp_path, "llama", "hf", "adapter", "adapter_learning.model.encoder_seq_length=8")
    assert done.returncode == 2
    assert "prompts are longer than 8 tokens" in done.stderr
    assert "adapter_learning: failed" in done.stderr
    assert "not started: evaluation" in done.stderr
    assert (tmp_path / "results/tiny/convert_nemo/results/megatron_llama.nemo").is_file()
    assert not (tmp_path / "results/tiny/adapter_learning_squad_eval/results").exists()
