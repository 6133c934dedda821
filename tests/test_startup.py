# SPDX-License-Identifier: Apache-2.0
"""What a job's process imports: nothing that it has no use for, and all of that when it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engine import write_squad
from tests.jobs import REPOSITORY, SCRIPTS, evaluation_config, job_config, write_config

pytestmark = pytest.mark.integration
# Parts of what libraries import at the top of their modules, each of which costs a tenth of a second or more.
NEEDLESS = (
    "networkx",
    "pandas.core",
    "scipy.signal.windows",
    "scipy.stats",
    "torch._dynamo.symbolic_convert",
    "torch._inductor",
    "transformers.utils",
    "wandb.sdk",
)
REPORT = f"import sys; print('imported:', [name for name in {NEEDLESS!r} if name in sys.modules])"


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process; the tests' other jobs are forked from one that has imported much already."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )


def imported_by(script: Sequence[str]) -> str:
    """Run a script with its arguments; return which needless modules it had imported in the end."""
    start = f"import runpy, sys; sys.argv = {list(script)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = fresh(f"{start}; {REPORT}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.rpartition("imported: ")[2].strip()


def test_neither_training_nor_evaluation_imports_what_it_does_not_use(tiny_base: Path, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "data")
    config: dict[str, Any] = job_config(tiny_base, data, tmp_path, {"trainer.max_steps": 2})
    job = write_config(tmp_path / "train_hydra.yaml", config)
    assert imported_by([str(SCRIPTS / "train.py"), str(job)]) == "[]"
    adapter = Path(config["model"]["nemo_path"])
    job = write_config(tmp_path / "evaluate_hydra.yaml", evaluation_config(tiny_base, adapter, data, tmp_path))
    assert imported_by([str(SCRIPTS / "evaluate.py"), str(job)]) == "[]"


def test_generation_does_not_either(tiny_base: Path) -> None:
    arguments = ["generate", "--base", str(tiny_base), "--prompt", "Anna lives", "--tokens-to-generate", "2"]
    done = fresh(f"from nemo_launcher.cli import main; main({arguments!r}); {REPORT}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("imported: []\n")


def test_the_modules_are_there_when_they_are_asked_for() -> None:
    code = """
import sys, warnings
warnings.simplefilter("ignore")
from nemo_launcher.runtime.startup import quick_imports
with quick_imports():
    import lightning.pytorch
    import nemo.core
import gc, torch
assert gc.isenabled()
from lightning.fabric.wrappers import OptimizedModule
assert not isinstance(torch.nn.Linear(2, 2), OptimizedModule)
assert isinstance(torch.compile(torch.nn.Linear(2, 2), backend="eager"), OptimizedModule)
import pandas.core.frame
assert pandas.core.frame.DataFrame({"a": [1]}).shape == (1, 1)
import scipy.signal
assert scipy.signal.convolve([1, 2], [3]).tolist() == [3, 6]
from transformers import AutoTokenizer
assert AutoTokenizer.from_pretrained.__func__ is sys.modules["transformers"].AutoTokenizer.from_pretrained.__func__
from wandb.sdk import wandb_settings
"""
    done = fresh(code)
    assert done.returncode == 0, done.stderr


def test_another_python_is_told_what_it_lacks() -> None:
    """As `python3 main.py` outside the environment: without site-packages nothing is installed."""
    done = subprocess.run([sys.executable, "-S", "main.py"], capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert done.returncode == 2
    assert f"not installed for {sys.executable}" in done.stderr
    assert "make install" in done.stderr
    assert "Traceback" not in done.stderr
