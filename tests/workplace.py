# SPDX-License-Identifier: Apache-2.0
"""A launcher that runs in this process, on a folder with stub scripts instead of the engine's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nemo_launcher.data import record_checks as real_checks
from nemo_launcher.data.squad import SquadBuilder
from tests.archives import write_base
from tests.hydra_once import composed_once, configuration_files_parsed_once, interpolations_parsed_once

__all__ = [
    "MAKE_ADAPTER",
    "REPOSITORY",
    "Launch",
    "Result",
    "Workplace",
    "composed_once",
    "configuration_files_parsed_once",
    "console",
    "executable",
    "interpolations_parsed_once",
    "launch",
    "plain_path",
    "prepared",
    "slurm",
    "workplace",
]

REPOSITORY = Path(__file__).resolve().parents[1]
# Background processes of a shell ignore Ctrl-C, including the tests and their children.
TAKES_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
STUB_MODULES = """
import sys
from nemo_launcher.data import record_checks
from nemo_launcher.data.preparation import DatasetBuilder
DatasetBuilder.is_prepared = lambda *a: True
record_checks.check_fields = lambda *a, **k: []
from nemo_launcher.launcher.launch import main
status = main()
"""


@dataclass
class Result:
    """The result of a launcher's run: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


Launch = Callable[..., Result]
"""A launcher or a verb of nemo-launcher, which takes a command line's arguments."""


@dataclass
class Workplace:
    """A launcher_scripts folder with stub scripts, a base model, and a results folder."""

    root: Path
    arguments: list[str] = field(default_factory=list)

    @property
    def scripts(self) -> Path:
        """launcher_scripts"""
        return self.root / "launcher_scripts"

    @property
    def results(self) -> Path:
        """base_results_dir"""
        return self.root / "results"

    @property
    def base_model(self) -> Path:
        """A base model that exists."""
        return self.root / "base.nemo"

    def stub(self, script: str, code: str) -> None:
        """Write a script with this Python code instead of the engine's; `config` is its configuration."""
        heading = "import sys, yaml, pathlib\nconfig = yaml.safe_load(open(sys.argv[1]))\n"
        (self.scripts / script).write_text(heading + textwrap.dedent(code))


MAKE_ADAPTER = """
path = pathlib.Path(config["model"]["nemo_path"])
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text("adapter")
print("trained")
"""


@pytest.fixture(scope="session")
def plain_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH with the machine's commands except Slurm's and kubectl, which may be installed."""
    folder = tmp_path_factory.mktemp("bin")
    slurm = ("sbatch", "srun", "salloc", "sacct", "sacctmgr", "scancel", "scontrol", "squeue", "sinfo")
    for command in Path("/usr/bin").iterdir():
        if command.name not in (*slurm, "kubectl"):
            (folder / command.name).symlink_to(command)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, plain_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A workplace whose train.py succeeds; no cluster, no GPU, no debug."""
    place = Workplace(tmp_path)
    place.scripts.mkdir()
    write_base(place.base_model)
    place.stub("train.py", MAKE_ADAPTER)
    for script in ("prepare_data.py", "convert_hf2nemo.py", "evaluate.py"):
        place.stub(script, "")
    place.arguments = [
        f"launcher_scripts_path={place.scripts}",
        f"base_results_dir={place.results}",
        f"adapter_learning.model.language_model_path={place.base_model}",
        "adapter_learning.trainer.devices=1",
        "adapter_learning.trainer.accelerator=cpu",
    ]
    monkeypatch.setattr("nemo_launcher.launcher.checks.precision.packs_bf16", lambda: True)  # on every machine
    monkeypatch.setenv("PATH", str(plain_path))
    for name in [name for name in os.environ if name.startswith(("NEMO_LAUNCHER", "NGC_", "SLURM_"))]:
        monkeypatch.delenv(name)
    return place


@pytest.fixture(autouse=True)
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """A stand-in for the data module that records what is prepared."""
    calls: list[tuple[Path, Path]] = []
    monkeypatch.setattr(SquadBuilder, "is_prepared", lambda self, source_dir, output_dir: False)
    monkeypatch.setattr(
        SquadBuilder, "prepare", lambda self, source_dir, output_dir, **_: calls.append((source_dir, output_dir))
    )
    checks = types.ModuleType("nemo_launcher.data.record_checks")
    vars(checks).update({name: value for name, value in vars(real_checks).items() if not name.startswith("__")})
    checks.check_fields = lambda path, fields, answer_field, limit=None: []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nemo_launcher.data.record_checks", checks)
    return calls


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the launcher with these arguments."""
    from nemo_launcher.launcher.launch import main

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
        status = main()
        output = capfd.readouterr()
        return Result(status, output.out, output.err)

    return run


@pytest.fixture
def console(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a verb of nemo-launcher."""
    from nemo_launcher.cli import main

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        output = capfd.readouterr()
        return Result(status, output.out, output.err)

    return run


def executable(path: Path, text: str) -> Path:
    """Write an executable bash script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


SRUN = """
printf '%s\\n' "$@" > "$TRACE"
while [ "$1" != bash ]; do case "$1" in --output|--error|--container*) shift 2;; *) shift;; esac; done
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@"; done
"""


@pytest.fixture
def slurm(workplace: Workplace, plain_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch, srun and scontrol that record their arguments; sbatch assigns ids from 101."""
    trace = workplace.root / "trace"
    tools = workplace.root / "bin"
    submit = f'echo "$* | $SLURM_CPU_BIND" >> {trace}; echo "$((100 + $(wc -l < {trace})));cluster"'
    executable(tools / "sbatch", f'[ "$1" = --test-only ] || {{ {submit}; }}')
    executable(tools / "srun", SRUN)
    executable(tools / "scontrol", "echo node1; echo node2")
    monkeypatch.setenv("PATH", f"{tools}:{plain_path}")
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x1")
    return trace


def start(workplace: Workplace, *arguments: str, code: str = "sys.exit(status)") -> subprocess.Popen[str]:
    """Start the launcher as a separate process."""
    return subprocess.Popen(
        [sys.executable, "-c", TAKES_CTRL_C + STUB_MODULES + code, *workplace.arguments, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def is_running(pid: str) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
