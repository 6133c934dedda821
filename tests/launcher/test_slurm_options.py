# SPDX-License-Identifier: Apache-2.0
"""Options of Slurm's scripts: ranks, GPUs, what sites need, dependencies."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from nemo_launcher.clusters.slurm.sbatch_options import OPTIONS, OWN, normal
from nemo_launcher.clusters.slurm.section import SlurmSection
from tests.launcher.scripts import lines_of
from tests.workplace import Launch, Workplace


@pytest.mark.integration
def test_srun_tells_each_task_its_rank(launch: Launch, workplace: Workplace, slurm: Path):
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    workplace.stub("train.py", f"import os\nprint(*(os.environ[name] for name in {names}))\n")
    devices = ["adapter_learning.trainer.devices=2", "adapter_learning.trainer.accelerator=gpu"]
    launch(*workplace.arguments, *devices)
    script = workplace.results / "gpt3_5b" / "adapter_learning_squad" / "squad_gpt3_5b_submission.sh"
    job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    environment = {**os.environ, **job, "TRACE": str(workplace.root / "srun")}
    answer = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["0 0 2 node1 15007", "1 1 2 node1 15007"]
    assert "--gpu-bind=none" in (workplace.root / "srun").read_text()


@pytest.mark.unit
def test_no_gpu_options_for_a_job_on_cpus(launch: Launch, workplace: Workplace, slurm: Path):
    launch(*workplace.arguments, "cluster.overcommit=False")
    script = (workplace.results / "gpt3_5b/adapter_learning_squad/squad_gpt3_5b_submission.sh").read_text()
    assert not [word for word in script.split() if word.startswith("--gpu")]
    assert "overcommit" not in script


@pytest.mark.unit
def test_known_keys_that_no_file_sets_need_no_plus(launch: Launch, workplace: Workplace, slurm: Path):
    keys = ["cluster.qos=high", "env_vars.MINE=1", "adapter_learning.trainer.limit_val_batches=2"]
    result = launch(*workplace.arguments, *keys)
    assert result.status == 0, result.err
    folder = workplace.results / "gpt3_5b/adapter_learning_squad"
    script = lines_of(folder, "squad_gpt3_5b")
    assert "#SBATCH --qos=high" in script
    assert "export MINE=1" in script
    config = yaml.safe_load((folder / "squad_gpt3_5b_hydra.yaml").read_text())
    assert config["trainer"]["limit_val_batches"] == 2
    assert (folder / "launcher_cmd.log").read_text().endswith("limit_val_batches=2\n")


@pytest.mark.unit
def test_options_that_sites_need(launch: Launch, workplace: Workplace, slurm: Path):
    result = launch(
        *workplace.arguments,
        "cluster.reservation=maintenance",
        "cluster.constraint='a100&nvlink'",
        "cluster.cpus_per_task=4",
        "cluster.comment='it is mine'",
        "cluster.setup=['module load cuda', 'export A=\"1 2\"']",
        "cluster.additional_parameters={switches: 1, no_kill: True, nice: null}",
        "cluster.additional_parameters.wckey=team",
    )
    assert result.status == 0, result.err
    script = lines_of(workplace.results / "gpt3_5b/adapter_learning_squad", "squad_gpt3_5b")
    options = ["reservation=maintenance", "constraint='a100&nvlink'", "cpus-per-task=4", "comment='it is mine'"]
    options += ["switches=1", "no-kill", "wckey=team"]
    assert {f"#SBATCH --{option}" for option in options} <= set(script)
    assert "nice" not in "".join(script)
    srun = next(i for i, line in enumerate(script) if line.startswith("srun "))
    assert script[srun - 2 : srun] == ["module load cuda", 'export A="1 2"']
    assert "--cpus-per-task=4" in script[srun]


@pytest.mark.unit
def test_every_parameter_of_submitit_has_a_place():
    """Each of submitit's Slurm parameters is a key, an additional parameter, or set by the launcher."""
    from submitit import SlurmExecutor

    # submitit's own, and those with other names
    own = {"array-parallelism", "num-gpus", "signal-delay-s", "stderr-to-stdout", "teardown", "use-srun"}
    known = {normal(key) for key in SlurmSection.__dataclass_fields__} | OPTIONS | set(OWN)
    assert {normal(name) for name in SlurmExecutor._valid_parameters()} - known == own


@pytest.mark.integration
@pytest.mark.parametrize(
    ("setting", "after"),
    [
        ("dependency=afterok", "--dependency=afterok:101,singleton"),
        ("dependency=afterany", "--dependency=afterany:101,singleton"),
        ("evaluation.run.dependency=afterany", "--dependency=afterany:101"),
        ("evaluation.run.dependency='afterok:7:8,singleton'", "--dependency=afterok:101,afterok:7:8,singleton"),
        ("dependency=singleton", "--job-name=nemo-megatron-squad_gpt3_5b-FOLDER --dependency=singleton"),
    ],
)
def test_how_a_stage_follows(setting: str, after: str, launch: Launch, workplace: Workplace, slurm: Path):
    evaluation = [f"evaluation.language_model_path={workplace.base_model}"]
    result = launch(*workplace.arguments, *evaluation, "stages=adapter_learning,evaluation", setting)
    assert result.status == 0, result.err
    scoring = slurm.read_text().splitlines()[1]
    # a name that is unique to the folder
    scoring = re.sub(r"(--job-name=\S+)-[0-9a-f]{8} ", r"\1-FOLDER ", scoring)
    assert scoring.startswith(f"--parsable {after} {workplace.results}")
