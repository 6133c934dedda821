# SPDX-License-Identifier: Apache-2.0
"""Stages on this machine: order, exit status, logs, signals, resuming."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_launcher.clusters.interactive.output import LineLog, last_lines
from tests.workplace import MAKE_ADAPTER, REPOSITORY, Launch, Workplace, is_running, start

pytestmark = pytest.mark.integration


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
    assert "ended without writing" in result.err


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
    assert "/dev/full: the log is incomplete, No space left on device; the job goes on" in done.stderr
    assert done.stderr.count("the log is incomplete") == 1


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


@pytest.mark.unit
def test_the_end_of_a_log_that_is_not_there_is_a_line(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "log.out", 5) == f"[{tmp_path / 'log.out'}: No such file or directory]"
    (tmp_path / "log.out").write_text("one\ntwo\nthree\n")
    assert last_lines(tmp_path / "log.out", 2) == "two\nthree"
