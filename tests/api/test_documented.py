# SPDX-License-Identifier: Apache-2.0
"""The first Python block of README and docs/python.md runs, with a stand-in for the training."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import nemo_launcher
from nemo_launcher import Model
from nemo_launcher.adapters.archive import save_adapter
from tests.documents import TEXTS
from tests.engine import BOTTLENECK, adapted
from tests.jobs import job_config

pytestmark = pytest.mark.unit
TEMPLATE = {
    "taskname": "headlines",
    "prompt_template": "text: {text} title: {title}",
    "answer_only_loss": True,
    "answer_field": "title",
    "truncate_field": "text",
}


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_the_first_block_runs(
    name: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = job_config(tiny_base, tmp_path, tmp_path)["model"]
    config |= {"adapter_tuning": BOTTLENECK, "new_tasks": ["headlines"], "task_templates": [TEMPLATE]}
    base, adapters = adapted(tiny_base, config)
    save_adapter(tmp_path / "a.nemo", config | {"base_fingerprint": base.fingerprint}, adapters.state_dict())
    result = SimpleNamespace(adapter=tmp_path / "a.nemo", summary={"best_val_loss": 1.5})
    monkeypatch.setattr(nemo_launcher, "train", lambda *settings: result, raising=False)
    (tmp_path / "base.nemo").symlink_to(tiny_base)
    monkeypatch.chdir(tmp_path)

    block = re.search(r"^```python\n(.*?)^```$", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    assert isinstance(Model, type)
    exec(compile(block[1], name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{result.adapter} 1.5"
    assert float(lines[-1]) > 0
