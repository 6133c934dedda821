# SPDX-License-Identifier: Apache-2.0
"""Non-ASCII paths and texts under every locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.archives import write_base

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[1]
LOCALES = [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}]
RECORD = {"taskname": "squad", "context": "Łódź", "question": "où?", "answer": "là"}
CONSOLE = ["-c", "from nemo_launcher.entry import console\nimport sys\nsys.exit(console())"]


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_a_folder_beyond_ascii(tmp_path: Path, locale: dict[str, str]) -> None:
    place = tmp_path / "wü 東"
    place.mkdir()
    write_base(place / "bäse.nemo")
    data = place / "dätä.jsonl"
    data.write_text((json.dumps(RECORD, ensure_ascii=False) + "\n") * 100, encoding="utf-8")
    values = {
        "base_results_dir": f'"{place}/rés"',
        "adapter_learning.model.language_model_path": f'"{place}/bäse.nemo"',
        "adapter_learning.model.data.train_ds": f'["{data}"]',
        "adapter_learning.model.data.validation_ds": f'["{data}"]',
        "adapter_learning.trainer.devices": "1",
        "adapter_learning.trainer.accelerator": "cpu",
    }
    arguments = [f"{key}={value}" for key, value in values.items()]
    launched = run(["main.py", "cluster_type=interactive", "debug=True", *arguments], locale)
    assert launched.returncode == 0, launched.stderr
    (config,) = (place / "rés").rglob("*_hydra.yaml")
    assert str(data) in config.read_text(encoding="utf-8")
    status = run([*CONSOLE, "status", str(place)], locale)
    assert (status.returncode, status.stdout) == (0, f"no jobs below {place}\n")


def run(arguments: list[str], locale: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment | locale | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        encoding="utf-8",
    )
