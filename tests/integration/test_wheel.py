# SPDX-License-Identifier: Apache-2.0
"""The installed package works by itself: the wheel in its own environment, from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine import save_llama
from tests.integration.launching import LIMIT_S, chain_arguments, write_squad_source
from tests.integration.sources import copy_sources
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.integration
# No checkout on the path, and no byte-code caches in the package.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, timeout=LIMIT_S, check=False
    )


@dataclass(frozen=True, slots=True)
class Installed:
    """The package as installed by pip in `site`, and its command."""

    site: Path
    command: Path

    def run(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command in `folder`."""
        return run([str(self.command), *arguments], folder)

    def files(self) -> dict[str, int]:
        """Return all files of the package and their modification times."""
        return {str(path): path.stat().st_mtime_ns for path in self.site.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, built from the sources and installed; dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    copy_sources(sources)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(sources))
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    site = Path(paths["purelib"])
    pip("--python", str(environment / "bin/python"), "install", str(wheel))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(site, environment / "bin/nemo-launcher")


def pip(*arguments: str) -> None:
    options = ["--quiet", "--disable-pip-version-check", *arguments, "--no-index", "--no-deps"]
    done = run([sys.executable, "-m", "pip", *options], REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_verbs_work_from_an_empty_folder(installed: Installed, tmp_path: Path) -> None:
    before = installed.files()
    nothing = installed.run(tmp_path, "status")
    assert nothing.stdout == f"no jobs below {tmp_path}/results\n"
    save_llama(tmp_path / "hf")
    write_squad_source(tmp_path / "data")  # the default data_dir without a checkout
    arguments = [*chain_arguments(tmp_path, "llama", "hf", "adapter"), "cluster_type=interactive"]
    dry = installed.run(tmp_path, "launch", *arguments, "debug=True")
    assert dry.returncode == 0, dry.stderr
    assert "debug, not launched" in dry.stdout
    done = installed.run(tmp_path, "launch", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    status = installed.run(tmp_path, "status")
    assert status.stdout.count("completed") == 3, status.stdout
    results = tmp_path / "results/tiny"
    base, adapter = (
        str(results / name)
        for name in (
            "convert_nemo/results/megatron_llama.nemo",
            "adapter_learning_squad/results/megatron_llama_adapter.nemo",
        )
    )
    answer = installed.run(
        tmp_path,
        "generate",
        "--base",
        base,
        "--adapter",
        adapter,
        "--tokens-to-generate",
        "4",
        "--prompt",
        "context: a",
    )
    assert answer.returncode == 0, answer.stderr
    assert installed.files() == before  # nothing is written beside the package
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "data", "results"}


def test_a_folder_of_ones_own_is_found(installed: Installed, tmp_path: Path) -> None:
    own = tmp_path / "own/adapter_learning/mine"
    own.mkdir(parents=True)
    (own / "task.yaml").write_text("defaults: [/adapter_learning/llama/squad@_here_]\nrun: {model_train_name: mine}\n")
    chosen = installed.run(
        tmp_path, "launch", "--config-dir", "own", "adapter_learning=mine/task", "--cfg", "job", "--resolve"
    )
    assert chosen.returncode == 0, chosen.stderr
    assert f"base_results_dir: {tmp_path}/results" in chosen.stdout
    assert "model_train_name: mine" in chosen.stdout


def test_the_scripts_hide_no_package(installed: Installed, tmp_path: Path) -> None:
    """A script of the package imports nemo_launcher, and its folder hides no package of the same name."""
    script = installed.site / "nemo_launcher/launcher_scripts/train.py"
    code = f"import sys, runpy; sys.argv = ['x']; runpy.run_path({str(script)!r}); print(sys.path[0])"
    done = run([str(installed.command.parent / "python"), "-c", code], tmp_path)
    assert done.stdout.splitlines()[-1:] == [str(installed.site)], done.stderr
