# SPDX-License-Identifier: Apache-2.0
"""Stages on this machine: order, exit status, logs, signals, resuming."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_launcher.clusters.interactive.output import LineLog, last_lines
from tests.workplace import MAKE_ADAPTER, REPOSITORY, Result, Workplace, is_running, start

pytestmark = pytest.mark.integration

Launch = Callable[..., Result]


def test_a_stage_runs_and_its_data_is_prepared_first(launch: Launch, workplace: Workplace, prepared):
    result = launch(*workplace.arguments, f"data_dir={workplace.root}/data")
    assert result.status == 0, result.err
    assert prepared == [(workplace.root / "data", workplace.root / "data/prompt_data/v1.1")]
    folder = workplace.results / "gpt3_5b" / "adapter_learning_squad"
    started, trained, done = result.out.splitlines()[-3:]
    assert started == f"adapter_learning: squad_gpt3_5b, in {folder}"
    assert trained == "trained"
    assert done.startswith("adapter_learning: done in ")
    assert [log.read_text() for log in folder.glob("log-squad_gpt3_5b_*.out")] == ["trained\n"]


def test_a_failed_stage_keeps_its_status_and_stops_the_chain(launch: Launch, workplace: Workplace):
    workplace.stub("train.py", "print('out of luck')\nsys.exit(3)\n")
    workplace.stub("evaluate.py", "open(config['pred_file_path'], 'w')\n")
    evaluation = [f"evaluation.language_model_path={workplace.base_model}", "evaluation.trainer.accelerator=cpu"]
    result = launch(*workplace.arguments, *evaluation, "stages=[adapter_learning,evaluation]")
    assert result.status == 3
    assert "exit status 3" in result.err
    assert "out of luck" in result.err
    assert "log-squad_gpt3_5b_" in result.err
    assert "not started: evaluation" in result.err


def test_a_job_may_log_to_its_own_folder(launch: Launch, workplace: Workplace):
    """The launcher's lock of the folder does not block the training's own."""
    held = "from nemo_launcher.launcher.outputs import held_outputs\n"
    held += "from nemo_launcher.adapters.sections import AdapterLearning\n"
    held += "with held_outputs(config, AdapterLearning, leader=True):"
    workplace.stub("train.py", held + MAKE_ADAPTER.replace("\n", "\n    "))
    own = "adapter_learning.exp_manager.explicit_log_dir=${adapter_learning.run.results_dir}"
    result = launch(*workplace.arguments, own)
    assert result.status == 0, result.err


def test_a_stage_that_makes_nothing_has_failed(launch: Launch, workplace: Workplace):
    workplace.stub("train.py", "")
    result = launch(*workplace.arguments)
    assert result.status == 1
    assert "ended without making" in result.err


def test_a_later_stage_uses_what_an_earlier_one_makes(launch: Launch, workplace: Workplace):
    workplace.stub(
        "evaluate.py",
        """
        print(open(config["adapter_model_file"]).read())
        path = pathlib.Path(config["pred_file_path"])
        path.parent.mkdir(parents=True)
        path.write_text("")
        """,
    )
    evaluation = [f"evaluation.language_model_path={workplace.base_model}", "evaluation.trainer.accelerator=cpu"]
    result = launch(*workplace.arguments, *evaluation, "stages=adapter_learning,evaluation")
    assert result.status == 0, result.err
    assert "adapter\n" in result.out


def test_several_devices_run_under_torchrun(launch: Launch, workplace: Workplace):
    launch(*workplace.arguments, "debug=True", "adapter_learning.trainer.devices=2")
    script = workplace.results / "gpt3_5b/adapter_learning_squad/squad_gpt3_5b_submission.sh"
    expected = f"{sys.executable} -u -m torch.distributed.run --standalone --nproc_per_node=2 {workplace.scripts}"
    assert script.read_text().splitlines()[-1].startswith(expected)


def test_torchruns_own_lines_do_not_hide_what_a_rank_says(launch: Launch, workplace: Workplace):
    torchrun = "W1126 05:44:40.764000 7 /site-packages/torch/distributed/elastic/multiprocessing/api.py:1028] Sending"
    workplace.stub("train.py", f"print('model.x: is wrong')\nprint({torchrun!r})\nprint('Traceback')\nsys.exit(1)\n")
    result = launch(*workplace.arguments)
    assert result.status == 1
    assert "model.x: is wrong\n" in result.err
    assert "Traceback" not in result.err


def test_only_the_last_state_of_a_redrawn_line_is_logged(launch: Launch, workplace: Workplace):
    progress = (
        "for i in range(4): sys.stdout.write(f'\\rstep {i}'); sys.stdout.flush()\nprint()\nsys.stdout.write('end\\r')\n"
    )
    workplace.stub("train.py", MAKE_ADAPTER + progress)
    result = launch(*workplace.arguments)
    assert "\rstep 0\rstep 1\rstep 2\rstep 3\n" in result.out
    (log,) = (workplace.results / "gpt3_5b/adapter_learning_squad").glob("log-*.out")
    assert log.read_text() == "trained\nstep 3\nend\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_of_the_job(workplace: Workplace, number: int):
    workplace.stub(
        "train.py",
        """
        import os, signal, subprocess
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.alarm(600); signal.pause()"])
        print("pids", os.getpid(), child.pid, flush=True)
        signal.pause()
        """,
    )
    launcher = start(workplace)
    assert launcher.stdout is not None
    pids = next(line for line in launcher.stdout if line.startswith("pids")).split()[1:]
    os.kill(launcher.pid, number)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + number
    assert "stopped after" in errors
    assert not [pid for pid in pids if is_running(pid)]


def test_a_dry_run_imports_nothing_heavy(workplace: Workplace):
    heavy = "{'torch', 'lightning', 'nemo', 'megatron', 'transformers', 'numpy', 'submitit'}"
    launcher = start(workplace, "debug=True", code=f"print(status, sorted({heavy} & set(sys.modules)))")
    out, errors = launcher.communicate(timeout=60)
    assert out.splitlines()[-1] == "0 []", errors


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
    assert "model.optim.lr (0.0001 -> 0.01)" in result.err
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
    assert "other settings: model.optim.lr (0.0001 -> 0.01)" in result.err


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
    assert f"is not used: training goes on from the newest of {checkpoints}" in result.err + result.out


@pytest.mark.parametrize("script", ["main.py", "launcher_scripts/main.py"])
def test_both_entries_run_from_anywhere(script: str, tmp_path: Path):
    command = [sys.executable, REPOSITORY / script, "stages=[adapter_lerning]"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "did you mean 'adapter_learning'?" in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--help"], ["--cfg", "job"]])
def test_hydra_options_show_and_launch_nothing(workplace: Workplace, option: list[str]):
    launcher = start(workplace, *option)
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0
    assert "adapter_learning" in out
    assert not workplace.results.exists()


def test_a_sweep_runs_each_value(launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workplace.root)
    sweep = ["-m", "adapter_learning.run.model_train_name=one,two", f"data_dir={workplace.root}/data"]
    result = launch(*workplace.arguments, *sweep)
    assert result.status == 0, result.err
    assert {path.name for path in workplace.results.iterdir()} == {"one", "two"}
    assert not list(workplace.root.rglob("multirun*"))


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


def test_a_log_on_a_full_disk_does_not_stop_the_job(tmp_path: Path):
    """The pipe is read to its end, and the truncated log is reported once."""
    code = (
        "import subprocess, sys\nfrom pathlib import Path\n"
        "from nemo_launcher.clusters.interactive.output import Writer\n"
        "writer = Writer(Path('/dev/full'))\n"
        "job = subprocess.Popen([sys.executable, '-c', 'for i in range(20000): print(i)'], stdout=writer.pipe)\n"
        "writer.hand_over()\nprint(job.wait(), file=sys.stderr)\nwriter.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [str(i) for i in range(20000)]
    assert "/dev/full: the log is cut, No space left on device; the job goes on" in done.stderr
    assert done.stderr.count("the log is cut") == 1


def test_a_log_says_what_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    log = LineLog(tmp_path / "log", told.append)
    log.write(b"one\n")
    file, log._file = log._file, open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    log.write(b"two\nthree\n")
    log._file.close()
    log._file = file
    log.write(b"four\n")
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["one", "[launcher: 2 lines are missing here: the log could not be written]", "four"]
    assert len(told) == 1


def test_two_launchers_at_once_start_one_job(workplace: Workplace):
    gate = workplace.scripts / "gate"
    os.mkfifo(gate)
    ran = workplace.root / "ran"
    workplace.stub("train.py", MAKE_ADAPTER + f"open({str(ran)!r}, 'a').write('x')\nopen({str(gate)!r}).read()\n")
    launchers = [start(workplace) for _ in range(3)]
    first = [launcher.wait(timeout=60) for launcher in launchers if _ended_first(launcher, launchers)]
    gate.write_text("")
    results = [(*launcher.communicate(timeout=60), launcher.returncode) for launcher in launchers]
    assert sorted(status for *_, status in results) == [0, 2, 2]
    assert first == [2, 2]
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


@pytest.mark.unit
def test_the_end_of_a_log_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "log.out", 5) == f"[{tmp_path / 'log.out'}: No such file or directory]"
    (tmp_path / "log.out").write_text("one\ntwo\nthree\n")
    assert last_lines(tmp_path / "log.out", 2) == "two\nthree"


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
