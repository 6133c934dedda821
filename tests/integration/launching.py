# SPDX-License-Identifier: Apache-2.0
"""Launches of main.py and nemo-launcher like those of users, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.engine import squad_records
from tests.jobs import REPOSITORY

LIMIT_S = 120
# Overrides for a machine without GPUs.
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
    return launch(folder, *chain_arguments(folder, family, converter, method), f"cluster_type={cluster_type}", *extra)


def chain_arguments(folder: Path, family: str, converter: str, method: str) -> list[str]:
    """Return the command line for a chain of all three stages on a tiny model in `folder`/hf."""
    stage = f"{method}_learning"
    arguments = [
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
    # small steps: Adam's depend on the sign of gradients that are almost zero, and so on the number of ranks
    arguments += [f"{stage}.model.optim.lr=1e-4", f"{stage}.model.optim.sched.warmup_steps=50"]
    arguments += [f"{stage}.model.data.num_workers=0", "evaluation.inference.tokens_to_generate=4"]
    return arguments


def console(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a verb of nemo-launcher."""
    command = [sys.executable, "-m", "nemo_launcher.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=False)
