# SPDX-License-Identifier: Apache-2.0
"""The examples run as their users run them, on a tiny base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import REPOSITORY

pytestmark = pytest.mark.integration
EXAMPLES = REPOSITORY / "examples"


def run_example(*command: object, **variables: str) -> str:
    """Run Python with these arguments; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | variables
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the classification; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("topics")
    out = run_example(EXAMPLES / "classify.py", tiny_base, folder, "--records", "16", "--epochs", "1")
    return folder, out


def adapter_of(folder: Path) -> Path:
    (adapter,) = folder.glob("adapter_learning_topics/**/*.nemo")
    return adapter


def test_a_classification_from_records_to_accuracy(trained: tuple[Path, str]) -> None:
    folder, out = trained
    assert "of 50 (" in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith(f"adapter {adapter_of(folder)}")


def test_many_adapters_on_one_base(trained: tuple[Path, str], tiny_base: Path, tmp_path: Path) -> None:
    adapter, broken = adapter_of(trained[0]), tmp_path / "broken.nemo"
    broken.write_bytes(b"no archive")
    out = run_example(EXAMPLES / "many_adapters.py", tiny_base, "text: rain topic:", adapter, broken, adapter)
    assert out.count(f"{adapter} (loaded in ") == 2
    assert f"{broken}: left out" in out
    assert f"{tiny_base} alone: " in out


def test_scores_are_compared(trained: tuple[Path, str], tiny_base: Path) -> None:
    folder, _ = trained
    template = ["--template", "text: {text} topic: {topic}", "--answer-field", "topic"]
    out = run_example(EXAMPLES / "compare.py", tiny_base, adapter_of(folder), folder / "validation.jsonl", *template)
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "base alone",
        "with adapter",
        "difference",
        "most improved",
    ]
    assert "95% interval" in out


def test_the_notebook_runs_and_stores_no_output(tiny_base: Path, tmp_path: Path) -> None:
    notebook: dict[str, Any] = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    code = tmp_path / "cells.py"
    code.write_text("\n".join("".join(cell["source"]) for cell in cells), encoding="utf-8")
    out = run_example(code, BASE=str(tiny_base), FOLDER=str(tmp_path / "results"))
    assert "ia3_learning: done" in out
    assert "no field 'topic'" in out
