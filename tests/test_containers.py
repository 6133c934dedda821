# SPDX-License-Identifier: Apache-2.0
"""The image for Docker and Apptainer: valid files, complete copies, the project's versions, and what is installed."""

from __future__ import annotations

import re
import shlex
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.documents import TEXTS
from tests.test_versions import JOBS, PROJECT, pins
from tests.workplace import executable

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "containers"
HOME = "/opt/nemo-adapter-launcher"
INSTRUCTIONS = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "CMD"}
SECTIONS = {"files", "post", "environment", "test", "help"}
NEEDED = {"LICENSE", "README.md", "conf", "constraints.txt", "containers/install.sh", "main.py", "nemo_launcher"}
NEEDED |= {"pyproject.toml", "setup.py"}
"""What the installation and the launcher read, besides launcher_scripts."""


def instructions() -> list[tuple[str, list[str]]]:
    """Return (instruction, words) of the Dockerfile, which has one line for each."""
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    found = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert all(len(parts) == 2 for parts in found)
    return [(name, shlex.split(rest)) for name, rest in found]


def header_and_sections() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the header and the sections of the definition, without comments."""
    lines = [line for line in (FOLDER / "nemo-launcher.def").read_text().splitlines() if not line.startswith("#")]
    head, *parts = re.split(r"^%", "\n".join(lines), flags=re.MULTILINE)
    header = dict(line.split(": ") for line in head.split("\n") if line)
    return header, {(rows := part.split("\n"))[0]: [row.strip() for row in rows[1:] if row] for part in parts}


def copies_of_dockerfile() -> dict[str, str]:
    """Return source -> target of each COPY, with the working folder in front."""
    found = {}
    for name, words in instructions():
        if name == "COPY":
            *sources, target = words
            assert len(sources) == 1 or target.endswith("/")
            found |= {s: f"{HOME}/{target.removeprefix('./')}{s if target.endswith('/') else ''}" for s in sources}
    return found


def test_the_dockerfile_has_known_instructions_in_order() -> None:
    names = [name for name, _ in instructions()]
    assert set(names) <= INSTRUCTIONS
    assert names[0] == "FROM"
    assert names.index("WORKDIR") < names.index("COPY") < names.index("RUN")
    assert ("WORKDIR", [HOME]) in instructions()
    assert all("=" in word for name, words in instructions() if name == "ENV" for word in words)


def test_both_copy_what_the_installation_needs_to_the_same_places() -> None:
    copied = copies_of_dockerfile()
    assert copied.keys() == {*NEEDED, "launcher_scripts"}
    assert all(target == f"{HOME}/{source}" for source, target in copied.items())
    _, sections = header_and_sections()
    rows = dict(row.split() for row in sections["files"])
    assert rows.keys() == {*NEEDED, "launcher_scripts/*.py", "launcher_scripts/data/quickstart"}
    assert all(target == f"{HOME}/{source.replace('*.py', '')}" for source, target in rows.items())
    for source in [*copied, *rows]:
        assert list(ROOT.glob(source)), source


def test_everything_that_is_copied_reaches_the_build_and_models_do_not() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def is_sent(path: str) -> bool:
        sent = True
        for rule in rules:  # the last rule that fits decides
            pattern = rule.lstrip("!").removeprefix("**/")
            parts = path.split("/")
            above = ["/".join(parts[: end + 1]) for end in range(len(parts))] + (parts if "**" in rule else [])
            if any(fnmatch(name, pattern) for name in above):
                sent = rule.startswith("!")
        return sent

    assert all(is_sent(source) for source in copies_of_dockerfile())
    assert is_sent("launcher_scripts/data/quickstart/dev-v1.1.json")
    for path in (
        "launcher_scripts/models/a.gguf",
        "launcher_scripts/results/a",
        ".venv/bin",
        "nemo_launcher/__pycache__",
    ):
        assert not is_sent(path), path


def test_the_definition_has_known_sections() -> None:
    header, sections = header_and_sections()
    assert header["Bootstrap"] == "docker"
    assert sections.keys() == SECTIONS
    for name in ("post", "environment", "test"):
        subprocess.run(["sh", "-n"], input="\n".join(sections[name]), text=True, check=True)
    assert sections["post"] == [f"cd {HOME}", "sh containers/install.sh"]


def test_both_have_the_same_base_with_a_tested_python() -> None:
    base = instructions()[0][1][0]
    assert header_and_sections()[0]["From"] == base
    version = base.removeprefix("python:").partition("-")[0]
    assert version in SpecifierSet(PROJECT["requires-python"])
    assert version in JOBS["locked"]["strategy"]["matrix"]["python"]
    assert f"`{base}`" in TEXTS["docs/containers.md"]


def test_nothing_is_fetched_at_run_time_and_any_user_may_run() -> None:
    variables = dict(word.split("=", 1) for name, words in instructions() if name == "ENV" for word in words)
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["PATH"].startswith("/opt/nemo-launcher/bin:")
    assert ("RUN", shlex.split(f"mkdir -m 1777 {variables['HOME']}")) in instructions()
    _, sections = header_and_sections()
    assert "export HF_HUB_OFFLINE=1" in sections["environment"]
    assert f"export PATH={variables['PATH']}" in sections["environment"]


PYTHON = """[ "$1 $2" = "-m venv" ] || exit 9
mkdir -p "$3/bin"
for name in pip python nemo-launcher; do
    printf '#!/bin/sh\\necho %s "$@" >> %s\\nexit ${FAIL_%s:-0}\\n' $name "$TRACE" ${name%%-*} > "$3/bin/$name"
    chmod +x "$3/bin/$name"
done
"""


def installed(tmp_path: Path, **variables: str) -> tuple[int, list[str]]:
    """Return the exit status of install.sh and the commands that it ran."""
    tools, trace = tmp_path / "tools", tmp_path / "trace"
    tools.mkdir(exist_ok=True)
    executable(tools / "apt-get", f'echo apt-get "$@" >> {trace}')
    executable(tools / "python3", PYTHON)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "PREFIX": f"{tmp_path}/own place",
        "TRACE": str(trace),
        **variables,
    }
    trace.unlink(missing_ok=True)
    done = subprocess.run(["sh", FOLDER / "install.sh"], cwd=ROOT, env=environment, capture_output=True, check=False)
    return done.returncode, trace.read_text().splitlines()


def test_the_installation_takes_the_tested_versions(tmp_path: Path) -> None:
    status, ran = installed(tmp_path)
    constraints = f"--constraint {tmp_path}/own place/constraints.txt"
    torch = f"torch=={pins('constraints.txt')['torch']}"
    assert status == 0
    assert [line for line in ran if line.startswith("pip")] == [
        f"pip install --no-cache-dir {constraints} {torch}",
        f"pip install --no-cache-dir {constraints} --editable .[metrics]",
    ]
    pinned = (tmp_path / "own place/constraints.txt").read_text()
    assert "\ntransformers==" in pinned
    assert "\ntorch==" not in pinned
    assert ran[-1] == "nemo-launcher --help"
    status, ran = installed(tmp_path, TORCH="torch==2.11.0+cu130")
    assert (status, ran[3].split()[-1]) == (0, "torch==2.11.0+cu130")


def test_a_torch_without_cuda_ends_the_build(tmp_path: Path) -> None:
    status, ran = installed(tmp_path, FAIL_python="1")
    assert status == 1
    assert ran[-1].startswith("python -c import sys, torch")
