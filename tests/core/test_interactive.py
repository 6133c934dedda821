"""Running stages on this machine: order, exit status, logs, signals, resuming."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import MAKE_ADAPTER, REPOSITORY, Result, Workplace

pytestmark = pytest.mark.integration

Launch = Callable[..., Result]
# A shell lets what it starts in the background ignore Ctrl-C, the tests and their children included.
TAKES_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
STUB_MODULES = """
import sys, types
for name in ("squad", "jsonl"):
    module = sys.modules["nemo_launcher.data." + name] = types.ModuleType(name)
    module.is_prepared = lambda *a: True
    module.check_fields = lambda *a, **k: []
    module.prepare = None
from nemo_launcher.core.launch import main
status = main()
"""


def start(workplace: Workplace, *arguments: str, code: str = "sys.exit(status)") -> subprocess.Popen[str]:
    """The launcher as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", TAKES_CTRL_C + STUB_MODULES + code, *workplace.arguments, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


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


def is_running(pid: str) -> bool:
    """Whether a process is there and not a zombie that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


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
