# SPDX-License-Identifier: Apache-2.0
"""Jobs on this machine after launch: state, logs, cancel, rerun."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.clusters import record as records
from nemo_launcher.clusters.process import HOST, identity
from tests.workplace import MAKE_ADAPTER, Result, Workplace, executable, is_running, start

pytestmark = pytest.mark.integration

Console = Callable[..., Result]
Launch = Callable[..., Result]
# Reports when it runs, has a child process, and ends as the gate says.
WAIT = """
import os, subprocess
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.alarm(600); signal.pause()"])
print("pids", os.getpid(), child.pid, flush=True)
status = int(open(pathlib.Path(sys.argv[0]).parent / "gate").read())
child.kill()
os._exit(status)
"""


def jobs_of(console: Console, workplace: Workplace) -> list[dict[str, Any]]:
    result = console("status", workplace.results, "--json")
    assert result.status == 0, result.err
    return json.loads(result.out)["jobs"]


def folder_of(workplace: Workplace) -> Path:
    return workplace.results / "gpt3_5b" / "adapter_learning_squad"


@dataclasses.dataclass
class Running:
    """A launcher with a running job: the ids of the job's processes, and its gate."""

    launcher: subprocess.Popen[str]
    pids: list[str]
    gate: Path

    def open_gate(self, status: int) -> None:
        """Let the job end with this exit status."""
        self.gate.write_text(str(status))


@pytest.fixture
def running(workplace: Workplace) -> Iterator[Running]:
    """A training, and an evaluation that waits for it."""
    os.mkfifo(workplace.scripts / "gate")
    workplace.stub("train.py", MAKE_ADAPTER + WAIT)
    evaluation = [f"evaluation.language_model_path={workplace.base_model}", "evaluation.trainer.accelerator=cpu"]
    launcher = start(workplace, *evaluation, "stages=[adapter_learning,evaluation]")
    assert launcher.stdout is not None
    pids = next(line for line in launcher.stdout if line.startswith("pids")).split()[1:]
    yield Running(launcher, pids, workplace.scripts / "gate")
    for pid in pids:
        if is_running(pid):
            os.kill(int(pid), signal.SIGKILL)
    launcher.kill()
    launcher.communicate()


def test_a_running_job_and_one_that_waits(console: Console, workplace: Workplace, running: Running) -> None:
    training, evaluation = jobs_of(console, workplace)
    assert (training["state"], training["active"], training["outputs_written"]) == ("running", True, True)
    assert (evaluation["state"], evaluation["reason"]) == ("pending", "waits for previous stage")
    heading, *rows = console("status", workplace.results, "--wide").out.splitlines()
    assert heading.split()[:4] == ["stage", "job", "id", "state"]
    assert [row.split()[:2] for row in rows] == [
        ["adapter_learning", "squad_gpt3_5b"],
        ["evaluation", "eval_squad_gpt3_5b"],
    ]


def test_a_job_whose_launcher_is_gone_keeps_its_state(console: Console, workplace: Workplace, running: Running) -> None:
    running.launcher.kill()
    running.launcher.wait()
    assert [job["state"] for job in jobs_of(console, workplace)] == ["running", "not started"]
    running.open_gate(3)
    followed = console("logs", "adapter_learning", "--follow", "--results-dir", workplace.results)
    assert "pids" in followed.out  # following ends with the job
    training, _ = jobs_of(console, workplace)
    assert (training["state"], training["exit_status"], training["reason"]) == ("failed", 3, "exit status 3")


def test_cancel_ends_every_process_of_the_job(console: Console, workplace: Workplace, running: Running) -> None:
    result = console("cancel", "--all", "--results-dir", workplace.results)
    assert result.status == 0, result.err
    ended, waiting = result.out.splitlines()
    assert ended.endswith(": ended")
    assert waiting == "evaluation eval_squad_gpt3_5b: will not be started"
    assert not [pid for pid in running.pids if is_running(pid)]
    assert running.launcher.wait(timeout=60) == 128 + signal.SIGTERM
    assert [job["state"] for job in jobs_of(console, workplace)] == ["cancelled", "cancelled"]
    again = console("cancel", folder_of(workplace))
    assert (again.status, "not active (cancelled)" in again.out) == (0, True)
    assert console("cancel", "--all", "--results-dir", workplace.results).out == "no job waits or runs\n"


def test_a_stage_that_waits_can_be_cancelled(console: Console, workplace: Workplace, running: Running) -> None:
    assert "no log yet" in console("logs", "evaluation", "--results-dir", workplace.results).err
    assert console("cancel", "evaluation", "--results-dir", workplace.results).status == 0
    running.open_gate(0)
    _, errors = running.launcher.communicate(timeout=60)
    assert "not started: evaluation" in errors
    assert running.launcher.returncode == 128 + signal.SIGTERM
    training, evaluation = jobs_of(console, workplace)
    assert [job["state"] for job in (training, evaluation)] == ["completed", "cancelled"]
    workplace.stub("evaluate.py", "open(config['pred_file_path'], 'w').write('x')")
    (Path(evaluation["outputs"][0])).parent.mkdir(exist_ok=True)
    rerun = console("rerun", evaluation["folder"])
    assert rerun.status == 0, rerun.err
    assert [job["state"] for job in jobs_of(console, workplace)] == ["completed", "completed"]


def test_a_folder_in_use_is_left_alone(
    console: Console, launch: Launch, workplace: Workplace, running: Running
) -> None:
    again = console("rerun", folder_of(workplace))
    assert again.status == 2
    assert "is running" in again.err
    launched = launch(*workplace.arguments)
    assert launched.status == 2
    assert f"nemo-launcher cancel {folder_of(workplace)}" in launched.err
    assert jobs_of(console, workplace)[0]["state"] == "running"


def test_rerun_runs_the_script_of_the_folder(console: Console, launch: Launch, workplace: Workplace) -> None:
    workplace.stub("train.py", "sys.exit(4)")
    assert launch(*workplace.arguments).status == 4
    (before,) = jobs_of(console, workplace)
    assert before["state"] == "failed"
    workplace.stub("train.py", MAKE_ADAPTER)
    result = console("rerun", before["job_id"], "--results-dir", workplace.results)
    assert (result.status, "trained" in result.out) == (0, True)
    (after,) = jobs_of(console, workplace)
    assert (after["state"], after["exit_status"]) == ("completed", 0)
    assert after["job_id"] != before["job_id"]


def test_rerun_of_a_copy_would_work_in_the_original(console: Console, launch: Launch, workplace: Workplace) -> None:
    assert launch(*workplace.arguments).status == 0
    folder = next(workplace.results.rglob("*_job.json")).parent
    copy = Path(shutil.copytree(folder, workplace.root / "copy"))
    result = console("rerun", copy)
    assert result.status == 2
    assert f"was moved or copied from {folder}" in result.err
    assert f"-> launch the stage again with adapter_learning.run.results_dir={copy}" in result.err
    assert launch(*workplace.arguments, f"adapter_learning.run.results_dir={copy}").status == 0


def test_a_used_again_process_id_is_not_taken_for_the_job(
    console: Console, launch: Launch, workplace: Workplace
) -> None:
    launch(*workplace.arguments)
    (record,) = records.find(workplace.results)
    record.exit_status_file.unlink()
    mine = identity(os.getpid())
    assert mine is not None
    for process, state in ((mine, "running"), ((mine[0], "another boot:1"), "failed")):
        records.write(dataclasses.replace(record, process=process))
        assert [job["state"] for job in jobs_of(console, workplace)] == [state]
    assert console("cancel", folder_of(workplace)).out.endswith("not active (failed)\n")


def test_on_another_machine_the_folder_tells(console: Console, launch: Launch, workplace: Workplace) -> None:
    launch(*workplace.arguments)
    (record,) = records.find(workplace.results)
    records.write(dataclasses.replace(record, host=HOST + "x"))
    assert jobs_of(console, workplace)[0]["state"] == "completed"
    record.exit_status_file.unlink()
    (job,) = jobs_of(console, workplace)
    assert (job["state"], job["reason"]) == ("running", f"on {HOST}x")
    assert "cancel it there" in console("cancel", folder_of(workplace)).err


def test_afterany_goes_on_after_a_failure(console: Console, launch: Launch, workplace: Workplace) -> None:
    workplace.stub("train.py", MAKE_ADAPTER + "sys.exit(4)")
    workplace.stub("evaluate.py", "print('evaluated')\nopen(config['pred_file_path'], 'w')\n")
    evaluation = [f"evaluation.language_model_path={workplace.base_model}", "evaluation.trainer.accelerator=cpu"]
    predictions = f"evaluation.pred_file_path={workplace.root}/predictions.txt"
    chain = [*workplace.arguments, *evaluation, predictions, "stages=[adapter_learning,evaluation]"]
    for wish in ("dependency=afterany", "evaluation.run.dependency=afterany"):
        result = launch(*chain, wish)
        assert (result.status, "evaluated" in result.out) == (4, True)
    assert [job["state"] for job in jobs_of(console, workplace)] == ["failed", "completed"]
    assert "evaluated" not in launch(*chain).out


def test_logs_show_the_last_lines(console: Console, launch: Launch, workplace: Workplace) -> None:
    workplace.stub("train.py", MAKE_ADAPTER + "for i in range(9000): print('line', i, '.' * 20)")
    launch(*workplace.arguments)
    shown = console("logs", "squad_gpt3_5b", "--results-dir", workplace.results, "--lines", "8000").out.splitlines()
    assert [line.split()[1] for line in shown] == [str(i) for i in range(1000, 9000)]


def test_mistakes_are_told(console: Console, launch: Launch, workplace: Workplace) -> None:
    launch(*workplace.arguments, "adapter_learning.run.model_train_name=one")
    launch(*workplace.arguments, "adapter_learning.run.model_train_name=two")
    here = ["--results-dir", workplace.results]
    for verb in ("logs", "cancel", "rerun"):
        assert "did you mean 'adapter_learning'?" in console(verb, "adapter_lerning", *here).err
        several = console(verb, "adapter_learning", *here)
        assert several.status == 2
        assert "names 2 jobs\n    -> name one by its id or folder: " in several.err
        assert "no job was started in this folder" in console(verb, workplace.root / "launcher_scripts", *here).err
    assert "needs either job names or --all" in console("cancel", *here).err
    assert "no such folder" in console("status", workplace.root / "nowhere").err
    assert "'': no such folder" in console("clean", "", "--delete").err  # an unset variable
    assert console("status", workplace.scripts).out == f"no jobs below {workplace.scripts}\n"


@pytest.mark.parametrize(
    ("squeue", "sacct", "exit_status", "expected"),
    [
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "exit 1", "0", ("completed", "")),
        (
            "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
            "exit 1",
            None,
            ("unknown", "no longer knows it"),
        ),
        ("exit 1", "exit 1", None, ("unknown", "does not answer")),
        (
            "exit 1",
            r"printf 'JobID|State|Reason\n101|CANCELLED by 7|None\n101.batch|FAILED|\n'",
            "1",
            ("cancelled", ""),
        ),
        ("exit 1", "exit 1", "130", ("failed", "interrupted")),
    ],
)
def test_what_slurm_has_forgotten_or_does_not_tell(
    squeue: str, sacct: str, exit_status: str | None, expected: tuple[str, str], workplace: Workplace, slurm: Path,
    launch: Launch, console: Console,
) -> None:  # fmt: skip
    """A real Slurm forgets jobs after minutes, and does not answer when it is down."""
    assert launch(*workplace.arguments).status == 0
    (folder_of(workplace) / "results").mkdir()
    (folder_of(workplace) / "results/megatron_gpt_adapter.nemo").touch()
    executable(workplace.root / "bin" / "squeue", squeue)
    executable(workplace.root / "bin" / "sacct", sacct)
    if exit_status is not None:
        (folder_of(workplace) / "squad_gpt3_5b_exit_status").write_text(exit_status)
    (job,) = jobs_of(console, workplace)
    assert (job["job_id"], job["state"]) == ("101", expected[0])
    assert expected[1] in job["reason"]
