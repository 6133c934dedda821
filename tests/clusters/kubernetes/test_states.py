# SPDX-License-Identifier: Apache-2.0
"""What becomes of a Job of Kubernetes: states, logs, cancelling."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clusters.fake_kubernetes import FakeKubernetes
from tests.clusters.kubernetes.seen import jobs_of, states, training_of
from tests.workplace import MAKE_ADAPTER, Launch, Workplace

pytestmark = pytest.mark.integration


UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}],
}

NO_IMAGE = {
    "phase": "Pending",
    "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}],
}

STARTED = "2020-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("status", "pods", "expected"),
    [
        ({"active": 1}, [UNSCHEDULABLE], ("pending", "Unschedulable: 0/3 nodes")),
        ({"active": 1}, [NO_IMAGE], ("pending", "ImagePullBackOff: not found")),
        ({"active": 1, "startTime": STARTED}, [{"phase": "Running"}], ("running", "")),
        ({"active": 1, "failed": 1}, [{"phase": "Pending"}], ("requeued", "resumes from its checkpoint in a new pod")),
        ({"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}, [], ("timeout", None)),
        ({"conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]}, [], ("failed", None)),
    ],
)
def test_states(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch, status: dict[str, Any],
    pods: list[dict[str, Any]], expected: tuple[str, str | None],
) -> None:  # fmt: skip
    assert launch(*workplace.arguments, "adapter_learning.run.time_limit='01:00:00'").status == 0
    (name,) = cluster.jobs()
    cluster.set(name, status, *pods)
    (job,) = jobs_of(console, workplace)
    assert job["state"] == expected[0]
    assert expected[1] is None or job["reason"] == expected[1]
    assert job["time_limit_seconds_left"] == (0 if "startTime" in status else None)


@pytest.mark.parametrize(
    ("exit_status", "reason", "expected"),
    [
        (143, "DeadlineExceeded", "timeout"),
        (0, "BackoffLimitExceeded", "failed"),
        (4, "BackoffLimitExceeded", "failed"),
    ],
)
def test_a_job_that_failed_elsewhere(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch, exit_status: int, reason: str,
    expected: str,
) -> None:  # fmt: skip
    """A deadline ends a training that saves and exits; another pod may fail after the first one succeeded."""
    workplace.stub("train.py", MAKE_ADAPTER + f"sys.exit({exit_status})")
    assert launch(*workplace.arguments).status == 0
    (name,) = cluster.jobs()
    cluster.run(name)
    cluster.condition(name, "Failed", reason)
    assert states(console, workplace) == [expected]


def test_what_kubernetes_has_forgotten_or_does_not_tell(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch
) -> None:
    assert launch(*workplace.arguments).status == 0
    (name,) = cluster.jobs()
    (cluster.state / "down").touch()
    silent = console("status", workplace.results)
    assert "Kubernetes did not answer; states are those in the job folders" in silent.err
    assert json.loads(console("status", workplace.results, "--json").out)["slurm_answers"] is False
    assert "try again when kubectl answers" in console("rerun", training_of(workplace)).err
    (cluster.state / "down").unlink()
    (cluster.state / "default/job" / f"{name}.json").unlink()
    (job,) = jobs_of(console, workplace)
    assert (job["state"], job["reason"]) == ("unknown", "Kubernetes no longer knows it")


def test_logs_of_pods_that_never_reached_the_folder(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch
) -> None:
    assert launch(*workplace.arguments).status == 0
    (name,) = cluster.jobs()
    assert "has written no log yet" in console("logs", training_of(workplace)).err
    log = cluster.state / "default/logs" / f"{name}-adapter-learning"
    log.parent.mkdir()
    log.write_text("bash: /results: No such file or directory\n")
    assert console("logs", training_of(workplace)).out == "bash: /results: No such file or directory\n"


def test_one_stage_or_the_whole_chain_is_cancelled(
    chain: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch
) -> None:
    """A waiting stage is skipped by its own script; the training before it continues."""
    workplace.stub("train.py", MAKE_ADAPTER)
    assert chain().status == 0
    (name,) = cluster.jobs()
    assert console("cancel", "evaluation", "--results-dir", workplace.results).out.endswith(": will not be started\n")
    assert cluster.run(name) == [0, 143]
    assert states(console, workplace) == ["completed", "cancelled"]
    assert chain("preflight=off").status == 0
    assert len(cluster.jobs()) == 2  # only the evaluation's; the training is complete
    cancelled = console("cancel", "--all", "--results-dir", workplace.results)
    assert cancelled.status == 0, cancelled.err
    assert (list(cluster.jobs()), cluster.services()) == ([name], [name])


def test_a_launcher_that_was_killed_after_the_submission(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch
) -> None:
    """The Job's name is derived from its folder."""
    assert launch(*workplace.arguments).status == 0
    (record,) = workplace.results.rglob("*_job.json")
    values = json.loads(record.read_text())
    from nemo_launcher.clusters.process import HOST

    record.write_text(json.dumps(values | {"job_id": None, "host": HOST, "process": [2**22, "another boot:1"]}))
    (job,) = jobs_of(console, workplace)
    assert (job["state"], job["job_id"]) == ("pending", next(iter(cluster.jobs())))
