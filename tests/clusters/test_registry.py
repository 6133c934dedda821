# SPDX-License-Identifier: Apache-2.0
"""Only a cluster's own folder depends on its kind; everything else goes through the registry."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from nemo_launcher.clusters import CLUSTERS, register, registry
from nemo_launcher.launcher.compose import cluster_file
from tests.workplace import REPOSITORY

pytestmark = pytest.mark.unit

PACKAGE = REPOSITORY / "nemo_launcher"


def asks_which_cluster(path: Path) -> list[str]:
    """Return the places in a source file where a type of cluster occurs as a value."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in CLUSTERS
    ]


def test_nothing_outside_asks_which_cluster_it_is() -> None:
    outside = [path for path in PACKAGE.rglob("*.py") if "clusters" not in path.relative_to(PACKAGE).parts]
    assert len(outside) > 100
    assert [place for path in outside for place in asks_which_cluster(path)] == []
    assert asks_which_cluster(PACKAGE / "clusters" / "slurm" / "cluster.py")  # the search does find it there


def test_no_cluster_knows_another() -> None:
    folders = {path.parent.name for path in (PACKAGE / "clusters").glob("*/cluster.py")}
    assert len(folders) == len(CLUSTERS)
    for folder in folders:
        others = [f"nemo_launcher.clusters.{other}" for other in folders - {folder, "interactive"}]
        for path in (PACKAGE / "clusters" / folder).glob("*.py"):
            assert [name for name in others if name in path.read_text(encoding="utf-8")] == [], path


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        register(CLUSTERS["interactive"])


def test_words_of_other_programs() -> None:
    words = {"Slurm": "bcm", "sbatch": "bcm", "local": "interactive", "ngc": "bcp", "Kubernetes": "k8s", "pbs": None}
    assert {word: registry.meant_by(word) for word in words} == words


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        (["cluster_type=k8s"], ["cluster=k8s"]),
        (["cluster_type=k8s", "cluster=mine"], []),
        (["cluster_type=bcm"], []),  # the default file, or the user's own
        (["cluster_type=interactive"], []),
        (["cluster_type=bcm", "cluster_type=k8s"], ["cluster=k8s"]),
        ([], []),
    ],
)
def test_the_type_chooses_its_file(arguments: list[str], chosen: list[str]) -> None:
    assert cluster_file(arguments) == chosen
