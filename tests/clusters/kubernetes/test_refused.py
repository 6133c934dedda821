# SPDX-License-Identifier: Apache-2.0
"""What a launch on Kubernetes refuses, and text that stays text."""

from __future__ import annotations

import pytest

from nemo_launcher import __version__
from nemo_launcher.clusters.kubernetes.manifest import _literal
from tests.clusters.fake_kubernetes import FakeKubernetes, expanded
from tests.clusters.kubernetes.seen import log_of, training_of
from tests.workplace import MAKE_ADAPTER, Launch, Workplace

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["container=null"], "container (command line): k8s needs a container image"),
        (["cluster.volumes=[]"], "which is in no volume of the pods"),
        (["cluster.volumes=[]"], "cluster.volumes=[{mount_path:"),
        (["cluster.volumes=[{mount_path: /, pvc: a, host_path: /}]"], "exactly one of pvc, host_path and nfs_server"),
        (["cluster.volumes=[{pvc: a}]"], "cluster.volumes.0.mount_path (command line): must be an absolute path"),
        (["cluster.volumes=[{mount_path: /, pvc: a, sub_path: ../b}]"], "leads out of the volume"),
        (["cluster.volumes=[{mount_path: /, pvc: A_B}]"], "is not an object name"),
        (["cluster.namespace=Team"], "is not a name of lower-case letters"),
        (["cluster.env_from_secrets=[{name: A, secret: b}]"], "lacks key"),
        (["cluster.env_from_secrets=[{name: 'A B', secret: b, key: c}]"], "is not the name of a variable"),
        (["++cluster.node_selector={a@b: c}"], "is not a valid label name"),
        (["cluster.memory=lots"], "is not an amount"),
        (["cluster.restart_policy=OnFailure"], "cluster.backoff_limit=0 ends the Job at the first failure"),
        (["adapter_learning.run.dependency=afterok:12"], "afterok:12 exists only in Slurm"),
        (["cluster.namespace=elsewhere"], 'namespaces "elsewhere" not found'),
        (["cluster=bcm"], "has the options of Slurm, but cluster_type is k8s"),
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
    assert "is not on the PATH" in launch(*workplace.arguments).err
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
    assert f"{image!r} is not the name of a registry image" in result.err


@pytest.mark.parametrize("image", ["nemo", "nvcr.io/nvidia/nemo:24.05", f"localhost:5000/a/b_c:1@sha256:{'0' * 64}"])
def test_an_image(launch: Launch, workplace: Workplace, cluster: FakeKubernetes, image: str) -> None:
    result = launch(*workplace.arguments, f"container='{image}'", "debug=True")
    assert (result.status, "name of a registry image" in result.err) == (0, False)


def test_an_image_without_the_package_says_what_it_must_hold(
    launch: Launch, workplace: Workplace, cluster: FakeKubernetes, console: Launch
) -> None:
    assert launch(*workplace.arguments).status == 0
    (name,) = cluster.jobs()
    (workplace.scripts / "train.py").unlink()
    assert cluster.run(name) == [2]
    needed = f"{workplace.scripts}/train.py is not in this pod: the image must hold nemo-adapter-launcher {__version__}"
    assert needed in log_of(training_of(workplace))
