# SPDX-License-Identifier: Apache-2.0
"""Scripts for Slurm: setup lines, GPUs, signals, and names with a special meaning in Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_launcher import __version__
from nemo_launcher.clusters.slurm import trial
from nemo_launcher.clusters.slurm.trial import syntax_error
from nemo_launcher.places import LAUNCHER_SCRIPTS
from tests.workplace import Result, Workplace, executable

pytestmark = pytest.mark.integration
Launch = Callable[..., Result]
GPU = ["adapter_learning.trainer.accelerator=gpu"]


def script_of(workplace: Workplace) -> Path:
    return workplace.results / "gpt3_5b/adapter_learning_squad/squad_gpt3_5b_submission.sh"


def run(workplace: Workplace, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job script like Slurm."""
    job = {"SLURM_JOB_NODELIST": "n", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    environment = {**os.environ, **job, "TRACE": str(workplace.root / "srun"), **environment}
    return subprocess.run(["bash", script_of(workplace)], env=environment, capture_output=True, text=True, check=False)


def test_setup_lines_run_as_in_a_shell_of_the_user(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    """Unbound variables, failures and failing pipes do not end the script; its exit status is srun's."""
    lines = ['export A="${A_NAME_THAT_NOBODY_SET}x"', "false", "false | true", "export B=${A}${HOME:+y}"]
    quoted = ",".join("'" + line.replace("'", "\\'") + "'" for line in lines)
    assert launch(*workplace.arguments, f"cluster.setup=[{quoted}]").status == 0
    executable(workplace.root / "bin" / "srun", 'echo "$B"; exit 3')
    done = run(workplace)
    assert (done.returncode, done.stdout) == (3, "xy\n"), done.stderr
    assert "exit status 3" in done.stderr
    assert (script_of(workplace).parent / "squad_gpt3_5b_exit_status").read_text() == "3\n"


def test_keys_of_the_configuration_are_filled_into_setup_lines(
    launch: Launch, workplace: Workplace, slurm: Path
) -> None:
    assert launch(*workplace.arguments, "cluster.setup=['cd ${base_results_dir} || echo ${PATH} ${a.b}']").status == 0
    assert f"cd {workplace.results} || echo ${{PATH}} ${{a.b}}" in script_of(workplace).read_text().splitlines()


@pytest.mark.parametrize("line", ["if true", "echo $(", "export A='x"])
def test_the_syntax_of_setup_lines_is_told_at_launch(
    line: str, launch: Launch, workplace: Workplace, slurm: Path
) -> None:
    quoted = line.replace("'", "\\'")
    result = launch(*workplace.arguments, f"cluster.setup=['{quoted}']")
    assert (
        result.status,
        "cluster.setup" in result.err,
        "syntax error" in result.err or "unexpected EOF" in result.err,
    ) == (
        2,
        True,
        True,
    )
    assert not workplace.results.exists()


def test_a_log_line_tells_of_start_and_end(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    launch(*workplace.arguments)
    told = run(workplace, SLURMD_NODENAME="node9", SLURM_RESTART_COUNT="2").stderr.splitlines()
    assert told[0].endswith("job 7 starts on node9, restart 2")
    assert told[-1].endswith("job 7 ends on node9, restart 2, exit status 0")


def test_a_job_that_goes_back_into_the_queue_says_so(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    launch(*workplace.arguments)
    executable(workplace.root / "bin" / "srun", "exit 75")
    executable(workplace.root / "bin" / "scontrol", 'echo "$@"')
    done = run(workplace)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (75, "requeue 7")
    assert "job 7 goes back into the queue" in done.stderr


def test_percent_signs_of_a_folder_are_themselves(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    folder = workplace.root / "a%j_%x"
    launch(*workplace.arguments, f"adapter_learning.run.results_dir='{folder}'")
    (script,) = folder.glob("*.sh")
    assert f"#SBATCH --output={workplace.root}/a%%j_%%x/log-squad_gpt3_5b_%j.out" in script.read_text()


@pytest.mark.parametrize("setting", ["cluster.gres=gpu:2", "cluster.additional_parameters.gpus=2"])
def test_gpus_that_the_user_asks_for_are_the_only_ones(
    setting: str, launch: Launch, workplace: Workplace, slurm: Path
) -> None:
    assert launch(*workplace.arguments, *GPU, setting).status == 0
    assert "gpus-per-task" not in script_of(workplace).read_text()


def test_the_fix_for_gpus_asked_for_twice_is_accepted(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    twice = [*GPU, "cluster.gres=gpu:2", "cluster.gpus_per_node=2"]
    refused = launch(*workplace.arguments, *twice)
    assert (refused.status, "-> cluster.gpus_per_node=null" in refused.err) == (2, True)
    assert launch(*workplace.arguments, *twice, "cluster.gpus_per_node=null").status == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["adapter_learning.run.time_limit='00:03:00'"], "leaves no time to train: cluster.signal stops the training"),
        (["cluster.signal=USR1@14400"], "leaves no time to train: cluster.signal stops the training"),
        (["cluster.signal=B:USR1@60"], "is sent only to the job script"),
        (["cluster.signal=USR2@60"], "USR2 would end a training without a checkpoint"),
    ],
)
def test_a_signal_that_cannot_save_anything_is_told(
    settings: list[str], expected: str, launch: Launch, workplace: Workplace, slurm: Path
) -> None:
    result = launch(*workplace.arguments, *settings)
    assert (result.status, expected in result.err) == (2, True), result.err
    fix = result.err.rpartition("-> ")[2].split(",")[0].strip().strip('"')
    assert launch(*workplace.arguments, *settings, fix).status == 0


def test_a_warning_does_not_end_a_job_before_python_watches(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    """USR1 reaches the job script, and the task's shell at its first line."""
    launch(*workplace.arguments)
    executable(
        workplace.root / "bin" / "srun",
        'while [ "$1" != bash ]; do shift; done; kill -USR1 $PPID\n'
        'exec bash -c "${3%%;*}; kill -USR1 \\$\\$; echo still here"',
    )
    done = run(workplace)
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr


def test_scripts_of_one_header_are_tried_once(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    tried = workplace.root / "tried"
    executable(workplace.root / "bin" / "sbatch", f'[ "$1" = --test-only ] && cat >> {tried}; echo 1')
    sweep = ["-m", "adapter_learning.model.optim.lr=1e-3,1e-4,1e-5"]
    assert launch(*workplace.arguments, *sweep).status == 0
    assert tried.read_text().count("#!/bin/bash") == 1


@pytest.mark.parametrize(("state", "status"), [("idle", 2), ("down*", 0), ("drained", 0)])
def test_nodes_that_are_down_keep_no_job_from_the_queue(
    state: str, status: int, launch: Launch, workplace: Workplace, slurm: Path
) -> None:
    """For them sbatch --test-only says the same as for a request that no node can ever satisfy."""
    refuse = f'echo "allocation failure: {trial.UNAVAILABLE}" >&2; exit 1'
    executable(workplace.root / "bin" / "sbatch", f'[ "$1" != --test-only ] || {{ {refuse}; }}; echo 1')
    executable(workplace.root / "bin" / "sinfo", f'[ "$2" != --format=%T ] || echo "{state}"')
    result = launch(*workplace.arguments)
    assert (result.status, "sbatch rejects the job" in result.err) == (status, True)


def test_sbatch_without_a_cluster_leads_to_this_machine(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    refuse = 'echo "sbatch: fatal: Could not establish a configuration source" >&2; exit 1'
    executable(workplace.root / "bin" / "sbatch", refuse)
    result = launch(*workplace.arguments)
    assert (result.status, "cluster_type=interactive" in result.err) == (2, True)


@pytest.mark.unit
def test_scripts_that_bash_cannot_read() -> None:
    assert syntax_error("echo 'a\n")
    assert syntax_error("for x in 1; do echo $x; done\n") == ""


def test_a_signal_during_a_submission_loses_no_job(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    """After Ctrl-C during sbatch, its answer is recorded before the launcher ends."""
    submit = f"kill -{int(signal.SIGINT)} {os.getpid()}; echo 55"
    executable(workplace.root / "bin" / "sbatch", f'[ "$1" = --test-only ] || {{ {submit}; }}')
    more = [f"evaluation.language_model_path={workplace.base_model}", "stages=[adapter_learning,evaluation]"]
    result = launch(*workplace.arguments, *more)
    assert result.status == 130
    record = script_of(workplace).with_name("squad_gpt3_5b_job.json").read_text()
    assert '"job_id": "55"' in record
    evaluation = workplace.results / "gpt3_5b/adapter_learning_squad_eval/eval_squad_gpt3_5b_job.json"
    assert '"job_id": null' in evaluation.read_text()


def test_a_container_without_the_package_is_told_at_launch(launch: Launch, workplace: Workplace, slurm: Path) -> None:
    """A copy of the scripts alone: the image must hold the package; beside the package, that is mounted."""
    arguments = [*workplace.arguments, "container=nvcr.io/nvidia/nemo:24.05", "debug=True"]
    inputs = f"container_mounts=[{workplace.root}]"
    told = f"the image must hold nemo-adapter-launcher {__version__}"
    assert told in launch(*arguments, inputs).err
    result = launch(*arguments, inputs, f"launcher_scripts_path={LAUNCHER_SCRIPTS}")
    assert (result.status, told in result.err) == (0, False), result.err
    assert f"{LAUNCHER_SCRIPTS.parent}:{LAUNCHER_SCRIPTS.parent}" in script_of(workplace).read_text()
