# SPDX-License-Identifier: Apache-2.0
"""Checks of a run against the answers of Slurm's commands; missing answers are not held against it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_launcher.clusters.times import minutes
from tests.workplace import Result, Workplace

pytestmark = pytest.mark.unit

Launch = Callable[..., Result]
ANSWERS = {
    "sbatch": "echo 1",
    "sinfo": "echo 'gpu*|4-00:00:00|n/a'; echo 'debug|30:00'; echo 'endless|infinite|2:00'",
    "sacctmgr": "echo vision; echo speech",
    "scontrol": "echo 'AccountingStorageEnforce = associations,limits'",
    "srun": "echo '  --container-image=[USER@]...'",
}


@pytest.fixture
def slurm(workplace: Workplace, plain_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Slurm's commands, optionally with other answers; each appends its name to the returned file."""

    def install(**answers: str) -> Path:
        trace = workplace.root / "trace"
        for name, answer in (ANSWERS | answers).items():
            command = workplace.root / "slurm" / name
            command.parent.mkdir(exist_ok=True)
            command.write_text(f"#!/bin/bash\necho {name} >> {trace}\n{answer}\n")
            command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{workplace.root}/slurm:{plain_path}")
        return trace

    return install


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cluster.partition=gpus"], "cluster.partition (command line): this cluster has no partition 'gpus'"),
        (["cluster.partition='gpu,dbug'"], "did you mean 'debug'?"),
        (["cluster.account=vison"], "did you mean 'vision'?"),
        (["cluster.partition=debug"], "04:00:00, but partition 'debug' allows at most 00:30:00"),
        (["cluster.partition=debug", "adapter_learning.run.time_limit=null", "cluster.signal=USR1@1800"], "USR1@900"),
        (
            ["cluster.partition=endless", "adapter_learning.run.time_limit=null"],
            "partition 'endless' gives 2 minutes to a job without a time limit",
        ),
        (["adapter_learning.run.time_limit=5-00:00:00"], "5-00:00:00, but partition 'gpu' allows at most 96:00:00"),
    ],
)
def test_settings_that_slurm_would_refuse(
    launch: Launch, workplace: Workplace, slurm, arguments: list[str], expected: str
):
    slurm()
    result = launch(*workplace.arguments, *arguments)
    assert result.status == 2
    assert result.err.startswith("1 mistake;"), result.err
    assert expected in result.err
    assert not workplace.results.exists()
    assert launch(*workplace.arguments, *arguments, "preflight=warn").status == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["cluster.partition=gpu", "cluster.account=speech"],
        ["cluster.partition='debug,endless'", "adapter_learning.run.time_limit=9-00:00:00"],
        ["container=image"],
        ["adapter_learning.run.time_limit=null"],
    ],
)
def test_settings_that_slurm_accepts(launch: Launch, workplace: Workplace, slurm, arguments: list[str]):
    slurm()
    (workplace.root / "nemo_launcher").mkdir()  # beside the scripts, as in a checkout: a container gets both
    result = launch(*workplace.arguments, *arguments)
    assert (result.status, result.err) == (0, "")


def test_containers_without_pyxis(launch: Launch, workplace: Workplace, slurm):
    slurm(srun="echo '  --constraint=list'")
    result = launch(*workplace.arguments, "container=image")
    assert result.status == 2
    assert "has no --container-image" in result.err


@pytest.mark.parametrize("failure", ["exit 1", "", "exec sleep 60"])
@pytest.mark.parametrize(("command", "key"), [("sinfo", "partition"), ("sacctmgr", "account")])
def test_a_command_that_fails_says_nothing(
    launch: Launch, workplace: Workplace, slurm, monkeypatch, failure: str, command: str, key: str
):
    monkeypatch.setattr("nemo_launcher.clusters.slurm.site.TIMEOUT_S", 0.3)
    slurm(**{command: failure})
    result = launch(*workplace.arguments, f"cluster.{key}=unknown")
    assert (result.status, result.err) == (0, "")


def test_accounts_that_are_not_enforced(launch: Launch, workplace: Workplace, slurm):
    slurm(scontrol="echo 'AccountingStorageEnforce = none'")
    assert launch(*workplace.arguments, "cluster.account=unknown").status == 0


@pytest.mark.parametrize("argument", ["debug=True", "preflight=off", "cluster_type=interactive"])
def test_a_cluster_that_is_not_asked(launch: Launch, workplace: Workplace, slurm, argument: str):
    trace = slurm()
    launch(*workplace.arguments, "cluster.partition=unknown", argument)
    assert set(trace.read_text().split() if trace.exists() else []) <= {"sbatch"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30), ("30:30", 30.5), ("04:00:00", 240), ("1-12", 2160), ("1-12:30", 2190), ("2-00:00:30", 2880.5)],
)
def test_times_as_slurm_writes_them(text: str, expected: float):
    assert minutes(text) == expected
