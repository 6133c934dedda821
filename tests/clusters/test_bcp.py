# SPDX-License-Identifier: Apache-2.0
"""Launches in a Base Command Platform job: its nodes, and the replica that launches."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.workplace import MAKE_ADAPTER, Result, Workplace

pytestmark = pytest.mark.unit

Launch = Callable[..., Result]
NODES = "adapter_learning.trainer.num_nodes=2"


@pytest.fixture
def bcp(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A job with a bcprun that runs its command once and records its arguments."""
    bcprun = workplace.root / "bin" / "bcprun"
    bcprun.parent.mkdir()
    bcprun.write_text(f'#!/bin/bash\necho "$@" >> {workplace.root}/trace\neval "${{@: -1}}"\n')
    bcprun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bcprun.parent}:/usr/bin:/bin")
    workplace.arguments += ["cluster_type=bcp", f"data_dir={workplace.root}/data"]
    return workplace


def test_more_nodes_than_the_job_has(launch: Launch, bcp: Workplace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NGC_ARRAY_SIZE", "1")
    result = launch(*bcp.arguments, NODES)
    assert result.status == 2
    assert "num_nodes (command line): 2 nodes, but this BCP job has 1 (NGC_ARRAY_SIZE)" in result.err
    assert "--replicas 2" in result.err
    assert not bcp.results.exists()


def test_more_devices_than_a_node_has(launch: Launch, bcp: Workplace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NGC_GPUS_PER_NODE", "4")
    devices = ["adapter_learning.trainer.devices=8", "adapter_learning.trainer.accelerator=gpu"]
    result = launch(*bcp.arguments, *devices)
    assert result.status == 2
    assert "8 devices, but a node of this BCP job has 4 GPUs (NGC_GPUS_PER_NODE)" in result.err


def test_fewer_nodes_than_the_job_has(launch: Launch, bcp: Workplace, monkeypatch: pytest.MonkeyPatch):
    """The documented commands use one node and must work in a multi-node job."""
    monkeypatch.setenv("NGC_ARRAY_SIZE", "4")
    result = launch(*bcp.arguments, NODES)
    assert result.status == 0, result.err
    assert "uses 2 of the 4 nodes of this BCP job" in result.err
    assert (bcp.root / "trace").read_text().startswith("--nnodes 2 --npernode 1 -no_redirect ")


def test_as_many_nodes_as_the_job_has(launch: Launch, bcp: Workplace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NGC_ARRAY_SIZE", "2")
    result = launch(*bcp.arguments, NODES)
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize("name", ["NGC_REPLICA_ID", "NGC_ARRAY_INDEX"])
def test_only_the_first_replica_launches(launch: Launch, bcp: Workplace, monkeypatch, prepared: list, name: str):
    monkeypatch.setenv("NGC_ARRAY_SIZE", "2")
    monkeypatch.setenv(name, "1")
    second = launch(*bcp.arguments, NODES)
    assert (second.status, second.out) == (0, "replica 1 of this BCP job: nothing to do, replica 0 launches\n")
    assert not bcp.results.exists()
    assert prepared == []
    monkeypatch.setenv(name, "0")
    assert launch(*bcp.arguments, NODES).status == 0
    assert (bcp.root / "trace").exists()


def test_outside_of_a_job(launch: Launch, bcp: Workplace):
    (bcp.root / "bin" / "bcprun").unlink()
    result = launch(*bcp.arguments)
    assert result.status == 2
    assert "is not on the PATH" in result.err
    assert launch(*bcp.arguments, "debug=True").status == 0


def test_variables_reach_the_ranks_whatever_is_in_them(launch: Launch, bcp: Workplace):
    bcp.stub("train.py", MAKE_ADAPTER + "import os\nprint('<' + os.environ['GREETING'] + '>')\n")
    result = launch(*bcp.arguments, "env_vars.GREETING='it''s $HOME; \"x\" `id`'".replace("''", "\\'"))
    assert result.status == 0, result.err
    assert '<it\'s $HOME; "x" `id`>' in result.out
    assert "`id`" not in (bcp.root / "trace").read_text()  # visible in every process list
    (written,) = bcp.results.rglob("*_env.sh")
    assert written.stat().st_mode & 0o077 == 0
