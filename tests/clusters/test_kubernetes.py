# SPDX-License-Identifier: Apache-2.0
"""Jobs on Kubernetes: submission, states, and chains of stages in the pods of one Job."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher import __version__
from nemo_launcher.clusters.kubernetes.manifest import _literal
from tests.clusters.fake_kubernetes import FakeKubernetes, expanded, install
from tests.workplace import MAKE_ADAPTER, REPOSITORY, Result, Workplace

pytestmark = pytest.mark.integration

Launch = Callable[..., Result]
SHOW_RANKS = """
import os
shown = [os.environ[n] for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
sys.stdout.write("rank " + " ".join(shown) + "\\n")
(path.parent / f"here-{shown[0]}").touch()
while len(list(path.parent.glob("here-*"))) < int(shown[2]):  # as training waits for all ranks
    os.sched_yield()
"""
PREDICT = "pathlib.Path(config['pred_file_path']).write_text('x')\nprint('evaluated')\n"


@pytest.fixture
def cluster(workplace: Workplace, plain_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubernetes:
    """A Kubernetes whose pods can access the workplace."""
    fake = install(workplace.root / "kubernetes", workplace.root / "bin")
    monkeypatch.setenv("PATH", f"{workplace.root}/bin:{plain_path}")
    scripts = REPOSITORY / "launcher_scripts"
    (workplace.scripts / "start_ranks.py").write_text((scripts / "start_ranks.py").read_text())
    workplace.arguments += [
        *("cluster_type=k8s", "container=registry/image:1", f"data_dir={workplace.root}/data"),
        f"cluster.volumes=[{{mount_path: {workplace.root}, pvc: team-data}}]",
    ]
    return fake


@pytest.fixture
def chain(workplace: Workplace, launch: Launch, cluster: FakeKubernetes) -> Launch:
    """Launch a training and its evaluation."""
    workplace.stub("evaluate.py", PREDICT)
    more = [
        "stages=[adapter_learning,evaluation]",
        "evaluation.trainer.accelerator=cpu",
        "evaluation.trainer.devices=1",
    ]
    more += [f"evaluation.language_model_path={workplace.base_model}"]
    more += [f"evaluation.pred_file_path={workplace.root}/predictions.txt"]
    return lambda *arguments: launch(*workplace.arguments, *more, *arguments)


def jobs_of(console: Launch, workplace: Workplace) -> list[dict[str, Any]]:
    return json.loads(console("status", workplace.results, "--json").out)["jobs"]


def states(console: Launch, workplace: Workplace) -> list[str]:
    return [job["state"] for job in jobs_of(console, workplace)]


def training_of(workplace: Workplace) -> Path:
    return workplace.results / "gpt3_5b/adapter_learning_squad"


def log_of(folder: Path, suffix: str = "") -> str:
    (log,) = folder.glob(f"log-*_{'?' * 8}{suffix}.out")
    return log.read_text()


# --- what is submitted ----------------------------------------------------------------------------------------------


def test_a_job_of_two_nodes(launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch) -> None:
    """Every rank of both pods runs, and all connect to the pod with index 0."""
    workplace.stub("train.py", MAKE_ADAPTER + SHOW_RANKS)
    nodes = ["adapter_learning.trainer.num_nodes=2", "adapter_learning.trainer.devices=2"]
    result = launch(*workplace.arguments, *nodes, "cluster.namespace=team")
    assert result.status == 0, result.err
    ((name, job),) = cluster.jobs("team").items()
    assert f"adapter_learning: submitted as job {name}, script " in result.out
    assert cluster.services("team") == [name]
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    assert states(console, workplace) == ["pending"]
    assert cluster.run(name, namespace="team") == [0, 0]
    assert states(console, workplace) == ["completed"]
    lines = log_of(training_of(workplace)) + log_of(training_of(workplace), "-1")
    ranks = sorted(line.split()[1:] for line in lines.splitlines() if line.startswith("rank"))
    first = f"{name}-0.{name}"
    assert ranks == [[str(rank), str(rank % 2), "4", first, "29500"] for rank in range(4)]


def test_gpus_secrets_and_all_other_keys(launch: Launch, workplace: Workplace, cluster: FakeKubernetes) -> None:
    keys = [
        "cluster.env_from_secrets=[{name: WANDB_API_KEY, secret: wandb, key: api-key}]",
        *("cluster.image_pull_secrets=[login]", "cluster.image_pull_policy=Always", "cluster.cpus=8"),
        *("cluster.memory=64Gi", "cluster.shared_memory=16Gi", "cluster.gpu_resource=amd.com/gpu"),
        *("++cluster.node_selector={pool: a100}", "cluster.service_account=trainer", "cluster.priority_class=high"),
        "cluster.tolerations=[{key: gpu, operator: Equal, value: a100, effect: NoExecute, toleration_seconds: 60}]",
        *("cluster.run_as_user=1000", "cluster.run_as_group=100", "cluster.ttl_seconds_after_finished=86400"),
        *("cluster.termination_grace_seconds=300", "cluster.backoff_limit=2", "cluster.job_name_prefix=nemo-"),
        *("adapter_learning.trainer.accelerator=gpu", "adapter_learning.trainer.devices=8"),
        "adapter_learning.run.time_limit='04:00:30'",
    ]
    volumes = f"{{mount_path: {workplace.root}, nfs_server: nfs.local, nfs_path: /export, sub_path: mine}}"
    host = "{mount_path: /fast, host_path: /mnt/fast, read_only: True}"
    result = launch(*workplace.arguments, *keys, f"cluster.volumes=[{volumes},{host}]")
    assert result.status == 0, result.err
    ((name, job),) = cluster.jobs().items()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert name.startswith("nemo-squad-gpt3-5b-")
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (4 * 3600 + 30, 2)
    assert spec["ttlSecondsAfterFinished"] == 86400
    assert container["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi"},
        "limits": {"memory": "64Gi", "amd.com/gpu": 8},
    }
    secret = {"name": "wandb", "key": "api-key"}
    assert {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": secret}} in container["env"]
    assert (pod["imagePullSecrets"], container["imagePullPolicy"]) == ([{"name": "login"}], "Always")
    assert (pod["nodeSelector"], pod["serviceAccountName"]) == ({"pool": "a100"}, "trainer")
    assert (pod["priorityClassName"], pod["terminationGracePeriodSeconds"]) == ("high", 300)
    assert pod["securityContext"] == {"runAsUser": 1000, "runAsGroup": 100}
    toleration = {"key": "gpu", "operator": "Equal", "value": "a100", "effect": "NoExecute", "tolerationSeconds": 60}
    assert pod["tolerations"] == [toleration]
    nfs, fast, shared = pod["volumes"]
    assert nfs["nfs"] == {"server": "nfs.local", "path": "/export", "readOnly": False}
    assert fast["hostPath"] == {"path": "/mnt/fast", "type": "Directory"}
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    mounts = [(mount["mountPath"], mount.get("subPath"), mount.get("readOnly")) for mount in container["volumeMounts"]]
    assert mounts == [(str(workplace.root), "mine", None), ("/fast", None, True), ("/dev/shm", None, None)]


def test_manifests_fit_the_schemas_of_kubernetes(chain: Launch, workplace: Workplace) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    keys = ["adapter_learning.run.time_limit='04:00:00'", "evaluation.run.time_limit='01:00:00'"]
    keys += ["cluster.env_from_secrets=[{name: A, secret: b, key: c}]", "++cluster.node_selector={pool: a100}"]
    keys += ["cluster.tolerations=[{operator: Exists}]", "cluster.cpus=500m", "cluster.memory=8Gi"]
    assert chain(*keys).status == 0
    files = sorted(workplace.results.rglob("*_k8s*.json"))
    assert len(files) == 3
    for path in files:
        kinds = []
        for item in json.loads(path.read_text())["items"]:
            for version in ("1.31", "1.37"):
                validator.validate(item, version, strict=True)
            kinds.append(item["kind"])
        assert kinds == ["Service", "Job"]


def test_names_are_labels_and_differ(launch: Launch, workplace: Workplace, cluster: FakeKubernetes) -> None:
    names = ["'1'", "'Ünïcode $(id) name'", "x" * 150, "'--help'", "'_._'"]
    for number, name in enumerate(names):
        folder = f"adapter_learning.run.results_dir={workplace.results}/{number}"
        result = launch(*workplace.arguments, f"adapter_learning.run.name={name}", folder)
        assert (result.status == 0) or name == "'--help'", result.err
    assert len(cluster.jobs()) == len(names) - 1
    assert len({name[-8:] for name in cluster.jobs()}) == len(names) - 1


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["container=null"], "container (command line): k8s needs the image"),
        (["cluster.volumes=[]"], "which is in no volume of the pods"),
        (["cluster.volumes=[]"], "cluster.volumes=[{mount_path:"),
        (["cluster.volumes=[{mount_path: /, pvc: a, host_path: /}]"], "exactly one of pvc, host_path and nfs_server"),
        (["cluster.volumes=[{pvc: a}]"], "cluster.volumes.0.mount_path (command line): must be an absolute path"),
        (["cluster.volumes=[{mount_path: /, pvc: a, sub_path: ../b}]"], "leads out of the volume"),
        (["cluster.volumes=[{mount_path: /, pvc: A_B}]"], "is not the name of an object"),
        (["cluster.namespace=Team"], "is not a name of small letters"),
        (["cluster.env_from_secrets=[{name: A, secret: b}]"], "has no key"),
        (["cluster.env_from_secrets=[{name: 'A B', secret: b, key: c}]"], "is not the name of a variable"),
        (["++cluster.node_selector={a@b: c}"], "is not the name of a label"),
        (["cluster.memory=lots"], "is not an amount"),
        (["cluster.restart_policy=OnFailure"], "cluster.backoff_limit=0 ends the Job at the first failure"),
        (["adapter_learning.run.dependency=afterok:12"], "afterok:12 is Slurm's"),
        (["cluster.namespace=elsewhere"], 'namespaces "elsewhere" not found'),
        (["cluster=bcm"], "holds the options of Slurm, but cluster_type is k8s"),
        (["cluster.partition=a"], "cluster.partition"),
    ],
)
def test_a_wrong_value_is_told_and_nothing_is_written(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, arguments: list[str], expected: str
) -> None:
    result = launch(*workplace.arguments, *arguments)
    assert result.status == 2
    assert expected in result.err
    assert not workplace.results.exists()
    assert cluster.jobs() == {}


def test_without_kubectl(launch: Launch, workplace: Workplace, cluster: FakeKubernetes) -> None:
    (workplace.root / "bin/kubectl").unlink()
    assert "there is none on the PATH" in launch(*workplace.arguments).err
    assert launch(*workplace.arguments, "debug=True").status == 0


def test_no_text_of_a_value_leaves_its_place(launch: Launch, workplace: Workplace, cluster: FakeKubernetes) -> None:
    """Quotes, braces, dollars and colons in keys and environment stay text in the pod, and add no line."""
    odd = 'it\'s "$(touch /tmp/pwned)" `id` ${HOME} {a: b} # c'
    escaped = odd.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    mount = str(workplace.root)
    volumes = f"cluster.volumes=[{{mount_path: '{mount}', nfs_server: '{escaped}', nfs_path: /x}}]"
    workplace.stub("train.py", MAKE_ADAPTER + "import os\nprint('<' + os.environ['ODD'] + '>')\n")
    folder = f"adapter_learning.run.results_dir='{workplace.results}/$(A) b'"
    result = launch(*workplace.arguments, volumes, f"container='{escaped}'", f"env_vars.ODD='{escaped}'", folder)
    assert result.status == 0, result.err
    ((name, job),) = cluster.jobs().items()
    pod = job["spec"]["template"]["spec"]
    assert pod["volumes"][0]["nfs"]["server"] == odd
    assert pod["containers"][0]["image"] == odd
    assert "$$(A) b/" in pod["containers"][0]["command"][1]  # Kubernetes passes it on as $(A)
    assert cluster.run(name) == [0]
    assert f"<{odd}>" in log_of(workplace.results / "$(A) b")
    broken = launch(*workplace.arguments, 'cluster.volumes=[{mount_path: /, nfs_server: "a\nb"}]')
    assert "has a line break" in broken.err


@pytest.mark.parametrize("text", ["$(A)", "$$(A)", "a$$b", "$", "$A $$$(A) $(B"])
def test_a_dollar_stays_one(text: str) -> None:
    assert expanded(_literal(text), {"A": "wrong"}) == text


@pytest.mark.parametrize(
    "image", ["docker://nvcr.io/nvidia/nemo:24.05", "nvcr.io#nvidia/nemo", "/images/nemo.sqsh", "NeMo"]
)
def test_an_image_for_another_kind_of_cluster(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, image: str
) -> None:
    result = launch(*workplace.arguments, f"container='{image}'", "debug=True")
    assert f"{image!r} is not the name of an image of a registry" in result.err


@pytest.mark.parametrize("image", ["nemo", "nvcr.io/nvidia/nemo:24.05", f"localhost:5000/a/b_c:1@sha256:{'0' * 64}"])
def test_an_image(launch: Launch, workplace: Workplace, cluster: FakeKubernetes, image: str) -> None:
    result = launch(*workplace.arguments, f"container='{image}'", "debug=True")
    assert (result.status, "name of an image" in result.err) == (0, False)


def test_an_image_without_the_package_says_what_it_must_hold(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch
) -> None:
    assert launch(*workplace.arguments).status == 0
    (name,) = cluster.jobs()
    (workplace.scripts / "train.py").unlink()
    assert cluster.run(name) == [2]
    needed = f"{workplace.scripts}/train.py is not in this pod: the image must hold nemo-adapter-launcher {__version__}"
    assert needed in log_of(training_of(workplace))


# --- chains ---------------------------------------------------------------------------------------------------------


def test_a_chain_is_one_job(chain: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch) -> None:
    workplace.stub("train.py", MAKE_ADAPTER)
    result = chain()
    assert result.status == 0, result.err
    ((name, job),) = cluster.jobs().items()
    pod = job["spec"]["template"]["spec"]
    assert [c["name"] for c in (*pod["initContainers"], *pod["containers"])] == ["adapter-learning", "evaluation"]
    training, evaluation = jobs_of(console, workplace)
    assert (training["job_id"], evaluation["job_id"]) == (name, name)
    assert (evaluation["state"], evaluation["reason"]) == ("pending", "waits for the stage before")
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
    assert "a Job of Kubernetes does not wait for another" in refused.err


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_pod_reaches_every_rank(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, number: signal.Signals
) -> None:
    code = f"""
import os, signal, time
def save(*_):
    sys.stdout.write(f"saved {{os.environ['RANK']}}\\n")
    sys.exit(75)
signal.signal(signal.{number.name}, save)
sys.stdout.write("waits\\n")
while True: signal.pause()
"""
    workplace.stub("train.py", code)
    assert launch(*workplace.arguments, "adapter_learning.trainer.devices=2").status == 0
    ((_, job),) = cluster.jobs().items()
    process = cluster.start_container(job["spec"]["template"]["spec"]["containers"][0], 0)
    assert process.stdout is not None
    waiting = 0
    for line in process.stdout:
        waiting += line.startswith("waits")
        if waiting == 2:
            break
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert sorted(line for line in rest.splitlines() if line.startswith("saved")) == ["saved 0", "saved 1"]
    assert rest.splitlines()[-1].endswith("exit status 75")
    assert "saved 1" in log_of(training_of(workplace))
    assert (training_of(workplace) / "squad_gpt3_5b_exit_status").read_text() == "75\n"


# --- states, logs and cancelling ------------------------------------------------------------------------------------

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
        ({"active": 1, "failed": 1}, [{"phase": "Pending"}], ("requeued", "goes on from its checkpoint in a new pod")),
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
    assert "Kubernetes did not answer: this is what the job folders say" in silent.err
    assert json.loads(console("status", workplace.results, "--json").out)["slurm_answers"] is False
    assert "try again when kubectl answers" in console("rerun", training_of(workplace)).err
    (cluster.state / "down").unlink()
    (cluster.state / "default/job" / f"{name}.json").unlink()
    (job,) = jobs_of(console, workplace)
    assert (job["state"], job["reason"]) == ("unknown", "Kubernetes has forgotten it")


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
