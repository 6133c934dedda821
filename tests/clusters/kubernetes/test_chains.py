# SPDX-License-Identifier: Apache-2.0
"""How a chain of stages runs in the pods of one Job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.clusters.fake_kubernetes import FakeKubernetes
from tests.clusters.kubernetes.seen import PREDICT, jobs_of, log_of, states, training_of
from tests.workplace import MAKE_ADAPTER, Launch, Workplace

pytestmark = pytest.mark.integration


def test_a_chain_is_one_job(chain: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch) -> None:
    workplace.stub("train.py", MAKE_ADAPTER)
    result = chain()
    assert result.status == 0, result.err
    ((name, job),) = cluster.jobs().items()
    pod = job["spec"]["template"]["spec"]
    assert [c["name"] for c in (*pod["initContainers"], *pod["containers"])] == ["adapter-learning", "evaluation"]
    training, evaluation = jobs_of(console, workplace)
    assert (training["job_id"], evaluation["job_id"]) == (name, name)
    assert (evaluation["state"], evaluation["reason"]) == ("pending", "waits for previous stage")
    assert cluster.run(name) == [0, 0]
    assert states(console, workplace) == ["completed", "completed"]
    again = chain()
    assert again.out.count("skipped") == 2


@pytest.mark.parametrize("edge", ["afterok", "afterany"])
def test_other_pods_wait_for_the_first_one_to_end_a_stage(
    chain: Launch, workplace: Workplace, cluster: FakeKubernetes, edge: str
) -> None:
    """Each pod runs the stages by itself, and what the stage before leaves is complete when its first pod has ended."""
    early = workplace.root / "early"
    slow = f"""
import os, time
until = time.monotonic() + 3
while os.environ["RANK"] == "0" and time.monotonic() < until and not pathlib.Path('{early}').exists():
    os.sched_yield()
"""
    workplace.stub("train.py", slow + MAKE_ADAPTER)
    status = training_of(workplace) / "squad_gpt3_5b_exit_status"
    told = f"if not pathlib.Path('{status}').exists(): pathlib.Path('{early}').touch()\n"
    workplace.stub("evaluate.py", told + PREDICT)
    nodes = [f"{stage}.trainer.num_nodes=2" for stage in ("adapter_learning", "evaluation")]
    assert chain(*nodes, f"dependency={edge}").status == 0
    (name,) = cluster.jobs()
    assert cluster.run(name) == [0, 0, 0, 0]
    assert not early.exists()


def test_a_job_of_the_same_name_is_not_replaced(launch: Launch, workplace: Workplace, cluster: FakeKubernetes) -> None:
    """As of a folder with the same path on another volume."""
    assert launch(*workplace.arguments).status == 0
    (name,) = cluster.jobs()
    shutil.rmtree(training_of(workplace))
    refused = launch(*workplace.arguments)
    assert refused.status == 1
    assert f"a Job {name} that is not known in this folder waits or runs in namespace default" in refused.err
    assert len(cluster.calls("delete")) == 1  # of the first launch
    cluster.set(name, {"conditions": [{"type": "Failed", "status": "True"}]}, {"phase": "Running"})
    ending = launch(*workplace.arguments)
    assert ending.status == 1
    assert "still end, and may save a checkpoint" in ending.err
    cluster.condition(name, "Failed")
    assert launch(*workplace.arguments).status == 0


@pytest.mark.parametrize(
    ("edge", "ran", "expected"), [("afterok", [4], "not started"), ("afterany", [0, 0], "completed")]
)
def test_a_failed_stage(
    chain: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch, edge: str, ran: list[int],
    expected: str,
) -> None:  # fmt: skip
    """afterok ends the Job; afterany runs the next stage, and the failure is still reported."""
    workplace.stub("train.py", MAKE_ADAPTER + "sys.exit(4)")
    assert chain(f"dependency={edge}").status == 0
    (name,) = cluster.jobs()
    assert cluster.run(name) == ran
    training, evaluation = jobs_of(console, workplace)
    assert (training["state"], training["reason"]) == ("failed", "exit status 4")
    assert evaluation["state"] == expected
    rerun = console("rerun", Path(evaluation["folder"]))
    assert (rerun.status == 2) == (edge == "afterok")


def test_a_stopped_training_goes_on_in_a_new_pod(
    chain: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch
) -> None:
    """It stops with a checkpoint; completed stages are not run again."""
    gate = workplace.root / "gate"
    once = f"gate = pathlib.Path('{gate}')\n" + MAKE_ADAPTER + "if not gate.exists():\n gate.touch()\n sys.exit(75)\n"
    workplace.stub("train.py", once)
    predicted = workplace.root / "evaluations"
    stop = f"path = pathlib.Path('{predicted}')\nwith path.open('a') as f: f.write('x')\n"
    workplace.stub("evaluate.py", PREDICT + stop + "sys.exit(75 if path.read_text() == 'x' else 0)")
    assert chain().status == 0
    (name,) = cluster.jobs()
    assert cluster.run(name) == [75, 0, 75, 0, 0]
    assert states(console, workplace) == ["completed", "completed"]
    assert log_of(training_of(workplace)).count("trained") == 2  # not run a third time before the second evaluation


def test_without_requeue_a_stop_is_a_failure(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch
) -> None:
    workplace.stub("train.py", "sys.exit(75)")
    assert launch(*workplace.arguments, "cluster.requeue=False").status == 0
    (name,) = cluster.jobs()
    assert cluster.run(name) == [75]
    assert states(console, workplace) == ["failed"]


def test_a_stage_behind_a_job_that_runs_is_refused(
    chain: Launch, launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch
) -> None:
    """A Job cannot wait for another Job."""
    assert chain().status == 0
    (name,) = cluster.jobs()
    cluster.run(name)
    workplace.stub("train.py", MAKE_ADAPTER)
    assert console("rerun", training_of(workplace)).status == 0
    evaluation = Path(jobs_of(console, workplace)[-1]["folder"])
    if evaluation == training_of(workplace):
        evaluation = Path(jobs_of(console, workplace)[0]["folder"])
    refused = console("rerun", evaluation)
    assert refused.status == 1
    assert "a Kubernetes Job cannot wait for another" in refused.err
