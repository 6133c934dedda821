# SPDX-License-Identifier: Apache-2.0
"""Tests of every registered kind of cluster; new kinds inherit them."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.clusters import CLUSTERS, Cluster
from nemo_launcher.config.schema import check
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.places import CONF
from tests.clusters.stand_ins import STAND_INS, StandIn
from tests.workplace import MAKE_ADAPTER, Result, Workplace, start

pytestmark = pytest.mark.integration

Launch = Callable[..., Result]
KEY = "0123456789abcdef"
WAIT = MAKE_ADAPTER + "import signal\nprint('waits', flush=True)\nsignal.pause()\n"


@pytest.fixture(params=CLUSTERS)
def kind(request: pytest.FixtureRequest) -> str:
    """A type of cluster."""
    return str(request.param)


@pytest.fixture
def cluster(kind: str) -> type[Cluster]:
    """The class of this type."""
    return CLUSTERS[kind]


@pytest.fixture
def stand_in(kind: str, workplace: Workplace, plain_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A cluster of this type, used by the workplace's arguments."""
    monkeypatch.setenv("PATH", f"{workplace.root}/bin:{plain_path}")
    found = STAND_INS[kind](workplace)
    workplace.arguments += [f"cluster_type={kind}", *found.arguments()]
    return found


def jobs_of(console: Launch, workplace: Workplace) -> list[dict[str, Any]]:
    return json.loads(console("status", workplace.results, "--json").out)["jobs"]


def state_of(console: Launch, workplace: Workplace) -> str:
    (job,) = jobs_of(console, workplace)
    return str(job["state"])


def folder_of(workplace: Workplace) -> Path:
    return workplace.results / "gpt3_5b" / "adapter_learning_squad"


# --- what it says of itself -----------------------------------------------------------------------------------------


def test_its_words_are_its_own(kind: str, cluster: type[Cluster]) -> None:
    assert cluster.cluster_type == kind
    assert kind in STAND_INS, "add a stand-in to tests/clusters/stand_ins.py"
    assert cluster.title
    assert not cluster.queues or cluster.asks_with
    others = [word for other in CLUSTERS.values() if other is not cluster for word in (*other.aliases, *CLUSTERS)]
    assert not set(cluster.aliases) & set(others)
    assert all(word == word.casefold() for word in cluster.aliases)


def test_its_options_have_a_file(kind: str, cluster: type[Cluster]) -> None:
    """conf/cluster/<type>.yaml fits the type's schema and that of no other cluster."""
    path = CONF / "cluster" / f"{kind}.yaml"
    assert path.is_file() == (cluster.section is not None)
    fits = [name for name, c in CLUSTERS.items() if c.section and path.is_file()
            and not check(load_yaml(path), c.section, "cluster")]  # fmt: skip
    assert fits == ([kind] if cluster.section is not None else [])


def test_one_is_always_found() -> None:
    assert any(cluster.detect() for cluster in CLUSTERS.values())


# --- launching ------------------------------------------------------------------------------------------------------


def test_a_dry_run_renders_and_starts_nothing(launch: Launch, workplace: Workplace, stand_in: StandIn) -> None:
    result = launch(*workplace.arguments, "debug=True")
    assert result.status == 0, result.err
    (script,) = workplace.results.rglob("*_submission.sh")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    assert stand_in.started() == 0
    assert list(workplace.results.rglob("*_job.json")) == []


@pytest.mark.parametrize("override", ["++cluster.no_such_option=1", "cluster=no_such_file", "dependency=sometimes"])
def test_a_refused_value_is_told(launch: Launch, workplace: Workplace, stand_in: StandIn, override: str) -> None:
    result = launch(*workplace.arguments, override)
    assert result.status == 2
    assert override.lstrip("+").partition("=")[0] in result.err
    assert (stand_in.started(), workplace.results.exists()) == (0, False)


def test_a_line_break_is_told(launch: Launch, workplace: Workplace, stand_in: StandIn) -> None:
    result = launch(*workplace.arguments, 'env_vars.MINE="a\ntouch /tmp/pwned"')
    assert (result.status, "has a line break" in result.err, stand_in.started()) == (2, True, 0)


def test_a_job_works(launch: Launch, console: Launch, workplace: Workplace, stand_in: StandIn) -> None:
    """It writes its output, its log is found, and the same command skips it."""
    result = launch(*workplace.arguments)
    assert result.status == 0, result.err
    stand_in.run()
    (job,) = jobs_of(console, workplace)
    assert (job["state"], job["exit_status"], job["outputs_written"]) == ("completed", 0, True)
    assert CLUSTERS[job["cluster_type"]].is_job_id(job["job_id"])
    assert "trained" in console("logs", folder_of(workplace)).out
    assert "skipped" in launch(*workplace.arguments).out


def test_a_failure_is_told(launch: Launch, console: Launch, workplace: Workplace, stand_in: StandIn) -> None:
    workplace.stub("train.py", "print('reason')\nsys.exit(3)")
    launch(*workplace.arguments)
    stand_in.run()
    (job,) = jobs_of(console, workplace)
    assert (job["state"], job["exit_status"], job["reason"]) == ("failed", 3, "exit status 3")
    assert "reason" in console("logs", job["job_id"], "--results-dir", workplace.results).out


def test_a_refused_job_is_recorded(launch: Launch, console: Launch, workplace: Workplace, stand_in: StandIn) -> None:
    stand_in.refuse()
    refused = launch(*workplace.arguments)
    assert refused.status != 0
    assert refused.err
    assert state_of(console, workplace) in ("not started", "failed")
    stand_in.accept()
    assert launch(*workplace.arguments).status == 0
    stand_in.run()
    assert state_of(console, workplace) == "completed"


@pytest.fixture
def waiting(
    launch: Launch, console: Launch, workplace: Workplace, stand_in: StandIn, cluster: type[Cluster]
) -> Iterator[Callable[[], object]]:
    """A waiting or running job; calling the value waits for the end of its launcher."""
    if cluster.queues:
        assert launch(*workplace.arguments).status == 0
        yield lambda: None
        return
    workplace.stub("train.py", WAIT)
    launcher = start(workplace)
    assert launcher.stdout is not None
    assert any("waits" in line for line in launcher.stdout)
    while state_of(console, workplace) == "pending":  # the launcher has not recorded the process yet
        assert launcher.poll() is None
    yield launcher.communicate
    launcher.kill()
    launcher.communicate()


def test_an_active_job_is_cancelled_and_run_again(
    console: Launch, workplace: Workplace, stand_in: StandIn, waiting: Callable[[], object]
) -> None:
    (job,) = jobs_of(console, workplace)
    assert (job["active"], job["state"] in ("pending", "running")) == (True, True)
    again = console("rerun", folder_of(workplace))
    assert (again.status, "nemo-launcher cancel" in again.err) == (2, True)
    cancelled = console("cancel", "--all", "--results-dir", workplace.results)
    assert cancelled.status == 0, cancelled.err
    waiting()  # the launcher locks the folder until it ends
    assert state_of(console, workplace) == "cancelled"
    assert console("cancel", "--all", "--results-dir", workplace.results).out == "no job waits or runs\n"
    workplace.stub("train.py", MAKE_ADAPTER)
    rerun = console("rerun", folder_of(workplace))
    assert rerun.status == 0, rerun.err
    stand_in.run()
    assert state_of(console, workplace) == "completed"


def test_secrets_stay_out_of_files(launch: Launch, workplace: Workplace, stand_in: StandIn) -> None:
    key_file = workplace.root / "private" / "my key"
    key_file.parent.mkdir()
    key_file.write_text(f"{KEY}\n")
    tell = MAKE_ADAPTER + "import os\nprint(os.environ['WANDB_API_KEY'][::-1])\n"
    workplace.stub("train.py", tell)
    wandb = [f"wandb_api_key_file='{key_file}'", "adapter_learning.exp_manager.create_wandb_logger=True"]
    assert launch(*workplace.arguments, *wandb).status == 0
    stand_in.run()
    files = [path for path in workplace.root.rglob("*") if path.is_file() and path.parent.name != "private"]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert any(KEY[::-1].encode() in path.read_bytes() for path in files if path.name.startswith("log-"))
