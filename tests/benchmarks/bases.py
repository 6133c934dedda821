# SPDX-License-Identifier: Apache-2.0
"""Tiny models, data and options for the tests of the benchmarks."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.workloads import parse
from tests.engine import tiny_gpt_nemo
from tests.t5 import tiny_base as tiny_t5_nemo

_TEXT = "the river runs past an old town whose market stands on a high hill near the long road to the harbour"


def write_squad(path: Path, paragraphs: int = 12, questions: int = 3, length: int = 60) -> Path:
    """Write a file in the SQuAD format with random words; length: words of a paragraph."""
    draw, known = random.Random(0), _TEXT.split()

    def words(count: int) -> str:
        return " ".join(draw.choice(known) for _ in range(count))

    content = []
    for number in range(paragraphs):
        qas = [
            {"id": f"{number}-{place}", "question": words(5), "answers": [{"text": words(2), "answer_start": 0}]}
            for place in range(questions)
        ]
        content.append({"context": words(length), "qas": qas})
    path.write_text(json.dumps({"data": [{"title": "", "paragraphs": content}]}), encoding="utf-8")
    return path


def make_bases(folder: Path) -> Path:
    """Write tiny models under the names of benchmarks/base_models.py; return their folder."""
    for name in ("smollm2", "smollm2-short"):
        tiny_gpt_nemo(folder / f"{name}.nemo", max_position_embeddings=512)
        (folder / f"{name}_hf").rename(folder / name)
    tiny_t5_nemo(folder / "t5.nemo", n_positions=1024)
    (folder / "t5_hf").rename(folder / "t5")
    return folder


def side_options(folder: Path, bases: Path, family: str, **changes: Any) -> dict[str, Any]:
    """Return the options of a worker."""
    name = {"gpt": "smollm2", "t5": "t5"}[family]
    options = {
        "base": str(bases / f"{name}.nemo"),
        "hf": str(bases / name),
        "family": family,
        "dtype": "fp32",
        "method": "ia3",
        "peer": "plain",
        "threads": 1,
        "batch": 4,
        "global_batch": 8,
        "records_path": str(folder / "records.json"),
        "samples_path": str(folder / "samples.json"),
    }
    return options | changes


def run_options(squad: Path, folder: Path, *arguments: str) -> argparse.Namespace:
    """Return the options of a run."""
    return parse(["--squad", str(squad), "--folder", str(folder), "--threads", "1", *arguments])
