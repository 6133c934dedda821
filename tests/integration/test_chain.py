# SPDX-License-Identifier: Apache-2.0
"""Conversion, training and evaluation in sequence through main.py, on tiny random models."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nemo_launcher.adapters.archive import read_adapter
from tests import t5
from tests.engine import save_llama
from tests.integration.launching import chain, write_squad_source
from tests.methods import LEARNING

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and data; whoever comes second finds the model converted."""
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder / "hf")
    write_squad_source(folder / "data")
    return folder


@pytest.mark.parametrize("method", LEARNING)
def test_a_llama_from_hugging_face_to_predictions(method: str, llama: Path) -> None:
    done = chain(llama, "llama", "hf", method)
    assert done.returncode == 0, done.stdout + done.stderr
    results = llama / "results/tiny"
    config, _ = read_adapter(results / f"{method}_learning_squad/results/megatron_llama_{method}.nemo")
    assert config["base_fingerprint"].startswith("sha256:")
    predictions = (results / f"{method}_learning_squad_eval/results/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in predictions] == [f"dev-{number}" for number in range(12)]
    assert (llama / "data/prompt_data/v1.1/squad_train.jsonl").is_file()  # prepared at launch


def test_an_evaluations_script_gives_the_same_result_by_hand(llama: Path) -> None:
    """The command line in the job's folder, run again manually from another folder."""
    job = llama / "results/tiny/adapter_learning_squad_eval"
    if not job.exists():
        chain(llama, "llama", "hf", "adapter")
    predictions = job / "results/predictions.jsonl"
    before = predictions.read_bytes()
    predictions.unlink()
    (script,) = job.glob("*_submission.sh")
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert predictions.read_bytes() == before


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
