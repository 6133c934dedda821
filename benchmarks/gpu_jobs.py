# SPDX-License-Identifier: Apache-2.0
"""Training jobs of launcher_scripts/train.py, one of them killed and resumed; a section of benchmarks/gpu.py."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_models import Bench, Row, attempt
from nemo_launcher.launcher.estimate import describe
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stages import Ia3Learning
from tests.engine import tiny_gpt_nemo, write_jsonl
from tests.jobs import SCRIPTS, job_config, write_config

_SIZES = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
}
_SECONDS = 240.0
"""A job that takes longer is killed."""


def jobs(bench: Bench) -> Iterator[Row]:
    """Yield a job's rate, and its peak memory beside the estimate at launch; then whether a killed one resumes."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        folder = Path(name)
        base = tiny_gpt_nemo(folder / "base.nemo", **({} if bench.small else _SIZES))
        data = _records(folder, 24 if bench.small else 600)
        steps = 6 if bench.small else 30
        config = _config(bench, base, data, folder / "whole", steps)
        yield from attempt(lambda: _whole(config, folder), job="whole")
        killed = _config(bench, base, data, folder / "killed", steps)
        yield from attempt(lambda: _killed(killed, folder, steps), job="killed with SIGKILL and resumed")


def _records(folder: Path, count: int) -> Path:
    """Write records of random words, five for each context."""
    generator = random.Random(0)

    def words(count: int) -> str:
        return " ".join("".join(generator.choices("abcdefgh", k=4)) for _ in range(count))

    contexts = [words(40) for _ in range(-(-count // 5))]
    records = [
        {"taskname": "squad", "context": contexts[number // 5], "question": words(6), "answer": words(2)}
        for number in range(count)
    ]
    write_jsonl(folder / "squad_val.jsonl", records[:10])
    write_jsonl(folder / "squad_train.jsonl", records)
    return folder


def _config(bench: Bench, base: Path, data: Path, results: Path, steps: int) -> dict[str, Any]:
    changes = {
        "model.adapter_tuning": None,
        "model.global_batch_size": 8 if bench.small else 64,
        "model.micro_batch_size": 8 if bench.small else 64,
        "trainer.max_epochs": -1,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": 0.5,
        "trainer.accelerator": "gpu" if bench.is_gpu else "cpu",
        "trainer.precision": "bf16" if bench.is_gpu else 32,
    }
    return job_config(base, data, results, changes)


def _start(config: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    path = write_config(folder / f"{Path(config['run']['results_dir']).name}.yaml", config)
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([sys.executable, str(SCRIPTS / "train.py"), str(path)], stdout=log, stderr=log)


def _ended(process: subprocess.Popen[bytes], config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Wait for a job; return its summary."""
    results = Path(config["run"]["results_dir"])
    try:
        status = process.wait(_SECONDS)
    finally:
        process.kill()
    if status:
        raise RuntimeError((folder / f"{results.name}.log").read_text(encoding="utf-8")[-800:])
    summary: dict[str, Any] = json.loads((results / "results" / "training_summary.json").read_text())
    return summary


def _whole(config: dict[str, Any], folder: Path) -> Row:
    line = describe(Ia3Learning(config, "llama/squad", "/data"), LaunchProbe()) or ""
    start = time.perf_counter()
    summary = _ended(_start(config, folder), config, folder)
    said = re.search(r"([\d.]+) GiB of memory", line)
    row = {"seconds": time.perf_counter() - start, "estimated_gib": float(said[1]) if said else None}
    return row | {key: value for key, value in summary.items() if isinstance(value, int | float)}


def _killed(config: dict[str, Any], folder: Path, steps: int) -> Row:
    """Kill a job as soon as it has a checkpoint, and run it again."""
    process = _start(config, folder)
    deadline = time.monotonic() + _SECONDS
    checkpoints = Path(config["exp_manager"]["explicit_log_dir"]) / "checkpoints"
    while not list(checkpoints.glob("*.ckpt")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError("the job ended or took too long before it had a checkpoint")
        time.sleep(0.05)
    process.kill()
    process.wait()
    summary = _ended(_start(config, folder), config, folder)
    text = (folder / "killed.log").read_text(encoding="utf-8")
    return {"resumed": "resum" in text, "steps": summary["steps"], "all_steps": summary["steps"] == steps}
