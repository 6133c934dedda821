# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_launcher import script
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections import DataPreparation
from nemo_launcher.errors import Problem, UserError

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-u", REPOSITORY / "launcher_scripts" / "prepare_data.py", *arguments]
    return subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=60)


def _config(folder: Path) -> Path:
    path = folder / "data_hydra.yaml"
    run = f"run: {{name: prepare, results_dir: {folder}}}\n"
    path.write_text(f"# data_preparation\n{run}source_dir: {folder}\noutput_dir: {folder / 'out'}\ndownload: false\n")
    return path


@pytest.mark.integration
def test_the_job_prepares_the_data_and_prints_the_counts(tmp_path: Path) -> None:
    entry = {"id": "1", "question": "Who?", "answers": [{"text": "Chopin"}]}
    content = {"data": [{"paragraphs": [{"context": "Chopin.", "qas": [entry]}]}]}
    for name in ("train.json", "dev.json"):
        (tmp_path / name).write_text(json.dumps(content))
    done = _run(tmp_path, _config(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path / 'out' / 'squad_train.jsonl'}: 1 questions" in done.stdout


@pytest.mark.integration
def test_a_mistake_of_the_users_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    done = _run(tmp_path, _config(tmp_path), "download=false")
    assert done.returncode == 2
    assert "no SQuAD files" in done.stderr
    assert "Traceback" not in done.stderr


def _exit_of(monkeypatch: pytest.MonkeyPatch, error: BaseException | None, *arguments: str) -> object:
    def main(job: Loaded[DataPreparation]) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    with pytest.raises(SystemExit) as leaving:
        script.run_script(main, lambda _: DataPreparation)
    return leaving.value.code


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError(Problem("model.lr", "is a word")), 2, "model.lr: is a word\n"),
        (OSError(28, "No space left on device", "/data/x"), 1, "disk full: /data/x\n"),
        (PermissionError(13, "Permission denied", "/data/x"), 1, "permission denied: /data/x\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_plain_messages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    message: str,
) -> None:
    assert _exit_of(monkeypatch, error, str(_config(tmp_path))) == status
    assert capsys.readouterr().err == message


@pytest.mark.unit
def test_a_crash_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(job: Loaded[DataPreparation]) -> None:
        raise ValueError("of a library")

    monkeypatch.setattr(sys, "argv", ["script.py", str(_config(tmp_path))])
    with pytest.raises(ValueError, match="of a library"):
        script.run_script(main, lambda _: DataPreparation)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("content", "override", "message"),
    [
        (None, "", "no such file"),
        ("- a\n- b\n", "", "is not a YAML mapping"),
        ("a: [1\n", "", "is not valid YAML"),
        ("a: 1\n", "b", "'b' is not an override"),
    ],
)
def test_a_config_that_cannot_be_used_is_a_mistake_of_the_users(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    override: str,
    message: str,
) -> None:
    path = tmp_path / "x_hydra.yaml"
    if content is not None:
        path.write_text(content)
    assert _exit_of(monkeypatch, None, str(path), *([override] if override else [])) == 2
    assert message in capsys.readouterr().err


@pytest.mark.unit
def test_no_argument_shows_the_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_of(monkeypatch, None) == 2
    assert "<job>_hydra.yaml" in capsys.readouterr().err


@pytest.mark.unit
def test_overrides_change_the_config(tmp_path: Path) -> None:
    config = script.load_config([str(_config(tmp_path)), "download=true", "model.data.add_eos=false"])
    assert config["download"] is True
    assert config["model"]["data"]["add_eos"] is False
