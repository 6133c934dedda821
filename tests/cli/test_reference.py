# SPDX-License-Identifier: Apache-2.0
"""docs/reference.md is correct: exit statuses, and keys of JSON output."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from nemo_launcher import __version__, exit_status
from nemo_launcher.cli import _VERBS
from tests.cli.conftest import Run
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.unit

REFERENCE = (REPOSITORY / "docs/reference.md").read_text(encoding="utf-8")


def documented(title: str, of: str | None = None) -> set[str]:
    """Return the keys of the table under a title; of: only rows for all archives and for this kind."""
    section = re.split(r"\n##+ ", REFERENCE.split(title, 1)[1], maxsplit=1)[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", section, flags=re.MULTILINE)
    assert rows, title
    return {key for key, kind in rows if of is None or kind in ("all", of)}


def test_every_exit_status_is_documented() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", REFERENCE, flags=re.MULTILINE)
    constants = {name: value for name, value in vars(exit_status).items() if name.isupper()}
    assert {name: int(status) for status, name in rows} == constants


def test_status(run: Run, tmp_path: Path) -> None:
    record = {"schema": 0}  # a damaged record also has a row
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "squad_job.json").write_text(json.dumps(record))
    found = json.loads(run("status", tmp_path, "--json").out)
    assert set(found) == {"results_dir", "slurm_answers", "unreadable", "jobs"}
    assert [set(job) for job in found["jobs"]] == [documented("status --json`")]


def test_clean(run: Run, tmp_path: Path) -> None:
    found = json.loads(run("clean", tmp_path, "--json").out)
    assert set(found) == documented("clean --json`")


WRONG = {
    "status": ("NOWHERE", "--json"),
    "logs": ("NOWHERE",),
    "cancel": ("NOWHERE",),
    "rerun": ("NOWHERE",),
    "clean": ("NOWHERE", "--json"),
    "inspect": ("NOWHERE", "--json"),
    "data": ("NOWHERE", "--json"),
    "report": ("NOWHERE",),
    "generate": ("--base", "NOWHERE", "--prompt", "a", "--json"),
    "score": ("--base", "NOWHERE", "NOWHERE"),
    "lm-eval": ("--base", "NOWHERE", "--tasks", "a"),
    "export": ("NOWHERE", "--base", "NOWHERE", "--to", "peft", "--output", "NOWHERE"),
    "import": ("NOWHERE", "--base", "NOWHERE", "--output", "NOWHERE.nemo"),
    "merge": ("NOWHERE", "NOWHERE", "--output", "NOWHERE.nemo"),
    "migrate": ("NOWHERE",),
    "launch": ("stages=[nowhere]",),
}


def test_every_verb_is_documented() -> None:
    verbs = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \| [a-z]", REFERENCE, flags=re.MULTILINE)
    named = {verb for cell in verbs for verb in re.findall(r"`([a-z-]+)`", cell)}
    assert {"launch", *_VERBS} == set(WRONG) <= named


@pytest.mark.parametrize("verb", WRONG)
def test_a_mistake_is_told_on_standard_error_alone(
    run: Run, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("NOWHERE", str(tmp_path / "nowhere")) for word in WRONG[verb]]
    monkeypatch.setattr(sys, "argv", ["nemo-launcher", verb, *words])
    assert "nowhere" in run(verb, *words).refused()
    assert list(tmp_path.iterdir()) == []


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"nemo-adapter-launcher {__version__}\n", "")


def test_inspect(run: Run, tiny_base: Path, adapter: Path) -> None:
    for kind, path in (("base", tiny_base), ("adapter", adapter)):
        assert set(json.loads(run("inspect", path, "--json").out)) == documented("inspect FILE.nemo --json`", kind)


def test_generate_and_score(run: Run, tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    both = ("--base", tiny_base, "--adapter", adapter)
    data = tmp_path / "data.jsonl"
    record = {
        "taskname": "squad",
        "context": "Anna lives near a river.",
        "question": "Where?",
        "answer": "near a river",
    }
    data.write_text(json.dumps(record) + "\n")
    few = ("--tokens-to-generate", "2")
    (answer,) = run("generate", *both, "--jsonl", data, *few).lines
    assert set(answer) == {*record, "prediction", "token_ids"}
    (answer,) = run("generate", *both, "--prompt", "Anna", "--json", *few).lines
    assert set(answer) == {"prompt", "prediction", "token_ids"}
    (score,) = run("score", *both, data).lines
    assert set(score) == documented("`nemo-launcher score`\n")
