# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes for the tests, and a chain of two stages on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.fake_kubernetes import FakeKubernetes, install
from tests.clusters.kubernetes.seen import PREDICT
from tests.workplace import REPOSITORY, Launch, Workplace


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
