# SPDX-License-Identifier: Apache-2.0
"""Imports of a job's process: no unused modules, and all of them on request."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher import __version__, requirements
from tests.engine import write_squad
from tests.jobs import REPOSITORY, SCRIPTS, evaluation_config, job_config, write_config
from tests.torch_imports import COMPILER, compiler_imported_with_fsdp

pytestmark = pytest.mark.integration
JOB_SCRIPTS = ("train", "evaluate", "convert_hf2nemo", "prepare_data")
# Top-level imports of libraries that take a tenth of a second or more each.
NEEDLESS = (
    "networkx",
    "pandas.core",
    "scipy.signal.windows",
    "scipy.stats",
    *COMPILER,
    "transformers.utils",
    "wandb.sdk",
)
REPORT = f"import sys; print('imported:', [name for name in {NEEDLESS!r} if name in sys.modules])"


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process; other tests' jobs are forked from one with many imported modules."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )


def imported_by(script: Sequence[str]) -> str:
    """Run a script with its arguments; return the unused modules that it imported."""
    start = f"import runpy, sys; sys.argv = {list(script)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = fresh(f"{start}; {REPORT}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.rpartition("imported: ")[2].strip()


def unavoidable() -> str:
    """Return which needless modules the installed torch imports by itself, as `imported_by` tells them."""
    return str(compiler_imported_with_fsdp())


def test_neither_training_nor_evaluation_imports_what_it_does_not_use(tiny_base: Path, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "data")
    config: dict[str, Any] = job_config(tiny_base, data, tmp_path, {"trainer.max_steps": 2})
    job = write_config(tmp_path / "train_hydra.yaml", config)
    assert imported_by([str(SCRIPTS / "train.py"), str(job)]) == unavoidable()
    adapter = Path(config["model"]["nemo_path"])
    job = write_config(tmp_path / "evaluate_hydra.yaml", evaluation_config(tiny_base, adapter, data, tmp_path))
    assert imported_by([str(SCRIPTS / "evaluate.py"), str(job)]) == unavoidable()


def test_generation_does_not_either(tiny_base: Path) -> None:
    arguments = ["generate", "--base", str(tiny_base), "--prompt", "Anna lives", "--tokens-to-generate", "2"]
    done = fresh(f"from nemo_launcher.cli import main; main({arguments!r}); {REPORT}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"imported: {unavoidable()}\n")


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


ENTRIES = ("main.py", "launcher_scripts/main.py", *(f"launcher_scripts/{name}.py" for name in JOB_SCRIPTS))


@pytest.mark.parametrize("entry", ENTRIES)
def test_missing_dependencies_are_reported(entry: str) -> None:
    """Like a start outside the environment: without site-packages no dependency is installed."""
    command = [sys.executable, "-S", entry, "job_hydra.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert done.returncode == 2
    assert f"not installed for {sys.executable}" in done.stderr
    assert "make install" in done.stderr
    assert f"the image must hold what `pip install nemo-adapter-launcher=={__version__}` installs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_python_that_is_too_old_is_told_so(entry: str, tmp_path: Path) -> None:
    """As the python3 of a container; the interpreter only says that it is older."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 8, 10, 'final', 0)\n")
    done = subprocess.run(
        [sys.executable, entry, "job_hydra.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"Python 3.8 in {sys.executable}: 3."), done.stderr
    assert "Traceback" not in done.stderr


def test_the_oldest_python_is_that_of_the_package_index() -> None:
    minimum = ".".join(map(str, requirements.MINIMUM_PYTHON))
    assert f'\nrequires-python = ">={minimum}"\n' in (REPOSITORY / "pyproject.toml").read_text()


def test_a_script_in_a_folder_of_its_own_finds_the_installed_package(tmp_path: Path) -> None:
    """launcher_scripts_path may be a copy of that folder, without the package beside it."""
    shutil.copy(SCRIPTS / "train.py", tmp_path)
    run = f"runpy.run_path({str(tmp_path / 'train.py')!r}, run_name='__main__')"
    done = fresh(f"import runpy, sys; sys.argv = ['train.py', 'no.yaml']; {run}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("no.yaml: no such file"), done.stderr


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("no_such_library", f"no_such_library: not installed for {sys.executable}"),
        ("omegaconf.no_such_module", "omegaconf.no_such_module: not part of the omegaconf 2.3"),
        ("nemo_launcher.no_such_module", None),  # a bug of ours, which keeps its traceback
    ],
)
def test_a_missing_module(module: str, told: str | None) -> None:
    with pytest.raises(ModuleNotFoundError) as missing:
        importlib.import_module(module)
    said = requirements.missing_module(missing.value)
    assert said is None if told is None else (said or "").startswith(told)
