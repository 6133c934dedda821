# SPDX-License-Identifier: Apache-2.0
"""Jobs on this machine once more: the same command, a moved folder, a killed launcher, two launchers at once."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

import pytest

from tests.workplace import MAKE_ADAPTER, Launch, Workplace, start

pytestmark = pytest.mark.integration


def train_once(launch: Launch, workplace: Workplace) -> Path:
    launch(*workplace.arguments)
    checkpoints = workplace.results / "gpt3_5b/adapter_learning_squad/results/checkpoints"
    checkpoints.mkdir()
    (checkpoints / "last.ckpt").touch()
    return checkpoints


def test_the_same_configuration_goes_on(launch: Launch, workplace: Workplace):
    train_once(launch, workplace)
    result = launch(
        *workplace.arguments, "adapter_learning.trainer.max_epochs=9", "adapter_learning.run.time_limit=null"
    )
    assert result.status == 0, result.err


def test_another_configuration_leaves_the_earlier_training_alone(launch: Launch, workplace: Workplace):
    checkpoints = train_once(launch, workplace)
    config_file = checkpoints.parents[1] / "squad_gpt3_5b_hydra.yaml"
    before = config_file.read_text()
    result = launch(*workplace.arguments, "adapter_learning.model.optim.lr=1e-2")
    assert result.status == 2
    assert "model.optim.lr (auto -> 0.01)" in result.err
    assert "results_dir=/another/folder" in result.err
    assert config_file.read_text() == before


def test_a_training_that_was_moved_as_a_whole_goes_on(launch: Launch, workplace: Workplace):
    folder = train_once(launch, workplace).parents[1]
    moved = folder.rename(workplace.root / "moved")
    given = [*workplace.arguments, f"adapter_learning.run.results_dir={moved}"]
    result = launch(*given, "adapter_learning.trainer.max_epochs=9")
    assert result.status == 0, result.err
    assert not folder.exists()
    result = launch(*given, "adapter_learning.model.optim.lr=1e-2")
    assert result.status == 2
    assert "other settings: model.optim.lr (auto -> 0.01)" in result.err


def test_a_training_that_would_start_over_leaves_the_earlier_one_alone(launch: Launch, workplace: Workplace):
    checkpoints = train_once(launch, workplace)
    config_file = checkpoints.parents[1] / "squad_gpt3_5b_hydra.yaml"
    before = config_file.read_text()
    key = "adapter_learning.exp_manager.resume_if_exists"
    result = launch(*workplace.arguments, f"{key}=False")
    assert result.status == 2
    assert f"{key}: False would start over and replace what is in {checkpoints.parent}: 1 checkpoint(s)" in result.err
    assert f"{key}=True" in result.err
    assert config_file.read_text() == before
    assert launch(*workplace.arguments, f"{key}=True").status == 0


def test_a_checkpoint_that_is_named_and_not_used_is_told(launch: Launch, workplace: Workplace):
    checkpoints = train_once(launch, workplace)
    named = f"adapter_learning.trainer.resume_from_checkpoint={checkpoints}/last.ckpt"
    result = launch(*workplace.arguments, named)
    assert result.status == 0
    assert f"is not used: training resumes from the newest checkpoint in {checkpoints}" in result.err + result.out


def test_a_job_goes_on_when_its_launcher_is_killed(workplace: Workplace):
    """Its output still reaches the log, which reports what happened."""
    gate = workplace.scripts / "gate"
    os.mkfifo(gate)
    workplace.stub(
        "train.py",
        MAKE_ADAPTER + f"print('started', flush=True)\nopen({str(gate)!r}).read()\nprint('x' * 300000, 'after')\n",
    )
    launcher = start(workplace)
    assert launcher.stdout is not None
    assert any(line == "started\n" for line in launcher.stdout)
    launcher.kill()
    launcher.communicate(timeout=60)  # the terminal is released immediately
    folder = workplace.results / "gpt3_5b/adapter_learning_squad"
    (log,) = folder.glob("log-*.out")
    writer = [entry for entry in Path("/proc").iterdir() if str(log).encode() in _command(entry)]
    gate.write_text("")
    _wait_for_end(writer[0])
    lines = log.read_text().splitlines()
    assert lines[0] == "trained"
    assert "the launcher was killed; the job goes on" in lines[2]
    assert lines[3].endswith(" after")
    assert (folder / "squad_gpt3_5b_exit_status").read_text() == "0\n"


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _wait_for_end(process: Path) -> None:
    descriptor = os.pidfd_open(int(process.name))
    assert select.select([descriptor], [], [], 60)[0]
    os.close(descriptor)


def test_two_launchers_at_once_start_one_job(workplace: Workplace):
    gate = workplace.scripts / "gate"
    os.mkfifo(gate)
    ran = workplace.root / "ran"
    workplace.stub("train.py", MAKE_ADAPTER + f"open({str(ran)!r}, 'a').write('x')\nopen({str(gate)!r}).read()\n")
    launchers = [start(workplace) for _ in range(3)]
    first = [launcher.wait(timeout=60) for launcher in launchers if _ended_first(launcher, launchers)]
    assert first == [2, 2]
    gate.write_text("")
    results = [(*launcher.communicate(timeout=60), launcher.returncode) for launcher in launchers]
    assert sorted(status for *_, status in results) == [0, 2, 2]
    assert ran.read_text() == "x"
    assert not [errors for _, errors, _ in results if "Traceback" in errors]


def _ended_first(launcher: subprocess.Popen[str], launchers: list[subprocess.Popen[str]]) -> bool:
    """Return whether one launcher ends while the other one's job waits at its gate."""
    descriptors = {os.pidfd_open(other.pid): other for other in launchers if other.poll() is None}
    while sum(other.poll() is not None for other in launchers) < len(launchers) - 1:
        select.select(list(descriptors), [], [], 1)
    for descriptor in descriptors:
        os.close(descriptor)
    return launcher.poll() is not None


def test_the_same_command_skips_what_is_complete(launch: Launch, console: Launch, workplace: Workplace):
    count = "open(path.parent / 'count', 'a').write('x')\n"
    workplace.stub("train.py", MAKE_ADAPTER + count)
    data = f"data_dir={workplace.root}/data"
    first, again = (launch(*workplace.arguments, data) for _ in range(2))
    assert (first.status, again.status) == (0, 0), again.err
    folder = workplace.results / "gpt3_5b" / "adapter_learning_squad"
    assert "adapter_learning: skipped: " in again.out
    assert f"is complete; nemo-launcher rerun {folder} runs it again" in again.out
    (counted,) = folder.rglob("count")
    assert counted.read_text() == "x"
    assert launch(*workplace.arguments, data, "adapter_learning.trainer.max_epochs=9").status == 0
    assert counted.read_text() == "xx"
    assert console("rerun", folder).status == 0
    assert counted.read_text() == "xxx"


def test_a_failed_stage_and_those_behind_it_are_run_again(launch: Launch, workplace: Workplace):
    workplace.stub("train.py", "sys.exit(3)")
    data = f"data_dir={workplace.root}/data"
    assert launch(*workplace.arguments, data).status == 3
    workplace.stub("train.py", MAKE_ADAPTER)
    result = launch(*workplace.arguments, data)
    assert result.status == 0, result.err
    assert "skipped" not in result.out


def test_a_dry_run_leaves_a_launched_job_as_it_is(launch: Launch, workplace: Workplace):
    assert launch(*workplace.arguments).status == 0
    folder = workplace.results / "gpt3_5b/adapter_learning_squad"
    before = {path.name: path.read_text() for path in folder.glob("squad_gpt3_5b_*")}
    changed = [*workplace.arguments, "adapter_learning.trainer.max_epochs=9"]
    dry = launch(*changed, "debug=True")
    assert f"script {folder}/debug/squad_gpt3_5b_submission.sh" in dry.out
    assert "max_epochs: 9" in (folder / "debug/squad_gpt3_5b_hydra.yaml").read_text()
    assert {path.name: path.read_text() for path in folder.glob("squad_gpt3_5b_*")} == before
    real = launch(*changed)
    assert "skipped" not in real.out + real.err, "the longer training is not complete"
    assert "max_epochs: 9" in (folder / "squad_gpt3_5b_hydra.yaml").read_text()
