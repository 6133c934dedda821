# SPDX-License-Identifier: Apache-2.0
"""What the launcher says of a training, against what its job reports, over different shapes on a CPU."""

from __future__ import annotations

import json
import random
import re
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nemo_launcher.launcher.estimate import describe
from nemo_launcher.launcher.memory import PROCESS_BYTES
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stages import AdapterLearning, Ia3Learning
from tests import gpt, t5
from tests.engine import write_jsonl
from tests.jobs import job_config, run_script

pytestmark = pytest.mark.integration

LLAMA = {"activation": "swiglu", "normalization": "rmsnorm", "position_embedding_type": "rope", "bias": False}
GPT3 = {"activation": "gelu", "normalization": "layernorm", "position_embedding_type": "learned_absolute"}
SIZES = {"num_layers": 6, "hidden_size": 384, "ffn_hidden_size": 1024, "num_attention_heads": 6}
WINDOW = {"encoder_seq_length": 4096, "max_position_embeddings": 4096}
TIED = {"share_embeddings_and_output_weights": True}
UNTIED = {"share_embeddings_and_output_weights": False}
BOTTLENECK = {"type": "parallel_adapter", "adapter_dim": 16}
ROUNDING = 0.05  # the launcher says tenths of a GiB
LORA = {"type": "lora", "adapter_dim": 16, "target_modules": ["all"]}


def write_base(path: Path, rows: int, **changes: Any) -> Path:
    """Write a GPT with random weights and `rows` embedding rows."""
    config = gpt.CONFIG | SIZES | WINDOW | changes
    weights = {name: 0.1 * weight for name, weight in gpt.random_weights(config).items()}
    for name, weight in weights.items():
        if name.endswith(("word_embeddings.weight", "output_layer.weight")):
            weights[name] = 0.03 * torch.randn(rows, weight.size(1))
    return gpt.write_gpt(path, config, {"model_weights.ckpt": weights})


def write_records(path: Path, count: int, words: int, answer: int, *, shared: int = 1) -> Path:
    """Write records of random words; `shared` successive ones have the same context."""
    generator = random.Random(0)

    def text(count: int) -> str:
        return " ".join("".join(generator.choices(string.ascii_lowercase, k=4)) for _ in range(count))

    records = []
    for number in range(count):
        if number % shared == 0:
            context = text(generator.randint(words // 2, words))
        records.append({"taskname": "squad", "context": context, "question": text(6), "answer": text(answer)})
    return write_jsonl(path, records)


def agrees(said: float, measured: float) -> bool:
    """Return whether two figures are within 1.5 times each other."""
    return measured / 1.5 <= said <= measured * 1.5


def above_process(said: float) -> float:
    """Return the part of an estimate for the model and its samples; jobs of these tests import more than others."""
    return said - PROCESS_BYTES / (1 << 30) + ROUNDING


def checked(config: dict[str, Any], folder: Path, family: str) -> tuple[float, float]:
    """Run a job; compare its estimate with its summary, and return both peaks in GiB."""
    kind = AdapterLearning if "adapter_tuning" in config["model"] else Ia3Learning
    line = describe(kind(config, f"{family}/squad", "/data"), LaunchProbe())
    job = run_script("train", config, folder)
    assert job.status == 0, job.output
    summary = json.loads((folder / "results" / "training_summary.json").read_text())
    assert line is not None
    assert f" {summary['trainable_parameters']:,} parameters to train" in line
    assert line.endswith(f", {summary['steps']} steps")
    said = float(re.search(r"about ([\d.]+) GiB of memory in each process", line)[1])  # type: ignore[index]
    assert agrees(said, summary["peak_memory_gib"]), (line, summary["peak_memory_gib"])
    return said, summary["peak_memory_gib"]


@pytest.fixture(scope="module")
def process_gib(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The peak of a job whose model is too small to matter."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny = {"num_layers": 1, "hidden_size": 16, "ffn_hidden_size": 16, "num_attention_heads": 2}
    base = write_base(folder / "base.nemo", 420, **LLAMA, **TIED, **tiny)
    for name in ("train", "val"):
        write_records(folder / f"squad_{name}.jsonl", 4, 8, 1)
    config = job_config(base, folder, folder, {"model.adapter_tuning": None, "trainer.max_steps": 1})
    job = run_script("train", config, folder)
    assert job.status == 0, job.output
    return float(json.loads((folder / "results" / "training_summary.json").read_text())["peak_memory_gib"])


@pytest.mark.parametrize(
    ("base", "data", "changes", "tuning"),
    [
        pytest.param(
            {**LLAMA, **TIED, "rows": 32000}, {"count": 8, "words": 20, "answer": 1}, {}, None, id="short samples"
        ),
        pytest.param(
            {**LLAMA, **UNTIED, "rows": 16000, "num_query_groups": 2},
            {"count": 3, "words": 40, "answer": 40},
            {"model.micro_batch_size": 16},
            LORA,
            id="long answers",
        ),
        pytest.param(
            {**GPT3, **TIED, "rows": 1000},
            {"count": 1, "words": 300, "answer": 2},
            {"model.micro_batch_size": 1},
            BOTTLENECK,
            id="long samples",
        ),
        pytest.param(
            {**LLAMA, **TIED, "rows": 1000, "num_layers": 10},
            {"count": 8, "words": 60, "answer": 2, "shared": 8},
            {"model.micro_batch_size": 32, "trainer.precision": "bf16"},
            None,
            id="shared prefixes",
        ),
        pytest.param(
            {**LLAMA, **TIED, "rows": 1000},
            {"count": 1, "words": 250, "answer": 2},
            {
                "model.activations_checkpoint_granularity": "full",
                "model.activations_checkpoint_method": "uniform",
                "trainer.limit_train_batches": 1,
            },
            None,
            id="recomputed",
        ),
    ],
)
def test_gpt(
    tmp_path: Path,
    process_gib: float,
    base: dict[str, Any],
    data: dict[str, Any],
    changes: dict[str, Any],
    tuning: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as tests.engine sets it in the job
    write_records(tmp_path / "squad_train.jsonl", **data)
    write_records(tmp_path / "squad_val.jsonl", **data | {"count": 1, "words": 8, "answer": 1})
    usual = {"model.encoder_seq_length": 4096, "model.global_batch_size": 16, "model.micro_batch_size": 4}
    usual |= {"trainer.max_epochs": 1, "trainer.val_check_interval": 1.0, "trainer.num_sanity_val_steps": 0}
    path = write_base(tmp_path / "base.nemo", **base)
    config = job_config(path, tmp_path, tmp_path, usual | {"model.optim.lr": 1e-4} | changes)
    if tuning is None:
        del config["model"]["adapter_tuning"]
    else:
        config["model"]["adapter_tuning"] = tuning
    said, measured = checked(config, tmp_path, "llama")
    assert measured > process_gib + 0.1  # the model and its samples take a part of it, which must agree too
    assert agrees(above_process(said), measured - process_gib + ROUNDING)


def test_t5(tmp_path: Path, process_gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sizes = {"d_model": 384, "d_kv": 64, "d_ff": 1024, "num_heads": 6, "num_layers": 6, "num_decoder_layers": 6}
    base = t5.tiny_base(tmp_path / "base.nemo", **sizes)
    for name in ("train", "val"):
        write_records(tmp_path / f"{name}.jsonl", 4 if name == "train" else 1, 80, 4)
    changes = {"trainer.max_epochs": 1, "model.encoder_seq_length": 2048, "model.global_batch_size": 4}
    config: Any = OmegaConf.to_container(t5.training_config(base, tmp_path, tmp_path, changes), resolve=True)
    said, measured = checked(config, tmp_path, "t5")
    assert agrees(above_process(said), measured - process_gib + ROUNDING)
