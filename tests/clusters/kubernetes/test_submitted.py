# SPDX-License-Identifier: Apache-2.0
"""What is submitted to Kubernetes, and signals to its pods."""

from __future__ import annotations

import json
import signal

import pytest

from tests.clusters.fake_kubernetes import FakeKubernetes
from tests.clusters.kubernetes.seen import log_of, states, training_of
from tests.workplace import MAKE_ADAPTER, Launch, Workplace

pytestmark = pytest.mark.integration

SHOW_RANKS = """
import os
shown = [os.environ[n] for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
sys.stdout.write("rank " + " ".join(shown) + "\\n")
(path.parent / f"here-{shown[0]}").touch()
while len(list(path.parent.glob("here-*"))) < int(shown[2]):  # as training waits for all ranks
    os.sched_yield()
"""


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
